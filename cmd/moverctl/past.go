package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/report"
)

func (a *app) reportCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "report [GROUP|FLOW]",
		Short: "Tell what was done: passes, points, cutovers, the pause, bytes saved, roots of both ends",
		Long: `Tells what a daemon knows about the past of a flow, of a group's flows, or of all: the timeline, throughput and lag, how long writers stood
still and in which steps, what was saved by skipping, dedup and compression, the roots of both ends, and where the audit trail stands.
Restarts do not shorten it. --html writes one file that needs nothing else; -o json has every event and sample.`,
		Args: atMost("GROUP|FLOW"),
		RunE: func(c *cobra.Command, args []string) error {
			var req control.Request
			if len(args) > 0 {
				req.Flow = args[0]
			}
			return a.report(c, req, file)
		},
	}
	c.Flags().StringVar(&file, "html", "", "write the report as one HTML page to this file")
	return c
}

func (a *app) report(c *cobra.Command, req control.Request, file string) error {
	if file != "" {
		if a.output == "json" {
			return usagef("--html and -o json exclude each other")
		}
		if err := writable("--html", file); err != nil {
			return err
		}
	}
	d, err := a.past(c, req)
	switch {
	case err != nil:
		return err
	case file != "":
		return a.page(file, d)
	case a.output == "json":
		return a.json(d)
	}
	d.Text(a.out)
	return nil
}

// past asks the source where both ends run on one host: it knows more.
func (a *app) past(c *cobra.Command, req control.Request) (*report.Document, error) {
	all, err := a.clients()
	if err != nil {
		return nil, err
	}
	result, err := all[0].Do(c.Context(), control.Report, req, nil)
	for _, next := range all[1:] { // the name may be the other end's
		if err == nil || req.Flow == "" {
			break
		}
		r, other := next.Do(c.Context(), control.Report, req, nil)
		if other == nil {
			result, err = r, nil
		} else {
			err = errors.Join(err, other)
		}
	}
	if err == nil && result.Past == nil {
		err = errors.New("the daemon has no history; is it older than this moverctl?")
	}
	return result.Past, err
}

func (a *app) page(file string, d interface{ HTML(io.Writer) error }) error {
	var b bytes.Buffer
	if err := d.HTML(&b); err != nil {
		return err
	}
	temp := file + ".part"
	if err := os.WriteFile(temp, b.Bytes(), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write the report: %w", err), os.Remove(temp))
	}
	if err := os.Rename(temp, file); err != nil {
		return errors.Join(fmt.Errorf("write the report: %w", err), os.Remove(temp))
	}
	fmt.Fprintln(a.out, file)
	return nil
}
