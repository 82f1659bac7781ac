package bucket

// A copier moves one object at a time for each of many callers:
//
//	small   GET into memory, digest, PUT
//	large   parts side by side, each GET into memory, digest, PUT PART; then COMPLETE. Parts of very large objects stream
//
// What is read is of one state of the object (its ETag), or the copy begins again (C16). What is stored is confirmed by the target (objstore.Store.Put).

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/moverd/mover/objstore"
)

// CopyConfig says how objects are copied. Zero values are defaults.
type CopyConfig struct {
	Memory     int64  // bytes of objects and parts in memory; 128 MiB
	Part       int64  // bytes up to which an object is moved as a whole, and of parts; 16 MiB
	Parts      int    // of one object side by side; 8
	FromPrefix string // of keys at the source, which is left out at the target
	ToPrefix   string // of keys at the target
	Class      string // storage class at the target
	Escape     bool   // keys that the target refuses are spelled otherwise; else they are refused
	Grants     bool   // who may read it is carried too
	NoTags     bool   // tags are not
	Modified   bool   // when it was changed at the source is kept as user metadata
	// Pace waits until n bytes may go over the line; nil: at once.
	Pace func(ctx context.Context, n int) error
}

func (c CopyConfig) withDefaults() CopyConfig {
	if c.Memory <= 0 {
		c.Memory = 128 << 20
	}
	if c.Part <= 0 {
		c.Part = 16 << 20
	}
	c.Part = (c.Part + objstore.BlockSize - 1) / objstore.BlockSize * objstore.BlockSize
	c.Memory = max(c.Memory, 2*c.Part)
	if c.Parts <= 0 {
		c.Parts = 8
	}
	return c
}

// copier copies objects of one bucket to another. Safe for concurrent use.
type copier struct {
	from, to objstore.Store
	cfg      CopyConfig
	memory   *semaphore.Weighted
	free     chan []byte // buffers of Part bytes, kept

	private sync.Once // what the target does with an object without a list of its own is found out
	open    bool      // it gives others rights
}

func newCopier(from, to objstore.Store, cfg CopyConfig) *copier {
	cfg = cfg.withDefaults()
	return &copier{from: from, to: to, cfg: cfg, memory: semaphore.NewWeighted(cfg.Memory), free: make(chan []byte, cfg.Memory/cfg.Part)}
}

// told hears of an upload that has begun, and of each part that is done.
type told func(PartResult) error

// statesTried is how many states of an object are copied one after the other, when it changes while it is read, before it is left to the next pass.
const statesTried = 3

// copy copies one object, or deletes it. An error ends the work: it is not one of the object.
func (c *copier) copy(ctx context.Context, it Item, told told) (ItemResult, error) {
	out := ItemResult{Key: it.Entry.Key, Delete: it.Delete}
	key, err := c.target(it.Entry.Key)
	if err != nil && !it.Delete {
		out.Record = recordOf(it)
		out.Record.Outcome, out.Record.Why = Refused, err.Error()
		return out, nil
	}
	if it.Delete {
		return c.delete(ctx, key, out)
	}
	for range statesTried {
		r := recordOf(it)
		var sent int64
		sent, err = c.state(ctx, it, key, &r, told)
		out.Record, out.Sent = r, out.Sent+sent
		if errors.Is(err, objstore.ErrCorrupt) && ctx.Err() == nil {
			continue // on the way, mostly: it is read and sent again
		}
		if err == nil || !errors.Is(err, objstore.ErrChanged) && !errors.Is(err, objstore.ErrNotFound) || errors.Is(err, errTarget) {
			break
		}
		e, found, relist := c.list(ctx, it.Entry.Key) // another state is there now, or none
		if relist != nil {
			err = relist
			break
		}
		if !found {
			out.Record.Outcome = Gone
			return out, nil
		}
		it.Entry, it.Sure, it.Upload = e, false, nil
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return out, ctx.Err()
	case errors.Is(err, errTarget) && errors.Is(err, objstore.ErrDenied), errors.Is(err, objstore.ErrClock), errors.Is(err, objstore.ErrKeys):
		return out, err // so it is for all objects
	case errors.Is(err, objstore.ErrArchived):
		out.Record.Outcome, out.Record.Why = Refused, err.Error()+"; restore it at the source, then moverctl sync tries it again"
	case errors.Is(err, objstore.ErrNotSupported):
		out.Record.Outcome, out.Record.Why = Refused, err.Error()
	default:
		out.Record.Outcome, out.Record.Why, out.cause = Failed, err.Error(), err
	}
	return out, nil
}

func recordOf(it Item) Record {
	e := it.Entry
	return Record{Sure: it.Sure, Size: e.Size, Modified: e.Modified, ETag: e.ETag, Class: e.Class}
}

// errTarget marks errors of the target.
var errTarget = errors.New("target")

func atTarget(err error) error {
	if err == nil {
		return nil
	}
	return targetError{err}
}

