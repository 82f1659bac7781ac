// Package catalog is what the gateway remembers on its state disk: the record and the claim of each flow, the redo log, and the
// dedup index. docs/formats.md has the bytes.
//
//	STATE/lock                         held by the running gateway
//	STATE/flows/TENANT/HOST/NAME/      one directory per flow: flow.json, table, redo.log
//	STATE/lines/NAME.json              what a line has carried in its month
//	STATE/index/                       dedup index; may be removed while no gateway runs
package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

const recordFile = "flow.json"

// Catalog holds the records of all flows. Safe for concurrent use.
type Catalog struct {
	dir  string
	lock *os.File

	mu    sync.Mutex // guards all below
	flows map[string]Record
	next  uint32
}

// Open locks the state directory (made when missing) and reads every record. A second gateway on the same directory is refused.
func Open(dir string) (*Catalog, error) {
	if err := os.MkdirAll(filepath.Join(dir, "flows"), 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the state directory's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is in use by another gateway; stop that one or give this one its own directory: %w",
				dir, sentinel.ErrRefused)
		}
		return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
	}
	c := &Catalog{dir: dir, lock: lock, flows: map[string]Record{}, next: 1}
	if err := c.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return c, nil
}

// Close gives the lock back.
func (c *Catalog) Close() error { return c.lock.Close() }

// IndexDir is where the dedup index lives.
func (c *Catalog) IndexDir() string { return filepath.Join(c.dir, "index") }

// FlowDir is the directory of a flow; it exists once the flow has a record.
func (c *Catalog) FlowDir(flow string) string {
	return filepath.Join(c.dir, "flows", filepath.FromSlash(flow))
}

func (c *Catalog) load() error {
	root := filepath.Join(c.dir, "flows")
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != recordFile {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		r, err := decodeRecord(path, b)
		if err != nil {
			return err
		}
		if filepath.Dir(path) != c.FlowDir(r.Flow) {
			return fmt.Errorf("flow record %s says that it belongs to %s: %w", path, r.Flow, sentinel.ErrCorrupt)
		}
		if err := c.conflict(r); err != nil {
			return err
		}
		c.flows[r.Flow] = r
		c.next = max(c.next, r.Number+1)
		return nil
	})
}

// Who is an identity without the size that ends it ("/BYTES"): a device that was enlarged is still the same one. Sizes are checked
// apart.
func Who(identity string) string {
	i := strings.LastIndexByte(identity, '/')
	if i <= 0 || i == len(identity)-1 || strings.Trim(identity[i+1:], "0123456789") != "" {
		return identity
	}
	return identity[:i]
}

// conflict finds another flow with the same claim. mu is held, or nobody else knows c.
func (c *Catalog) conflict(r Record) error {
	if r.Target.Identity == "" || !r.Finished.IsZero() {
		return nil
	}
	for _, o := range c.flows {
		if o.Flow != r.Flow && o.Finished.IsZero() && Who(o.Target.Identity) == Who(r.Target.Identity) {
			return fmt.Errorf("target %s (%s) is claimed by flow %s at %s; drop that claim first: %w",
				r.Target.Path, r.Target.Identity, o.Flow, o.Target.Path, sentinel.ErrRefused)
		}
	}
	return nil
}

// Get returns a copy of a flow's record.
func (c *Catalog) Get(flow string) (Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.flows[flow]
	return r.Clone(), ok
}

// ByNumber finds the flow that a number of the dedup index stands for.
func (c *Catalog) ByNumber(n uint32) (flow string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.flows {
		if r.Number == n {
			return r.Flow, true
		}
	}
	return "", false
}

// Put replaces a flow's record durably, giving it a number when it has none. Another flow with the same claim: ErrRefused, and
// nothing has changed; the same holds after any other error (C6, C12).
func (c *Catalog) Put(r Record) (Record, error) {
	r = r.Clone()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := CheckName(r.Tenant, r.Host, r.Name); err != nil {
		return r, err
	}
	r.Version, r.Flow, r.Updated = RecordVersion, r.Tenant+"/"+r.Host+"/"+r.Name, time.Now().UTC()
	if err := c.conflict(r); err != nil {
		return r, err
	}
	if r.Number == 0 {
		r.Number = c.next
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return r, err
	}
	if err := c.makeDir(r.Flow); err != nil {
		return r, fmt.Errorf("make the directory of flow %s: %w", r.Flow, err)
	}
	if err := writeFile(filepath.Join(c.FlowDir(r.Flow), recordFile), append(b, '\n')); err != nil {
		return r, fmt.Errorf("write the record of flow %s: %w", r.Flow, err)
	}
	c.flows[r.Flow] = r
	c.next = max(c.next, r.Number+1)
	return r.Clone(), nil
}

// Drop forgets a flow with its claim, table and log.
func (c *Catalog) Drop(flow string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.flows[flow]; !ok {
		return fmt.Errorf("flow %s has no record: %w", flow, sentinel.ErrNotFound)
	}
	dir := c.FlowDir(flow)
	// The record goes first: without it the rest means nothing.
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	delete(c.flows, flow)
	return os.RemoveAll(dir)
}

// makeDir makes the flow's directory and makes its entries durable.
func (c *Catalog) makeDir(flow string) error {
	dir := c.FlowDir(flow)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for d := filepath.Dir(dir); len(d) >= len(c.dir); d = filepath.Dir(d) {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// CheckName refuses names that are not plain path elements: letters, digits, dot, dash and underscore, not beginning with a dot.
func CheckName(parts ...string) error {
	for _, p := range parts {
		bad := p == "" || len(p) > 128 || p[0] == '.' || strings.ContainsFunc(p, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
		})
		if bad {
			return fmt.Errorf("name %q: use letters, digits, '.', '-' and '_', not beginning with '.': %w", p, sentinel.ErrUsage)
		}
	}
	return nil
}

// writeFile replaces path durably: temp, fsync, rename, fsync of the directory.
func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
