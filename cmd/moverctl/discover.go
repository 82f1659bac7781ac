package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/discover"
	"github.com/moverd/mover/internal/strict"
)

// discovery is the flags of discover.
type discovery struct {
	o      discover.Options
	files  discover.Files
	line   string
	config string // "-": standard output
}

func (a *app) discoverCmd() *cobra.Command {
	var d discovery
	c := &cobra.Command{
		Use:   "discover [DEVICE...]",
		Short: "Look at this host and propose a config for all of it, without changing anything",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			d.o.Devices = args
			if err := a.checkDiscovery(&d); err != nil {
				return err
			}
			// A terminal that goes away must not leave trackers behind.
			ctx, stop := signal.NotifyContext(c.Context(), unix.SIGHUP, unix.SIGQUIT)
			defer stop()
			return a.discover(ctx, d)
		},
	}
	f := c.Flags()
	f.StringVar(&d.config, "config", "", "write a config to this new file; - is standard output")
	f.DurationVar(&d.o.Measure, "measure", time.Minute, "how long the rate of change is measured; 0: not at all")
	f.StringVar(&d.line, "line", "", "rate of the line for estimates, such as 100MiB/s or 1Gbit/s")
	f.DurationVar(&d.o.Limit, "limit", time.Second, "longest pause of a cutover, for the estimate")
	f.BoolVar(&d.o.Volumes, "volumes", false, "partitions and logical volumes instead of whole disks")
	f.BoolVar(&d.o.All, "all", false, "also loop, ram, floppy, optical and removable disks")
	f.StringVar(&d.files.Gateway, "gateway", "", "host:port of the gateway, for the config")
	f.StringVar(&d.files.CA, "ca", "", "the CA's certificate, for the config")
	f.StringVar(&d.files.Cert, "cert", "", "this host's certificate, for the config")
	f.StringVar(&d.files.Key, "key", "", "its key, for the config")
	return c
}

// checkDiscovery refuses what would only come to light after the measurement.
func (a *app) checkDiscovery(d *discovery) error {
	if d.line != "" {
		rate, err := strict.ParseRate(d.line)
		if err != nil || rate <= 0 {
			return usagef("--line %q: write a rate as in 100MiB/s or 1Gbit/s", d.line)
		}
		d.o.Line = float64(rate)
	}
	if m := d.o.Measure; m != 0 && (m < time.Second || m > 24*time.Hour) {
		return usagef("--measure %v: is outside 1s to 24h; 0 measures nothing", m)
	}
	if d.o.Limit < time.Millisecond || d.o.Limit > 10*time.Minute {
		return usagef("--limit %v: is outside 1ms to 10m", d.o.Limit)
	}
	if g := d.files.Gateway; g != "" {
		if host, port, err := net.SplitHostPort(g); err != nil || host == "" || port == "" {
			return usagef("--gateway %q: is not host:port; write it as in 10.0.0.7:9465", g)
		}
	}
	for _, f := range []struct{ flag, path string }{{"--ca", d.files.CA}, {"--cert", d.files.Cert}, {"--key", d.files.Key}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			return usagef("%s %q: is not an absolute path", f.flag, f.path)
		}
	}
	if d.config == "-" && a.output == "json" {
		return usagef("-o json and --config - both want standard output; name a file for the config")
	}
	if d.config != "" && d.config != "-" {
		if _, err := os.Lstat(d.config); err == nil {
			return usagef("--config %s: exists, and nothing is overwritten; name a new file", d.config)
		}
		if st, err := os.Stat(filepath.Dir(d.config)); err != nil || !st.IsDir() {
			return usagef("--config %s: its folder does not exist", d.config)
		}
	}
	return nil
}

func (a *app) discover(ctx context.Context, d discovery) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if d.o.Measure > 0 && os.Geteuid() == 0 {
		fmt.Fprintf(a.err, "measuring for %v; interrupt it to see what is known by then\n", d.o.Measure)
	}
	h, err := discover.Run(ctx, d.o)
	if h == nil {
		return err
	}
	table := a.out
	if d.config == "-" {
		table = a.err
	}
	if a.output == "json" {
		err = errors.Join(err, a.json(h))
	} else {
		h.Table(table)
	}
	if d.config == "" || len(h.Volumes) == 0 {
		return err
	}
	text := h.YAML(d.files)
	if d.config == "-" {
		_, werr := a.out.Write(text)
		return errors.Join(err, werr)
	}
	if err != nil {
		return fmt.Errorf("%w; %s was not written", err, d.config)
	}
	if err := writeNew(d.config, text); err != nil {
		return err
	}
	var to io.Writer = a.err
	if a.output != "json" {
		to = a.out
	}
	fmt.Fprintf(to, "\n%s is written; read it, fill in what is marked %s, then: moverctl check -c %s\n", d.config, discover.FillIn, d.config)
	return nil
}

// writeNew makes a file that did not exist, whole or not at all.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return usagef("--config %s: exists, and nothing is overwritten; name a new file", path)
	} else if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
