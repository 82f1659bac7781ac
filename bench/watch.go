package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// stretch is when a line carried data, in seconds since the source was started.
type stretch struct{ first, last float64 }

const (
	watchEvery = 10 * time.Millisecond
	watchData  = 64 << 10 // bytes; what is less between two looks is handshakes and keep-alives
)

// watch looks at the bytes that leave a process's end of the line until stop is called.
func watch(pid int, start time.Time) (stop func() stretch) {
	quit, done := make(chan struct{}), make(chan stretch)
	go func() {
		var s stretch
		var seen int64
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				done <- s
				return
			case <-tick.C:
			}
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
			if err != nil {
				continue
			}
			sent, ok := sentOf(string(b), lineDevice)
			if !ok || sent-seen < watchData {
				continue // ok is false until the process has entered its namespace
			}
			seen, s.last = sent, time.Since(start).Seconds()
			if s.first == 0 {
				s.first = s.last
			}
		}
	}()
	return func() stretch {
		close(quit)
		return <-done
	}
}

// sentOf is the bytes that a device has sent, from /proc/net/dev.
func sentOf(table, device string) (int64, bool) {
	for line := range strings.Lines(table) {
		name, rest, ok := strings.Cut(line, ":")
		if f := strings.Fields(rest); ok && strings.TrimSpace(name) == device && len(f) > 8 {
			n, err := strconv.ParseInt(f[8], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
