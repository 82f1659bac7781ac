// Moverd is the daemon of both ends (moverd(8)).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/cmd/internal/exit"
	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
)

func main() {
	// The guardian comes before all else: it must need nothing that may be frozen.
	if len(os.Args) > 1 && os.Args[1] == "guardian" {
		freeze.GuardianMain()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole command; it returns the exit code.
func run(ctx context.Context, args []string, out, log io.Writer) int {
	root := &cobra.Command{
		Use: "moverd", Short: "Move disks that are in use", SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unknown command %q; see moverd --help", args[0]))
			}
			return c.Help()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage(fmt.Errorf("%w; see %s --help", err, c.CommandPath()))
	})
	root.AddCommand(
		roleCmd(daemon.Source, "Replicate the volumes of this host", log),
		roleCmd(daemon.Gateway, "Receive volumes and write targets", log),
		roleCmd(daemon.Worker, "Copy objects for the bucket flows of a source on another machine", log),
		checkCmd(),
		trackCmd(log),
		&cobra.Command{Use: "version", Short: "Print the version", Args: none, Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintf(c.OutOrStdout(), "moverd %s %s\n", version.String(), runtime.Version())
		}},
	)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(log)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(log, "moverd:", err)
	}
	return exit.Code(err)
}

// usageError is a wrong command line.
type usageError struct{ error }

func (usageError) Is(target error) bool { return target == sentinel.ErrUsage }

func usage(err error) error { return usageError{err} }

func none(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("%s: %q is one argument too many", c.CommandPath(), args[0]))
	}
	return nil
}

func roleCmd(role, short string, out io.Writer) *cobra.Command {
	var file, level string
	c := &cobra.Command{
		Use: role, Short: short, Args: none,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			// A panic, or the watchdog's SIGABRT, ends in a signal: by itself Go would exit 2, which means a wrong config to systemd.
			debug.SetTraceback("crash")
			var lv slog.LevelVar
			follow := &lv // the config's level, also after a reload
			if level != "" {
				if lv.UnmarshalText([]byte(level)) != nil {
					return usage(fmt.Errorf("--log-level %s: is none of debug, info, warn, error", level))
				}
				follow = nil
			}
			conf, err := config.Load(file, role)
			if err != nil {
				return err
			}
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, unix.SIGHUP)
			defer signal.Stop(hup)
			log := daemon.NewLog(out, &lv)
			defer func() { err = errors.Join(err, log.Close()) }()
			slog.SetDefault(log.Logger)
			run := daemon.Run
			if role == daemon.Worker {
				run = daemon.RunWorker
			}
			return run(c.Context(), daemon.Options{Role: role, File: file, Config: conf, Log: log, Reload: hup, Level: follow})
		},
	}
	c.Flags().StringVarP(&file, "config", "c", config.Default, "config file")
	c.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error (default: as configured)")
	return c
}

func trackCmd(out io.Writer) *cobra.Command {
	var file string
	var wait time.Duration
	c := &cobra.Command{
		Use: "track", Short: "Attach the trackers of the source's volumes and end; for early boot",
		Args: none,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if wait < 0 || wait > time.Hour {
				return usage(fmt.Errorf("--wait %v: is outside 0s to 1h", wait))
			}
			conf, err := config.Load(file, "track") // neither role's certificates and hooks are needed
			if err != nil {
				return err
			}
			return daemon.Track(c.Context(), conf, wait, slog.New(slog.NewTextHandler(out, nil)))
		},
	}
	c.Flags().StringVarP(&file, "config", "c", config.Default, "config file")
	c.Flags().DurationVar(&wait, "wait", 0, "wait at most so long for volumes that are not there yet")
	return c
}

func checkCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "check [source|gateway|worker]", Short: "Read a config and look at what it names, without changing anything",
		Args: func(c *cobra.Command, args []string) error { return none(c, args[min(len(args), 1):]) }, ValidArgs: []string{daemon.Source, daemon.Gateway, daemon.Worker},
		RunE: func(c *cobra.Command, args []string) error {
			role := ""
			if len(args) == 1 {
				role = args[0]
			}
			if role != "" && role != daemon.Source && role != daemon.Gateway && role != daemon.Worker {
				return usage(fmt.Errorf("%q is neither source nor gateway nor worker", role))
			}
			conf, err := config.Load(file, role)
			if err != nil {
				return err
			}
			switch {
			case role == daemon.Source:
				conf.Gateway, conf.Worker = nil, nil
			case role == daemon.Gateway:
				conf.Source, conf.Worker = nil, nil
			case role == daemon.Worker:
				conf.Source, conf.Gateway = nil, nil
			}
			if conf.Source == nil && conf.Gateway == nil && conf.Worker == nil {
				return usage(fmt.Errorf("%s has no section %s", file, role))
			}
			return daemon.Check(c.Context(), conf, c.OutOrStdout())
		},
	}
	c.Flags().StringVarP(&file, "config", "c", config.Default, "config file")
	return c
}
