package dir

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/objstore"
)

// A listing walks the folders in the order of keys. It holds the names of one folder for each level that it is in, and remembers where it was: the caller that
// asks for what comes behind a page goes on there, and no folder is read again for each page.
//
// What changes meanwhile is not missed. Each change through this Store is noted before it is made, and a walk looks up the keys of all notes that lie ahead of it.
// A folder that others have changed is read again, when that takes less than a tenth of the time since it was read last.

// List gives a page.
func (s *Store) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Page{}, s.fail("list", "", err)
	}
	defer s.leave()
	p, err := s.list(ctx, q)
	return p, s.fail("list", "", err)
}

func (s *Store) list(ctx context.Context, q objstore.Query) (p objstore.Page, err error) {
	most := s.c.Page
	if q.Max > 0 {
		most = min(most, q.Max)
	}
	p.Now = time.Now().UTC() // before any file is looked at
	w := s.walks.take(q)
	if w == nil {
		if w, err = s.newWalk(q.Prefix, q.After); err != nil {
			return p, err
		}
	} else if err := s.refresh(w); err != nil {
		return p, err
	}
	for len(p.Entries) < most {
		if err := s.alive(ctx); err != nil {
			return objstore.Page{}, err
		}
		o, ok, err := s.step(w)
		if err != nil {
			return objstore.Page{}, err
		}
		if !ok {
			return p, nil
		}
		p.Entries = append(p.Entries, o.Entry)
	}
	if p.More = !w.done(); p.More {
		s.walks.put(w)
	}
	return p, nil
}

// walk is a place in a listing.
type walk struct {
	prefix, after string
	folders       []*names
	ahead         []string // keys that were changed, ascending: to be looked up
	seen          uint64   // changes that are in ahead, or were before the walk
	used          time.Time
}

// names is a folder of a walk, with what of it lies ahead.
type names struct {
	path  string // of the folder
	key   string // what its keys begin with
	all   []name // ascending
	next  string // the key of the first of all
	read  time.Time
	cost  time.Duration
	mtime int64
}

// name is a file, or a folder, whose keys all begin with it.
type name struct {
	adds string // to the key
	name string
	dir  bool
}

func (s *Store) newWalk(prefix, after string) (*walk, error) {
	w := &walk{prefix: prefix, after: after, seen: s.log.now()}
	path, key := "", ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		key = prefix[:i+1]
		path = folder(strings.Split(prefix[:i], "/"))
		if len(path) > deepest {
			return w, nil
		}
	}
	return w, s.enterFolder(w, path, key)
}

func (w *walk) done() bool { return len(w.folders) == 0 && len(w.ahead) == 0 }

// enterFolder reads the names of a folder that lie ahead.
func (s *Store) enterFolder(w *walk, path, key string) error {
	n, err := s.read(w, path, key)
	if err != nil || n == nil {
		return err
	}
	w.folders = append(w.folders, n)
	return nil
}

