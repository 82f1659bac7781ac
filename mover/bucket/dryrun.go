package bucket

// A dry run lists both ends side by side and holds them against the ledger, as a pass and a verification would, and writes nothing. The source is listed as a pass
// does it; for the span of each page the records and the target's listing are merged with it by key. Memory is two pages for each call side by side.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
)

// Plan tells what a pass of a flow would do that no daemon runs: Config.Open gives its ends, for reading. A ledger is only read, and its folder is not made.
func Plan(ctx context.Context, cfg FlowConfig, progress func(mover.Progress)) (*mover.BucketPlan, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	n, err := readNote(cfg.Dir)
	if err != nil {
		return nil, err
	}
	f := &Flow{cfg: cfg, note: n}
	var l *Ledger
	if _, err := os.Stat(f.ledgerDir()); err == nil {
		if l, err = ReadLedger(f.ledgerDir(), cfg.Identity, cfg.Log); err != nil {
			return nil, err
		}
		defer l.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return dryRun(ctx, cfg, n, l, progress)
}

// Plan tells what a pass would do now. open gives the ends, for reading. Passes go on meanwhile.
func (f *Flow) Plan(ctx context.Context, open func(context.Context) (from, to End, err error), progress func(mover.Progress)) (*mover.BucketPlan, error) {
	f.use.RLock()
	defer f.use.RUnlock()
	l, err := f.known()
	if err != nil {
		return nil, err
	}
	cfg := f.cfg
	cfg.Open = open
	return dryRun(ctx, cfg, f.noted(), l, progress)
}

func dryRun(ctx context.Context, cfg FlowConfig, n note, l *Ledger, progress func(mover.Progress)) (*mover.BucketPlan, error) {
	began := time.Now()
	from, to, err := cfg.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = from.Store.Close(), to.Store.Close() }() // nothing was written
	for _, e := range []End{from, to} {
		if err := objstore.Located(ctx, e.Store, e.Regions, "source.regions"); err != nil {
			return nil, err
		}
	}
	d := &dry{cfg: cfg, from: from.Store, ledger: l, names: newCopier(from.Store, to.Store, cfg.Copy)}
	d.out = mover.BucketPlan{Flow: cfg.Name, From: cfg.From, To: cfg.To, Made: began.UTC(), Deletes: cfg.Deletes, Classes: map[string]mover.BucketSum{}}
	if l != nil {
		s := l.State()
		d.out.Pass, d.out.UnderWay = s.Pass, s.Listing || s.Units > 0
	}
	stop := d.tell(progress)
	err = (&lister{store: from.Store, prefix: cfg.Copy.FromPrefix, width: dryWidth, page: d.page, cut: func(_, _ uint64, _ span) error { return nil }}).run(ctx, []*walk{{id: 1}})
	stop()
	if err != nil {
		return nil, fmt.Errorf("plan %s: %w", cfg.Name, err)
	}
	d.conclude(n)
	d.out.Seconds = time.Since(began).Seconds()
	return &d.out, nil
}

const (
	dryWidth   = 16  // listings of the source side by side, each with one of the target
	dryNames   = 100 // keys that are named
	dryClasses = 64
)

// dry is a dry run under way.
type dry struct {
	cfg    FlowConfig
	from   objstore.Store
	ledger *Ledger // nil: there is none yet
	names  *copier

	mu  sync.Mutex // guards all below
	out mover.BucketPlan
}

// tell shows how far it is, until stop.
func (d *dry) tell(progress func(mover.Progress)) (stop func()) {
	r := &report{}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.step("list", progress, func() mover.Progress {
			d.mu.Lock()
			defer d.mu.Unlock()
			return mover.Progress{Text: fmt.Sprintf("%d objects at the source, %d of them to be copied", d.out.Source.Objects, d.out.Copy.Objects)}
		}, func() error { <-over; return nil })
	}()
	return func() { close(over); <-ended }
}

// found is what is known under one key; what is not there is nil.
type found struct {
	rest   string // of the key, without either prefix
	source *objstore.Entry
	record *Record
	target *objstore.Entry // under the same name; one that is spelled otherwise is asked for
}

