package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
)

// finishCmd gives up the way back, at the end that the name belongs to: FLOW or GROUP at the source, TENANT/HOST/NAME at the gateway.
func (a *app) finishCmd() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "finish FLOW|GROUP|TENANT/HOST/NAME", Short: "After a cutover, give up the way back: the target is yours, and no rollback takes it",
		Long: `At the source, finish FLOW or GROUP ends the tracking of the volumes and sees to it that no restart replicates them again; what a cutover left
frozen stays so. At the gateway, finish TENANT/HOST/NAME keeps any source from taking the target back. Both belong to the end of a move.`,
		Args: exactly("FLOW|GROUP|TENANT/HOST/NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			socket := sourceSocket
			switch strings.Count(args[0], "/") {
			case 0:
			case 2:
				socket = gatewaySocket
			default:
				return usagef("finish %s: is neither FLOW or GROUP nor TENANT/HOST/NAME", args[0])
			}
			if err := a.confirm(yes, fmt.Sprintf("Give up the way back of %s? A rollback is refused from then on.", args[0])); err != nil {
				return err
			}
			return a.plain(c, socket, control.Finish, control.Request{Flow: args[0]})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
