package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/audit"
)

func (a *app) thawCmd() *cobra.Command {
	var stale, all, yes bool
	var run, state string
	c := &cobra.Command{
		Use:   "thaw FLOW|GROUP | --stale | --all",
		Short: "Let writers go on: of a flow, or by the records in /run/mover when no daemon runs",
		Long: `thaw FLOW asks the daemon. A cutover that has ended keeps its target, but writes at the source are not on it from then on.
--stale and --all need no daemon: they thaw what the records in the run folder tell. --stale leaves alone what a cutover left frozen on
purpose; the systemd unit runs it after each stop. What they did is recorded in the audit trail, after the thaw; while a daemon runs or something
stays frozen, through the daemon or its next start.`,
		Args: atMost("FLOW"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case stale && all, len(args) == 1 && (stale || all):
				return usagef("thaw: FLOW, --stale and --all exclude each other")
			case len(args) == 1:
				if err := a.confirm(yes, fmt.Sprintf("Let the writers of %s go on? What they write is not on the target of a cutover.", args[0])); err != nil {
					return err
				}
				return a.plain(c, sourceSocket, control.Thaw, control.Request{Flow: args[0]})
			case stale:
				return a.thawed(run, state, "thaw.stale", freeze.ThawStale)
			case all:
				if err := a.confirm(yes, "Thaw everything that Mover has frozen here, also what a cutover left frozen on purpose?"); err != nil {
					return err
				}
				return a.thawed(run, state, "thaw.all", freeze.ThawRecorded)
			}
			return usagef("thaw: FLOW is missing (or --stale, or --all)")
		},
	}
	c.Flags().BoolVar(&stale, "stale", false, "thaw what a daemon that was killed left frozen")
	c.Flags().BoolVar(&all, "all", false, "thaw everything that is recorded")
	c.Flags().StringVar(&run, "run", "/run/mover", "run folder, for --stale and --all")
	c.Flags().StringVar(&state, "state", "/var/lib/mover", "state folder with the audit trail, for --stale and --all")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// thawed thaws what is recorded, and runs the post hooks that a daemon still owed. What was done is recorded after that.
func (a *app) thawed(run, state, event string, thaw func(string) ([]string, error)) error {
	what, err := thaw(run)
	posts, perr := freeze.PostStale(run, slog.New(slog.DiscardHandler))
	err = errors.Join(err, perr)
	for _, w := range what {
		_, perr := fmt.Fprintln(a.out, "thawed", w)
		err = errors.Join(err, perr)
	}
	for _, w := range posts {
		_, perr := fmt.Fprintln(a.out, "ran", w)
		err = errors.Join(err, perr)
	}
	if len(what)+len(posts) == 0 && err == nil {
		return nil // nothing was to do, as after every stop
	}
	details := map[string]any{"what": what, "ok": err == nil}
	if len(posts) > 0 {
		details["ran"] = posts
	}
	if err != nil {
		details["error"] = err.Error()
	}
	return errors.Join(err, daemon.NoteThaw(run, state, audit.Record{Actor: fmt.Sprintf("uid:%d/pid:%d", os.Getuid(), os.Getpid()), Event: event, Details: details}))
}
