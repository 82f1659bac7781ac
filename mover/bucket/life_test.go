package bucket

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
)

// life is a Flow over the rig's buckets.
type life struct {
	*rig
	cfg  FlowConfig
	flow *Flow
	end  func()
	open error // of the stores

	started int
}

// still stops nobody, and lets time pass.
type still struct {
	*clock
	started *int // times that the writers were let go on
}

func (s still) Stop(context.Context) error { s.pass(time.Minute); return nil }
func (s still) Keep() error                { return nil }
func (s still) Start() error               { *s.started++; return nil }

// unclosed is a store that outlives a session.
type unclosed struct{ objstore.Store }

func (unclosed) Close() error { return nil }

func newLife(t *testing.T) *life {
	l := &life{rig: newRig(t)}
	s, err := NewServer(t.TempDir(), ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	l.cfg = FlowConfig{Name: "photos.2024", Dir: t.TempDir(), Identity: "from to", From: "from", To: "to", Dial: s.Dial, Interval: time.Hour, Copy: l.copy, Log: silent,
		Settle: time.Millisecond, Stopper: still{l.clock, &l.started},
		Open: func(context.Context) (from, to End, err error) {
			return End{Store: unclosed{l.src}}, End{Store: unclosed{l.dst}}, l.open
		}}
	return l
}

// start runs the flow until end, or the end of the test.
func (l *life) start() *Flow {
	l.t.Helper()
	f, err := NewFlow(l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); err != nil {
			l.t.Error(err)
		}
	}()
	l.flow, l.end = f, func() { cancel(); <-done }
	l.t.Cleanup(l.end)
	return f
}

func (l *life) sync() error {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	return l.flow.Sync(ctx)
}

func (l *life) until(state mover.State) mover.Status {
	l.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := l.flow.Status()
		if s.State == state {
			return s
		}
		if time.Now().After(end) {
			l.t.Fatalf("not %s: %+v", state, s)
		}
	}
}

func untold(mover.Progress) {}

// A flow is paused, goes on, is cut over, taken back, cut over again and finished, with restarts between; what it is at is never forgotten.
func TestLife(t *testing.T) {
	l := newLife(t)
	for i := range 500 {
		l.put(fmt.Sprint("k", i), i, uint64(i))
	}
	f := l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	l.until(mover.Idle)
	if err := f.Pause(); err != nil {
		t.Fatal(err)
	}
	l.end()
	l.put("new", 10, 1)
	f = l.start()
	if s := l.until(mover.Paused); s.Bucket.Objects != 500 || s.Next != "moverctl resume" {
		t.Errorf("after a restart: %+v", s)
	}
	if err := l.sync(); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("sync of a paused flow: %v", err)
	}
	if err := f.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	r, err := f.Cutover(t.Context(), VerifyOptions{Read: true}, untold)
	if err != nil || !r.OK || r.Bucket.Objects != 501 || r.Bucket.Differ != 0 || r.Bucket.Root == "" || r.Bucket.Unproven != "" {
		t.Fatalf("%+v %v", r, err)
	}
	l.equal()
	if b, err := os.ReadFile(r.Bucket.Manifest); err != nil || strings.Count(string(b), "\n") != 502 || !strings.Contains(string(b), r.Bucket.Root) {
		t.Errorf("manifest: %v", err)
	}
	l.end()
	f = l.start()
	l.until(mover.Done)
	for what, err := range map[string]error{"sync": l.sync(), "pause": f.Pause(), "resume": f.Resume()} {
		if !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%s after the cutover: %v", what, err)
		}
	}
	l.put("late", 10, 1)
	if err := f.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	l.equal()
	if err := f.Finish(t.Context()); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("finish before the cutover: %v", err)
	}
	if _, err := f.Cutover(t.Context(), VerifyOptions{}, untold); err != nil {
		t.Fatal(err)
	}
	if err := f.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Rollback(t.Context()); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("rollback after finish: %v", err)
	}
}

// C19: what would harm somebody is refused before the first byte, with the reason in the status.
func TestLifeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(l *life)
		want string
		is   error
	}{
		"not empty": {func(l *life) {
			if _, err := l.to.Put(l.t.Context(), "mine", objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
				l.t.Fatal(err)
			}
		}, "claim: true", sentinel.ErrRefused},
		"one bucket":  {func(l *life) { l.src = unclosed{l.to} }, "are one bucket", sentinel.ErrRefused},
		"unreachable": {func(l *life) { l.open = fmt.Errorf("open: %w", objstore.ErrTransient) }, "tried in vain", objstore.ErrTransient},
		"denied":      {func(l *life) { l.dst = denied{l.to} }, "cannot be written", objstore.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			l.put("a", 1, 1)
			c.set(l)
			before := all(t, l.to)
			l.start()
			state := mover.Stopped
			if c.is == objstore.ErrTransient {
				state = mover.Connecting
			}
			s := l.until(state)
			for s.LastError == "" {
				s = l.until(state)
			}
			if !strings.Contains(s.Reason, c.want) || !strings.Contains(s.Next, "moverctl resume") {
				t.Errorf("%+v", s)
			}
			if err := l.sync(); !errors.Is(err, c.is) {
				t.Errorf("sync: %v", err)
			}
			if now := all(t, l.to); len(now) != len(before) {
				t.Errorf("the target was written: %v", now)
			}
		})
	}
}

type denied struct{ objstore.Store }

func (d denied) Put(context.Context, string, objstore.Body, objstore.PutOptions) (objstore.Written, error) {
	return objstore.Written{}, &objstore.Error{Op: "put", Store: "to", Kind: objstore.ErrDenied}
}

