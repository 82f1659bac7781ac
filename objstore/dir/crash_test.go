package dir

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/objstore"
)

// TestKill kills a process that writes, again and again: every object that there is is whole, with its attributes, and nothing else is left.
func TestKill(t *testing.T) {
	path := room(t)
	for i := range 15 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "MOVER_TEST_DIR_WRITER="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		time.Sleep(time.Duration(rand.IntN(30_000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		if line != "ready\n" || stderr.Len() > 0 {
			t.Fatalf("the writer: %q, %s", line, &stderr)
		}
		if i%2 == 0 { // sometimes the next writer sweeps
			sound(t, path)
		}
	}
	sound(t, path)
}

func sound(t *testing.T, path string) {
	t.Helper()
	s, ctx := open(t, Config{Path: path}), context.Background()
	defer s.Close()
	if all := temporary(t, path); len(all) != 0 {
		t.Errorf("temporary files are left: %v", all)
	}
	if all, _ := filepath.Glob(filepath.Join(path, own, "tmp", "*")); len(all) != 1 {
		t.Errorf("folders of temporary files: %v", all)
	}
	ups, _, err := s.Uploads(ctx, "", objstore.UploadPlace{})
	if err != nil {
		t.Error(err)
	}
	for _, u := range ups {
		if _, _, err := s.Parts(ctx, u.Key, u.ID, 0); err != nil {
			t.Error(err)
		}
		if err := s.Abort(ctx, u.Key, u.ID); err != nil {
			t.Error(err)
		}
	}
	for _, key := range list(t, s, objstore.Query{}) {
		o, r, err := s.Get(ctx, key, objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		var n int
		if _, err2 := fmt.Sscan(o.Attrs.Meta["n"], &n); err != nil || err2 != nil || string(b) != whole(key, n) {
			t.Errorf("%q has %d bytes of state %q: %v", key, len(b), o.Attrs.Meta["n"], err)
		}
	}
}

// TestPowerCut: what was told to be durable is there when the machine goes down at that moment: on a copy of the disk, without what is only in memory.
func TestPowerCut(t *testing.T) {
	loop := looptest.New(t, 48<<20, looptest.Options{})
	looptest.Mkfs(t, loop.Dev, "ext4", "-m", "0")
	path := looptest.Mount(t, loop.Dev, "-o", "commit=300") // nothing gets there by itself
	states := map[string]int{}                              // -1: deleted
	cut := func() {
		t.Helper()
		disk := filepath.Join(looptest.Dir(t), "disk")
		looptest.Run(t, "cp", "--sparse=always", loop.File, disk)
		mnt := looptest.Mount(t, looptest.Attach(t, disk, looptest.Options{}).Dev)
		durable(t, mnt, states)
		looptest.Unmount(t, mnt)
	}
	s := open(t, Config{Path: path})
	for _, key := range []string{"x", "x/y/z", "stays"} {
		if _, err := s.Put(t.Context(), key, objstore.Bytes([]byte(whole(key, 0)[:1])), objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"n": "0"}}}); err != nil {
			t.Fatal(err)
		}
		states[key] = 0
	}
	cut()
	remove(t, s, "x", "x/y/z")
	states["x"], states["x/y/z"] = -1, -1
	cut()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for i := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "MOVER_TEST_DIR_WRITER="+path, "MOVER_TEST_DIR_TELLS=1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		done, kill := 0, 100+rand.IntN(100)
		for lines := bufio.NewScanner(out); lines.Scan(); done++ {
			if done == kill {
				time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { cmd.Process.Kill() })
			}
		}
		cmd.Wait()
		if stderr.Len() > 0 || done < kill {
			t.Fatalf("%d things were done: %s", done, &stderr)
		}
		for n := range done {
			key, gone := told(n)
			if states[key] = n; gone {
				states[key] = -1
			}
		}
		open, _ := told(done) // was under way
		delete(states, open)
		cut()
		t.Logf("cut %d: %d things were told, %d keys", i, done, len(states))
	}
}

// durable compares a bucket with what is known of it.
func durable(t *testing.T, path string, states map[string]int) {
	t.Helper()
	s, ctx := open(t, Config{Path: path}), context.Background()
	defer s.Close()
	there := map[string]bool{}
	for _, key := range list(t, s, objstore.Query{}) {
		there[key] = true
	}
	for key, n := range states {
		o, r, err := s.Get(ctx, key, objstore.GetOptions{})
		if n < 0 {
			if !errors.Is(err, objstore.ErrNotFound) || there[key] {
				t.Errorf("%s was deleted: %v", key, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s of state %d: %v", key, n, err)
			continue
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil || o.Attrs.Meta["n"] != fmt.Sprint(n) || string(b) != whole(key, n)[:1+n%30_000] || !there[key] {
			t.Errorf("%s has %d bytes of state %q, want %d, %v", key, len(b), o.Attrs.Meta["n"], n, err)
		}
	}
}

// TestTwoProcesses: what one makes a folder the other puts as an object; there is never one object twice.
func TestTwoProcesses(t *testing.T) {
	path, ctx := room(t), context.Background()
	var wg sync.WaitGroup
	for i := range 3 {
		s := open(t, Config{Path: path})
		wg.Go(func() {
			for n := range 500 {
				var err error
				switch (n + i) % 3 {
				case 0:
					_, err = s.Put(ctx, "a", objstore.Bytes(nil), objstore.PutOptions{})
				case 1:
					_, err = s.Put(ctx, "a/b", objstore.Bytes(nil), objstore.PutOptions{})
				case 2:
					_, err = s.Delete(ctx, []string{"a/b", "a"}[n%2:]...)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestSweep: temporary files of a Store that lives, and files of others, stay.
func TestSweep(t *testing.T) {
	path := room(t)
	s, ctx := open(t, Config{Path: path}), context.Background()
	in := make(chan struct{})
	out := make(chan struct{})
	b := objstore.Body{Size: 6, Open: func() (io.ReadCloser, error) { return io.NopCloser(&gate{in: in, out: out}), nil }}
	done := make(chan error)
	go func() {
		_, err := s.Put(ctx, "slow", b, objstore.PutOptions{})
		done <- err
	}()
	<-in
	dead := filepath.Join(path, own, "tmp", strings.Repeat("0a", 16))
	of := filepath.Join(path, own, "tmp", "of-others")
	if err := errors.Join(os.MkdirAll(filepath.Join(dead, "folder"), 0o700), os.WriteFile(filepath.Join(dead, "1"), nil, 0o600),
		os.WriteFile(filepath.Join(dead, "folder", "about"), nil, 0o600), os.Mkdir(of, 0o700), os.WriteFile(filepath.Join(of, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	open(t, Config{Path: path}).Close()
	if _, err := os.Stat(dead); err == nil {
		t.Error("what a dead Store left is still there")
	}
	if _, err := os.Stat(filepath.Join(of, "x")); err != nil {
		t.Errorf("a file of others is gone: %v", err)
	}
	close(out)
	if err := <-done; err != nil {
		t.Errorf("a Put while another Store opened: %v", err)
	}
	os.RemoveAll(of)
	s.Close()
	if all, _ := filepath.Glob(filepath.Join(path, own, "tmp", "*")); len(all) != 0 {
		t.Errorf("left after Close: %v", all)
	}
}

type gate struct {
	in, out chan struct{}
	n       int
}

func (g *gate) Read(p []byte) (int, error) {
	switch g.n++; g.n {
	case 1:
		close(g.in)
		<-g.out
		return copy(p, "gentle"), nil
	}
	return 0, io.EOF
}
