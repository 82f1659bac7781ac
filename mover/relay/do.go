package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// do carries a call out.
func (c *serving) do(ctx context.Context, seq uint32, m *wire.Call) *wire.Result {
	r := &wire.Result{Op: m.Op}
	st, err := c.f.opened(ctx)
	if err == nil {
		err = c.carry(ctx, st, seq, m, r)
	}
	if err == nil {
		return r
	}
	if gone, ok := errors.AsType[*missing](err); ok {
		for _, i := range gone.at {
			c.f.counts.missing.Add(int64(m.Body[i].Len))
		}
		return &wire.Result{Op: m.Op, Kind: wire.ResultMissing, Missing: gone.wire()}
	}
	out := &wire.Result{Op: m.Op}
	out.Kind, out.Failure = failure(err)
	return out
}

func (c *serving) carry(ctx context.Context, st objstore.Store, seq uint32, m *wire.Call, r *wire.Result) (err error) {
	switch m.Op {
	case wire.OpOpen:
		r.Store = c.s.traits(c.f, st)
	case wire.OpList:
		var p objstore.Page
		p, err = st.List(ctx, objstore.Query{Prefix: m.Prefix, After: m.After, Max: pageOf(st, m.Most)})
		for _, e := range p.Entries {
			r.Entries = append(r.Entries, toEntry(e))
		}
		r.Flag, r.Now = p.More, nano(p.Now)
	case wire.OpHead:
		var o objstore.Object
		o, err = st.Head(ctx, m.Key)
		r.Object = toObject(o)
	case wire.OpGet:
		// The body outlives the call: its context is the connection's, unless the call is dropped.
		var o objstore.Object
		var body io.ReadCloser
		if o, body, err = st.Get(c.ctx, m.Key, getOptions(m)); err == nil {
			err = c.keep(ctx, seq, body)
		}
		r.Object = toObject(o)
	case wire.OpRead:
		err = c.piece(m, r)
	case wire.OpSum:
		err = sum(ctx, st, m, r)
	case wire.OpPut, wire.OpPutPart:
		r.ETag, err = c.put(ctx, st, m)
	case wire.OpDelete:
		err = remove(ctx, st, m.Keys, r)
	case wire.OpBegin:
		r.Upload, err = st.Begin(ctx, m.Key, ofPut(m.Put))
	case wire.OpParts:
		var all []objstore.Part
		all, r.Flag, err = st.Parts(ctx, m.Key, m.Upload, int(m.No))
		if len(all) > wire.MaxPage {
			all, r.Flag = all[:wire.MaxPage], true
		}
		r.Parts = toParts(all)
	case wire.OpComplete:
		var w objstore.Written
		w, err = st.Complete(ctx, m.Key, m.Upload, ofParts(m.Parts), ofPut(m.Put))
		r.ETag = w.ETag
	case wire.OpAbort:
		err = st.Abort(ctx, m.Key, m.Upload)
	case wire.OpUploads:
		err = uploads(ctx, st, m, r)
	default:
		err = able(ctx, st, m, r)
	}
	return err
}

// able carries out what not all stores can.
func able(ctx context.Context, st objstore.Store, m *wire.Call, r *wire.Result) (err error) {
	lacks := fmt.Errorf("%s cannot: %w", st, objstore.ErrNotSupported)
	switch m.Op {
	case wire.OpTags, wire.OpSetTags:
		t, ok := st.(objstore.Tagger)
		if !ok {
			return lacks
		}
		if m.Op == wire.OpSetTags {
			return t.SetTags(ctx, m.Key, ofPairs(m.Tags))
		}
		var tags map[string]string
		tags, err = t.Tags(ctx, m.Key)
		r.Tags = toPairs(tags)
	case wire.OpGrants, wire.OpSetGrants:
		g, ok := st.(objstore.Granter)
		if !ok {
			return lacks
		}
		if m.Op == wire.OpSetGrants {
			return g.SetGrants(ctx, m.Key, m.Name)
		}
		r.Name, r.Grants, err = g.Grants(ctx, m.Key)
	case wire.OpVersioned:
		v, ok := st.(objstore.Versioner)
		if !ok {
			return lacks
		}
		r.Flag, err = v.Versioned(ctx)
	case wire.OpLocation:
		l, ok := st.(objstore.Locator)
		if !ok {
			return lacks
		}
		r.Name, err = l.Location(ctx)
	default:
		err = lacks
	}
	return err
}

func pageOf(st objstore.Store, most uint32) int {
	n := min(st.Limits().List, wire.MaxPage)
	if most > 0 {
		n = min(n, int(most))
	}
	return n
}

