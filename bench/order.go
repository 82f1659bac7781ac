package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/mover"
)

// OrderOptions of a campaign.
type OrderOptions struct {
	Moments int
	Seed    uint64
}

// Order writes to four disks in one random order, has points taken of all at one moment, and looks into every one that is kept: the four disks
// together must hold a prefix of that order. Half of the moments are of filesystems, half of raw disks, whose writer the hooks of the group stop.
// In the end it puts disks of different moments together, which must be found out.
func Order(ctx context.Context, bin string, o OrderOptions, w io.Writer, results *Results) error {
	var errs []error
	var sum orderCount
	start := time.Now()
	for i, kinds := range [][]string{{"ext4", "xfs", "ext4", "ext4"}, {"raw", "raw", "raw", "raw"}} {
		moments := o.Moments / 2
		if i == 0 {
			moments = o.Moments - moments
		}
		run := &orderRun{rng: rand.New(rand.NewPCG(o.Seed, uint64(i))), seed: o.Seed + uint64(i), w: w}
		n, err := run.run(ctx, bin, moments, kinds)
		sum.add(n)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", strings.Join(kinds, "+"), err))
		}
		fmt.Fprintf(w, "%s: %d moments, %d looked into, all prefixes: %v; %d writes were made, %d of %d wrong moments found out\n", strings.Join(kinds, "+"),
			n.taken, n.good, err == nil, n.writes, n.found, n.mixed)
	}
	fmt.Fprintf(w, "%d moments of four disks are prefixes of the order of writing, in %.0f s\n", sum.good, time.Since(start).Seconds())
	for _, v := range []struct {
		metric string
		value  int
		unit   string
	}{{"moments taken", sum.taken, "moments"}, {"moments that are a prefix of the order of writing", sum.good, "moments"}, {"points restored by moverctl", sum.restored, "points"}, {"writes", sum.writes, "writes"},
		{"wrong moments made on purpose", sum.mixed, "moments"}, {"of these found out", sum.found, "moments"}} {
		if results != nil {
			errs = append(errs, results.Add("order", "mover", v.metric, float64(v.value), v.unit))
		}
	}
	return errors.Join(errs...)
}

type orderCount struct{ taken, good, writes, mixed, found, restored int }

func (c *orderCount) add(x orderCount) {
	c.taken += x.taken
	c.good += x.good
	c.writes += x.writes
	c.mixed += x.mixed
	c.found += x.found
	c.restored += x.restored
}

// orderRun is one server.
type orderRun struct {
	rng   *rand.Rand
	seed  uint64
	w     io.Writer
	f     *fleet
	chain []*chain
	where [][]place // by chain and disk: where its file lies on the disk
	n     orderCount
}

const (
	orderChains = 3   // independent orders at the same time
	orderSlots  = 256 // of each chain on each disk
	orderSlot   = 4096
)

// chain is one order of writes over all disks: a write begins when the one before has ended. Where the nth goes follows from the seed.
type chain struct {
	seed  uint64
	disks int
}

// at is the disk and the slot of the nth write.
func (c *chain) at(n uint64) (disk, slot int) {
	r := rand.New(rand.NewPCG(c.seed, n))
	return r.IntN(c.disks), r.IntN(orderSlots)
}

// after is what every slot of every disk holds after n writes.
func (c *chain) after(n uint64) [][orderSlots]uint64 {
	out := make([][orderSlots]uint64, c.disks)
	for i := uint64(1); i <= n; i++ {
		d, s := c.at(i)
		out[d][s] = i
	}
	return out
}

// place is where a part of a file lies on a disk, in bytes.
type place struct{ logical, physical, length int64 }

func (o *orderRun) run(ctx context.Context, bin string, moments int, kinds []string) (n orderCount, err error) {
	raw := kinds[0] == "raw"
	opts := RigOptions{Interval: "500ms", Limit: "30s", Deadline: "30s", Leave: "frozen", Freeze: !raw, Points: fmt.Sprintf("{method: reflink, keep: {last: %d}}", moments+20)}
	if o.f, err = newFleet(ctx, bin, opts, 512, kinds...); err != nil {
		return o.n, err
	}
	defer func() { err = errors.Join(err, o.f.close()) }()
	if raw {
		o.f.r.o.Hooks = fmt.Sprintf(`{pre: [/bin/sh, -c, "touch %[1]s/halt; while [ -e %[1]s/writing ]; do sleep 0.005; done"], post: [/bin/rm, -f, %[1]s/halt]}`, o.f.r.Dir)
	}
	w := &orderWriter{o: o, halt: o.f.r.path("halt"), flag: o.f.r.path("writing")}
	if err := w.prepare(ctx, raw); err != nil {
		return o.n, err
	}
	if err := o.f.start(ctx); err != nil {
		return o.n, err
	}
	stop := w.start(ctx)
	defer stop()
	for i := range moments {
		verb := []string{"point", o.f.r.o.unit()}
		if i%10 == 9 && !raw {
			verb = []string{"cutover", o.f.r.o.unit(), "--rehearse", "--yes"}
		}
		if _, err := o.f.r.Ctl(ctx, "source", verb...); err != nil {
			return o.n, fmt.Errorf("%w\n%s", err, o.f.r.Log("source"))
		}
		o.n.taken++
		if err := pause(ctx, ms(o.rng, 60)); err != nil {
			return o.n, err
		}
	}
	if err := errors.Join(w.err(), o.look(ctx)); err != nil {
		return o.n, err
	}
	o.n.writes = stop()
	return o.n, w.err()
}

