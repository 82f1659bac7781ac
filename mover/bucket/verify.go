package bucket

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// VerifyConfig says how the target is compared with the ledger.
type VerifyConfig struct {
	To     objstore.Store
	From   objstore.Store // is asked with Read for attributes that were changed alone, which its listing does not show; nil: it is not
	Copy   CopyConfig     // how keys are spelled at the target
	Read   bool           // read every object and digest it, and compare its attributes; else the listing's sizes and ETags
	Attrs  int            // without Read: of about so many objects the attributes are compared too
	Width  int            // calls side by side; 16
	Differ func(key, how string)
}

// Verified is what a verification has found.
type Verified struct {
	Objects, Bytes int64 // that are what the ledger says
	Differ         int64 // that are not, or are missing
	Others         int64 // at the target, not of this flow
	Attrs          int64 // whose attributes were compared
}

// Verify compares what the target has with the ledger.
func (l *Ledger) Verify(ctx context.Context, cfg VerifyConfig) (out Verified, err error) {
	if cfg.Width <= 0 {
		cfg.Width = 16
	}
	v := &verifier{cfg: cfg, ledger: l, names: newCopier(cfg.From, cfg.To, cfg.Copy)}
	if cfg.Read {
		err = v.read(ctx)
	} else if err = v.list(ctx); err == nil {
		err = v.attributes(ctx)
	}
	return v.Verified, err
}

type verifier struct {
	cfg    VerifyConfig
	ledger *Ledger
	names  *copier

	mu     sync.Mutex // guards all below
	sample map[string]Record
	Verified
}

// judge counts one object; how: what is wrong with it.
func (v *verifier) judge(key string, size int64, how string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if how == "" {
		v.Objects, v.Bytes = v.Objects+1, v.Bytes+size
		return
	}
	v.Differ++
	if v.cfg.Differ != nil {
		v.cfg.Differ(key, how)
	}
}

// list compares the target's listing with the records, both in order of their keys.
func (v *verifier) list(ctx context.Context) error {
	from, to := v.cfg.Copy.FromPrefix, v.cfg.Copy.ToPrefix
	l := &lister{store: v.cfg.To, prefix: to, width: v.cfg.Width, cut: func(_, _ uint64, _ span) error { return nil }}
	source := func(key string) string { // prefixes are changed, order is not
		if key == "" {
			return ""
		}
		if !strings.HasPrefix(key, to) { // a place where a listing was cut
			if key < to {
				return ""
			}
			return from + "\xff\xff\xff\xff"
		}
		return from + strings.TrimPrefix(key, to)
	}
	l.page = func(ctx context.Context, p listed) error {
		next := p.entries
		err := v.ledger.scan(span{source(p.after), source(p.to)}, func(key string, r Record) error {
			if r.Outcome != Copied {
				return nil
			}
			name, err := v.names.target(key)
			if err != nil {
				return err
			}
			if name != to+strings.TrimPrefix(key, from) { // spelled otherwise, it lies elsewhere in the listing
				return v.head(ctx, key, name, r)
			}
			for len(next) > 0 && next[0].Key < name {
				if err := v.other(next[0].Key); err != nil {
					return err
				}
				next = next[1:]
			}
			if len(next) == 0 || next[0].Key != name {
				v.judge(key, r.Size, "it is missing")
				return nil
			}
			how := differs(r, next[0])
			if how == "" {
				v.pick(key, r)
			}
			v.judge(key, r.Size, how)
			next = next[1:]
			return nil
		})
		for _, e := range next {
			err = errors.Join(err, v.other(e.Key))
		}
		return err
	}
	return l.run(ctx, []*walk{{id: 1}})
}