// page takes in a page of the source.
func (d *dry) page(ctx context.Context, p listed) error {
	w := &drying{dry: d, out: mover.BucketPlan{Classes: map[string]mover.BucketSum{}}}
	w.out.Requests.List = 1
	for f, err := range d.merged(ctx, p) {
		if err == nil {
			err = w.take(ctx, f)
		}
		if err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out.Add(&w.out, dryNames, dryClasses)
	return nil
}

// rest takes a prefix off a place in a listing, which need not have it.
func rest(key, prefix string) (string, bool) {
	switch {
	case len(key) >= len(prefix) && key[:len(prefix)] == prefix:
		return key[len(prefix):], true
	case key < prefix:
		return "", true // before all of them
	}
	return "", false // behind all of them
}

// merged gives all keys of a page's span: of the source, the ledger and the target, ascending.
func (d *dry) merged(ctx context.Context, p listed) iter.Seq2[found, error] {
	return func(yield func(found, error) bool) {
		record, stopRecords := iter.Pull2(d.records(p.span))
		defer stopRecords()
		target, stopTarget := iter.Pull2(d.targets(ctx, p.span))
		defer stopTarget()
		source := p.entries
		r, rerr, rok := record()
		t, terr, tok := target()
		for {
			if err := errors.Join(rerr, terr); err != nil {
				yield(found{}, err)
				return
			}
			f, any := found{}, false
			consider := func(key string, ok bool) {
				if ok && (!any || key < f.rest) {
					f.rest, any = key, true
				}
			}
			first := ""
			if len(source) > 0 {
				first = source[0].Key[len(d.cfg.Copy.FromPrefix):]
			}
			consider(first, len(source) > 0)
			consider(r.rest, rok)
			consider(t.rest, tok)
			if !any {
				return
			}
			if len(source) > 0 && first == f.rest {
				f.source, source = &source[0], source[1:]
			}
			if rok && r.rest == f.rest {
				f.record = r.record
				r, rerr, rok = record()
			}
			if tok && t.rest == f.rest {
				f.target = t.target
				t, terr, tok = target()
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// records are those of the ledger within a span.
func (d *dry) records(s span) iter.Seq2[found, error] {
	errOver := errors.New("over")
	return func(yield func(found, error) bool) {
		if d.ledger == nil {
			return
		}
		err := d.ledger.scan(s, func(key string, r Record) error {
			name, _ := rest(key, d.cfg.Copy.FromPrefix)
			if !yield(found{rest: name, record: &r}, nil) {
				return errOver
			}
			return nil
		})
		if err != nil && !errors.Is(err, errOver) {
			yield(found{}, err)
		}
	}
}

// targets are the target's objects under the names that keys within a span of the source would have.
func (d *dry) targets(ctx context.Context, s span) iter.Seq2[found, error] {
	from, to := d.cfg.Copy.FromPrefix, d.cfg.Copy.ToPrefix
	return func(yield func(found, error) bool) {
		after, upto := "", ""
		if name, ok := rest(s.after, from); !ok || s.to != "" && s.to < from {
			return // no key of the source lies there
		} else if name != "" {
			after = to + name
		}
		if name, ok := rest(s.to, from); ok && s.to != "" {
			upto = to + name
		}
		check := &lister{store: d.names.to, prefix: to}
		for more := true; more; {
			p, err := d.names.to.List(ctx, objstore.Query{Prefix: to, After: after})
			if err == nil {
				err = check.check(p, after)
			}
			if err != nil {
				yield(found{}, fmt.Errorf("list the target: %w", err))
				return
			}
			for i := range p.Entries {
				if upto != "" && p.Entries[i].Key > upto {
					return
				}
				after = p.Entries[i].Key
				if !yield(found{rest: after[len(to):], target: &p.Entries[i]}, nil) {
					return
				}
			}
			more = p.More && after != upto
		}
	}
}

// conclude tells what would keep a pass from beginning, and what a listing does not tell.
func (d *dry) conclude(n note) {
	o := &d.out
	refuse := func(format string, a ...any) { o.Refusals = append(o.Refusals, fmt.Sprintf(format, a...)) }
	there := o.Others.Objects + o.Overwrite.Objects + o.Ours.Objects
	switch {
	case n.Phase == phaseDone:
		refuse("the flow was cut over at %s; moverctl rollback %s lets it go on", n.Done.Format(time.RFC3339), d.cfg.Name)
	case n.Phase == phaseFinished:
		refuse("the flow was finished at %s", n.Finished.Format(time.RFC3339))
	case n.Paused:
		refuse("the flow is paused; moverctl resume %s", d.cfg.Name)
	}
	if n.Begun.IsZero() && there > 0 && !d.cfg.Claim {
		refuse("the target has %d objects below %q already: empty it, name another prefix, or say claim: true", there, d.cfg.Copy.ToPrefix)
	}
	if known := d.ledger != nil && d.ledger.State().Objects > 0; d.cfg.Deletes && known && o.Source.Objects+o.LeftOut == 0 {
		refuse("the source lists nothing, and %d objects were copied from it: deletes are not followed to an empty target", d.ledger.State().Objects)
	}
	for _, all := range [][]mover.BucketObject{o.RefusedKeys, o.Examples} {
		slices.SortFunc(all, func(a, b mover.BucketObject) int {
			return strings.Compare(a.Key+string(a.KeyBytes), b.Key+string(b.KeyBytes))
		})
	}
	o.Notes = append(o.Notes, "a listing does not tell metadata, tags, grants, or whether an archived object was restored: what of them cannot be carried is known after the copy (moverctl objects --partly)")
	if n.Begun.IsZero() {
		o.Notes = append(o.Notes, "that the target can be written, and that both ends are two buckets, is tried by the first pass, with an object of its own")
	}
}

// named is an object for people.
func named(key string, size int64, outcome, why string) mover.BucketObject {
	o := mover.BucketObject{Outcome: outcome, Size: size, Why: why}
	if utf8.ValidString(key) {
		o.Key = key
	} else {
		o.KeyBytes = []byte(key)
	}
	return o
}