type targetError struct{ error }

func (e targetError) Unwrap() error        { return e.error }
func (e targetError) Is(target error) bool { return target == errTarget }

// list gives the entry of one key, as a listing has it.
func (c *copier) list(ctx context.Context, key string) (objstore.Entry, bool, error) {
	p, err := c.from.List(ctx, objstore.Query{Prefix: key, Max: 1}) // of all keys that begin with it, it is the first
	if err != nil || len(p.Entries) == 0 || p.Entries[0].Key != key {
		return objstore.Entry{}, false, err
	}
	return p.Entries[0], true, nil
}

// target gives the key at the target, or why there can be none.
func (c *copier) target(key string) (string, error) {
	to := c.cfg.ToPrefix + strings.TrimPrefix(key, c.cfg.FromPrefix)
	err := c.to.Limits().Key(to)
	if !c.cfg.Escape || err == nil && !looksEscaped(to) {
		return to, err
	}
	to = escape(to)
	return to, c.to.Limits().Key(to)
}

func (c *copier) delete(ctx context.Context, key string, out ItemResult) (ItemResult, error) {
	left, err := c.to.Delete(ctx, key)
	if err == nil {
		err = left[key]
	}
	if err != nil {
		return out, err
	}
	return out, nil
}

// state copies one state of an object.
func (c *copier) state(ctx context.Context, it Item, key string, r *Record, told told) (sent int64, err error) {
	lim := c.to.Limits()
	if lim.Object > 0 && it.Entry.Size > lim.Object {
		return 0, atTarget(fmt.Errorf("%d bytes are more than the %d that %s takes: %w", it.Entry.Size, lim.Object, c.to, objstore.ErrNotSupported))
	}
	if it.Entry.Size <= c.cfg.Part && (lim.Put == 0 || it.Entry.Size <= lim.Put) {
		return c.small(ctx, it, key, r)
	}
	return c.large(ctx, it, key, r, told)
}

// lease takes memory for n bytes. The buffer has them all.
func (c *copier) lease(ctx context.Context, n int64) (buf []byte, release func(), err error) {
	if n > c.cfg.Part/4 {
		if err := c.memory.Acquire(ctx, max(n, c.cfg.Part)); err != nil {
			return nil, nil, err
		}
		select {
		case buf = <-c.free:
		default:
			buf = make([]byte, max(n, c.cfg.Part))
		}
		if int64(len(buf)) < n {
			buf = make([]byte, n)
		}
		return buf[:n], func() {
			c.memory.Release(max(n, c.cfg.Part))
			select {
			case c.free <- buf:
			default:
			}
		}, nil
	}
	if err := c.memory.Acquire(ctx, max(n, 4096)); err != nil {
		return nil, nil, err
	}
	return make([]byte, n), func() { c.memory.Release(max(n, 4096)) }, nil
}

// read reads what o asks for into buf, which is as long.
func (c *copier) read(ctx context.Context, key string, o objstore.GetOptions, buf []byte) (objstore.Object, error) {
	obj, body, err := c.from.Get(ctx, key, o)
	if err != nil {
		return obj, err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, buf); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %w", err, objstore.ErrTransient)
		}
		return obj, err
	}
	var one [1]byte
	switch _, err := io.ReadFull(body, one[:]); err { // the end is where a body tells that it was not what it should be
	case io.EOF:
		return obj, nil
	case nil:
		return obj, fmt.Errorf("%q has more than %d bytes: %w", key, len(buf), objstore.ErrCorrupt)
	default:
		return obj, err
	}
}

func (c *copier) small(ctx context.Context, it Item, key string, r *Record) (int64, error) {
	e := it.Entry
	buf, release, err := c.lease(ctx, e.Size)
	if err != nil {
		return 0, err
	}
	defer release()
	obj, err := c.read(ctx, e.Key, objstore.GetOptions{IfTag: e.ETag}, buf)
	if err != nil {
		return 0, err
	}
	var d objstore.Digester
	_, _ = d.Write(buf)
	r.Digest = objstore.ObjectDigest(d.Blocks())
	what := objstore.Bytes(buf)
	what.MD5 = obj.MD5 // so what is stored is held against what the source has, not only against what came from there
	var w objstore.Written
	held := false
	_, err = c.described(obj, r, func(o objstore.PutOptions) (err error) {
		if w, held = c.stored(ctx, it, key, buf, o); held {
			return nil
		}
		if err := c.pace(ctx, len(buf)); err != nil {
			return err
		}
		w, err = c.to.Put(ctx, key, what, o)
		return atTarget(err)
	})
	if held {
		return 0, c.finish(ctx, obj, key, w, r)
	}
	if err != nil {
		return e.Size, err
	}
	return e.Size, c.finish(ctx, obj, key, w, r)
}

func (c *copier) pace(ctx context.Context, n int) error {
	if c.cfg.Pace == nil {
		return nil
	}
	return c.cfg.Pace(ctx, n)
}
