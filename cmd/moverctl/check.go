package main

import (
	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
)

func (a *app) checkCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check",
		Short: "Read a config and look at what it names, without changing anything",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := config.Load(file, "")
			if err != nil {
				return err
			}
			return daemon.Check(c.Context(), conf, a.out)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", config.Default, "config file")
	return c
}
