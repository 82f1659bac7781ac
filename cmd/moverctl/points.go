package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) pointsCmd() *cobra.Command {
	var pin, unpin, remove string
	var moments, yes bool
	c := &cobra.Command{
		Use: "points [FLOW|GROUP|HOST]", Short: "At the gateway: list recovery points or moments, pin or remove one", Args: atMost("FLOW|GROUP|HOST"),
		Long: `At the gateway: list the recovery points of a flow (TENANT/HOST/NAME), of a group (TENANT/HOST/GROUP), of a host (TENANT/HOST), or all.
With --moments, list the moments: what the points of a group that were taken under one freeze share.
Of a flow --pin, --unpin and --remove are about one point, of a group about every point of a moment.`,
		RunE: func(c *cobra.Command, args []string) error {
			req := control.Request{Moments: moments}
			if len(args) > 0 {
				req.Flow = args[0]
			}
			for change, id := range map[string]string{"pin": pin, "unpin": unpin, "remove": remove} {
				if !c.Flags().Changed(change) {
					continue
				}
				if req.Change != "" {
					return usagef("--%s and --%s exclude each other", req.Change, change)
				}
				if id == "" {
					return usagef("--%s: the id of a point or moment is missing", change)
				}
				req.Change, req.Point = change, id
			}
			if req.Change != "" && req.Flow == "" {
				return usagef("--%s: say of which flow or group", req.Change)
			}
			if req.Change == "remove" {
				if err := a.confirm(yes, fmt.Sprintf("Remove the recovery point %s of %s for good?", remove, req.Flow)); err != nil {
					return err
				}
			}
			if req.Change != "" {
				return a.plain(c, gatewaySocket, control.Points, req)
			}
			return a.listPoints(c, req)
		},
	}
	c.Flags().BoolVar(&moments, "moments", false, "list moments of groups, and whether every disk has its point")
	c.Flags().StringVar(&pin, "pin", "", "never remove this point or moment by age")
	c.Flags().StringVar(&unpin, "unpin", "", "let this point or moment age again")
	c.Flags().StringVar(&remove, "remove", "", "give this point or moment up")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) listPoints(c *cobra.Command, req control.Request) error {
	result, err := a.client(gatewaySocket).Do(c.Context(), control.Points, req, nil)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(result)
	}
	if result.Text != "" {
		fmt.Fprintln(a.out, result.Text)
		return nil
	}
	if req.Moments {
		printMoments(a.out, a.now(), result.Moments)
		return nil
	}
	printPoints(a.out, a.now(), result.Flows)
	return nil
}

// wide is the width of the first column, for the longest name; 0: a single name needs no column.
func wide(names []string) (width int) {
	for _, n := range names {
		if n != names[0] {
			width = 1
		}
	}
	if width > 0 {
		for _, n := range names {
			width = max(width, len(n)+1)
		}
	}
	return width
}

