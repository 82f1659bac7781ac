package bucket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/objstore/meter"
)

// onlyLooks fails the test when a store was asked for anything else than to be looked at.
func onlyLooks(t *testing.T, what string, m *meter.Store) {
	t.Helper()
	for op, n := range m.Snapshot() {
		if op != "list" && op != "head" && op != "location" && n.Calls > 0 {
			t.Errorf("%s: %d calls of %s", what, n.Calls, op)
		}
	}
}

// plan makes one of a rig, and fails if anything was written.
func (r *rig) plan(cfg FlowConfig) *mover.BucketPlan {
	r.t.Helper()
	t := r.t.(*testing.T)
	from, to := meter.New(unclosed{r.from}), meter.New(unclosed{r.to})
	cfg.Name, cfg.Identity, cfg.Copy, cfg.Deletes, cfg.Filter, cfg.Log = "test", "from to", r.copy, r.cfg.Deletes, r.cfg.Filter, silent
	cfg.Copy.FromPrefix = r.cfg.Prefix
	cfg.Open = func(context.Context) (a, b End, err error) { return End{Store: from}, End{Store: to}, nil }
	before := files(t, cfg.Dir)
	p, err := Plan(t.Context(), cfg, untold)
	if err != nil {
		t.Fatal(err)
	}
	if after := files(t, cfg.Dir); !maps.Equal(before, after) {
		t.Errorf("the flow's folder has changed:\n%v\n%v", before, after)
	}
	onlyLooks(t, "source", from)
	onlyLooks(t, "target", to)
	return p
}