// read reads the names of a folder that lie ahead of a walk; nil: there are none.
func (s *Store) read(w *walk, path, key string) (*names, error) {
	n := &names{path: path, key: key, read: time.Now()}
	d, err := s.openDir(path)
	if nobody(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	st, err := statOf(d)
	if err != nil {
		return nil, err
	}
	n.mtime = st.Mtim.Nano()
	edge := w.after >= key || !strings.HasPrefix(key, w.prefix) // not all of it is asked for
	for {
		all, err := d.ReadDir(4096)
		for _, e := range all {
			if !e.IsDir() && !e.Type().IsRegular() || path == "" && e.Name() == own {
				continue
			}
			adds, ok := meaning(e.Name(), e.IsDir())
			if !ok || edge && !w.wants(key+adds, e.IsDir()) {
				continue
			}
			n.all = append(n.all, name{adds, e.Name(), e.IsDir()})
		}
		if err == io.EOF {
			break
		}
		if nobody(err) { // removed meanwhile: it was empty
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(n.all, func(a, b name) int { return strings.Compare(a.adds, b.adds) })
	n.cost = time.Since(n.read)
	return n.ahead(), nil
}

// ahead sets next; nil: nothing is.
func (n *names) ahead() *names {
	if len(n.all) == 0 {
		return nil
	}
	n.next = n.key + n.all[0].adds
	return n
}

// wants tells whether a key, or one that begins with it, is asked for and lies ahead.
func (w *walk) wants(key string, begins bool) bool {
	if !begins {
		return key > w.after && strings.HasPrefix(key, w.prefix)
	}
	return (key > w.after || strings.HasPrefix(w.after, key)) && (strings.HasPrefix(key, w.prefix) || strings.HasPrefix(w.prefix, key))
}

// step gives the next object.
func (s *Store) step(w *walk) (o objstore.Object, ok bool, err error) {
	for {
		if err := s.catchUp(w); err != nil {
			return o, false, err
		}
		at := w.least()
		if len(w.ahead) > 0 && (at < 0 || w.ahead[0] < w.folders[at].next) {
			key := w.ahead[0]
			if w.ahead = w.ahead[1:]; key <= w.after { // its folder had it too
				continue
			}
			if o, err = s.statObject(key); err == nil {
				w.after = key
				return o, true, nil
			} else if !nobody(err) {
				return o, false, err
			}
			continue
		}
		if at < 0 {
			return o, false, nil
		}
		n, key := w.folders[at], w.folders[at].next
		first := n.all[0]
		if n.all = n.all[1:]; n.ahead() == nil {
			w.folders = slices.Delete(w.folders, at, at+1)
		}
		switch {
		case first.dir:
			err = s.enterFolder(w, join(n.path, first.name), key)
			if err != nil {
				return o, false, err
			}
			continue
		case key <= w.after: // its second place
			continue
		}
		if o, err = s.entry(key, join(n.path, first.name)); err == nil {
			w.after = key
			return o, true, nil
		} else if !nobody(err) {
			return o, false, err
		}
	}
}

// least is the folder whose next key is the least; of a file and a folder with the same key, the folder.
func (w *walk) least() int {
	at := -1
	for i, n := range w.folders {
		if at < 0 || n.next < w.folders[at].next || n.next == w.folders[at].next && n.all[0].dir {
			at = i
		}
	}
	return at
}

// entry looks at a file that a folder has.
func (s *Store) entry(key, path string) (objstore.Object, error) {
	if strings.Contains(path, own) { // perhaps not where its key is looked for
		if check(key) != nil || !proper(key, path) {
			return objstore.Object{}, errNone
		}
		return s.statObject(key)
	}
	f, o, err := s.openFile(path, key)
	if err == nil {
		f.Close()
	}
	if nobody(err) || len(key) > 1024 { // moved to its second place, or gone; or no key at all
		return s.statObject(key)
	}
	return o, err
}

// catchUp puts the keys of changes that lie ahead into ahead.
func (s *Store) catchUp(w *walk) error {
	keys, now, lost := s.log.since(w.seen)
	w.seen = now
	if lost || len(w.ahead) > 4*len(s.log.keys) {
		n, err := s.newWalk(w.prefix, w.after)
		if err == nil {
			*w = *n
		}
		return err
	}
	for _, key := range keys {
		if !w.wants(key, false) {
			continue
		}
		if i, there := slices.BinarySearch(w.ahead, key); !there {
			w.ahead = slices.Insert(w.ahead, i, key)
		}
	}
	return nil
}

// refresh reads folders again that were changed since.
func (s *Store) refresh(w *walk) error {
	now := time.Now()
	for i := 0; i < len(w.folders); i++ {
		n := w.folders[i]
		if now.Sub(n.read) < 10*n.cost {
			continue
		}
		st, err := s.stat(n.path)
		if err == nil && st.Mtim.Nano() == n.mtime && n.read.UnixNano()-n.mtime > int64(50*time.Millisecond) { // clocks of files are coarse
			continue
		}
		if err != nil && !nobody(err) {
			return err
		}
		again, err := s.read(w, n.path, n.key)
		if err != nil {
			return err
		}
		if again == nil {
			w.folders = slices.Delete(w.folders, i, i+1)
			i--
			continue
		}
		// A folder that the walk is in already must not be walked again: what lies behind it is behind w.after too, and what lies ahead of it is in its own names.
		again.all = slices.DeleteFunc(again.all, func(a name) bool { return a.dir && w.inside(n.key+a.adds, i) })
		if w.folders[i] = again.ahead(); w.folders[i] == nil {
			w.folders = slices.Delete(w.folders, i, i+1)
			i--
		}
	}
	return nil
}

// inside tells whether a folder of the walk is that with the keys of key.
func (w *walk) inside(key string, but int) bool {
	for i, n := range w.folders {
		if i != but && n.key == key {
			return true
		}
	}
	return false
}

// changes are the latest keys that were changed, in a ring.
type changes struct {
	mu   sync.Mutex
	keys [4096]string
	n    atomic.Uint64 // all of them
}

// add notes a change that is about to be made.
func (c *changes) add(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.n.Load()
	c.keys[n%uint64(len(c.keys))] = key
	c.n.Store(n + 1)
}

func (c *changes) now() uint64 { return c.n.Load() }

// since gives the keys that were changed after the first seen; lost: some of them are not known any more.
func (c *changes) since(seen uint64) (keys []string, now uint64, lost bool) {
	if c.n.Load() == seen {
		return nil, seen, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now = c.n.Load()
	if now-seen > uint64(len(c.keys)) {
		return nil, now, true
	}
	for ; seen < now; seen++ {
		keys = append(keys, c.keys[seen%uint64(len(c.keys))])
	}
	return keys, now, false
}

// walks are those of the last pages, by the query that goes on with them.
type walks struct {
	mu  sync.Mutex
	all map[objstore.Query]*walk
}

const (
	walksMost = 64
	walkLasts = time.Minute
)

func (k *walks) take(q objstore.Query) *walk {
	k.mu.Lock()
	defer k.mu.Unlock()
	q.Max = 0
	w := k.all[q]
	delete(k.all, q)
	return w
}

// put keeps a walk, and lets old ones go.
func (k *walks) put(w *walk) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all == nil {
		k.all = map[objstore.Query]*walk{}
	}
	w.used = time.Now()
	var oldest *walk
	for q, o := range k.all {
		if w.used.Sub(o.used) > walkLasts {
			delete(k.all, q)
		} else if oldest == nil || o.used.Before(oldest.used) {
			oldest = o
		}
	}
	if len(k.all) >= walksMost {
		delete(k.all, oldest.query())
	}
	k.all[w.query()] = w
}

func (w *walk) query() objstore.Query { return objstore.Query{Prefix: w.prefix, After: w.after} }

func (k *walks) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all = nil
}
