package receiver

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// fullRig is a gateway whose state disk fill fills and room empties again; half of its point is zeros, so that its table has still to grow.
func fullRig(t *testing.T) (r *rig, s *src, fill, room func()) {
	looptest.NeedRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	r = newRig(t, func(c *Config) { c.StateDir = dir })
	s = randomSrc(32<<20, 1)
	clear(s.b[4<<20:])
	r.first(r.mustDial("root"), s)
	r.settled(testFlow)
	ballast := filepath.Join(dir, "ballast")
	return r, s, func() {
			f, err := os.Create(ballast)
			must(t, err)
			defer f.Close()
			for junk := make([]byte, 4096); err == nil; {
				_, err = f.Write(junk)
			}
		}, func() {
			must(t, os.Remove(ballast))
		}
}

// directPass is one that writes where the table has no pages yet.
func directPass(s *src) *spass {
	for _, l := range []int64{512, 513, 514, 600, 700} {
		fill(s.leaf(l), uint64(l))
	}
	p := s.newPass(mover.Delta, batch{leaves: []int64{512, 513, 514}}, batch{leaves: []int64{600, 700}})
	p.est = 1 << 50
	return p
}

// TestDropOnFullState: a pass that could not be dropped, because the state disk is full, takes no batch any more; who resumes it when there is
// room again is not left waiting.
func TestDropOnFullState(t *testing.T) {
	r, s, full, room := fullRig(t)
	p := directPass(s)
	_, err := r.mustDial("root").open(s, p)
	must(t, err)
	f := r.s.flows[testFlow]
	must(t, f.gate.whole(context.Background()))
	full()
	must(t, f.table.Set(1024, f.table.Digests(0, 200))) // what a batch would do just before
	if err := f.abort(f.openPass()); err == nil {
		t.Fatal("the table found room")
	}
	f.gate.unwhole()
	room()
	ended := time.AfterFunc(20*time.Second, func() { r.s.cancel() })
	c := r.mustDial("root")
	_, err = c.run(s, p)
	must(t, err)
	ended.Stop()
	r.settled(testFlow)
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
		t.Fatal("target differs")
	}
}

// TestCommitOnFullState: a batch that could not be made durable is not committed by a second try (C6).
func TestCommitOnFullState(t *testing.T) {
	r, s, full, room := fullRig(t)
	p := directPass(s)
	link := newID()
	c, err := r.dial(link, "root")
	must(t, err)
	_, err = c.open(s, p)
	must(t, err)
	f := r.s.flows[testFlow]
	pass := f.openPass()
	pass.roundMu.Lock() // the syncer is slow
	for i := range p.batches {
		must(t, c.send(s, p, i))
	}
	must(t, c.ask(wire.TypeState, &wire.State{}, new(wire.FlowState))) // all is read
	full()
	pass.cancel() // only COMMIT will make it durable
	pass.roundMu.Unlock()
	pass.ended.Wait()
	if _, err := c.commit(p); err == nil {
		t.Fatal("committed on a full state disk")
	}
	if c, err = r.dial(link, "root"); err == nil {
		if _, err := c.commit(p); err == nil {
			t.Fatal("what was not made durable is committed")
		}
	}
	room()
	_, err = r.mustDial("root").run(s, p)
	must(t, err)
	r.settled(testFlow)
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
		t.Fatal("target differs")
	}
}
