package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/bench"
)

func shaping() *cobra.Command {
	s := bench.Shaping{}
	var out, rate, peak, circuit string
	cmd := &cobra.Command{Use: "shaping", Short: "many sources on one line that the gateway shares out: allowance, smoothness, cutovers, a shortened month", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := parseRates([]string{rate, peak, circuit})
			if err != nil {
				return err
			}
			s.Rate, s.Peak, s.Circuit = all[0], all[1], all[2]
			if s.Bin, err = bin(); err != nil {
				return err
			}
			if s.Results, err = resultsIn(out); err != nil {
				return err
			}
			s.W = cmd.OutOrStdout()
			return s.Run(cmd.Context())
		}}
	f := cmd.Flags()
	f.IntVar(&s.Hosts, "hosts", 20, "sources, 2 at least")
	f.StringVar(&rate, "rate", "200Mbit/s", "that the gateway may let over the line")
	f.StringVar(&circuit, "circuit", "1Gbit/s", "that the line could carry; 0: any")
	f.DurationVar(&s.Minute, "minute", time.Minute, "over which the allowance is measured; 0: not")
	f.DurationVar(&s.Month, "month", 2*time.Minute, "length of a shortened month of 60 samples; 0: none")
	f.StringVar(&peak, "peak", "40Mbit/s", "that may be billed in it")
	f.StringVar(&s.Work, "work", "/var/tmp", "folder with room for volumes and copies, about 6 GiB")
	f.StringVar(&out, "results", "", "file for the results, JSON lines")
	return cmd
}
