package flowtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// together freezes several volumes one after the other, as filesystems of one server are.
type together []freezer

func (g together) Names() (out []string) { return []string{fmt.Sprint(len(g), " models")} }

func (g together) Freeze(ctx context.Context, deadline time.Duration) error {
	for _, f := range g {
		if err := f.Freeze(ctx, deadline); err != nil {
			return err
		}
	}
	return nil
}

func (g together) Thaw() (err error) {
	for _, f := range g {
		err = errors.Join(err, f.Thaw())
	}
	return err
}

func (g together) Keep() (err error) {
	for _, f := range g {
		err = errors.Join(err, f.Keep())
	}
	return err
}

func (g together) Held() bool {
	for _, f := range g {
		if !f.Held() {
			return false
		}
	}
	return true
}

func (g together) Thawed() <-chan struct{} { return g[0].Thawed() }

// server is several disks whose writes have one order: each begins when the one before has ended, on whatever disk.
type server struct {
	t     *testing.T
	disks []*rig
	stop  func() uint64
}

const slot = 4096 // bytes that one write fills

func newServer(t *testing.T, seed uint64) *server {
	s := &server{t: t}
	for range 4 {
		r := newRig(t, 4<<20, 0)
		r.config.Interval = time.Millisecond
		r.keepPoints()
		s.disks = append(s.disks, r.start())
	}
	halt, ended := make(chan struct{}), make(chan uint64, 1)
	go func() {
		rng, n := rand.New(rand.NewPCG(seed, 77)), uint64(0)
		next := make([]int64, len(s.disks))
		for {
			select {
			case <-halt:
				ended <- n
				return
			case <-time.After(time.Duration(rng.IntN(200)) * time.Microsecond):
			}
			d := rng.IntN(len(s.disks))
			if next[d] == s.disks[d].vol.Size() {
				continue
			}
			n++
			b := make([]byte, slot)
			for i := 0; i < slot; i += 8 {
				binary.LittleEndian.PutUint64(b[i:], n)
			}
			s.disks[d].vol.writeBytes(b, next[d])
			next[d] += slot
		}
	}()
	var once sync.Once
	var last uint64
	s.stop = func() uint64 {
		once.Do(func() { close(halt); last = <-ended })
		return last
	}
	return s
}

// cutover runs it for all disks at once.
func (s *server) cutover(o sender.CutoverOptions) ([]*mover.Report, []error) {
	var fr together
	for _, r := range s.disks {
		fr = append(fr, freezer{r.vol})
	}
	o.Group = sender.NewGroup("server", fr, len(s.disks))
	reports, errs := make([]*mover.Report, len(s.disks)), make([]error, len(s.disks))
	var wg sync.WaitGroup
	for i, r := range s.disks {
		wg.Go(func() { reports[i], errs[i] = r.cutover(o) })
	}
	wg.Wait()
	return reports, errs
}

// prefix fails unless the targets together hold the writes 1 to some n, whole, and nothing else; it returns n.
func (s *server) prefix() uint64 {
	s.t.Helper()
	var all [][]byte
	for _, r := range s.disks {
		r.applied()
		r.mu.Lock()
		target := r.target.Reopen()
		r.mu.Unlock()
		all = append(all, read(s.t, target, r.vol.Size()))
	}
	return s.prefixOf(all)
}

func (s *server) prefixOf(all [][]byte) uint64 {
	s.t.Helper()
	n, why := isPrefix(all)
	if why != "" {
		s.t.Fatal(why)
	}
	return n
}

// isPrefix tells up to which write the disks hold all of them, whole, and nothing else; or why not.
func isPrefix(all [][]byte) (uint64, string) {
	seen := map[uint64]bool{}
	most := uint64(0)
	for i, b := range all {
		for at := 0; at < len(b); at += slot {
			n := binary.LittleEndian.Uint64(b[at:])
			for k := 8; k < slot; k += 8 {
				if binary.LittleEndian.Uint64(b[at+k:]) != n {
					return 0, fmt.Sprintf("disk %d: the write at %d is torn", i, at)
				}
			}
			if n > 0 {
				seen[n] = true
				most = max(most, n)
			}
		}
	}
	if uint64(len(seen)) != most {
		return 0, fmt.Sprintf("the disks hold %d of the first %d writes: no prefix of their order", len(seen), most)
	}
	return most, ""
}

