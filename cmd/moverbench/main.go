// Command moverbench runs the demo, the soak and the measurements of bench/.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/daemon/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	root := &cobra.Command{Use: "moverbench", Short: "demo, soak and measurements of Mover", SilenceUsage: true}
	root.AddCommand(demo(), churnCommand(), table())
	if err := root.ExecuteContext(ctx); err != nil {
		stop()
		os.Exit(1)
	}
}

// bin is where this program and the daemons lie.
func bin() (string, error) {
	exe, err := os.Executable()
	return filepath.Dir(exe), err
}

func demo() *cobra.Command {
	return &cobra.Command{Use: "demo", Short: "move a mounted filesystem under load and print the proof", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			return bench.Demo(cmd.Context(), dir, cmd.OutOrStdout())
		}}
}

func churnCommand() *cobra.Command {
	var c churn.Config
	var rate, size string
	cmd := &cobra.Command{Use: "churn", Short: "write to a folder or a device in many ways until told to stop", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, v := range []struct {
				text string
				to   *int64
			}{{rate, &c.Rate}, {size, &c.FileSize}} {
				n, err := config.ParseSize(v.text)
				if err != nil {
					return err
				}
				*v.to = int64(n)
			}
			st, err := churn.Run(cmd.Context(), c)
			json.NewEncoder(cmd.OutOrStdout()).Encode(st)
			return err
		}}
	f := cmd.Flags()
	f.StringVar(&c.Dir, "dir", "", "folder to write in")
	f.StringVar(&c.Device, "device", "", "block device to write to")
	f.StringVar(&c.Ledger, "ledger", "", "file for acknowledged writes, on another filesystem")
	f.Uint64Var(&c.Seed, "seed", 1, "seed of the random choices")
	f.IntVar(&c.Threads, "threads", 2, "writing threads")
	f.StringVar(&rate, "rate", "0", "bytes per second of all threads, such as 50MiB; 0: no limit")
	f.StringVar(&size, "size", "8MiB", "bytes that each thread plays on")
	f.BoolVar(&c.DirectMix, "pages", false, "only random 4 KiB O_DIRECT writes")
	return cmd
}

func table() *cobra.Command {
	return &cobra.Command{Use: "table DIR", Short: "write the results in DIR as a Markdown table", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			results, err := bench.ReadResults(args[0])
			if err != nil {
				return fmt.Errorf("read results: %w", err)
			}
			return bench.Table(cmd.OutOrStdout(), results)
		}}
}
