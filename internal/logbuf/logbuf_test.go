package logbuf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink is an output that can be made to block, as a pipe that nobody reads.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sink) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Split(strings.TrimSpace(s.buf.String()), "\n")
}

func text(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(g []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(g) == 0 {
			return slog.Attr{}
		}
		return a
	}})
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		h := New(s, 0, text)
		log := slog.New(h).With("flow", "a").WithGroup("g")
		h.Hold()
		h.Hold()
		log.Info("one", "k", 1)
		log.Info("two")
		h.Release()
		synctest.Wait()
		if got := s.lines(); got[0] != "" {
			t.Errorf("on hold, but %q was written", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := h.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("flush while on hold: %v", err)
		}
		h.Release()
		if err := h.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{`level=INFO msg=one flow=a g.k=1`, `level=INFO msg=two flow=a`}
		if got := s.lines(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %q, want %q", got, want)
		}
		h.Hold()
		log.Info("last words")
		if err := h.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.lines(); len(got) != 3 {
			t.Errorf("close on hold lost records: %q", got)
		}
		log.Info("too late")
		if h.Dropped() != 1 {
			t.Errorf("%d records dropped, want the one after Close", h.Dropped())
		}
	})
}

// TestBlockedOutput logs far more than fits to a real pipe that nobody reads: no call may wait, and the newest records must survive.
func TestBlockedOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const limit, n = 64 << 10, 20000
	h := New(w, limit, text)
	log := slog.New(h)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range n / 4 {
				log.Info("record", "by", g, "no", i)
			}
		})
	}
	wg.Wait() // hangs if a call waits
	h.q.mu.Lock()
	if h.q.bytes > limit {
		t.Errorf("%d bytes are kept, limit %d", h.q.bytes, limit)
	}
	h.q.mu.Unlock()
	all := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		all <- b
	}()
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	out := strings.Split(strings.TrimSpace(string(<-all)), "\n")
	dropped, records := 0, 0
	for _, line := range out {
		var c int
		if _, err := fmt.Sscanf(line, `level=WARN msg="log records were dropped" count=%d`, &c); err == nil {
			dropped += c
		} else {
			records++
		}
	}
	if dropped == 0 || int64(dropped) != h.Dropped() || dropped+records != n {
		t.Errorf("%d records written, %d said to be dropped, %d counted; %d were logged", records, dropped, h.Dropped(), n)
	}
	if last := fmt.Sprintf("no=%d", n/4-1); !strings.Contains(out[len(out)-1], last) {
		t.Errorf("the newest record is not the last: %q", out[len(out)-1])
	}
}

func TestCloseOfBlockedOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h := New(w, 0, text)
	slog.New(h).Info(strings.Repeat("x", 100<<10)) // more than a pipe takes
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close of a blocked output: %v", err)
	}
	r.Close()
	<-h.q.done
	w.Close()
}

func TestOversized(t *testing.T) {
	s := &sink{}
	h := New(s, 100, text)
	slog.New(h).Info(strings.Repeat("x", 1000))
	slog.New(h).Info("small")
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.lines(), " "); !strings.Contains(got, "count=1") || !strings.Contains(got, "small") || len(got) > 200 {
		t.Errorf("got %q", got)
	}
}
