package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
)

// finishCmd gives up the way back, at the end that the name belongs to: TENANT/HOST/NAME at the gateway.
func (a *app) finishCmd() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "finish TENANT/HOST/NAME", Short: "After a cutover, give up the way back: the target is yours, and no rollback takes it",
		Args: exactly("TENANT/HOST/NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if strings.Count(args[0], "/") != 2 {
				return usagef("finish %s: is not TENANT/HOST/NAME", args[0])
			}
			if err := a.confirm(yes, fmt.Sprintf("Give up the way back of %s? A rollback is refused from then on.", args[0])); err != nil {
				return err
			}
			return a.plain(c, gatewaySocket, control.Finish, control.Request{Flow: args[0]})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
