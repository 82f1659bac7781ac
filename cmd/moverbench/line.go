package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/strict"
)

func line() *cobra.Command {
	l := &bench.Lines{}
	var o lineFlags
	cmd := &cobra.Command{Use: "line [" + strings.Join(bench.LineWorkloads, "|") + "]...", Short: "measure on a line of a given rate, against peers in the same run",
		Args: cobra.OnlyValidArgs, ValidArgs: bench.LineWorkloads,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.into(l); err != nil {
				return err
			}
			dir, err := bin()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(l.Work, 0o700); err != nil {
				return err
			}
			if l.Results, err = bench.NewResults(o.results); err != nil {
				return err
			}
			l.Bin, l.W = dir, cmd.OutOrStdout()
			if len(args) == 0 {
				args = bench.LineWorkloads
			}
			return l.Run(cmd.Context(), args)
		}}
	f := cmd.Flags()
	f.StringVar(&l.Work, "work", "/var/tmp/mover-bench", "folder for volumes, targets and repositories; about 60 GiB for the defaults")
	f.IntVar(&l.Repeat, "repeat", 5, "repetitions of each measurement")
	f.DurationVar(&l.Within, "within", 0, "time for all: no repetition after the first begins that would not end in it; 0: no limit")
	f.StringVar(&o.results, "results", "bench/results/line.jsonl", "file for the results, JSON lines")
	f.StringVar(&o.rates, "rate", "0,1Gbit/s,200Mbit/s,50Mbit/s", "of the line; 0: not limited")
	f.StringVar(&o.usr, "usr", "0", "bytes of /usr that volumes hold at most; 0: all")
	f.DurationVar(&l.Span, "span", 30*time.Second, "the volume for a limited line is made such that a pass takes about so long; 0: --usr for all")
	f.StringVar(&o.levels, "compression", "off,fastest,default,better,best", "levels that auto is compared with, by levels")
	f.StringVar(&o.peers, "peers", strings.Join(bench.PeerNames, ","), "what full is compared with; restic, which knows no line, by its time where the line is not limited, and by what it stores")
	f.StringVar(&o.twins, "twins", "clone,layout,inodes,order", "second hosts of twin: a clone of the image, a file system of the same layout, of another number of inodes, with files written in another order")
	f.StringVar(&o.sizes, "sizes", "1GiB,4GiB,16GiB,64GiB", "volumes of scale")
	f.StringVar(&o.pauses, "pause", "1Gbit/s:50MB/s,200Mbit/s:10MB/s", "lines of pause, and the writes under it")
	f.StringVar(&o.spread, "spread", "1GiB", "bytes of the files that are written to under pause")
	f.DurationVar(&l.Trip, "trip", 100*time.Millisecond, "round trip of distance")
	f.StringVar(&o.cores, "cores", "1,2,4", "cores that both daemons share under cores, as far as the machine has them")
	return cmd
}

// lineFlags are the flags that have units, and lists, of which a later one replaces an earlier one.
type lineFlags struct {
	results, usr, spread                              string
	rates, levels, peers, twins, sizes, pauses, cores string
}

// list are the members of a list with commas.
func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func (o *lineFlags) into(l *bench.Lines) (err error) {
	if l.Rates, err = parseRates(list(o.rates)); err != nil {
		return fmt.Errorf("--rate: %w", err)
	}
	if l.Sizes, err = parseSizes(list(o.sizes)); err != nil {
		return fmt.Errorf("--sizes: %w", err)
	}
	if l.Pauses, err = parsePauses(list(o.pauses)); err != nil {
		return fmt.Errorf("--pause: %w", err)
	}
	for _, v := range []struct {
		name, text string
		to         *int64
	}{{"--usr", o.usr, &l.Usr}, {"--spread", o.spread, &l.Spread}} {
		n, err := strict.ParseSize(v.text)
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		*v.to = int64(n)
	}
	if l.Levels, l.Peers = list(o.levels), list(o.peers); len(l.Rates) == 0 || len(l.Sizes) == 0 {
		return errors.New("--rate and --sizes: at least one")
	}
	for _, level := range l.Levels {
		if _, err := chunker.ParseLevel(level); err != nil {
			return fmt.Errorf("--compression: %w", err)
		}
	}
	for _, name := range l.Peers {
		if !slices.Contains(bench.PeerNames, name) {
			return fmt.Errorf("--peers: %q is none of %s", name, strings.Join(bench.PeerNames, ", "))
		}
	}
	return o.rest(l)
}

