package bucket

import (
	"context"
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
	Copy   CopyConfig // how keys are spelled at the target
	Read   bool       // read every object and digest it; else the listing's sizes and ETags
	Width  int        // calls side by side; 16
	Differ func(key, how string)
}

// Verified is what a verification has found.
type Verified struct {
	Objects, Bytes int64 // that are what the ledger says
	Differ         int64 // that are not, or are missing
	Others         int64 // at the target, not of this flow
}

// Verify compares what the target has with the ledger.
func (l *Ledger) Verify(ctx context.Context, cfg VerifyConfig) (out Verified, err error) {
	if cfg.Width <= 0 {
		cfg.Width = 16
	}
	v := &verifier{cfg: cfg, ledger: l, names: newCopier(nil, cfg.To, cfg.Copy)}
	if cfg.Read {
		err = v.read(ctx)
	} else {
		err = v.list(ctx)
	}
	return v.Verified, err
}

type verifier struct {
	cfg    VerifyConfig
	ledger *Ledger
	names  *copier

	mu sync.Mutex // guards all below
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
				v.other()
				next = next[1:]
			}
			if len(next) == 0 || next[0].Key != name {
				v.judge(key, r.Size, "it is missing")
				return nil
			}
			v.judge(key, r.Size, differs(r, next[0]))
			next = next[1:]
			return nil
		})
		for range next {
			v.other()
		}
		return err
	}
	return l.run(ctx, []*walk{{id: 1}})
}

func (v *verifier) other() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.Others++
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
			d, n, err := v.digest(ctx, name)
			switch {
			case errors.Is(err, objstore.ErrNotFound):
				v.judge(key, r.Size, "it is missing")
			case err != nil:
				return err
			case n != r.Size:
				v.judge(key, r.Size, fmt.Sprintf("it has %d bytes, not %d", n, r.Size))
			case d != r.Digest:
				v.judge(key, r.Size, fmt.Sprintf("its digest is %s, not %s", d.Short(), r.Digest.Short()))
			default:
				v.judge(key, r.Size, "")
			}
			return nil
		})
		return ctx.Err()
	})
	if e := g.Wait(); e != nil {
		err = e
	}
	return err
}

// digest is that of an object as the target has it, who reads it itself where it can: then no byte comes back over the line.
func (v *verifier) digest(ctx context.Context, name string) (digest.Digest, int64, error) {
	if far, ok := v.cfg.To.(objstore.Summer); ok {
		if d, n, err := sumAt(ctx, far, name); !errors.Is(err, objstore.ErrNotSupported) {
			return d, n, err
		}
	}
	_, body, err := v.cfg.To.Get(ctx, name, objstore.GetOptions{})
	if err != nil {
		return digest.Unknown, 0, err
	}
	defer body.Close()
	var d objstore.Digester
	n, err := io.Copy(&d, body)
	if err != nil {
		return digest.Unknown, n, err
	}
	return objstore.ObjectDigest(d.Blocks()), n, nil
}

// sumStretch is what a store reads in one call: an answer that is lost costs no more.
const sumStretch = 1 << 30

// sumAt has a store digest an object, in one state of it.
func sumAt(ctx context.Context, far objstore.Summer, name string) (digest.Digest, int64, error) {
	var all []digest.Digest
	for o := (objstore.GetOptions{Len: sumStretch}); ; o.Off += sumStretch {
		obj, blocks, err := far.Sum(ctx, name, o)
		if err != nil {
			return digest.Unknown, 0, err
		}
		all = append(all, blocks...)
		if o.Off+sumStretch >= obj.Size {
			return objstore.ObjectDigest(all), obj.Size, nil
		}
		o.IfTag = obj.ETag
	}
}
