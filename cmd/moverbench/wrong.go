package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/bench"
)

func wrong() *cobra.Command {
	w := &bench.Wrong{}
	var out string
	cmd := &cobra.Command{Use: "wrong", Short: "wrong connections of many kinds beside one good flow: nothing read, nothing written, all in the trail", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if w.Connections < 1 || w.Pace < 1 || w.Pace > 1000 || w.Pairs < 1 || w.Phase < time.Second || w.Rate < 1 || w.Runs < 0 {
				return errors.New("--connections, --pace (up to 1000), --pairs, --phase (at least 1s) and --rate must be more than 0, --runs not negative")
			}
			dir, err := bin()
			if err != nil {
				return err
			}
			if w.Results, err = bench.NewResults(out); err != nil {
				return err
			}
			w.Bin, w.W = dir, cmd.OutOrStdout()
			return w.Run(cmd.Context())
		}}
	f := cmd.Flags()
	f.StringVar(&w.Work, "work", "/dev/shm", "folder with room for the targets, about 6 GiB")
	f.IntVar(&w.Connections, "connections", 100, "wrong connections of each of the 22 kinds against the idle gateway")
	f.IntVar(&w.Pace, "pace", 50, "wrong connections per second beside the good flow")
	f.IntVar(&w.Pairs, "pairs", 12, "pairs of phases without and with the attack")
	f.DurationVar(&w.Phase, "phase", 6*time.Second, "length of a phase")
	f.IntVar(&w.Rate, "rate", 24, "MiB/s of the good flow while the line is the limit")
	f.IntVar(&w.Runs, "runs", 6, "pairs of passes of 1 GiB that take what the machine has")
	f.StringVar(&out, "results", "bench/results/wrong.jsonl", "file for the results, JSON lines")
	return cmd
}