// The disks of a server are cut over at one moment: what the targets hold is a prefix of the order in which the server wrote.
func TestGroupIsOneMoment(t *testing.T) {
	for seed := range uint64(3) {
		s := newServer(t, seed)
		for round := range 2 {
			reports, errs := s.cutover(sender.CutoverOptions{Rehearse: round == 0, Limit: 10 * time.Second, Deadline: 30 * time.Second})
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			for _, r := range reports {
				if !r.OK || r.Rounds != reports[0].Rounds || r.Left != map[bool]string{true: "running", false: "frozen"}[round == 0] {
					t.Fatalf("%+v", r)
				}
			}
		}
		n := s.prefix()
		for _, r := range s.disks {
			r.same()
			must(t, r.flow.Rollback(context.Background())) // thaws it
		}
		if last := s.stop(); n == 0 || n > last {
			t.Fatalf("%d writes at the targets, %d were made", n, last)
		}
	}
}

// One disk that refuses before it begins ends it for all: nobody waits for who never comes.
func TestGroupRefusedAsOne(t *testing.T) {
	s := newServer(t, 11)
	s.points()
	must(t, s.disks[1].flow.Pause())
	began := time.Now()
	for name, errs := range map[string]func() []error{
		"cutover": func() []error { _, errs := s.cutover(sender.CutoverOptions{Limit: 10 * time.Second}); return errs },
		"point":   func() []error { _, errs := s.point(s.hooked(), sender.PointOptions{}); return errs },
	} {
		for i, err := range errs() {
			if err == nil || !strings.Contains(err.Error(), "the flow is paused") {
				t.Errorf("%s, disk %d: %v", name, i, err)
			}
		}
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	s.goOn()
	s.stop()
}

// One disk that fails ends it for all, nothing is handed over, and all writers go on.
func TestGroupFailsAsOne(t *testing.T) {
	s := newServer(t, 9)
	bad := s.disks[2]
	for _, r := range s.disks {
		r.wait("a point", func(st mover.Status) bool { return st.Passes > 0 })
	}
	down := make(chan struct{})
	bad.vol.mu.Lock()
	bad.vol.onFreeze = func() { // one disk's gateway goes down while the writers are being stopped
		go func() { defer close(down); bad.stopGateway() }()
	}
	bad.vol.mu.Unlock()
	reports, errs := s.cutover(sender.CutoverOptions{Limit: 10 * time.Second, Deadline: 2 * time.Second})
	for i, err := range errs {
		if err == nil || reports[i].OK || reports[i].Left != "running" {
			t.Errorf("disk %d: %v %+v", i, err, reports[i])
		}
		// The same moment ends both: the deadline of the cutover and that of the freeze.
		if err != nil && !strings.Contains(err.Error(), "freeze deadline of 2s") && !strings.Contains(err.Error(), "writers were let go on") {
			t.Errorf("disk %d is not told why: %v", i, err)
		}
	}
	for i, r := range s.disks {
		if (freezer{r.vol}).Held() {
			t.Errorf("disk %d stays frozen", i)
		}
		if st := r.flow.Status(); st.State == mover.Done {
			t.Errorf("disk %d is handed over", i)
		}
	}
	bad.vol.mu.Lock()
	bad.vol.onFreeze = nil
	bad.vol.mu.Unlock()
	<-down
	bad.startGateway()
	if _, errs := s.cutover(sender.CutoverOptions{Limit: 10 * time.Second, Deadline: 30 * time.Second}); errors.Join(errs...) != nil {
		t.Fatal(errors.Join(errs...))
	}
	s.prefix()
	for _, r := range s.disks {
		must(t, r.flow.Rollback(context.Background()))
	}
	s.stop()
}
