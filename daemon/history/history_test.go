package history

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
)

var epoch = time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string, now *time.Time) *Store {
	t.Helper()
	s := Open(Config{Dir: dir, Spill: filepath.Join(filepath.Dir(dir), "spill"), Now: func() time.Time { return *now }})
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func (s *Store) shut(t *testing.T) {
	t.Helper()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func delta(at time.Time, bytes int64) mover.Event {
	return mover.Event{Time: at, Began: at.Add(-time.Second), Kind: mover.PassEvent, Flow: "root", Pass: &mover.EndedPass{Kind: "delta", Passes: 1,
		Epoch: uint64(at.Unix()), Consistency: "fuzzy", Moved: mover.Moved{Looked: bytes, Sent: bytes, Payload: bytes / 2, Wire: bytes}}}
}

func sum(events []mover.Event) (passes int, bytes int64) {
	for _, e := range events {
		if e.Pass != nil {
			passes, bytes = passes+e.Pass.Passes, bytes+e.Pass.Moved.Looked
		}
	}
	return passes, bytes
}

func read(t *testing.T, s *Store) Past {
	t.Helper()
	p, err := s.Read([]string{"root"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Events survive a restart and a torn tail, in order, and deltas are summed up by the minute without losing a byte.
func TestRestart(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "history"), epoch
	s := open(t, dir, &now)
	s.Note(mover.Event{Time: now, Kind: mover.PassEvent, Flow: "root", Pass: &mover.EndedPass{Kind: "full", Passes: 1, Moved: mover.Moved{Looked: 1 << 30}}})
	for i := range 300 {
		s.Note(delta(now.Add(time.Duration(i)*time.Second), 1000))
	}
	s.Note(mover.Event{Time: now.Add(301 * time.Second), Kind: "rehearsal", Flow: "root", Report: &mover.Report{Kind: "rehearsal", OK: true, SourceRoot: "aa"}})
	s.Note(mover.Event{Time: now.Add(302 * time.Second), Kind: "daemon.stop"})
	s.Note(mover.Event{Time: now, Kind: mover.GapEvent, Flow: "other"})
	check := func(p Past) {
		t.Helper()
		passes, bytes := sum(p.Events)
		if passes != 301 || bytes != 1<<30+300*1000 {
			t.Errorf("%d passes, %d bytes", passes, bytes)
		}
		if n := len(p.Events); n < 8 || n > 12 || p.Events[n-1].Kind != "daemon.stop" || p.Events[n-2].Report == nil || p.Events[0].Pass.Kind != "full" {
			t.Errorf("%d events: %+v", n, p.Events)
		}
	}
	check(read(t, s))
	s.shut(t)
	path := filepath.Join(dir, eventsName)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"time":"2026-11-27T10:00:00Z","kind":"to`)
	f.Close()
	s = open(t, dir, &now)
	check(read(t, s))
	s.Note(mover.Event{Time: now.Add(400 * time.Second), Kind: "daemon.start"})
	s.shut(t)
	s = open(t, dir, &now)
	if p := read(t, s); p.Events[len(p.Events)-1].Kind != "daemon.start" {
		t.Errorf("what followed a torn tail is lost: %+v", p.Events)
	}
}

// While writers stand still nothing is written, a kill loses nothing, and what was held comes into the file in its order.
func TestHold(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "history"), epoch
	s := open(t, dir, &now)
	s.Hold()
	s.Note(delta(now, 10))
	s.Note(mover.Event{Time: now, Kind: "cutover", Flow: "root", Report: &mover.Report{Kind: "cutover", Pause: 0.3}})
	s.Look([]mover.Status{{Flow: "root"}})
	s.write(true, false)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the folder was touched: %v", err)
	}
	killed := open(t, dir, &now) // what a process finds that follows a kill
	if p := read(t, killed); len(p.Events) != 2 || p.Events[1].Report.Pause != 0.3 {
		t.Errorf("%+v", p.Events)
	}
	killed.shut(t)
	s.Release()
	s.shut(t)
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "spill")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the spill is still there: %v", err)
	}
}

// told is a log's lines.
type told chan string

func (c told) Write(p []byte) (int, error) { c <- string(p); return len(p), nil }

