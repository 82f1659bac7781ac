package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/units"
)

func (a *app) pointsCmd() *cobra.Command {
	var pin, unpin, remove string
	var yes bool
	c := &cobra.Command{
		Use: "points FLOW", Short: "At the gateway: list recovery points, pin or remove one", Args: exactly("FLOW"),
		RunE: func(c *cobra.Command, args []string) error {
			req := control.Request{Flow: args[0]}
			for change, id := range map[string]string{"pin": pin, "unpin": unpin, "remove": remove} {
				if !c.Flags().Changed(change) {
					continue
				}
				if req.Change != "" {
					return usagef("--%s and --%s exclude each other", req.Change, change)
				}
				if id == "" {
					return usagef("--%s: the id of a point is missing", change)
				}
				req.Change, req.Point = change, id
			}
			if req.Change == "remove" {
				if err := a.confirm(yes, fmt.Sprintf("Remove the recovery point %s of %s for good?", remove, args[0])); err != nil {
					return err
				}
			}
			if req.Change != "" {
				return a.plain(c, gatewaySocket, control.Points, req)
			}
			return a.listPoints(c, req)
		},
	}
	c.Flags().StringVar(&pin, "pin", "", "never remove this point by age")
	c.Flags().StringVar(&unpin, "unpin", "", "let this point age again")
	c.Flags().StringVar(&remove, "remove", "", "give this point up")
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
	fmt.Fprintf(a.out, "%-26s %-8s %-10s %-10s %-16s %s\n", "POINT", "WORTH", "AGE", "SIZE", "ROOT", "NOTES")
	for _, p := range result.Points {
		notes, root := "", "unknown"
		if p.Pinned {
			notes = "pinned "
		}
		if p.Rehearsed {
			notes += "rehearsed "
		}
		if p.Root != "" {
			root = p.Root[:min(16, len(p.Root))]
		}
		fmt.Fprintf(a.out, "%-26s %-8s %-10s %-10s %-16s %s\n", p.ID, p.Worth, units.Duration(max(0, a.now().Sub(p.Time))), units.Size(p.Size), root, notes)
	}
	return nil
}

func (a *app) restoreCmd() *cobra.Command {
	var to string
	var overwrite, yes bool
	c := &cobra.Command{
		Use: "restore FLOW POINT", Short: "At the gateway: copy a recovery point to a device or a new file", Args: exactly("FLOW", "POINT"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := absolute(to)
			if err != nil {
				return err
			}
			if overwrite {
				if err := a.confirm(yes, fmt.Sprintf("Restore to %s although it may not be blank? Everything on it will be overwritten.", path)); err != nil {
					return err
				}
			}
			return a.plain(c, gatewaySocket, control.Restore, control.Request{Flow: args[0], Point: args[1], To: path, Overwrite: overwrite})
		},
	}
	c.Flags().StringVar(&to, "to", "", "block device, or image file to be made")
	c.Flags().BoolVar(&overwrite, "overwrite", false, "overwrite what is not blank")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) exportCmd() *cobra.Command {
	var to, format string
	c := &cobra.Command{
		Use: "export FLOW POINT", Short: "At the gateway: write a recovery point as a raw or qcow2 image", Args: exactly("FLOW", "POINT"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := absolute(to)
			if err != nil {
				return err
			}
			if format != "raw" && format != "qcow2" {
				return usagef("--format %s: is neither raw nor qcow2", format)
			}
			return a.plain(c, gatewaySocket, control.Export, control.Request{Flow: args[0], Point: args[1], To: path, Format: format})
		},
	}
	c.Flags().StringVar(&to, "to", "", "file to be made")
	c.Flags().StringVar(&format, "format", "qcow2", "raw or qcow2")
	return c
}

// absolute: the daemon has another working directory.
func absolute(path string) (string, error) {
	if path == "" {
		return "", usagef("--to is missing")
	}
	return filepath.Abs(path)
}
