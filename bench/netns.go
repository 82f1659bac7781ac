package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Addresses within a line's two namespaces, from the block that is reserved for benchmarks. They exist nowhere else.
const (
	nearAddr = "198.18.0.1"
	farAddr  = "198.18.0.2"

	gatewayPort = 9465
	delayPort   = 9466
	nbdPort     = 10809
	rsyncPort   = 8730
	pipePort    = 4433

	linePrefix = "mover-bench-"
	lineDevice = "line"
)

// Line is a circuit of a given rate: two network namespaces, the source's (near) and the gateway's (far), joined by a veth pair that tc shapes
// in both directions. Nothing leads from them to any other network.
type Line struct {
	Rate int64 // bytes/s in each direction, all headers included; 0: not limited

	near, far string
}

var lineCount atomic.Int64

// NewLine makes a line. Close removes it; what a killed process left behind is removed by the next NewLine.
func NewLine(ctx context.Context, rate int64) (*Line, error) {
	if err := sweepLines(ctx); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s%d-%d", linePrefix, os.Getpid(), lineCount.Add(1))
	l := &Line{Rate: rate, near: name + "-near", far: name + "-far"}
	steps := [][]string{
		{"ip", "netns", "add", l.near},
		{"ip", "netns", "add", l.far},
		{"ip", "-n", l.near, "link", "add", lineDevice, "type", "veth", "peer", "name", lineDevice, "netns", l.far},
	}
	for ns, addr := range map[string]string{l.near: nearAddr, l.far: farAddr} {
		steps = append(steps,
			[]string{"ip", "-n", ns, "addr", "add", addr + "/30", "dev", lineDevice},
			[]string{"ip", "-n", ns, "link", "set", "lo", "up"},
			[]string{"ip", "-n", ns, "link", "set", lineDevice, "up"},
			append([]string{"tc", "-n", ns, "qdisc", "add", "dev", lineDevice, "root"}, queue(rate)...))
	}
	for _, s := range steps {
		if _, err := Run(ctx, s[0], s[1:]...); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// queue is the queue of one end. An unlimited one has a queue too, for its counters.
func queue(rate int64) []string {
	if rate == 0 {
		return []string{"pfifo", "limit", "10000"}
	}
	// The burst holds what the kernel's clock may be late by, and at least one packet of the largest size that TCP hands over at once.
	burst := max(rate/200, 96<<10)
	return []string{"tbf", "rate", fmt.Sprintf("%dbit", rate*8), "burst", fmt.Sprint(burst), "latency", "50ms"}
}

// Close removes the line; no error when it is gone.
func (l *Line) Close() error {
	var errs []error
	for _, ns := range []string{l.near, l.far} {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			_, err = Run(context.Background(), "ip", "netns", "delete", ns)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepLines removes lines whose process does not live any more, with what still runs there.
func sweepLines(ctx context.Context) error {
	left, err := filepath.Glob("/run/netns/" + linePrefix + "*")
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		name := filepath.Base(path)
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, linePrefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, sweepLine(ctx, name))
		}
	}
	return errors.Join(errs...)
}

// sweepLine ends what runs in a namespace that nobody owns any more, and removes it.
func sweepLine(ctx context.Context, name string) error {
	out, err := Run(ctx, "ip", "netns", "pids", name)
	if err != nil {
		return err
	}
	for _, f := range strings.Fields(out) {
		if pid, err := strconv.Atoi(f); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_, err = Run(ctx, "ip", "netns", "delete", name)
	return err
}

// Near and Far are command lines that run argv at the source's and at the gateway's end. Only the network is another one: mounts, pins
// and processes are the host's. The process is argv's own.
func (l *Line) Near(argv ...string) []string { return inNamespace(l.near, argv) }
func (l *Line) Far(argv ...string) []string  { return inNamespace(l.far, argv) }

func inNamespace(ns string, argv []string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + ns}, argv...)
}

// Traffic is what a queue has let through.
type Traffic struct {
	Bytes   int64 `json:"bytes"` // with the headers of every packet
	Packets int64 `json:"packets"`
	Drops   int64 `json:"drops"`
}

func (t Traffic) less(o Traffic) Traffic {
	return Traffic{t.Bytes - o.Bytes, t.Packets - o.Packets, t.Drops - o.Drops}
}

// Sent is what went from the source to the gateway since the line was made.
func (l *Line) Sent(ctx context.Context) (Traffic, error) {
	out, err := Run(ctx, "tc", "-n", l.near, "-s", "-j", "qdisc", "show", "dev", lineDevice)
	if err != nil {
		return Traffic{}, err
	}
	return rootTraffic([]byte(out))
}

// Meter reads the line's counters within microseconds. Close it.
func (l *Line) Meter() (*Meter, error) {
	type outcome struct {
		m   *Meter
		err error
	}
	done := make(chan outcome)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		m, err := openMeter(l.near)
		done <- outcome{m, err}
	}()
	o := <-done
	return o.m, o.err
}

// rootTraffic reads the counters of the root queue from what tc -s -j qdisc writes.
func rootTraffic(b []byte) (Traffic, error) {
	var all []struct {
		Root bool `json:"root"`
		Traffic
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return Traffic{}, fmt.Errorf("counters of tc: %w", err)
	}
	for _, q := range all {
		if q.Root {
			return q.Traffic, nil
		}
	}
	return Traffic{}, fmt.Errorf("counters of tc: no root queue in %q", b)
}

// awaitListener waits until a process of pid's network listens on a TCP port.
func awaitListener(ctx context.Context, p *Proc, port int) error {
	for range 400 {
		for _, table := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.Pid(), table))
			if err == nil && listens(string(b), port) {
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("process %d ended before it listened on port %d: %w", p.Pid(), port, p.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
	return fmt.Errorf("nobody listens on port %d after 10 s", port)
}

// listens looks for a listening socket in /proc/net/tcp.
func listens(table string, port int) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		_, hex, ok := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); ok && err == nil && int(n) == port {
			return true
		}
	}
	return false
}
