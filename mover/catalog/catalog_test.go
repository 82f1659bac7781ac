package catalog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

func record(host, identity string) Record {
	return Record{Tenant: "acme", Host: host, Name: "root", Phase: mover.Point, Target: Target{Path: "/dev/x", Identity: identity, Size: 1 << 30},
		Generation: ID{1, 2}, Epoch: 7, Point: RecoveryPoint{Time: time.Unix(5, 6).UTC(), Consistency: mover.Crash, Proven: true},
		Open: &OpenPass{ID: ID{9}, Kind: mover.Delta, Epoch: 8}, Unreadable: []extent.Extent{{Off: 512, Len: 1024}}}
}

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir)
	must(t, err)
	if _, err := Open(dir); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "another gateway") {
		t.Fatalf("second gateway: %v", err)
	}
	a, err := c.Put(record("db1", "wwn-1/1000"))
	must(t, err)
	b, err := c.Put(record("db2", "wwn-2/1000"))
	must(t, err)
	if a.Number == b.Number {
		t.Fatal("same number")
	}
	// A claim is one flow's, also when the device has grown; what was refused has changed nothing.
	b.Target.Identity = "wwn-1/2000"
	if _, err := c.Put(b); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "acme/db1/root") {
		t.Fatalf("claimed twice: %v", err)
	}
	if r, _ := c.Get("acme/db2/root"); r.Target.Identity != "wwn-2/1000" {
		t.Fatal("a refused record was kept")
	}
	// Records that were handed out do not alias.
	r, _ := c.Get("acme/db1/root")
	r.Unreadable[0].Off, r.Open.Epoch = 0, 0
	must(t, c.Close())
	c, err = Open(dir)
	must(t, err)
	r, ok := c.Get("acme/db1/root")
	if !ok || r.Number != a.Number || r.Generation != (ID{1, 2}) || r.Open.Epoch != 8 || r.Unreadable[0].Off != 512 || !r.Point.Time.Equal(time.Unix(5, 6)) || !r.Point.Proven {
		t.Fatalf("read back %+v", r)
	}
	if f, ok := c.ByNumber(b.Number); !ok || f != "acme/db2/root" {
		t.Fatal("number is not found")
	}
	must(t, c.Drop("acme/db1/root"))
	if err := c.Drop("acme/db1/root"); !errors.Is(err, sentinel.ErrNotFound) {
		t.Fatal(err)
	}
	b.Target.Identity = "wwn-1/2000"
	_, err = c.Put(b)
	must(t, err)
	for _, bad := range []string{"", ".", "..", "a/b", "ü", ".x", "a\x00"} {
		r := record(bad, "")
		if _, err := c.Put(r); !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("host %q: %v", bad, err)
		}
	}
	must(t, c.Close())
}

func TestBrokenRecords(t *testing.T) {
	for text, want := range map[string]error{"{": sentinel.ErrCorrupt, `{"version":2}`: sentinel.ErrNotSupported, `{"version":1}`: sentinel.ErrCorrupt} {
		dir := t.TempDir()
		c, err := Open(dir)
		must(t, err)
		_, err = c.Put(record("db1", "a"))
		must(t, err)
		must(t, c.Close())
		must(t, os.WriteFile(filepath.Join(dir, "flows/acme/db1/root/flow.json"), []byte(text), 0o600))
		if _, err := Open(dir); !errors.Is(err, want) || !strings.Contains(err.Error(), "flow.json") {
			t.Errorf("%s: %v", text, err)
		}
	}
	// Records that claim the same target, as a copied directory would.
	dir := t.TempDir()
	c, err := Open(dir)
	must(t, err)
	_, err = c.Put(record("db1", "a"))
	must(t, err)
	_, err = c.Put(record("db2", "b"))
	must(t, err)
	must(t, c.Close())
	p := filepath.Join(dir, "flows/acme/db2/root/flow.json")
	b, err := os.ReadFile(p)
	must(t, err)
	must(t, os.WriteFile(p, []byte(strings.Replace(string(b), `"identity": "b"`, `"identity": "a"`, 1)), 0o600))
	if _, err := Open(dir); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("two claims: %v", err)
	}
}

func TestWho(t *testing.T) {
	for in, want := range map[string]string{"wwid:1/5": "wwid:1", "rbd:a/b/c/77": "rbd:a/b/c", "rbd:a/b/c": "rbd:a/b/c", "/5": "/5", "x/": "x/", "": ""} {
		if got := Who(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
