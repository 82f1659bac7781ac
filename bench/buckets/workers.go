package buckets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/dir"
)

// WorkersOptions of a comparison of one worker process with several, at a NATS server of its own.
type WorkersOptions struct {
	Exe     string // moverbench
	Objects int
	Size    int
	Latency time.Duration // that the target takes for each request, simulated: it costs no processor
	Most    int           // objects under way in a worker: what bounds it
	Workers int
	Repeat  int
	Results *bench.Results
	Out     io.Writer
}

// Workers copies a folder into a BOS emulator that answers each request after Latency, with one worker and with several, alternately. Every object is compared at the end.
func Workers(ctx context.Context, o WorkersOptions) error {
	rates := map[int][]float64{}
	for i := range o.Repeat {
		for _, n := range []int{1, o.Workers} {
			d, err := workersOnce(ctx, o, n, uint64(i))
			if err != nil {
				return err
			}
			rate := float64(o.Objects) / d.Seconds()
			rates[n] = append(rates[n], rate)
			fmt.Fprintf(o.Out, "%d workers: %d objects in %.2f s, %.0f/s\n", n, o.Objects, d.Seconds(), rate)
			if o.Results != nil {
				if err := o.Results.Add("bucket workers", fmt.Sprintf("%d workers", n), "rate", rate, "objects/s"); err != nil {
					return err
				}
			}
		}
	}
	fmt.Fprintf(o.Out, "%d workers: %.2f times one\n", o.Workers, mean(rates[o.Workers])/mean(rates[1]))
	return nil
}

func mean(all []float64) (m float64) {
	for _, v := range all {
		m += v / float64(len(all))
	}
	return m
}

func workersOnce(ctx context.Context, o WorkersOptions, n int, seed uint64) (d time.Duration, err error) {
	s := &soak{o: SoakOptions{Exe: o.Exe, Workers: n, External: true}, seed: seed}
	if s.root, err = os.MkdirTemp("", "mover-workers-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(s.root)
	if err := s.folders(); err != nil {
		return 0, err
	}
	stop, err := s.serve(o.Most, func(bosemu.Request) bosemu.Fault {
		if s.quiet.Load() { // the judge reads
			return bosemu.Fault{}
		}
		return bosemu.Fault{Delay: o.Latency}
	})
	if err != nil {
		return 0, err
	}
	defer stop()
	src, err := dir.Open(dir.Config{Path: filepath.Join(s.root, "source")})
	if err != nil {
		return 0, err
	}
	defer src.Close()
	for i := range o.Objects {
		if err := os.MkdirAll(filepath.Join(s.root, "source", fmt.Sprintf("%02x", i%64)), 0o700); err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(s.root, "source", fmt.Sprintf("%02x/%06d", i%64, i)), noise(o.Size, uint64(i)), 0o600); err != nil {
			return 0, err
		}
	}
	time.Sleep(settle)
	s.all = s.slots()
	defer s.killSlots()
	if err := s.fillSlots(s.all[1:], nil); err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // they are connected, and wait
	began := time.Now()
	if err := s.fillSlots(s.all[:1], nil); err != nil {
		return 0, err
	}
	p := s.all[0]
	select {
	case err = <-p.done:
	case <-ctx.Done():
		p.kill()
		err = ctx.Err()
	}
	d = time.Since(began)
	out := p.out.Bytes()
	p.process = nil
	if err != nil {
		return d, s.told("coordinator", err)
	}
	var got Outcome
	if err := json.Unmarshal(out, &got); err != nil {
		return d, err
	}
	if got.State.Copied != int64(o.Objects) || got.State.Again != 0 {
		return d, fmt.Errorf("%d objects: %+v", o.Objects, got.State)
	}
	s.quiet.Store(true)
	dst, err := s.target()
	if err != nil {
		return d, err
	}
	defer dst.Close()
	a, err := contents(ctx, src)
	if err != nil {
		return d, err
	}
	b, err := contents(ctx, dst)
	if err == nil && !maps.EqualFunc(a, b, func(x, y string) bool { return x[:16] == y[:16] }) { // files have no attributes
		err = errors.New("the target is not equal to the source")
	}
	return d, err
}
