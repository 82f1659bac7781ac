package daemon

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// notify tells systemd. Without systemd it does nothing; an error is of no consequence.
func notify(state string) { _, _ = sd.SdNotify(false, state) }

func ready(all []mover.Status) string { return "READY=1\nSTATUS=" + summary(all) }

// notifyReloading tells systemd that the next READY ends a reload.
func notifyReloading() {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
	}
}

// summary is the line that systemctl status shows.
func summary(all []mover.Status) string {
	var parts []string
	for i, s := range all {
		if i == 4 {
			parts = append(parts, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		text := s.Flow + " " + string(s.State)
		if p := s.Pass; p != nil && p.Total > 0 {
			text += fmt.Sprintf(" %d%%", min(100, p.Acked*100/p.Total))
		}
		if s.Rate >= 1 {
			text += " " + units.Rate(s.Rate)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// statusEvery is how often the line is renewed.
const statusEvery = 5 * time.Second

// watchdog feeds systemd's watchdog for as long as every loop of the role answers. The question is asked in a goroutine of its own, so a
// loop that hangs with its lock held starves the watchdog and nothing else; systemd then kills the daemon, the guardian thaws, and the
// next start goes on from the kernel's bitmaps and the gateway's log.
func watchdog(ctx context.Context, r role) error {
	period, err := sd.SdWatchdogEnabled(false)
	if err != nil || period <= 0 {
		period = 4 * statusEvery
	}
	var asked, answered atomic.Int64
	ask := make(chan struct{}, 1) // one question; more would only queue behind a loop that hangs
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range ask {
			r.beat()
			notify("STATUS=" + summary(r.Status()))
			answered.Store(asked.Load())
		}
	}()
	tick := time.NewTicker(min(period/4, statusEvery))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			close(ask)
			select {
			case <-done:
			case <-time.After(time.Second): // it hangs; the process ends anyway
			}
			return nil
		case <-tick.C:
			if answered.Load() == asked.Load() {
				notify("WATCHDOG=1")
				asked.Add(1)
				ask <- struct{}{}
			}
		}
	}
}
