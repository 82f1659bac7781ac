package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/bench/buckets"
	"github.com/moverd/mover/internal/strict"
)

func bucketCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bucket", Short: "workloads of bucket flows"}
	cmd.AddCommand(bucketSoak(), bucketWorkers(), bucketCompare(), bucketFlat(), bucketCutover(), bucketChild())
	return cmd
}

func bucketSoak() *cobra.Command {
	var o buckets.SoakOptions
	cmd := &cobra.Command{Use: "soak", Short: "move folders into a BOS emulator under a live writer, kill -9 and faults of the server; every object compared", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Exe, err = os.Executable(); err != nil {
				return err
			}
			t, err := buckets.Soak(cmd.Context(), o, cmd.OutOrStdout())
			fmt.Fprintf(cmd.OutOrStdout(), "%d runs: %d failed, %d kills, %d stops, %d faults, %d objects compared, %d lost, %d wrong, %d uploads left, repeated work %.2f %%\n", t.Runs, t.Failed, t.Kills, t.Stops, t.Faults, t.Objects,
				t.Lost, t.Wrong, t.Left, t.Repeated()*100)
			return err
		}}
	cmd.Flags().IntVar(&o.Runs, "runs", 20, "runs")
	cmd.Flags().Uint64Var(&o.Seed, "seed", 1, "of the first run")
	cmd.Flags().IntVar(&o.Parallel, "parallel", 2, "runs side by side")
	cmd.Flags().IntVar(&o.Objects, "objects", 1500, "at the beginning, about")
	cmd.Flags().IntVar(&o.Workers, "workers", 2, "worker processes")
	cmd.Flags().BoolVar(&o.External, "external", false, "the queue is a NATS server of its own, which is killed too")
	cmd.Flags().BoolVar(&o.Stops, "stops", false, "workers also stand still (SIGSTOP) for 5 to 40 s, and go on")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the folder of a run that failed")
	return cmd
}

func bucketWorkers() *cobra.Command {
	var o buckets.WorkersOptions
	var out string
	cmd := &cobra.Command{Use: "workers", Short: "one worker process against several, at a NATS server of its own; the target's latency is simulated", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Exe, err = os.Executable(); err != nil {
				return err
			}
			if o.Out = cmd.OutOrStdout(); out != "" {
				if o.Results, err = bench.NewResults(out); err != nil {
					return err
				}
			}
			return buckets.Workers(cmd.Context(), o)
		}}
	f := cmd.Flags()
	f.IntVar(&o.Objects, "objects", 6000, "objects")
	f.IntVar(&o.Size, "size", 4096, "bytes of each")
	f.DurationVar(&o.Latency, "latency", 20*time.Millisecond, "of a request, at the target")
	f.IntVar(&o.Most, "most", 8, "objects under way in a worker")
	f.IntVar(&o.Workers, "workers", 4, "worker processes")
	f.IntVar(&o.Repeat, "repeat", 3, "repetitions")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

func bucketCutover() *cobra.Command {
	var o buckets.CutoverOptions
	var out string
	cmd := &cobra.Command{Use: "cutover", Short: "move buckets of a real Ceph RGW under a live writer, cut over, and have both ends judged by others too", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Bin, err = bin(); err != nil {
				return err
			}
			if o.Out = cmd.OutOrStdout(); out != "" {
				if o.Results, err = bench.NewResults(out); err != nil {
					return err
				}
			}
			return buckets.Cutover(cmd.Context(), o)
		}}
	f := cmd.Flags()
	f.StringVar(&o.Work, "work", "/var/tmp", "folder for the servers and the daemon's state")
	f.IntVar(&o.Runs, "runs", 10, "runs")
	f.Uint64Var(&o.Seed, "seed", 1, "of the first run")
	f.IntVar(&o.Objects, "objects", 1500, "at the beginning")
	f.IntVar(&o.Writers, "writers", 4, "writing side by side")
	f.StringSliceVar(&o.Targets, "targets", []string{"rgw", "bos"}, "kinds of target, in turn")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

// bucketChild is one process of a soak.
func bucketChild() *cobra.Command {
	return &cobra.Command{Use: "child", Short: "one process of a soak, described on standard input", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c buckets.Child
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&c); err != nil {
				return err
			}
			return c.Run(cmd.Context(), cmd.OutOrStdout())
		}}
}

func bucketCompare() *cobra.Command {
	var o buckets.CompareOptions
	var size, large, out string
	cmd := &cobra.Command{Use: "compare", Short: "copy a bucket of a real S3 server with Mover and with rclone, alternately", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := strict.ParseSize(size)
			if err != nil {
				return err
			}
			l, err := strict.ParseSize(large)
			if err != nil {
				return err
			}
			o.Size, o.LargeSize, o.Out = int(n), int64(l), cmd.OutOrStdout()
			if out != "" {
				if o.Results, err = bench.NewResults(out); err != nil {
					return err
				}
			}
			return buckets.Compare(cmd.Context(), o)
		}}
	f := cmd.Flags()
	f.StringVar(&o.Work, "work", "/var/tmp", "folder for the server and the ledgers")
	f.BoolVar(&o.Versity, "versitygw", false, "the server is a versitygw on /dev/shm, which needs little of the processor, instead of a Ceph RGW")
	f.IntVar(&o.Objects, "objects", 20_000, "small objects; 0: none")
	f.StringVar(&size, "size", "10KiB", "of each")
	f.IntVar(&o.Large, "large", 4, "large objects; 0: none")
	f.StringVar(&large, "large-size", "1GiB", "of each")
	f.IntVar(&o.Repeat, "repeat", 3, "repetitions")
	f.DurationVar(&o.Within, "within", 0, "no repetition but the first of each size begins that would not end in it; 0: all are made")
	f.IntVar(&o.Transfers, "transfers", 64, "of rclone")
	f.StringVar(&o.Profile, "profile", "", "file for a profile of the processor's time that Mover's first pass takes")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}

func bucketFlat() *cobra.Command {
	var o buckets.FlatOptions
	var out string
	cmd := &cobra.Command{Use: "flat", Short: "list millions of keys in one flat prefix, plan them and begin to copy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Out = cmd.OutOrStdout(); out != "" {
				if o.Results, err = bench.NewResults(out); err != nil {
					return err
				}
			}
			return buckets.Flat(cmd.Context(), o)
		}}
	f := cmd.Flags()
	f.StringVar(&o.Work, "work", "/var/tmp", "folder for the ledger")
	f.IntVar(&o.Keys, "keys", 10_000_000, "keys")
	f.DurationVar(&o.Latency, "latency", 150*time.Millisecond, "of a page, at the server")
	f.IntVar(&o.Listers, "listers", 16, "calls side by side")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}