// look restores every kept point and judges every moment.
func (o *orderRun) look(ctx context.Context) error {
	moments := map[string]map[string]mover.RecoveryPoint{} // by moment and disk
	var names []string
	for _, d := range o.f.disks {
		all, err := o.f.points(ctx, d)
		if err != nil {
			return err
		}
		for _, p := range all {
			if p.Moment == "" {
				return fmt.Errorf("point %s of %s is %s and of no moment", p.ID, d.Name, p.Worth)
			}
			if moments[p.Moment] == nil {
				moments[p.Moment] = map[string]mover.RecoveryPoint{}
				names = append(names, p.Moment)
			}
			moments[p.Moment][d.Name] = p
		}
	}
	if len(names) < o.n.taken {
		return fmt.Errorf("%d moments were taken and %d are kept", o.n.taken, len(names))
	}
	var before [][]string // contents of the moments before, for the wrong ones
	for _, name := range names {
		if len(moments[name]) != len(o.f.disks) {
			return fmt.Errorf("moment %s has points of %d disks", name, len(moments[name]))
		}
		var images []string
		for _, d := range o.f.disks {
			p := moments[name][d.Name]
			files, err := filepath.Glob(d.Target + ".points/*" + p.ID + "*")
			if err != nil || len(files) != 1 {
				return fmt.Errorf("copies of point %s of %s: %v %v", p.ID, d.Name, files, err)
			}
			file := files[0]
			if len(before) == 0 || o.n.good%10 == 0 { // the way that everybody goes; the others are read where they are kept
				if file, err = o.f.restore(ctx, d, p.ID, "look-"+d.Name+"-"+name); err != nil {
					return err
				}
				o.n.restored++
			}
			images = append(images, file)
		}
		if _, err := o.prefix(images); err != nil {
			return fmt.Errorf("moment %s: %w", name, err)
		}
		o.n.good++
		before = append(before, images)
		if len(before) > 1 {
			o.mix(before[0], before[1])
			before = before[1:]
		}
	}
	if o.n.mixed == 0 || o.n.found < o.n.mixed {
		return fmt.Errorf("%d of %d wrong moments were found out", o.n.found, o.n.mixed)
	}
	return nil
}

// mix puts a disk of one moment to those of another: where anything was written to it in between, that is no prefix.
func (o *orderRun) mix(a, b []string) {
	k := o.rng.IntN(len(a))
	wrong := append([]string(nil), b...)
	wrong[k] = a[k]
	na, erra := o.prefix(a)
	nb, errb := o.prefix(b)
	if erra != nil || errb != nil {
		return
	}
	differs := false
	for c, ch := range o.chain {
		differs = differs || ch.after(na[c])[k] != ch.after(nb[c])[k]
	}
	if !differs {
		return
	}
	o.n.mixed++
	if _, err := o.prefix(wrong); err != nil {
		o.n.found++
	}
}

// prefix tells of each chain how many writes the images hold; an error if that is not exactly the first so many.
func (o *orderRun) prefix(images []string) ([]uint64, error) {
	var out []uint64
	for c, ch := range o.chain {
		got := make([][orderSlots]uint64, len(images))
		most := uint64(0)
		for d, image := range images {
			b, err := readPlaces(image, o.where[c*len(images)+d])
			if err != nil {
				return nil, err
			}
			for s := range orderSlots {
				slot := b[s*orderSlot : (s+1)*orderSlot]
				n := binary.LittleEndian.Uint64(slot)
				for k := 8; k < orderSlot; k += 8 {
					if binary.LittleEndian.Uint64(slot[k:]) != n {
						return nil, fmt.Errorf("chain %d: slot %d of disk %d is torn", c, s, d)
					}
				}
				got[d][s] = n
				most = max(most, n)
			}
		}
		want := ch.after(most)
		for d := range images {
			for s := range orderSlots {
				if got[d][s] != want[d][s] {
					return nil, fmt.Errorf("chain %d: write %d is there, but slot %d of disk %d holds write %d instead of %d", c, most, s, d, got[d][s], want[d][s])
				}
			}
		}
		out = append(out, most)
	}
	return out, nil
}

