// Package daemon puts the parts together: it opens what the config names, hands it to the ends of flows, and answers on the control socket.
// It decides nothing about passes, commits or cutovers.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
)

// Roles.
const (
	Source  = "source"
	Gateway = "gateway"
)

// Options of a daemon.
type Options struct {
	Role   string
	File   string         // path of the config, read again by Reload
	Config *config.Config // as read from File
	Level  *slog.LevelVar // of the log, set as the config says; nil: the command line has set it
	Log    *Log
	Reload <-chan os.Signal // SIGHUP; may be nil
	Ready  func()           // called once when the control socket answers; may be nil
	door   *door            // of the gateway, beside the trail
}

// closeLimit bounds how long a stop waits for verbs under way and for the last log lines.
const closeLimit = 10 * time.Second

// role is one of the two ends, as Run needs it.
type role interface {
	control.Service
	// run works until ctx ends and returns after everything has ended.
	run(ctx context.Context) error
	// reload takes over what may change while running.
	reload(c *config.Config) error
	// beat tells how the role's loops stand; it may take a lock of each, so it hangs with them.
	beat() []mover.Pulse
	// totals are metrics beside those of flows.
	totals() []metrics.Total
	close() error
}

// place is what both roles have: where they run.
type place struct {
	state, run, socket string
	metrics            config.Metrics
	memory             int64
}

// bucketsOnly tells whether a source opens no disks: then it needs no rights but those to its files.
func bucketsOnly(s *config.Source) bool { return s != nil && len(s.Flows) == 0 && len(s.Buckets) > 0 }

// Run is a daemon's life. It returns after everything that it started has ended; nil when ctx ended it.
func Run(ctx context.Context, o Options) error {
	if os.Geteuid() != 0 && !(o.Role == "source" && bucketsOnly(o.Config.Source)) {
		return fmt.Errorf("moverd %s needs root: it opens disks, freezes filesystems and loads eBPF programs; start it by systemd or with sudo: %w",
			o.Role, sentinel.ErrDenied)
	}
	p, err := placeOf(o.Role, o.Config)
	if err != nil {
		return err
	}
	for _, dir := range []string{p.state, p.run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	unlock, err := lock(filepath.Join(p.run, o.Role+".lock"), o.Role)
	if err != nil {
		return err
	}
	defer unlock()
	debug.SetMemoryLimit(p.memory)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + blocked)
	}

	a, err := openTrail(&o, p)
	if err != nil {
		return err
	}
	if a.role, err = open(ctx, o); err != nil {
		a.begin(o)
		a.end(err)
		return err
	}
	a.begin(o)
	if file := pricesOf(o.Role, o.Config); file != "" {
		if _, err := config.LoadPrices(file); err != nil {
			o.Log.Warn("reports will not tell costs", "error", err)
		}
	}
	err = errors.Join(serve(ctx, o, p, a), a.close())
	a.end(err)
	return err
}

// blocked is how many of the runtime's processors may be held by short reads and writes of disks without the cores going idle: the
// runtime takes a processor back from a system call only after a while that is longer than a fast disk needs. Without these, a
// disk that does 70,000 random reads per second gives 16,000.
const blocked = 8

func placeOf(role string, c *config.Config) (place, error) {
	switch {
	case role == Source && c.Source != nil:
		s := c.Source
		return place{string(s.State), string(s.Run), string(s.Socket), s.Metrics, heap(s)}, nil
	case role == Gateway && c.Gateway != nil:
		g := c.Gateway
		return place{string(g.State), string(g.Run), string(g.Socket), g.Metrics, int64(g.Memory) - gatewayBuffers(g)}, nil
	}
	return place{}, usagef("the config has no section %s", role)
}

func open(ctx context.Context, o Options) (role, error) {
	if o.Role == Source {
		return openSource(ctx, o)
	}
	return openGateway(ctx, o)
}

// serve runs the role beside its control socket, its metrics and systemd's watchdog. The order of the end: verbs under way are told by
// ctx, the role drains, then the socket and the metrics go.
func serve(ctx context.Context, o Options, p place, r role) error {
	ln, err := control.Listen(p.socket)
	if err != nil {
		return err
	}
	web, err := listenMetrics(o, p.metrics, r)
	if err != nil {
		return errors.Join(err, ln.Close())
	}

	g, gctx := errgroup.WithContext(ctx)
	ctl := control.NewServer(gctx, r, o.Log.Logger)
	g.Go(func() error { return ctl.Serve(ln) })
	if web != nil {
		g.Go(web.serve)
	}
	g.Go(func() error {
		defer func() {
			// A stop must not wait for ever for a client, nor take the answer away from one that waits for it.
			end, cancel := context.WithTimeout(context.Background(), closeLimit)
			defer cancel()
			if err := ctl.Close(end); err != nil {
				o.Log.Debug("control socket closed", "error", err)
			}
			if web != nil {
				web.Close()
			}
		}()
		return r.run(gctx)
	})
	g.Go(func() error { return watchdog(gctx, r, p.socket, o.Log.Logger) })
	g.Go(func() error { return reloads(gctx, o, r) })

	o.Log.Info("ready", "role", o.Role, "version", version.String(), "socket", p.socket, "config", o.File)
	notify(ready(r.Status()))
	if o.Ready != nil {
		o.Ready()
	}
	err = g.Wait()
	notify("STOPPING=1")
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil // told to stop
	}
	return err
}

// web is the metrics endpoint.
type web struct {
	http.Server
	ln net.Listener
}

func listenMetrics(o Options, m config.Metrics, r role) (*web, error) {
	if m.Listen == "off" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", m.Listen)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w; metrics.listen names another address, or off", err)
	}
	w := &web{ln: ln}
	w.Handler = metrics.Handler(o.Role, version.String(), r.Status, append(r.totals(), Health(o.Role, o.Config)...))
	w.ReadTimeout, w.WriteTimeout = 10*time.Second, 30*time.Second
	return w, nil
}

func (w *web) serve() error {
	if err := w.Serve(w.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// reloads reads the config again at each signal. A config that is wrong changes nothing.
func reloads(ctx context.Context, o Options, r role) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.Reload:
		}
		notifyReloading()
		c, err := config.Load(o.File, o.Role)
		if err == nil {
			_, err = placeOf(o.Role, c)
		}
		if err == nil {
			err = r.reload(c)
		}
		if a, ok := r.(*audited); ok {
			a.reloaded(o, err)
		}
		if err != nil {
			o.Log.Error("reload: the config was not taken over", "error", err)
		} else {
			o.Log.Info("reload: the config was taken over")
		}
		notify(ready(r.Status()))
	}
}

func daemonOf(o Options) control.Daemon {
	return control.Daemon{Role: o.Role, Version: version.String(), Pid: os.Getpid(), Config: o.File}
}

// unknownFlow names the flows that there are.
func unknownFlow(name string, all []mover.Status) error {
	text := fmt.Sprintf("there is no flow %q; there are", name)
	for _, s := range all {
		text += " " + s.Flow
	}
	return &usageError{text}
}

// usageError is a wrong request; its text needs no more words.
type usageError struct{ text string }

func (e *usageError) Error() string        { return e.text }
func (e *usageError) Is(target error) bool { return target == sentinel.ErrUsage }

func usagef(format string, a ...any) error { return &usageError{fmt.Sprintf(format, a...)} }
