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
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/internal/strict"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	root := &cobra.Command{Use: "moverbench", Short: "demo, soak and measurements of Mover", SilenceUsage: true}
	root.AddCommand(demo(), monitoring(), soak(), freezes(), order(), move(), perf(), postgres(), wrong(), line(), shaping(), delay(), churnCommand(), table(), picture(), bucketCommand())
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

func monitoring() *cobra.Command {
	var rules, dashboard string
	cmd := &cobra.Command{Use: "monitoring", Short: "let a real Prometheus scrape both daemons and judge the alert rules", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			return bench.Monitoring(cmd.Context(), dir, rules, dashboard, cmd.OutOrStdout())
		}}
	cmd.Flags().StringVar(&rules, "rules", "monitoring/alerts.yaml", "alert rules")
	cmd.Flags().StringVar(&dashboard, "dashboard", "monitoring/grafana.json", "dashboard")
	return cmd
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
				n, err := strict.ParseSize(v.text)
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
		RunE: func(cmd *cobra.Command, args []string) error { return written(cmd.OutOrStdout(), args[0], bench.Table) }}
}

func soak() *cobra.Command {
	o := bench.SoakOptions{}
	var out string
	cmd := &cobra.Command{Use: "soak", Short: "random writers, faults and cutovers; every byte compared", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			var results *bench.Results
			if out != "" {
				if results, err = bench.NewResults(out); err != nil {
					return err
				}
			}
			return bench.Soak(cmd.Context(), dir, o, cmd.OutOrStdout(), results)
		}}
	f := cmd.Flags()
	f.IntVar(&o.Runs, "runs", 20, "how many runs")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the first run; the next ones follow")
	f.IntVar(&o.Parallel, "parallel", 2, "runs at the same time")
	f.BoolVar(&o.Keep, "keep", false, "leave the folder and devices of a failed run")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

// resultsIn begins a file of results; no name: none.
func resultsIn(path string) (*bench.Results, error) {
	if path == "" {
		return nil, nil
	}
	return bench.NewResults(path)
}

func freezes() *cobra.Command {
	o := bench.FreezesOptions{}
	var out string
	cmd := &cobra.Command{Use: "freezes", Short: "kill the source at random moments inside of freezes, and measure how long writers stand still", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			results, err := resultsIn(out)
			if err != nil {
				return err
			}
			return bench.Freezes(cmd.Context(), dir, o, cmd.OutOrStdout(), results)
		}}
	f := cmd.Flags()
	f.IntVar(&o.Runs, "runs", 200, "how many freezes")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the random choices")
	f.IntVar(&o.Parallel, "parallel", 6, "servers at the same time")
	f.DurationVar(&o.Deadline, "deadline", 3*time.Second, "of each freeze")
	f.BoolVar(&o.Points, "points", true, "freeze for points as well as for rehearsals")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

func order() *cobra.Command {
	o := bench.OrderOptions{}
	var out string
	cmd := &cobra.Command{Use: "order", Short: "write to four disks in one order, and look whether every moment that is kept is a prefix of it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			results, err := resultsIn(out)
			if err != nil {
				return err
			}
			return bench.Order(cmd.Context(), dir, o, cmd.OutOrStdout(), results)
		}}
	f := cmd.Flags()
	f.IntVar(&o.Moments, "moments", 200, "how many moments")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the random choices")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

func postgres() *cobra.Command {
	var o bench.PostgresOptions
	var out string
	cmd := &cobra.Command{Use: "postgres", Short: "PostgreSQL under pgbench on two disks: every recovery point is restored, started and checked", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			if o.Hook == "" {
				o.Hook = filepath.Join(filepath.Dir(dir), "hooks", "postgresql")
			}
			if _, err := os.Stat(o.Hook); err != nil {
				return fmt.Errorf("the hook: %w; name it with --hook", err)
			}
			var results *bench.Results
			if out != "" {
				if results, err = bench.NewResults(out); err != nil {
					return err
				}
			}
			return bench.Postgres(cmd.Context(), dir, o, cmd.OutOrStdout(), results)
		}}
	f := cmd.Flags()
	f.IntVar(&o.Points, "points", 50, "recovery points with the hook")
	f.IntVar(&o.Bare, "bare", 10, "recovery points without it")
	f.StringVar(&o.Work, "work", "/var/tmp", "folder for disks and targets")
	f.StringVar(&o.Hook, "hook", "", "the hook (default: hooks/postgresql beside the folder of this program)")
	f.IntVar(&o.Rate, "rate", 0, "transactions of pgbench a second; 0: as many as it can")
	f.IntVar(&o.Seed, "seed", 1, "seed of pgbench")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

func move() *cobra.Command {
	var o bench.MoveOptions
	cmd := &cobra.Command{Use: "move", Short: "overwrite a device with a filesystem under load and move it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			return bench.Move(cmd.Context(), dir, o, cmd.OutOrStdout())
		}}
	f := cmd.Flags()
	f.StringVar(&o.Volume, "volume", "", "device to move; its content is lost")
	f.StringVar(&o.On, "on", "", "device above it that gets the filesystem")
	f.StringVar(&o.Target, "target", "", "device to move it to, whose recovery points are tried too; its content is lost. Default: an image file")
	f.IntVar(&o.Moments, "moments", 0, "recovery points to take under load, with LVM snapshots and without, and to judge; needs --target")
	f.StringVar(&o.FS, "fs", "ext4", "ext4, xfs, btrfs or raw")
	f.StringVar(&o.Expect, "expect", "", "tracking method that the source must choose")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the random choices")
	return cmd
}

func perf() *cobra.Command {
	p := &bench.Perf{}
	var out string
	cmd := &cobra.Command{Use: "perf [misses|full|delta|pause|overhead|memory]...", Short: "measure, against peers in the same run",
		ValidArgs: []string{"misses", "full", "delta", "pause", "overhead", "memory"}, Args: cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := bin()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(p.Work, 0o700); err != nil {
				return err
			}
			if p.Results, err = bench.NewResults(out); err != nil {
				return err
			}
			p.Bin, p.W = dir, cmd.OutOrStdout()
			if len(args) == 0 {
				args = cmd.ValidArgs
			}
			for _, name := range args {
				run := map[string]func(context.Context) error{"misses": p.Misses, "full": p.Full, "delta": p.Delta, "pause": p.Pause, "overhead": p.Overhead, "memory": p.Memory}[name]
				if err := run(cmd.Context()); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&p.Work, "work", "/var/tmp/mover-bench", "folder with room for about 60 GiB")
	f.IntVar(&p.Repeat, "repeat", 5, "repetitions of each measurement")
	f.Int64Var(&p.SizeGiB, "gib", 12, "size of the volume that holds /usr")
	f.StringVar(&out, "results", "bench/results/perf.jsonl", "file for the results, JSON lines")
	return cmd
}