// A source that lists nothing all of a sudden does not empty the target.
func TestLifeEmptySource(t *testing.T) {
	l := newLife(t)
	l.cfg.Deletes = true
	l.put("a", 1, 1)
	l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.from.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := l.sync(); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "lists nothing") {
		t.Errorf("sync: %v", err)
	}
	if len(all(t, l.to)) != 1 {
		t.Error("the target was emptied")
	}
}

// C19: a cutover of a source that is still written to fails, names why, and the flow goes on; what verify finds is copied again.
func TestLifeWriter(t *testing.T) {
	l := newLife(t)
	l.put("a", 10, 1)
	f := l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				l.put("a", 10, i)
			}
		}
	}()
	r, err := f.Cutover(t.Context(), VerifyOptions{}, untold)
	close(stop)
	<-ended
	l.clock.pass(time.Minute)
	if err == nil || r.OK || !errors.Is(err, sentinel.ErrNotConverged) || l.started != 1 {
		t.Errorf("%+v %v", r, err)
	}
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.to.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Verify(t.Context(), VerifyOptions{}, untold); !errors.Is(err, sentinel.ErrDiffer) || r.Bucket.Differ != 1 || len(r.Bucket.Examples) != 1 {
		t.Errorf("%+v %v", r, err)
	}
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	l.equal()
}

// What cannot be carried is counted over all passes, listed page by page with its reason, and keeps a cutover from being done unless that is said to be known.
func TestLifeRefused(t *testing.T) {
	l := newLife(t)
	lim := objstore.Limits{PartLeast: 1 << 20, Parts: 100, Meta: 20, Key: func(key string) error {
		if strings.Contains(key, "..") {
			return fmt.Errorf("a key with ..: %w", objstore.ErrNotSupported)
		}
		return nil
	}}
	l.to = mem.New(mem.Config{Name: "to", Now: l.clock.Now, Limits: lim})
	l.dst = l.to
	for i := range mostPage + 7 {
		l.put(fmt.Sprintf("a/../%05d", i), 3, 1)
	}
	l.put("good", 3, 1)
	l.put("\xff", 3, 1)
	if _, err := l.from.Put(t.Context(), "large meta", objstore.Bytes(nil), objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"a": strings.Repeat("x", 30)}}}); err != nil {
		t.Fatal(err)
	}
	l.clock.pass(time.Minute)
	f := l.start()
	counts := func(refused, partly int64) {
		t.Helper()
		if err := l.sync(); err != nil {
			t.Fatal(err)
		}
		if b := f.Status().Bucket; b.Refused != refused || b.Partly != partly || b.Failed != 0 {
			t.Errorf("%d refused, %d partly, %d failed; want %d, %d, 0", b.Refused, b.Partly, b.Failed, refused, partly)
		}
	}
	counts(mostPage+7, 1)
	counts(mostPage+7, 1) // they are not counted again
	var seen, pages int
	for after := []byte(nil); pages == 0 || after != nil; pages++ {
		got, next, err := f.Objects(t.Context(), after, []string{"refused"})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range got {
			if o.Outcome != "refused" || !strings.Contains(o.Why, "a key with ..") || o.Key != fmt.Sprintf("a/../%05d", seen) {
				t.Errorf("%+v", o)
			}
			seen++
		}
		after = next
	}
	if seen != mostPage+7 || pages != 2 {
		t.Errorf("%d objects on %d pages", seen, pages)
	}
	if got, _, err := f.Objects(t.Context(), nil, []string{"partly"}); err != nil || len(got) != 1 || len(got[0].Lost) != 1 {
		t.Errorf("%+v %v", got, err)
	}
	if got, _, err := f.Objects(t.Context(), nil, []string{"copied"}); err != nil || len(got) != 2 || string(got[1].KeyBytes) != "\xff" {
		t.Errorf("%+v %v", got, err)
	}
	if r, err := f.Cutover(t.Context(), VerifyOptions{}, untold); !errors.Is(err, sentinel.ErrRefused) || r.OK || !strings.Contains(err.Error(), "--without-refused") {
		t.Errorf("%+v %v", r, err)
	}
	for i := range mostPage + 5 {
		if _, err := l.from.Delete(t.Context(), fmt.Sprintf("a/../%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	l.put("large meta", 3, 1)
	l.clock.pass(time.Minute)
	counts(2, 0)
	if r, err := f.Cutover(t.Context(), VerifyOptions{WithoutRefused: true}, untold); err != nil || r.Bucket.Objects != 3 || r.Bucket.Refused != 2 {
		t.Errorf("%+v %v", r, err)
	}
}

// dying completes an upload, and never comes to telling it.
type dying struct {
	objstore.Store
	die func()
}

func (d dying) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	if _, err := d.Store.Complete(ctx, key, upload, parts, o); err != nil {
		return objstore.Written{}, err
	}
	d.die()
	<-ctx.Done()
	return objstore.Written{}, ctx.Err()
}

// C17: a worker that dies after it has completed an upload, and before that is recorded, leaves nothing that fails for ever.
func TestCompletedUntold(t *testing.T) {
	r := newRig(t)
	r.put("large", 3*objstore.BlockSize+5, 1)
	r.clock.pass(time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.dst = dying{r.to, cancel}
	if _, err := r.pass(ctx, false, 1); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.dst = r.to
	if s := r.mustPass(1); s.Copied != 1 || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
	r.equal()
}
