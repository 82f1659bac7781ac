package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/control"
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

// The watchdog's rule: it is fed for as long as the control socket answers, every lock of the role's loops can be had, and no flow hangs.
// A flow hangs when it is at work, its other end is connected, and nothing at all was done for hangsAfter: no read has ended, the gateway
// has told nothing, no byte has arrived, nothing was written, synced, applied or read back. What takes long and is right does not count:
// a gateway that is away, a pause, a cutover left frozen, a flow of a group that waits for another one, a disk that is slow (each read and
// write counts), a large log that is applied, hooks and freezes (their own limits are shorter). After a kill by the watchdog the guardian
// thaws, and the next start goes on from the kernel's bitmaps and the gateway's log: a wrong kill costs seconds.
const hangsAfter = 20 * time.Minute // hooks and freezes end after 10m at the latest

// watchdog feeds systemd's watchdog. The questions are asked in a goroutine of its own, so that what hangs starves the watchdog and
// nothing else.
func watchdog(ctx context.Context, r role, socket string, log *slog.Logger) error {
	period, err := sd.SdWatchdogEnabled(false)
	if err != nil || period <= 0 {
		period = 4 * statusEvery
	}
	d := &dog{role: r, socket: socket, log: log, stalls: mover.Stalls{After: hangsAfter}, limit: period}
	d.well.Store(true)
	ask := make(chan struct{}, 1) // one question; more would only queue behind a loop that hangs
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range ask {
			d.look(ctx)
		}
	}()
	tick := time.NewTicker(min(period/4, statusEvery))
	defer tick.Stop()
	for asked := int64(0); ; {
		select {
		case <-ctx.Done():
			close(ask)
			select {
			case <-done:
			case <-time.After(time.Second): // it hangs; the process ends anyway
			}
			return nil
		case <-tick.C:
			if d.looked.Load() == asked && ctx.Err() == nil {
				if d.well.Load() {
					notify("WATCHDOG=1")
				}
				asked++
				ask <- struct{}{}
			}
		}
	}
}

// dog looks whether the daemon is well.
type dog struct {
	role   role
	socket string
	log    *slog.Logger
	limit  time.Duration // of one answer of the control socket
	stalls mover.Stalls
	said   string

	looked atomic.Int64
	well   atomic.Bool
}

func (d *dog) look(ctx context.Context) {
	why := ""
	asking, cancel := context.WithTimeout(ctx, d.limit)
	client := control.NewClient(d.socket) // a new connection each time: accepting may be what hangs
	if _, err := client.Daemon(asking); err != nil {
		why = "the control socket does not answer: " + err.Error()
	}
	client.Close()
	cancel()
	if flow := d.stalls.Look(time.Now(), d.role.beat()); flow != "" {
		why = fmt.Sprintf("%s hangs: at work, and nothing done for %v", flow, hangsAfter)
	}
	if why != "" && why != d.said && ctx.Err() == nil {
		d.log.Error("the watchdog is not fed any more; systemd will start the daemon anew", "why", why)
	}
	d.said = why
	d.well.Store(why == "")
	notify("STATUS=" + summary(d.role.Status()))
	d.looked.Add(1)
}