// rest are the lists of numbers and of second hosts, and the limits.
func (o *lineFlags) rest(l *bench.Lines) error {
	for _, name := range list(o.twins) {
		kind, ok := map[string]string{"clone": bench.Twins[0], "layout": bench.Twins[1], "inodes": bench.Twins[2], "order": bench.Twins[3]}[name]
		if !ok {
			return fmt.Errorf("--twins: %q is none of clone, layout, inodes, order", name)
		}
		l.Twins = append(l.Twins, kind)
	}
	for _, s := range list(o.cores) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("--cores: %q is no number of cores", s)
		}
		l.Cores = append(l.Cores, n)
	}
	slices.Sort(l.Sizes)
	for _, n := range l.Sizes {
		if n < 64<<20 || n%(1<<20) != 0 {
			return errors.New("--sizes: at least 64MiB each, in whole MiB")
		}
	}
	if l.Repeat < 1 || l.Trip < 0 || l.Span < 0 || l.Within < 0 || l.Spread < 1<<20 || l.Usr != 0 && l.Usr < 16<<20 {
		return errors.New("--repeat must be at least 1, --trip, --span and --within not negative, --spread at least 1MiB, --usr 0 or at least 16MiB")
	}
	return nil
}

// parseRates reads 1Gbit/s,200Mbit/s,0.
func parseRates(list []string) (out []int64, err error) {
	for _, s := range list {
		r, err := strict.ParseRate(s)
		if err != nil {
			return nil, err
		}
		out = append(out, int64(r))
	}
	return out, nil
}

// parseSizes reads 1GiB,4GiB.
func parseSizes(list []string) (out []int64, err error) {
	for _, s := range list {
		n, err := strict.ParseSize(s)
		if err != nil {
			return nil, err
		}
		out = append(out, int64(n))
	}
	return out, nil
}

// parsePauses reads LINE:WRITES, as in 1Gbit/s:50MB/s.
func parsePauses(list []string) (out []bench.PauseLoad, err error) {
	for _, s := range list {
		line, writes, ok := strings.Cut(s, ":")
		if !ok {
			return nil, fmt.Errorf("%q: write it as LINE:WRITES, as in 1Gbit/s:50MB/s", s)
		}
		both, err := parseRates([]string{line, writes})
		if err != nil {
			return nil, err
		}
		if both[1] == 0 {
			return nil, fmt.Errorf("%q: the writes need a rate", s)
		}
		out = append(out, bench.PauseLoad{Line: both[0], Writes: both[1]})
	}
	return out, nil
}

func delay() *cobra.Command {
	d := bench.Delay{}
	var listen, memory string
	cmd := &cobra.Command{Use: "delay", Short: "pass TCP on, every byte a given time later", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := strict.ParseSize(memory)
			if err != nil {
				return fmt.Errorf("--memory: %w", err)
			}
			if n < 1<<16 || n > 1<<30 || d.Delay < 0 || d.Target == "" {
				return errors.New("--memory must be 64KiB to 1GiB, --delay not negative, --to given")
			}
			d.Memory = int(n)
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s to %s\n", ln.Addr(), d.Target)
			return d.Serve(cmd.Context(), ln)
		}}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:0", "address to listen on")
	f.StringVar(&d.Target, "to", "", "address to pass connections on to")
	f.DurationVar(&d.Delay, "delay", 50*time.Millisecond, "of every byte in each direction")
	f.StringVar(&memory, "memory", "32MiB", "bytes on the way, for each direction of each connection")
	return cmd
}

func picture() *cobra.Command {
	return &cobra.Command{Use: "picture DIR", Short: "draw the results in DIR that have a bound, and other ratios, as SVG", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return written(cmd.OutOrStdout(), args[0], bench.Picture)
		}}
}

// written reads the results in dir and writes them in some form.
func written(w io.Writer, dir string, form func(io.Writer, []bench.Result) error) error {
	results, err := bench.ReadResults(filepath.Clean(dir))
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	if len(results) == 0 {
		return fmt.Errorf("no results (*.jsonl) in %s", dir)
	}
	return form(w, results)
}
