package bucket

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
)

// session is both ends, opened, looked at, and with who works between them.
type session struct {
	from, to    objstore.Store
	clock       bool // the source tells its clock
	nc          *nats.Conn
	coordinator *Coordinator
	stop        func() // listening to workers
}

// QueueName is the flow's name as the queue takes it.
func QueueName(flow string) string { return token(flow) }

// open opens the session unless there is one. busy is held.
func (f *Flow) open(ctx context.Context) (err error) {
	if f.s != nil {
		return nil
	}
	l, err := f.known()
	if err != nil {
		return err
	}
	from, to, err := f.cfg.Open(ctx)
	if err != nil {
		return err
	}
	s := &session{from: from.Store, to: to.Store}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := f.look(ctx, s, from, to); err != nil {
		return err
	}
	if err := f.countVersions(ctx, s, l, versionsSoon); err != nil {
		return err
	}
	if s.nc, err = f.cfg.Dial(); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	cfg := Config{Name: QueueName(f.cfg.Name), From: s.from, To: s.to, Prefix: f.cfg.Copy.FromPrefix, Filter: f.cfg.Filter, Deletes: f.cfg.Deletes,
		Flow: f.cfg.Moves, Workers: f.cfg.Workers, Rate: f.cfg.Rate, Class: f.class, Log: f.log}
	if s.coordinator, err = NewCoordinator(cfg, l, s.nc); err != nil {
		return err
	}
	if s.stop, err = s.coordinator.Listen(); err != nil {
		return err
	}
	f.s = s
	f.mu.Lock()
	f.chief = s.coordinator
	f.mu.Unlock()
	return nil
}

func (s *session) close() error {
	if s.stop != nil {
		s.stop()
	}
	if s.nc != nil {
		s.nc.Close()
	}
	return errors.Join(s.from.Close(), s.to.Close())
}

// close ends the session. busy is held.
func (f *Flow) close() {
	if f.s == nil {
		return
	}
	if err := f.s.close(); err != nil {
		f.log.Warn("a store could not be closed", "error", err)
	}
	f.s = nil
	f.mu.Lock()
	f.chief = nil
	f.mu.Unlock()
}

// look refuses, before the first byte, what would harm somebody (C19).
func (f *Flow) look(ctx context.Context, s *session, from, to End) error {
	for _, e := range []End{from, to} {
		if err := objstore.Located(ctx, e.Store, e.Regions, "source.regions"); err != nil {
			return err
		}
	}
	p, err := s.from.List(ctx, objstore.Query{Prefix: f.cfg.Copy.FromPrefix, Max: 1})
	if err != nil {
		return fmt.Errorf("look at the source: %w", err)
	}
	s.clock = !p.Now.IsZero()
	t, err := s.to.List(ctx, objstore.Query{Prefix: f.cfg.Copy.ToPrefix, Max: 1})
	if err != nil {
		return fmt.Errorf("look at the target: %w", err)
	}
	if !f.noted().Begun.IsZero() {
		return nil
	}
	if len(t.Entries) > 0 && !f.cfg.Claim {
		return fmt.Errorf("%s has objects below %q already (%q): what has the same key would be overwritten; empty it, name another prefix, or say claim: true: %w",
			s.to, f.cfg.Copy.ToPrefix, t.Entries[0].Key, sentinel.ErrRefused)
	}
	if err := f.probe(ctx, s); err != nil {
		return err
	}
	return f.change(func(n *note) { n.Begun = time.Now().UTC() })
}

// full refuses to take a source that lists nothing all of a sudden for one that was emptied: a folder whose disk is not mounted, or a wrong bucket behind the right
// name, must not empty the target (C19).
func (f *Flow) full(ctx context.Context, copied int64) error {
	if !f.cfg.Deletes || copied == 0 {
		return nil
	}
	p, err := f.s.from.List(ctx, objstore.Query{Prefix: f.cfg.Copy.FromPrefix, Max: 1})
	if err != nil {
		return fmt.Errorf("look at the source: %w", err)
	}
	if len(p.Entries) > 0 {
		return nil
	}
	return fmt.Errorf("%s lists nothing, and %d objects were copied from it: deletes are not followed to an empty target; if it is right, set deletes: keep, and delete "+
		"there by hand: %w", f.s.from, copied, sentinel.ErrRefused)
}