// readPlaces reads what lies at the places, in order.
func readPlaces(image string, at []place) ([]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, orderSlots*orderSlot)
	for _, p := range at {
		if _, err := f.ReadAt(b[p.logical:p.logical+p.length], p.physical); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// orderWriter writes the chains.
type orderWriter struct {
	o          *orderRun
	halt, flag string   // the hook asks by halt; flag is there while somebody may write
	paths      []string // by chain and disk
	offs       []int64

	mu     sync.Mutex // guards all below
	failed error
	writes int
}

func (w *orderWriter) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// prepare makes the places of all slots, whose blocks never move from then on.
func (w *orderWriter) prepare(ctx context.Context, raw bool) error {
	o := w.o
	for c := range orderChains {
		o.chain = append(o.chain, &chain{seed: o.seed*10 + uint64(c), disks: len(o.f.disks)})
		for _, d := range o.f.disks {
			size := int64(orderSlots * orderSlot)
			if raw {
				off := int64(c) * size
				w.paths, w.offs = append(w.paths, d.Volume), append(w.offs, off)
				o.where = append(o.where, []place{{0, off, size}})
				continue
			}
			path := filepath.Join(d.dir, fmt.Sprintf("chain-%d", c))
			if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
				return err
			}
			if _, err := Run(ctx, "sync", path); err != nil {
				return err
			}
			at, err := extentsOf(ctx, path)
			if err != nil {
				return err
			}
			w.paths, w.offs = append(w.paths, path), append(w.offs, 0)
			o.where = append(o.where, at)
		}
	}
	return nil
}

// extentsOf asks filefrag where a file's blocks lie.
func extentsOf(ctx context.Context, path string) (out []place, err error) {
	text, err := Run(ctx, "filefrag", "-b512", "-v", path)
	if err != nil {
		return nil, err
	}
	total := int64(0)
	for line := range strings.Lines(text) {
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ':' || r == '.' || r == ' ' || r == '\n' })
		var n [6]int64
		if len(f) < 6 {
			continue
		}
		bad := false
		for i := range n {
			if _, err := fmt.Sscan(f[i], &n[i]); err != nil {
				bad = true
			}
		}
		if bad {
			continue
		}
		out = append(out, place{n[1] * 512, n[3] * 512, n[5] * 512})
		total += n[5] * 512
	}
	if total != orderSlots*orderSlot {
		return nil, fmt.Errorf("extents of %s cover %d bytes:\n%s", path, total, text)
	}
	return out, nil
}

// start writes until stop, which tells how many writes were made.
func (w *orderWriter) start(ctx context.Context) (stop func() int) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		next := make([]uint64, orderChains)
		for ctx.Err() == nil {
			if _, err := os.Stat(w.halt); err == nil { // the hook of the group wants the disks left alone
				_ = pause(ctx, 2*time.Millisecond)
				continue
			}
			if err := w.session(ctx, next); err != nil {
				w.mu.Lock()
				w.failed = errors.Join(w.failed, err)
				w.mu.Unlock()
				return
			}
		}
	})
	return sync.OnceValue(func() int {
		cancel()
		for _, d := range w.o.f.disks {
			if d.dir != "" {
				Thaw(d.dir)
			}
		}
		wg.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.writes
	})
}

// session opens all disks and writes all chains until the hook wants the disks closed.
func (w *orderWriter) session(ctx context.Context, next []uint64) (err error) {
	if err := os.WriteFile(w.flag, nil, 0o600); err != nil {
		return err
	}
	defer os.Remove(w.flag)
	if _, err := os.Stat(w.halt); err == nil {
		return nil
	}
	files := make([]*os.File, len(w.paths))
	defer func() {
		for _, f := range files {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
	}()
	for i, path := range w.paths {
		if files[i], err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, orderChains)
	for c, ch := range w.o.chain {
		wg.Go(func() {
			buf, err := unix.Mmap(-1, 0, orderSlot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				errs[c] = err
				return
			}
			defer unix.Munmap(buf)
			rng := rand.New(rand.NewPCG(ch.seed, next[c]))
			for ctx.Err() == nil {
				if _, err := os.Stat(w.halt); err == nil {
					return
				}
				d, s := ch.at(next[c] + 1)
				for k := 0; k < orderSlot; k += 8 {
					binary.LittleEndian.PutUint64(buf[k:], next[c]+1)
				}
				i := c*ch.disks + d
				if _, errs[c] = files[i].WriteAt(buf, w.offs[i]+int64(s)*orderSlot); errs[c] != nil {
					return
				}
				next[c]++
				w.mu.Lock()
				w.writes++
				w.mu.Unlock()
				_ = pause(ctx, time.Duration(rng.IntN(3000))*time.Microsecond)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