// files is the names, sizes and times of all files of a folder.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil {
			out[path] = fmt.Sprint(st.Mode(), st.Size(), st.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What a plan says before the first pass, and before a later one, is what the pass then does.
func TestPlan(t *testing.T) {
	r := newRig(t)
	r.cfg.Deletes = true
	r.copy.Escape = false
	r.to = mem.New(mem.Config{Name: "to", Now: r.clock.Now, Limits: objstore.Limits{PartLeast: 1 << 20, Parts: 100, Meta: 2048, Key: func(key string) error {
		if strings.Contains(key, "bad") {
			return fmt.Errorf("bad keys are not taken: %w", objstore.ErrNotSupported)
		}
		return nil
	}}})
	r.dst = r.to
	var err error
	if r.cfg.Filter, err = NewFilter(nil, []string{"tmp/**"}); err != nil {
		t.Fatal(err)
	}
	for i := range 2600 {
		r.put(fmt.Sprintf("k/%05d", i), i%50, uint64(i))
	}
	for i := range 130 {
		r.put(fmt.Sprintf("bad/%05d", i), 10, uint64(i))
	}
	for i := range 7 {
		r.put(fmt.Sprintf("tmp/%d", i), 10, uint64(i))
	}
	r.put("large", 3*objstore.BlockSize+5, 1)
	put := func(key, text string) {
		t.Helper()
		if _, err := r.to.Put(t.Context(), key, objstore.Bytes([]byte(text)), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1500 { // of others, before, between and behind
		put(fmt.Sprintf("a/%05d", i), "x")
	}
	put("k/00007", "another")
	put("zzz", "x")
	dir := filepath.Join(t.TempDir(), "flow")
	p := r.plan(FlowConfig{Dir: dir})
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the flow's folder was made")
	}
	want := mover.BucketPlan{Source: mover.BucketSum{Objects: 2731}, Copy: mover.BucketSum{Objects: 2601}, New: 2601, LeftOut: 7, Refused: mover.BucketSum{Objects: 130, Bytes: 1300},
		Others: mover.BucketSum{Objects: 1501, Bytes: 1501}, Overwrite: mover.BucketSum{Objects: 1, Bytes: 7}, Large: mover.BucketSum{Objects: 1, Bytes: 3*objstore.BlockSize + 5}}
	same := func(p *mover.BucketPlan, w mover.BucketPlan) {
		t.Helper()
		if p.Source.Objects != w.Source.Objects || p.Copy.Objects != w.Copy.Objects || p.New != w.New || p.LeftOut != w.LeftOut || p.Refused.Objects != w.Refused.Objects || p.Others != w.Others ||
			p.Overwrite != w.Overwrite || p.Large != w.Large || p.Same.Objects != w.Same.Objects || p.Delete.Objects != w.Delete.Objects || p.Missing != w.Missing || p.Differ != w.Differ ||
			p.Changed != w.Changed || p.Unsure != w.Unsure {
			short := *p
			short.RefusedKeys = nil
			t.Errorf("planned\n%+v\nwanted\n%+v", short, w)
		}
	}
	same(p, want)
	if len(p.RefusedKeys) != 100 || !strings.Contains(p.RefusedKeys[0].Why, "bad keys are not taken") || len(p.Refusals) != 1 || !strings.Contains(p.Refusals[0], "claim: true") {
		t.Errorf("%d keys, %+v; %v", len(p.RefusedKeys), p.RefusedKeys[0], p.Refusals)
	}
	if q := p.Requests; q.Put != 2600 || q.Part != 4 || q.Upload != 2 || q.Get != 2604 || q.Head != 1 || q.Delete != 0 || q.List < 3 {
		t.Errorf("%+v", q)
	}

	// A pass, a long time later; then some things happen.
	r.clock.pass(time.Hour)
	s := r.mustPass(2)
	if s.Copied != want.Copy.Objects || s.Refused != 130 || s.CopiedBytes != p.Copy.Bytes || s.Left != p.LeftOut {
		t.Errorf("planned %+v, and it was %+v", p, s)
	}
	r.clock.pass(time.Hour)
	for i := range 10 {
		r.put(fmt.Sprintf("k/%05d", 100+i), 99, 7)
		r.put(fmt.Sprintf("n/%05d", i), 5, 7)
	}
	if _, err := r.from.Delete(t.Context(), "k/00200", "k/00201", "k/02599"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.to.Delete(t.Context(), "k/00300"); err != nil {
		t.Fatal(err)
	}
	put("k/00301", "not what was written")
	r.clock.pass(time.Hour)
	// The rig's ledger is where a flow has it.
	dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "ledger"), os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	p = r.plan(FlowConfig{Dir: dir, Claim: true})
	same(p, mover.BucketPlan{Source: mover.BucketSum{Objects: 2738}, Copy: mover.BucketSum{Objects: 20}, New: 10, Changed: 10, LeftOut: 7, Refused: mover.BucketSum{Objects: 130},
		Same: mover.BucketSum{Objects: 2588}, Others: mover.BucketSum{Objects: 1501, Bytes: 1501}, Delete: mover.BucketSum{Objects: 3}, Missing: 1, Differ: 1})
	if len(p.Refusals) != 0 || p.Requests.Delete != 3 || len(p.Examples) != 2 || p.Pass != 1 {
		t.Errorf("%+v", p)
	}
	s = r.mustPass(2)
	if s.Planned != p.Copy.Objects || s.CopiedBytes != p.Copy.Bytes || s.Deleted != p.Delete.Objects || s.Same != p.Same.Objects+p.Refused.Objects {
		t.Errorf("planned %+v, and it was %+v", p, s)
	}

	// The ledger of another flow is refused.
	_, err = Plan(t.Context(), FlowConfig{Dir: dir, Identity: "other", Log: silent, Open: func(context.Context) (a, b End, err error) { return End{Store: r.from}, End{Store: r.to}, nil }}, untold)
	if !errors.Is(err, sentinel.ErrRefused) {
		t.Error(err)
	}
}

// Prefixes at both ends, keys that are spelled otherwise, archives, deletes that are kept.
func TestPlanNames(t *testing.T) {
	r := newRig(t)
	r.cfg.Prefix, r.copy.FromPrefix, r.copy.ToPrefix, r.copy.Escape = "in/", "in/", "out/", true
	for _, key := range []string{"in/a", "in//b", "in/../c", "ina", "im", "io", "in/"} {
		r.put(key, 10, 1)
	}
	if _, err := r.from.Put(t.Context(), "in/cold", objstore.Bytes([]byte("x")), objstore.PutOptions{Class: "GLACIER"}); err != nil {
		t.Fatal(err)
	}
	r.to = mem.New(mem.Config{Name: "to", Now: r.clock.Now, Limits: objstore.Limits{PartLeast: 1 << 20, Parts: 100, Object: 1 << 20, Key: func(key string) error {
		if strings.Contains("/"+key+"/", "/../") {
			return fmt.Errorf("dots are not taken: %w", objstore.ErrNotSupported)
		}
		return nil
	}}})
	r.put("in/huge", 2<<20, 1)
	r.dst = r.to
	for _, key := range []string{"ou", "out", "out/x", "out/%2E%2E/c", "out/%2E%2E/d", "ouu"} {
		if _, err := r.to.Put(t.Context(), key, objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p := r.plan(FlowConfig{Dir: t.TempDir()})
	if p.Source.Objects != 6 || p.Copy.Objects != 4 || p.Refused.Objects != 2 || p.Others.Objects != 2 || p.Overwrite.Objects != 1 || p.Classes["GLACIER"].Objects != 1 {
		t.Errorf("%+v", p)
	}
	why := map[string]string{}
	for _, o := range p.RefusedKeys {
		why[o.Key] = o.Why
	}
	if !strings.Contains(why["in/cold"], "restored") || !strings.Contains(why["in/huge"], "more than") {
		t.Error(why)
	}
	if names := slices.Collect(func(yield func(string) bool) {
		for _, o := range p.Examples {
			yield(o.Key)
		}
	}); !slices.Equal(names, []string{"in/../c"}) {
		t.Error(names)
	}
}
