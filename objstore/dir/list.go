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
	path string // of the folder
	key  string // what its keys begin with
	l    *listing
	all  []name // ascending, of l or made of it
	next string // the key of the first of all
}

// listing is what a folder had when it was read. It is never changed: walks share it.
type listing struct {
	all   []name // ascending
	seen  uint64 // changes that were noted before
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

// enterFolder puts what lies ahead of a folder into a walk.
func (s *Store) enterFolder(w *walk, path, key string) error {
	l, err := s.listing(path)
	if err == nil && l != nil {
		w.seen = min(w.seen, l.seen)
		w.folders = append(w.folders, w.pick(l, path, key)...)
	}
	return err
}

// listing reads the names of a folder, or takes what was read not long ago, if that is much; nil: there is no such folder.
func (s *Store) listing(path string) (*listing, error) {
	if l := s.walks.shared(path); l != nil && s.log.now()-l.seen < uint64(len(s.log.keys)) {
		if ok, err := s.fresh(path, l); err != nil || ok {
			return l, err
		}
	}
	l := &listing{seen: s.log.now(), read: time.Now()}
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
	l.mtime = st.Mtim.Nano()
	for {
		all, err := d.ReadDir(4096)
		for _, e := range all {
			if !e.IsDir() && !e.Type().IsRegular() || path == "" && e.Name() == own {
				continue
			}
			if adds, ok := meaning(e.Name(), e.IsDir()); ok {
				l.all = append(l.all, name{adds, e.Name(), e.IsDir()})
			}
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
	slices.SortFunc(l.all, func(a, b name) int { return strings.Compare(a.adds, b.adds) })
	if l.cost = time.Since(l.read); len(l.all) >= s.share {
		s.walks.keep(path, l)
	}
	return l, nil
}

// fresh tells whether a folder need not be read again.
func (s *Store) fresh(path string, l *listing) (bool, error) {
	if time.Since(l.read) < 10*l.cost {
		return true, nil
	}
	st, err := s.stat(path)
	if nobody(err) {
		return false, nil
	}
	return err == nil && st.Mtim.Nano() == l.mtime && l.read.UnixNano()-l.mtime > int64(50*time.Millisecond), err // clocks of files are coarse
}

// pick gives what of a listing lies ahead: a run of it, and folders before that which the place of the walk, or its prefix, is in.
func (w *walk) pick(l *listing, path, key string) (out []*names) {
	first := func(ok func(adds string) bool) int {
		i, _ := slices.BinarySearchFunc(l.all, true, func(n name, _ bool) int {
			if ok(n.adds) {
				return 1
			}
			return -1
		})
		return i
	}
	from, to := 0, len(l.all)
	var edges []name
	edge := func(rest string) {
		for n := 1; n <= len(rest); n++ {
			if rest[n-1] != '/' && n < piece/3 { // of names that go on inside, at least so much stands in one piece
				continue
			}
			for i := first(func(adds string) bool { return adds >= rest[:n] }); i < len(l.all) && l.all[i].adds == rest[:n]; i++ {
				if a := l.all[i]; a.dir && (i < from || i >= to) && w.wants(key+a.adds, true) && !slices.Contains(edges, a) {
					edges = append(edges, a)
				}
			}
		}
	}
	rest, within := strings.CutPrefix(w.prefix, key)
	if within {
		from = first(func(adds string) bool { return adds >= rest })
		to = first(func(adds string) bool { return adds > rest && !strings.HasPrefix(adds, rest) })
	}
	if w.after >= key {
		from = max(from, first(func(adds string) bool { return key+adds > w.after }))
	}
	if within {
		edge(rest)
	}
	if after, ok := strings.CutPrefix(w.after, key); ok {
		edge(after)
	}
	slices.SortFunc(edges, func(a, b name) int { return strings.Compare(a.adds, b.adds) })
	for _, all := range [][]name{edges, l.all[from:max(from, to)]} {
		if n := (&names{path: path, key: key, l: l, all: all}).ahead(); n != nil {
			out = append(out, n)
		}
	}
	return out
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
		if Key(key) != nil || !proper(key, path) {
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
	var paths []*names
	for _, n := range w.folders {
		if !slices.ContainsFunc(paths, func(o *names) bool { return o.path == n.path }) {
			paths = append(paths, n)
		}
	}
	for _, old := range paths {
		if ok, err := s.fresh(old.path, old.l); err != nil {
			return err
		} else if ok {
			continue
		}
		w.folders = slices.DeleteFunc(w.folders, func(n *names) bool { return n.path == old.path })
		at := len(w.folders)
		if err := s.enterFolder(w, old.path, old.key); err != nil {
			return err
		}
		// A folder that the walk is in already is not entered again.
		for i := at; i < len(w.folders); i++ {
			n := w.folders[i]
			for len(n.all) > 0 && n.all[0].dir && w.inside(n.next, old.path) {
				n.all = n.all[1:]
				n.ahead()
			}
		}
		w.folders = slices.DeleteFunc(w.folders, func(n *names) bool { return len(n.all) == 0 })
	}
	return nil
}

// inside tells whether the walk is in the folder with the keys of key, but that at a path.
func (w *walk) inside(key, but string) bool {
	return slices.ContainsFunc(w.folders, func(n *names) bool { return n.key == key && n.path != but })
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

// walks are those of the last pages, by the query that goes on with them, and the listings of folders with many names.
type walks struct {
	mu   sync.Mutex
	all  map[objstore.Query]*walk
	many map[string]*listing
}

// shared gives the listing of a folder, if it is kept.
func (k *walks) shared(path string) *listing {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.many[path]
}

// keep keeps the listing of a folder for other walks, for as long as walks are kept.
func (k *walks) keep(path string, l *listing) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.many == nil {
		k.many = map[string]*listing{}
	}
	for p := range k.many {
		if len(k.many) < manyMost {
			break
		}
		delete(k.many, p)
	}
	k.many[path] = l
}

const (
	walksMost = 64
	manyMost  = 4
	many      = 4096 // names from which on walks share a listing
	walkLasts = time.Minute
)

func (k *walks) take(q objstore.Query) *walk {
	k.mu.Lock()
	defer k.mu.Unlock()
	for path, l := range k.many {
		if time.Since(l.read) > walkLasts {
			delete(k.many, path)
		}
	}
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
	k.all, k.many = nil, nil
}