// A disk that is full costs history only: nobody waits, no line is torn, and what waited in memory is written when there is room.
func TestFullDisk(t *testing.T) {
	looptest.NeedRoot(t)
	mnt, now := t.TempDir(), epoch
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mnt, 0)
	if err := os.WriteFile(filepath.Join(mnt, "fill"), make([]byte, 252<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, filepath.Join(mnt, "history"), &now)
	told := make(told, 8)
	s.cfg.Log = slog.New(slog.NewTextHandler(told, nil))
	for i := range 200 {
		s.Note(mover.Event{Time: now.Add(time.Duration(i) * time.Second), Kind: mover.GapEvent, Flow: "root", Text: strings.Repeat("x", 300)})
	}
	if line := <-told; !strings.Contains(line, "no space left on device") {
		t.Error(line)
	}
	if p := read(t, s); len(p.Events) != 200 {
		t.Errorf("%d events while the disk is full", len(p.Events))
	}
	if err := os.Remove(filepath.Join(mnt, "fill")); err != nil {
		t.Fatal(err)
	}
	s.Note(mover.Event{Time: now.Add(time.Hour), Kind: mover.GapEvent})
	if line := <-told; !strings.Contains(line, "written again") {
		t.Error(line)
	}
	s.shut(t)
	all, err := readEvents(filepath.Join(mnt, "history"))
	if err == nil && len(all) != 201 {
		err = fmt.Errorf("%d events", len(all))
	}
	if err != nil {
		t.Error(err)
	}
}

// The file of events is bounded whatever happens, and forgets details before sums and sums before cutovers.
func TestBounded(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "history"), epoch
	v := events{dir: dir, limit: 256 << 10}
	want, at := int64(0), epoch
	add := func(n int, e func() mover.Event) {
		var batch []mover.Event
		for range n {
			at = at.Add(time.Minute)
			batch = append(batch, e())
		}
		if err := v.append(batch); err != nil {
			t.Fatal(err)
		}
	}
	add(1, func() mover.Event {
		return mover.Event{Time: at, Kind: "cutover", Flow: "root", Report: &mover.Report{Kind: "cutover", SourceRoot: "aa"}}
	})
	for range 60 {
		add(100, func() mover.Event { want += 4096; return delta(at, 4096) })
		if st, err := os.Stat(v.path()); err != nil || st.Size() > v.limit {
			t.Fatalf("%v %v", st, err)
		}
	}
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, &now)
	p := read(t, s)
	if passes, bytes := sum(p.Events); passes != 6000 || bytes != want || p.Events[0].Report == nil {
		t.Errorf("%d passes, %d of %d bytes, first %+v", passes, bytes, want, p.Events[0])
	}
}

// Samples: a file of fixed length, means by time seen, the largest lag, coarser further back; a process goes on with the span of the one before.
func TestSamples(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "history"), epoch
	look := func(s *Store, seconds int, rate, lag float64) {
		for range seconds {
			now = now.Add(time.Second)
			s.Look([]mover.Status{{Flow: "root", Rate: rate, Lag: lag, Dirty: 5000}})
		}
	}
	s := open(t, dir, &now)
	look(s, 65, 100, 1)
	s.shut(t)
	s = open(t, dir, &now)
	look(s, 55, 200, 9)
	p := read(t, s).Samples["root"]
	if n := len(p); n < 12 || n > 13 {
		t.Fatalf("%d samples: %+v", n, p)
	}
	var seen, moved, lag float64
	for _, x := range p {
		seen, moved, lag = seen+x.Seen, moved+x.Seen*x.Rate, max(lag, x.Lag)
	}
	if seen != 120 || moved < 65*100+55*200-1 || moved > 65*100+55*200+1 || lag != 9 {
		t.Errorf("%v seconds, %v bytes, lag %v", seen, moved, lag)
	}
	now = now.Add(20 * time.Hour)
	look(s, 30, 300, 0)
	p = read(t, s).Samples["root"]
	if p[0].Span != 120 || p[len(p)-1].Span != 10 {
		t.Errorf("%+v", p)
	}
	s.shut(t)
	st, err := os.Stat(ringPath(dir, "root"))
	if err != nil || st.Size() != 161984 || ringSize() != 161984 {
		t.Errorf("%v %v", st, err)
	}
	// What is torn is passed over; what is of another kind is made anew.
	raw, _ := os.ReadFile(ringPath(dir, "root"))
	for i := ringHeader; i < len(raw); i += slotSize {
		raw[i+20] ^= 1
	}
	os.WriteFile(ringPath(dir, "root"), raw, 0o600)
	s = open(t, dir, &now)
	if p := read(t, s).Samples["root"]; len(p) != 0 {
		t.Errorf("%+v", p)
	}
	os.WriteFile(ringPath(dir, "root"), []byte("not a ring"), 0o600)
	look(s, 20, 1, 1)
	s.shut(t)
	if p, err := readSamples(dir, "root", nil, now); err != nil || len(p) == 0 {
		t.Errorf("%v %v", p, err)
	}
}

// Names of flows at a gateway have slashes; no name leads out of the folder.
func TestNames(t *testing.T) {
	for _, name := range []string{"acme/db1/root", "../../etc/passwd", "a b", ""} {
		if dir := filepath.Dir(ringPath("/x/history", name)); dir != "/x/history" {
			t.Errorf("%q: %s", name, dir)
		}
	}
}
