package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/version"
)

// plain runs a verb that ends in a line of text.
func (a *app) plain(c *cobra.Command, socket, verb string, req control.Request) error {
	p := &steps{w: a.out, cols: width(a.out), now: a.now, quiet: a.output == "json"}
	result, err := a.client(socket).Do(c.Context(), verb, req, p.show)
	p.end()
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(result)
	}
	if result.Text != "" {
		fmt.Fprintln(a.out, result.Text)
	}
	return nil
}

func (a *app) verbCmd(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " FLOW|GROUP", Short: short, Args: exactly("FLOW|GROUP"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.plain(c, sourceSocket, verb, control.Request{Flow: args[0]})
		},
	}
}

func (a *app) pauseCmd() *cobra.Command {
	return a.verbCmd(control.Pause, "Stop moving a flow, or each of a group; changes are still tracked")
}

func (a *app) resumeCmd() *cobra.Command {
	return a.verbCmd(control.Resume, "Go on with a paused or stopped flow")
}

func (a *app) syncCmd() *cobra.Command {
	return a.verbCmd(control.Sync, "Run a pass now and wait for its commit")
}

func (a *app) rollbackCmd() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "rollback FLOW|GROUP",
		Short: "After a cutover, let the source go on and replicate again",
		Args:  exactly("FLOW|GROUP"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm(yes, fmt.Sprintf("Let the source of %s go on? What was written to the target in the cloud will be overwritten.", args[0])); err != nil {
				return err
			}
			return a.plain(c, sourceSocket, control.Rollback, control.Request{Flow: args[0]})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) claimCmd() *cobra.Command {
	var overwrite, drop, yes bool
	c := &cobra.Command{
		Use:   "claim TENANT/HOST/NAME",
		Short: "At the gateway: show what is on a target and claim it for its flow",
		Args:  exactly("TENANT/HOST/NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if drop && overwrite {
				return usagef("--drop and --overwrite exclude each other")
			}
			if overwrite {
				if err := a.confirm(yes, fmt.Sprintf("Claim the target of %s although it is not blank? Everything on it will be overwritten.", args[0])); err != nil {
					return err
				}
			}
			if drop {
				if err := a.confirm(yes, fmt.Sprintf("Forget the claim of %s with its log and digest table? The target keeps its bytes.", args[0])); err != nil {
					return err
				}
			}
			return a.plain(c, gatewaySocket, control.Claim, control.Request{Flow: args[0], Overwrite: overwrite, Drop: drop})
		},
	}
	c.Flags().BoolVar(&drop, "drop", false, "forget the claim, so that the target or the flow can be used otherwise")
	c.Flags().BoolVar(&overwrite, "overwrite", false, "claim a target that is not blank")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of moverctl and of the daemon", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(a.out, "moverctl %s %s\n", version.String(), runtime.Version())
			clients, err := a.clients()
			if err != nil && a.socket == "" {
				return nil // no daemon here
			}
			var errs []error
			for _, cl := range clients {
				d, err := cl.Daemon(c.Context())
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(a.out, "moverd %s, %s, pid %d, config %s\n", d.Version, d.Role, d.Pid, d.Config)
			}
			return errors.Join(errs...)
		},
	}
}