// other takes in an object of the target that stands for no record by its name; one that is spelled otherwise there may be of the flow all the same.
func (v *verifier) other(name string) error {
	if rest := strings.TrimPrefix(name, v.cfg.Copy.ToPrefix); v.cfg.Copy.Escape && strings.Contains(rest, "%") {
		r, found, err := v.ledger.record(v.cfg.Copy.FromPrefix + unescape(rest))
		if err != nil || found && r.Target != "" {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.Others++
	return nil
}

// pick puts an object into the sample, or not: by its name, so that all of the bucket have the same chance.
func (v *verifier) pick(key string, r Record) {
	if v.cfg.Attrs <= 0 {
		return
	}
	all := uint64(max(1, v.ledger.State().Objects))
	if d := digest.Sum([]byte(key)); all > uint64(v.cfg.Attrs) && binary.BigEndian.Uint64(d[:])%all >= uint64(v.cfg.Attrs) {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sample == nil {
		v.sample = map[string]Record{}
	}
	v.sample[key] = r
}

// attributes compares those of the sample.
func (v *verifier) attributes(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.cfg.Width)
	for key, r := range v.sample {
		g.Go(func() error {
			name, err := v.names.target(key)
			if err != nil {
				return err
			}
			how := "it is missing"
			obj, err := v.cfg.To.Head(ctx, name)
			if err == nil {
				how, err = r.Marks.differ(ctx, v.cfg.To, obj)
			}
			if err != nil && !errors.Is(err, objstore.ErrNotFound) {
				return err
			}
			v.mu.Lock()
			v.Attrs++
			if how != "" {
				v.Objects, v.Bytes = v.Objects-1, v.Bytes-r.Size
			}
			v.mu.Unlock()
			if how != "" {
				v.judge(key, r.Size, how)
			}
			return nil
		})
	}
	return g.Wait()
}

func differs(r Record, e objstore.Entry) string {
	switch {
	case e.Size != r.Size:
		return fmt.Sprintf("it has %d bytes, not %d", e.Size, r.Size)
	case e.ETag != r.Target:
		return fmt.Sprintf("its ETag is %s, not %s", e.ETag, r.Target)
	}
	return ""
}

func (v *verifier) head(ctx context.Context, key, name string, r Record) error {
	obj, err := v.cfg.To.Head(ctx, name)
	if errors.Is(err, objstore.ErrNotFound) {
		v.judge(key, r.Size, "it is missing")
		return nil
	} else if err != nil {
		return err
	}
	v.judge(key, r.Size, differs(r, obj.Entry))
	return nil
}

// read reads every object that the ledger says the target has.
func (v *verifier) read(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.cfg.Width)
	err := v.ledger.scan(span{}, func(key string, r Record) error {
		if r.Outcome != Copied {
			return ctx.Err()
		}
		name, err := v.names.target(key)
		if err != nil {
			return err
		}
		g.Go(func() error {
			how, err := v.whole(ctx, key, name, r)
			if err != nil {
				return err
			}
			v.judge(key, r.Size, how)
			return nil
		})
		return ctx.Err()
	})
	if e := g.Wait(); e != nil {
		err = e
	}
	return err
}

// Beside looks at every object of the source that was copied for attributes that were changed alone, which its listing does not show.
func (l *Ledger) Beside(ctx context.Context, cfg VerifyConfig) (out Verified, err error) {
	if cfg.Width <= 0 {
		cfg.Width = 16
	}
	v := &verifier{cfg: cfg, ledger: l, names: newCopier(cfg.From, cfg.To, cfg.Copy)}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cfg.Width)
	err = l.scan(span{}, func(key string, r Record) error {
		if r.Outcome == Copied {
			g.Go(func() error {
				how, err := v.names.changed(ctx, key, r)
				if err == nil {
					v.judge(key, r.Size, how)
				}
				return err
			})
		}
		return ctx.Err()
	})
	if e := g.Wait(); e != nil {
		err = e
	}
	return v.Verified, err
}

// whole reads an object, and compares all that is known of it; how: what is wrong with it.
func (v *verifier) whole(ctx context.Context, key, name string, r Record) (how string, err error) {
	obj, d, n, err := v.digest(ctx, name)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return "it is missing", nil
	case err != nil:
		return "", err
	case n != r.Size:
		return fmt.Sprintf("it has %d bytes, not %d", n, r.Size), nil
	case d != r.Digest:
		return fmt.Sprintf("its digest is %s, not %s", d.Short(), r.Digest.Short()), nil
	}
	obj.Key = name
	if how, err = r.Marks.differ(ctx, v.cfg.To, obj); err == nil && how == "" && v.cfg.From != nil {
		how, err = v.names.changed(ctx, key, r)
	}
	v.mu.Lock()
	v.Attrs++
	v.mu.Unlock()
	return how, err
}

// digest is that of an object as the target has it, who reads it itself where it can: then no byte comes back over the line.
func (v *verifier) digest(ctx context.Context, name string) (objstore.Object, digest.Digest, int64, error) {
	if far, ok := v.cfg.To.(objstore.Summer); ok {
		if obj, d, n, err := sumAt(ctx, far, name); !errors.Is(err, objstore.ErrNotSupported) {
			return obj, d, n, err
		}
	}
	obj, body, err := v.cfg.To.Get(ctx, name, objstore.GetOptions{})
	if err != nil {
		return obj, digest.Unknown, 0, err
	}
	defer body.Close()
	var d objstore.Digester
	n, err := io.Copy(&d, body)
	if err != nil {
		return obj, digest.Unknown, n, err
	}
	return obj, objstore.ObjectDigest(d.Blocks()), n, nil
}

// sumStretch is what a store reads in one call: an answer that is lost costs no more.
const sumStretch = 1 << 30

// sumAt has a store digest an object, in one state of it.
func sumAt(ctx context.Context, far objstore.Summer, name string) (objstore.Object, digest.Digest, int64, error) {
	var all []digest.Digest
	for o := (objstore.GetOptions{Len: sumStretch}); ; o.Off += sumStretch {
		obj, blocks, err := far.Sum(ctx, name, o)
		if err != nil {
			return obj, digest.Unknown, 0, err
		}
		all = append(all, blocks...)
		if o.Off+sumStretch >= obj.Size {
			return obj, objstore.ObjectDigest(all), obj.Size, nil
		}
		o.IfTag = obj.ETag
	}
}