func getOptions(m *wire.Call) objstore.GetOptions {
	return objstore.GetOptions{Off: int64(min(m.Off, math.MaxInt64)), Len: int64(min(m.Len, math.MaxInt64)), IfTag: m.ETag}
}

func remove(ctx context.Context, st objstore.Store, keys []string, r *wire.Result) error {
	left, err := st.Delete(ctx, keys...)
	if err != nil {
		return err
	}
	for key, why := range left {
		kind, f := failure(why)
		r.Left = append(r.Left, wire.Left{Key: key, Kind: kind, Text: f.Text})
	}
	return nil
}

func uploads(ctx context.Context, st objstore.Store, m *wire.Call, r *wire.Result) error {
	all, next, err := st.Uploads(ctx, m.Prefix, objstore.UploadPlace{Key: m.After, ID: m.Upload})
	if err != nil {
		return err
	}
	if len(all) > wire.MaxPage {
		all = all[:wire.MaxPage]
		last := all[len(all)-1]
		next = &objstore.UploadPlace{Key: last.Key, ID: last.ID}
	}
	for _, u := range all {
		r.Uploads = append(r.Uploads, wire.Upload{Key: u.Key, ID: u.ID, Begun: nano(u.Begun)})
	}
	if next != nil {
		r.Flag, r.After, r.Upload = true, next.Key, next.ID
	}
	return nil
}

// piece reads on in an object that is open.
func (c *serving) piece(m *wire.Call, r *wire.Result) error {
	c.mu.Lock()
	o := c.bodies[m.Of]
	c.mu.Unlock()
	if o == nil {
		return fmt.Errorf("nothing is open there: %w", objstore.ErrTransient)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil && o.err != io.EOF {
		return o.err
	}
	b, n := make([]byte, max(1, min(int(m.Most), wire.MaxPiece))), 0
	for n < len(b) && o.err == nil {
		var k int
		k, o.err = o.body.Read(b[n:])
		n += k
	}
	if n == 0 && o.err != io.EOF {
		return o.err
	}
	r.Bytes, r.Flag = b[:n], o.err != io.EOF
	return nil
}

// sum digests an object as the store has it.
func sum(ctx context.Context, st objstore.Store, m *wire.Call, r *wire.Result) error {
	o := getOptions(m)
	if o.Off%objstore.BlockSize != 0 {
		return fmt.Errorf("byte %d begins no block", o.Off)
	}
	if far, ok := st.(objstore.Summer); ok {
		obj, sums, err := far.Sum(ctx, m.Key, o)
		if !errors.Is(err, objstore.ErrNotSupported) {
			r.Object, r.Sums = toObject(obj), sums
			return err
		}
	}
	obj, body, err := st.Get(ctx, m.Key, o)
	if err != nil {
		return err
	}
	defer body.Close()
	n := obj.Size - o.Off
	if o.Len > 0 {
		n = min(n, o.Len)
	}
	if n > objstore.SumMost*objstore.BlockSize {
		return fmt.Errorf("%d bytes at once, at most %d: %w", n, int64(objstore.SumMost*objstore.BlockSize), objstore.ErrNotSupported)
	}
	var d objstore.Digester
	if _, err := io.CopyBuffer(&d, struct{ io.Reader }{body}, make([]byte, 128<<10)); err != nil {
		return err
	}
	r.Object, r.Sums = toObject(obj), d.Blocks()
	return nil
}

// put stores an object, or a part, whose chunks are in the cache.
func (c *serving) put(ctx context.Context, st objstore.Store, m *wire.Call) (string, error) {
	b, done, err := c.assemble(ctx, m.Body)
	if err != nil {
		return "", err
	}
	defer done()
	var w objstore.Written
	if m.Op == wire.OpPut {
		w, err = st.Put(ctx, m.Key, b, ofPut(m.Put))
	} else {
		w, err = st.PutPart(ctx, m.Key, m.Upload, int(m.No), b)
	}
	if err != nil {
		return "", err
	}
	c.f.counts.objects.Add(1)
	c.f.counts.bytes.Add(b.Size)
	return w.ETag, nil
}

// missing are chunks of a call that are not in the cache.
type missing struct {
	n  int
	at []int
}

func (e *missing) Error() string { return fmt.Sprintf("%d of %d chunks are not there", len(e.at), e.n) }

func (e *missing) wire() wire.Missing {
	m := wire.Missing{N: uint32(e.n), Bitmap: make([]byte, wire.BitmapSize(e.n))}
	for _, i := range e.at {
		wire.SetBit(m.Bitmap, i)
	}
	return m
}