// probeName begins the names of objects that show whether a target can be written.
const probeName = ".mover-probe-"

// probe puts an object at the target and deletes it, once, before the first pass. If it shows at the source, both ends are one bucket.
func (f *Flow) probe(ctx context.Context, s *session) error {
	name := probeName + strings.ToLower(rand.Text())
	key := f.cfg.Copy.ToPrefix + name
	w, err := s.to.Put(ctx, key, objstore.Bytes([]byte(f.cfg.Name)), objstore.PutOptions{Absent: true})
	if err != nil {
		return fmt.Errorf("the target cannot be written: %w", err)
	}
	here, seen := s.from.Head(ctx, key)
	left, err := s.to.Delete(context.WithoutCancel(ctx), key)
	if err == nil {
		err = left[key]
	}
	if err != nil {
		return fmt.Errorf("what was put at the target to try it cannot be deleted: give the credentials the right to delete (parts and objects), and remove %q: %w", key, err)
	}
	if seen == nil && here.ETag == w.ETag && overlap(f.cfg.Copy.FromPrefix, f.cfg.Copy.ToPrefix) {
		return fmt.Errorf("%s and %s are one bucket, and their prefixes %q and %q overlap: %w", s.from, s.to, f.cfg.Copy.FromPrefix, f.cfg.Copy.ToPrefix, sentinel.ErrRefused)
	}
	return nil
}

// overlap tells whether keys can have both prefixes.
func overlap(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }

// pass ends the pass that is under way, or runs another one. busy is held.
func (f *Flow) pass(ctx context.Context, final bool) (State, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.cancel = cancel
	asked, said := f.asked, f.stands.err
	f.mu.Unlock()
	was, began := f.State(), time.Now()
	st, again, err := f.work(ctx, final)
	if err == nil || !errors.Is(err, context.Canceled) && err.Error() != said {
		f.tellPass(began, was, st, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel = nil
	if err != nil {
		return st, err
	}
	f.ended.Add(1)
	if f.stands.err = ""; !again { // one that had begun before does not have what was written since
		f.served = asked
		f.answer(nil)
	}
	return st, nil
}

// work runs coordinator and worker for a pass. again: it had begun before.
func (f *Flow) work(ctx context.Context, final bool) (_ State, again bool, err error) {
	if err := f.open(ctx); err != nil {
		return State{}, false, err
	}
	l, err := f.known()
	if err != nil {
		return State{}, false, err
	}
	was := l.State()
	again = (was.Listing || was.Units > 0) && !final
	if !final && f.takeRefusals() {
		f.s.coordinator.TryRefused()
	}
	if err := f.full(ctx, was.Objects); err != nil {
		return was, again, err
	}
	worker, err := NewWorker(WorkerConfig{Flow: QueueName(f.cfg.Name), Name: Local, Sole: true, Moves: f.cfg.Moves, From: f.s.from, To: f.s.to, Copy: f.cfg.Copy, Most: f.cfg.Objects, Log: f.log}, f.s.nc)
	if err != nil {
		return was, again, err
	}
	f.began()
	// The worker ends first: what it has done it tells to the coordinator.
	both, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	working, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		defer end()
		done <- worker.Run(working)
	}()
	st, err := f.s.coordinator.Pass(both, final)
	stop()
	if werr := <-done; ctx.Err() != nil {
		err = ctx.Err()
	} else if err != nil && werr != nil && !errors.Is(werr, context.Canceled) {
		err = werr
	}
	if err != nil {
		f.close() // the next try begins afresh
		return st, again, err
	}
	f.log.Info("pass of a bucket flow", "pass", st.Pass, "listed", st.Listed, "copied", st.Copied, "bytes", st.CopiedBytes, "same", st.Same,
		"refused", st.Refused, "failed", st.Failed, "vanished", st.Vanished, "deleted", st.Deleted)
	return st, again, nil
}

// takeRefusals tells whether somebody has asked that what was refused be tried again.
func (f *Flow) takeRefusals() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	yes := f.refusals
	f.refusals = false
	return yes
}

func (f *Flow) began() {
	f.stand(mover.Passing, "", "")
	f.mu.Lock()
	f.stands.began = time.Now()
	f.mu.Unlock()
}
