package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/mover"
)

func (a *app) cutoverCmd() *cobra.Command {
	var rehearse, yes, all, without bool
	var limit, deadline time.Duration
	var leave, file string
	c := &cobra.Command{
		Use:   "cutover FLOW|GROUP",
		Short: "Stop the writers, send the last changes, compare both ends, hand the target over",
		Long: `Passes run until the rest is small enough for the limit; then the filesystems are frozen (or the stop hook runs), the last changes are
sent, and both ends are read back and compared. The report tells how long the writers stood still.
The flows of a group are cut over at one moment, and only together.
A bucket flow runs its stop hook, or relies upon the writers having been stopped, and then passes until one finds nothing new; the target's listing is
compared with what was written (--all: every object is read), and a manifest is written.
Interrupting moverctl ends a cutover before the freeze; after it the cutover goes on to its end.`,
		Args: exactly("FLOW|GROUP"),
		RunE: func(c *cobra.Command, args []string) error {
			if leave != "" && !slices.Contains([]string{"frozen", "read-only", "stopped"}, leave) {
				return usagef("--leave %s: is none of frozen, read-only, stopped", leave)
			}
			if limit < 0 || deadline < 0 {
				return usagef("--limit and --deadline must be longer than 0s")
			}
			if rehearse && leave != "" {
				return usagef("--leave goes with a real cutover; a rehearsal always lets the writers go on")
			}
			if !rehearse {
				if err := a.confirm(yes, fmt.Sprintf("Cut %s over? Its writers stop and stay stopped until a rollback; those of a bucket flow without a stop-hook have to stand still by now.", args[0])); err != nil {
					return err
				}
			}
			req := control.Request{Flow: args[0], Rehearse: rehearse, Limit: limit.Seconds(), Deadline: deadline.Seconds(), Leave: leave, All: all, WithoutRefused: without}
			return a.reported(c, sourceSocket, control.Cutover, req, file)
		},
	}
	c.Flags().BoolVar(&rehearse, "rehearse", false, "do the same, then let the writers go on and keep replicating")
	c.Flags().DurationVar(&limit, "limit", 0, "longest estimated pause to go ahead with (default: as configured)")
	c.Flags().DurationVar(&deadline, "deadline", 0, "thaw after so long whatever happens, if the target has not committed (default: as configured)")
	c.Flags().StringVar(&leave, "leave", "", "leave the source frozen, read-only or stopped (default: as configured)")
	c.Flags().BoolVar(&all, "all", false, "of a bucket flow: read every object at the target again")
	c.Flags().BoolVar(&without, "without-refused", false, "of a bucket flow: although some objects cannot be carried (moverctl objects shows which)")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	reportFlag(c, &file)
	return c
}

func (a *app) pointCmd() *cobra.Command {
	var limit, deadline time.Duration
	var file string
	c := &cobra.Command{
		Use:   "point FLOW|GROUP",
		Short: "Take a recovery point: one moment of all disks of a group, without a cutover",
		Long: `Passes run until the rest is small enough for the limit, the pre hooks of the group run, then all its filesystems are frozen at once, only until
everything that has changed is read. Nothing is read back. The writers go on before the gateway keeps the copies.
The point is app consistent when the hooks ran well, crash consistent with a freeze alone, and fuzzy when somebody wrote past the freeze.
It fails (exit code 1) also when a moment was one but some member has no point of it.`,
		Args: exactly("FLOW|GROUP"),
		RunE: func(c *cobra.Command, args []string) error {
			if limit < 0 || deadline < 0 {
				return usagef("--limit and --deadline must be longer than 0s")
			}
			return a.reported(c, sourceSocket, control.Point, control.Request{Flow: args[0], Limit: limit.Seconds(), Deadline: deadline.Seconds()}, file)
		},
	}
	c.Flags().DurationVar(&limit, "limit", 0, "longest estimated pause to go ahead with (default: as configured)")
	c.Flags().DurationVar(&deadline, "deadline", 0, "thaw after so long whatever happens (default: as configured)")
	reportFlag(c, &file)
	return c
}

func (a *app) verifyCmd() *cobra.Command {
	var all bool
	var file string
	c := &cobra.Command{
		Use:   "verify FLOW|GROUP",
		Short: "Compare source and target now and name the extents, or objects, that differ",
		Args:  exactly("FLOW|GROUP"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.reported(c, sourceSocket, control.Verify, control.Request{Flow: args[0], All: all}, file)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "read every byte of both ends again, not only what was touched since its last reading; of a bucket flow every object at the target")
	reportFlag(c, &file)
	return c
}

func reportFlag(c *cobra.Command, file *string) {
	c.Flags().StringVar(file, "report", "", "also write the report as JSON to this file (not on a filesystem that stays frozen)")
}

// reported runs a verb that ends in a report, and shows it also when it says no.
func (a *app) reported(c *cobra.Command, socket, verb string, req control.Request, file string) error {
	if file != "" { // tell before hours of work, not after
		if err := writable("--report", file); err != nil {
			return err
		}
	}
	p := &steps{w: a.out, cols: width(a.out), now: a.now, quiet: a.output == "json"}
	result, err := a.client(socket).Do(c.Context(), verb, req, p.show)
	p.end()
	if r := result.Report; r != nil {
		if file != "" {
			err = errors.Join(err, save(file, r))
		}
		if a.output == "json" {
			err = errors.Join(err, a.json(r))
		} else {
			printReport(a.out, r)
		}
	}
	return err
}

// writable tries whether file, which flag names, can be made.
func writable(flag, file string) error {
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() {
		return usagef("%s %s: is no regular file; name a file to write", flag, file)
	}
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, ".report-*")
	if err != nil {
		return usagef("%s %s: no file can be made in %s: %v", flag, file, dir, errors.Unwrap(err))
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func save(file string, r *mover.Report) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	temp := file + ".part"
	if err := os.WriteFile(temp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return os.Rename(temp, file)
}
