package meter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/objstore/meter"
	"github.com/moverd/mover/objstore/objtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	objtest.Run(t, func(*testing.T) objtest.Subject {
		return objtest.Subject{Store: meter.New(mem.New(mem.Config{Limits: objstore.Limits{List: 100, Batch: 10, Meta: 2048}})), Class: "COLD"}
	})
}

// bare has no abilities.
type bare struct{ objstore.Store }

func TestConformanceOfBare(t *testing.T) {
	objtest.Run(t, func(*testing.T) objtest.Subject {
		return objtest.Subject{Store: meter.New(bare{mem.New(mem.Config{Limits: objstore.Limits{List: 10}})})}
	})
}

// late takes its time.
type late struct {
	objstore.Store
	took time.Duration
	err  error
}

func (l *late) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	time.Sleep(l.took)
	if l.err != nil {
		r, err := b.Open()
		if err != nil {
			return objstore.Written{}, err
		}
		io.CopyN(io.Discard, r, 4) // so much was sent
		return objstore.Written{}, errors.Join(l.err, r.Close())
	}
	return l.Store.Put(ctx, key, b, o)
}

func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		below := &late{Store: mem.New(mem.Config{})}
		s := meter.New(below)
		for _, below.took = range []time.Duration{0, time.Millisecond, 3 * time.Second, time.Hour} {
			if _, err := s.Put(ctx, "a", objstore.Bytes(make([]byte, 100)), objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		source := &objstore.Error{Op: "get", Kind: objstore.ErrNotFound}
		below.took = 0
		for _, below.err = range []error{
			&objstore.Error{Kind: objstore.ErrSlowDown}, &objstore.Error{Kind: objstore.ErrTransient, Err: source}, source, &objstore.Error{Err: source}, errors.New("?"), context.Canceled, context.DeadlineExceeded,
		} {
			s.Put(ctx, "b", objstore.Bytes(make([]byte, 100)), objstore.PutOptions{})
		}
		below.err = nil
		_, r, err := s.Get(ctx, "a", objstore.GetOptions{Len: 60})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n, err := io.Copy(io.Discard, r); n != 60 || err != nil {
			t.Error(n, err)
		}
		r.Close()
		r.Close()
		s.Head(ctx, "none")
		c := s.Snapshot()
		p := c["put"]
		if p.Calls != 11 || p.Out != 428 || p.In != 0 || math.Abs(p.Seconds-3603.001) > 1e-6 {
			t.Errorf("%+v", p)
		}
		if p.Took[0] != 9 || p.Took[11] != 1 || p.Took[len(p.Took)-1] != 1 {
			t.Errorf("took %v", p.Took)
		}
		if got := fmt.Sprint(p.Errors); got != "map[canceled:2 not found:1 other:2 slow down:1 tried in vain:1]" {
			t.Error(got)
		}
		if g := c["get body"]; g.Calls != 1 || g.In != 60 || g.Seconds != 1 || len(g.Errors) != 0 {
			t.Errorf("%+v", g)
		}
		if h := c["head"]; h.Errors["not found"] != 1 || h.Calls != 1 || c["get"].Calls != 1 {
			t.Errorf("%+v", h)
		}
		if _, asked := c["delete"]; asked {
			t.Error("a count of what nobody asked for")
		}
		if s.Head(ctx, "none"); c["head"].Errors["not found"] != 1 {
			t.Error("a snapshot changes")
		}
	})
}