func printPoints(w io.Writer, now time.Time, flows []mover.FlowPoints) {
	var names []string
	for _, f := range flows {
		names = append(names, f.Flow)
	}
	wide := wide(names)
	row := func(flow string, fields ...any) {
		line := fmt.Sprintf("%-*.*s%-26s %-6s %-10s %-10s %-16s %s", append([]any{wide, wide, flow}, fields...)...)
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	row("FLOW", "POINT", "WORTH", "AGE", "SIZE", "ROOT", "NOTES")
	for _, f := range flows {
		for _, p := range f.Points {
			root := "unknown"
			if p.Root != "" {
				root = p.Root[:min(16, len(p.Root))]
			}
			row(f.Flow, p.ID, p.Worth, age(now, p.Time), units.Size(p.Size), root, strings.TrimSpace(marks(p.Pinned, p.Rehearsed, p.Cutover)+" "+noRoot(p)))
		}
	}
}

// noRoot tells why a point cannot be verified by a root.
func noRoot(p mover.RecoveryPoint) string {
	if p.Root != "" || p.NoRoot == "" {
		return ""
	}
	return "(no root: " + p.NoRoot + ")"
}

func printMoments(w io.Writer, now time.Time, all []mover.Moment) {
	var names []string
	for _, m := range all {
		names = append(names, m.Group)
	}
	wide := wide(names)
	row := func(group string, fields ...any) {
		line := fmt.Sprintf("%-*.*s%-26s %-6s %-10s %-10s %-6s %s", append([]any{wide, wide, group}, fields...)...)
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	row("GROUP", "MOMENT", "WORTH", "AGE", "SIZE", "DISKS", "NOTES")
	for _, m := range all {
		said := marks(m.Pinned, m.Rehearsed, m.Cutover)
		if !m.Complete {
			said = strings.TrimSpace("incomplete " + said)
		}
		if len(m.Lacking) > 0 {
			said += " (lacks " + strings.Join(m.Lacking, ", ") + ")"
		}
		row(m.Group, m.ID, m.Worth, age(now, m.Time), units.Size(m.Size), fmt.Sprintf("%d/%d", len(m.Points), m.Members), said)
	}
}

func age(now, then time.Time) string { return units.Duration(max(0, now.Sub(then))) }

func marks(pinned, rehearsed, cutover bool) string {
	var all []string
	for _, n := range []struct {
		on   bool
		text string
	}{{pinned, "pinned"}, {rehearsed, "rehearsed"}, {cutover, "cutover"}} {
		if n.on {
			all = append(all, n.text)
		}
	}
	return strings.Join(all, " ")
}

func (a *app) restoreCmd() *cobra.Command {
	var to, dir string
	var overwrite, yes bool
	c := &cobra.Command{
		Use: "restore FLOW|GROUP|HOST POINT|MOMENT", Short: "At the gateway: copy a point to a device or a new file, or all disks of a moment to new files",
		Args: exactly("FLOW", "POINT"),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := copyRequest(args, to, dir)
			if err != nil {
				return err
			}
			if req.Overwrite = overwrite; overwrite {
				if dir != "" {
					return usagef("--overwrite: --to-dir makes new files only")
				}
				if err := a.confirm(yes, fmt.Sprintf("Restore to %s although it may not be blank? Everything on it will be overwritten.", req.To)); err != nil {
					return err
				}
			}
			return a.plain(c, gatewaySocket, control.Restore, req)
		},
	}
	c.Flags().StringVar(&to, "to", "", "block device, or image file to be made")
	c.Flags().StringVar(&dir, "to-dir", "", "of a moment: folder in which NAME.img is made for each disk")
	c.Flags().BoolVar(&overwrite, "overwrite", false, "overwrite what is not blank")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) exportCmd() *cobra.Command {
	var to, dir, format string
	c := &cobra.Command{
		Use: "export FLOW|GROUP|HOST POINT|MOMENT", Short: "At the gateway: write a point, or all disks of a moment, as raw or qcow2 images", Args: exactly("FLOW", "POINT"),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := copyRequest(args, to, dir)
			if err != nil {
				return err
			}
			if format != "raw" && format != "qcow2" {
				return usagef("--format %s: is neither raw nor qcow2", format)
			}
			req.Format = format
			return a.plain(c, gatewaySocket, control.Export, req)
		},
	}
	c.Flags().StringVar(&to, "to", "", "file to be made")
	c.Flags().StringVar(&dir, "to-dir", "", "of a moment: folder in which NAME.img or NAME.qcow2 is made for each disk")
	c.Flags().StringVar(&format, "format", "qcow2", "raw or qcow2")
	return c
}

// copyRequest: the daemon has another working directory.
func copyRequest(args []string, to, dir string) (req control.Request, err error) {
	req = control.Request{Flow: args[0], Point: args[1]}
	switch {
	case to != "" && dir != "":
		return req, usagef("--to and --to-dir exclude each other")
	case to != "":
		req.To, err = filepath.Abs(to)
	case dir != "":
		req.Dir, err = filepath.Abs(dir)
	default:
		return req, usagef("--to (of a point) or --to-dir (of a moment) is missing")
	}
	return req, err
}
