package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("AUDIT_APPEND"); dir != "" {
		t, err := New(Config{Dir: dir})
		for i := 0; err == nil; i++ {
			if err = t.Append(Record{Event: "e", Details: map[string]any{"i": i}}); err == nil {
				fmt.Println(i)
			}
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, cfg Config) *Trail {
	t.Helper()
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func add(t *testing.T, tr *Trail, n int) {
	t.Helper()
	for i := range n {
		if err := tr.Append(Record{Event: "e", Flow: "root", Details: map[string]any{"i": i}}); err != nil {
			t.Fatal(err)
		}
	}
}

func whole(t *testing.T, dir string) Summary {
	t.Helper()
	s, err := Verify(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// clock is set by the test.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

// Every byte of a small trail of two files and its head is altered, in a low bit and in the one that changes the case of letters.
func TestEveryBit(t *testing.T) {
	dir := t.TempDir()
	c := &clock{time.Date(2026, 10, 31, 23, 59, 59, 0, time.UTC)}
	tr := open(t, Config{Dir: dir, Now: c.now})
	add(t, tr, 2)
	c.at = c.at.Add(time.Hour)
	add(t, tr, 2)
	tr.Close()
	if s := whole(t, dir); s.Records != 6 {
		t.Fatalf("%+v", s)
	}
	for _, name := range []string{"2026-10.jsonl", "2026-11.jsonl", "head"} {
		path := filepath.Join(dir, name)
		raw, _ := os.ReadFile(path)
		for i := range raw {
			for _, bit := range []int{0, 5} {
				bad := bytes.Clone(raw)
				bad[i] ^= 1 << bit
				os.WriteFile(path, bad, 0o600)
				if _, err := Verify(dir, nil); !errors.Is(err, sentinel.ErrDiffer) {
					t.Fatalf("%s byte %d bit %d: %v", name, i, bit, err)
				}
			}
		}
		os.WriteFile(path, raw, 0o600)
	}
	whole(t, dir)
}

// Lines removed, swapped, doubled, an end cut, a file removed: each is found, and still found after a daemon went on.
func TestLines(t *testing.T) {
	for name, change := range map[string]func(l [][]byte) [][]byte{
		"first":   func(l [][]byte) [][]byte { return l[1:] },
		"middle":  func(l [][]byte) [][]byte { return append(l[:2:2], l[3:]...) },
		"last":    func(l [][]byte) [][]byte { return l[:len(l)-1] },
		"all":     func([][]byte) [][]byte { return nil },
		"swapped": func(l [][]byte) [][]byte { l[2], l[3] = l[3], l[2]; return l },
		"doubled": func(l [][]byte) [][]byte { return append(l, l[len(l)-1]) },
	} {
		dir := t.TempDir()
		tr := open(t, Config{Dir: dir})
		add(t, tr, 5)
		tr.Close()
		names, _ := files(dir)
		path := filepath.Join(dir, names[0])
		raw, _ := os.ReadFile(path)
		os.WriteFile(path, bytes.Join(change(bytes.SplitAfter(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))), nil), 0o600)
		if b, _ := os.ReadFile(path); len(b) > 0 && b[len(b)-1] != '\n' {
			os.WriteFile(path, append(b, '\n'), 0o600)
		}
		_, err := Verify(dir, nil)
		if !errors.Is(err, sentinel.ErrDiffer) {
			t.Errorf("%s: %v", name, err)
		}
		add(t, open(t, Config{Dir: dir}), 2)
		if _, err := Verify(dir, nil); !errors.Is(err, sentinel.ErrDiffer) {
			t.Errorf("%s, after going on: %v", name, err)
		}
	}
}

// A writer is killed again and again: what it was told is durable stays, and the trail stays whole once it was opened.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	said := 0
	for round := range 10 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "AUDIT_APPEND="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(out)
		for i := 0; i < 5+round && in.Scan(); i++ {
			said++
		}
		cmd.Process.Signal(syscall.SIGKILL)
		for in.Scan() {
			said++
		}
		cmd.Wait()
	}
	tr := open(t, Config{Dir: dir})
	add(t, tr, 1)
	if s := whole(t, dir); s.Records < said {
		t.Errorf("%d records of %d", s.Records, said)
	}
}

// A torn line is kept aside, told, and the chain goes on.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	tr := open(t, Config{Dir: dir})
	add(t, tr, 3)
	tr.Close()
	names, _ := files(dir)
	f, _ := os.OpenFile(filepath.Join(dir, names[0]), os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"seq":5,"ti`)
	f.Close()
	if _, err := Verify(dir, nil); err == nil || !strings.Contains(err.Error(), ":5: is torn") {
		t.Errorf("%v", err)
	}
	add(t, open(t, Config{Dir: dir}), 1)
	var kept string
	if _, err := Verify(dir, func(r Record) error {
		if r.Event == Torn {
			kept, _ = r.Details["kept_in"].(string)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, kept)); string(b) != `{"seq":5,"ti` {
		t.Errorf("%q: %q", kept, b)
	}
}

func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	tr := open(t, Config{Dir: dir})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if err := tr.Append(Record{Event: "e"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		if _, err := Verify(dir, nil); err != nil && !errors.Is(err, sentinel.ErrNotFound) && !strings.Contains(err.Error(), "head: does not name") {
			t.Error(err)
		}
	}
	wg.Wait()
	if s := whole(t, dir); s.Records != 161 {
		t.Errorf("%+v", s)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	c := &clock{time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)}
	tr := open(t, Config{Dir: dir, Now: c.now})
	for range 12 {
		add(t, tr, 2)
		c.at = c.at.AddDate(0, 1, 0)
	}
	names, _ := files(dir)
	if names[0] != "2026-07.jsonl" || len(names) != 6 {
		t.Errorf("%v", names)
	}
	whole(t, dir)
	os.Remove(filepath.Join(dir, names[0]))
	if _, err := Verify(dir, nil); !errors.Is(err, sentinel.ErrDiffer) {
		t.Errorf("a file too many is gone: %v", err)
	}
	if _, err := New(Config{Dir: dir, Keep: MinKeep - 1}); !errors.Is(err, sentinel.ErrUsage) {
		t.Errorf("%v", err)
	}
}

// What is held is not written, then in order; what is held at the end comes with the next start.
func TestHold(t *testing.T) {
	top := t.TempDir()
	dir, spill := filepath.Join(top, "audit"), filepath.Join(top, "spill")
	tr := open(t, Config{Dir: dir, Spill: spill})
	tr.Hold()
	tr.Hold()
	add(t, tr, 3)
	tr.Release()
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder was touched on hold")
	}
	if err := tr.Release(); err != nil {
		t.Fatal(err)
	}
	tr.Hold()
	add(t, tr, 2)
	tr.Close()
	add(t, open(t, Config{Dir: dir, Spill: spill}), 1)
	var got []any
	if _, err := Verify(dir, func(r Record) error {
		if r.Event == "e" {
			got = append(got, r.Details["i"])
		}
		return nil
	}); err != nil || fmt.Sprint(got) != "[0 1 2 0 1 0]" {
		t.Errorf("%v %v", got, err)
	}
}

// A full filesystem refuses what must be recorded, keeps the rest in memory, and goes on when there is room.
func TestFull(t *testing.T) {
	looptest.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	tr := open(t, Config{Dir: filepath.Join(dir, "audit")})
	add(t, tr, 3)
	full := filepath.Join(dir, "full")
	f, _ := os.Create(full)
	for err := error(nil); err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	var err error
	for n := 0; err == nil && n < 100; n++ { // the rest of the last page
		err = tr.Require(Record{Event: "cutover", Details: map[string]any{"n": n}})
	}
	if !errors.Is(err, sentinel.ErrRefused) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%v", err)
	}
	if err := tr.Append(Record{Event: "later"}); err == nil {
		t.Error("a full disk took a record")
	}
	whole(t, filepath.Join(dir, "audit"))
	os.Remove(full)
	add(t, tr, 1)
	seen := false
	if _, err := Verify(filepath.Join(dir, "audit"), func(r Record) error { seen = seen || r.Event == "later"; return nil }); err != nil || !seen {
		t.Errorf("%v, seen %v", err, seen)
	}
}
