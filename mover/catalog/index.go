package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/room"
)

// Place is where a leaf with a given digest was seen: a hint, to be read back and digested before use.
type Place struct {
	Flow uint32 // Record.Number; 0: nothing was found
	Leaf int64
}

// Index maps the content of leaves, and of some pages, to places, apart for each tenant. It is never synced: what it says is checked before use, so
// losing entries costs only wire bytes. Safe for concurrent use.
type Index struct {
	dir string
	log *slog.Logger
	bad atomic.Bool   // damage or a full disk was met: nothing is looked up or added any more
	end chan struct{} // closed when what was given up is closed and removed

	recalled sync.WaitGroup
	closing  atomic.Bool // whoever recalls has to end

	seen *seen
	near *near

	use sync.RWMutex // held for reading while db is used
	db  *pebble.DB   // nil: given up

	least   int64      // indexRoom
	mu      sync.Mutex // guards all below
	checked time.Time  // when free space was last looked at
	paused  bool       // the state disk is nearly full
}

const (
	keyDigest = 16 // bytes of a digest in a key: enough for a hint
	// indexRoom is the free bytes of the state disk below which nothing is added: the rest is for records and logs.
	indexRoom = 128 << 20
	badMark   = "unreadable" // a file that asks the next start to rebuild
	// endLimit is how long Close waits for an index that was given up.
	endLimit = 2 * time.Second
)

// DefaultIndexMemory is the budget of an index in bytes.
const DefaultIndexMemory = 64 << 20

// OpenIndex opens the index in dir within memory bytes (0: DefaultIndexMemory). An index that cannot be read is thrown away; where the disk is
// full there is none.
func OpenIndex(dir string, memory int64, log *slog.Logger) (*Index, error) {
	if memory <= 0 {
		memory = DefaultIndexMemory
	}
	_, err := os.Stat(filepath.Join(dir, badMark))
	if err == nil {
		err = errors.New("damage was met while it was in use")
	} else {
		x := newIndex(dir, log)
		if err = x.open(memory, log); err == nil {
			x.recall()
			return x, nil
		}
	}
	log.Warn("dedup index cannot be read and is rebuilt empty", "dir", dir, "error", err)
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove the unreadable dedup index: %w", err)
	}
	x := newIndex(dir, log)
	if err = x.open(memory, log); err == nil {
		x.recall()
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		x.giveUp(err)
	}
	if err != nil && !x.bad.Load() {
		return nil, fmt.Errorf("make the dedup index in %s: %w", dir, err)
	}
	return x, nil
}

func newIndex(dir string, log *slog.Logger) *Index {
	return &Index{dir: dir, log: log, end: make(chan struct{}), least: indexRoom}
}

func (x *Index) open(memory int64, log *slog.Logger) (err error) {
	x.seen, x.near = newSeen(memory/4), newNear(memory/16)
	cache := pebble.NewCache(memory/4 - memory/16)
	defer cache.Unref()
	o := &pebble.Options{
		Cache: cache,
		// Two memtables may live at once, one being flushed.
		MemTableSize:                uint64(memory / 4),
		MemTableStopWritesThreshold: 2,
		MaxOpenFiles:                200,
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      pebbleLog{log, x.giveUp},
		FS:                          sinkFS{vfs.Default, x}, // without the watch for slow disks, whose goroutine would outlive a failed open
		// Entries in memory are lost by a crash. They are hints; a log of them would cost as much as they are worth.
		DisableWAL:        true,
		DisableTableStats: true, // nobody asks, and a table that a full disk has cut short must not be looked at
		EventListener: &pebble.EventListener{
			DataCorruption:  func(i pebble.DataCorruptionInfo) { x.giveUp(errors.New(i.String())) },
			BackgroundError: func(err error) { log.Debug("dedup index", "error", err) },
		},
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	x.use.Lock() // who gives up meanwhile closes it afterwards
	defer x.use.Unlock()
	err = errors.New("the library gave up")
	// A damaged file may make the library panic; the answer is the same as to an error.
	if p := apart(func() { x.db, err = pebble.Open(x.dir, o) }); p != nil {
		err = fmt.Errorf("open: %v", p)
	}
	return err
}

// apart runs fn in a goroutine of its own, which a panic, or the library's last word (pebbleLog.Fatalf), ends without harm to the caller.
func apart(fn func()) (panicked any) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { panicked = recover() }()
		fn()
	}()
	<-done
	return panicked
}

// using runs fn with the store, if it is still in use.
func (x *Index) using(fn func(db *pebble.DB) error) {
	if x.bad.Load() {
		return
	}
	x.use.RLock()
	defer x.use.RUnlock()
	if x.db == nil {
		return
	}
	err := errors.New("the library gave up")
	if p := apart(func() { err = fn(x.db) }); p != nil {
		err = fmt.Errorf("%v", p)
	}
	if err != nil {
		x.giveUp(err)
	}
}

// giveUp stops using the index: it is closed and removed, and the next start makes a new one. Nothing else depends on it. Any goroutine of the
// library may call this, with any of its locks held.
func (x *Index) giveUp(why error) {
	if x.bad.Swap(true) {
		return
	}
	x.log.Error("dedup index is given up until the next start: everything is sent, nothing is lost", "dir", x.dir, "error", why)
	_ = os.WriteFile(filepath.Join(x.dir, badMark), nil, 0o600)
	go func() {
		defer close(x.end)
		x.use.Lock()
		defer x.use.Unlock()
		if db := x.db; db != nil {
			x.db = nil
			apart(func() { _ = db.Close() })
			_ = os.RemoveAll(x.dir) // it may be what fills the disk
		}
	}()
}

// room tells whether the state disk can take more of the index; looked at once a second.
func (x *Index) room() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now := time.Now(); now.Sub(x.checked) > time.Second {
		x.checked = now
		free, _, err := room.Of(x.dir)
		x.paused = err != nil || free < x.least
	}
	return !x.paused
}

// pebbleLog keeps the library's chatter at debug level.
type pebbleLog struct {
	log   *slog.Logger
	fatal func(error)
}

func (l pebbleLog) Infof(f string, a ...any) {
	l.log.Debug(strings.TrimSpace(fmt.Sprintf(f, a...)), "from", "index")
}
func (l pebbleLog) Errorf(f string, a ...any) {
	l.log.Warn(strings.TrimSpace(fmt.Sprintf(f, a...)), "from", "index")
}

// Fatalf ends the goroutine that the library cannot go on in, not the process.
func (l pebbleLog) Fatalf(f string, a ...any) {
	l.fatal(fmt.Errorf(f, a...))
	runtime.Goexit()
}

// What a key is about. Names hold neither byte, so no tenant's keys are another's (C12).
const (
	aboutLeaf = 0
	aboutPage = 1
)

func appendKey(b []byte, tenant string, about byte, d digest.Digest) []byte {
	b = append(b, tenant...)
	b = append(b, about)
	return append(b, d[:keyDigest]...)
}

// Lookup fills out[i] with the place of ds[i], or the zero Place. Damage means "not found".
func (x *Index) Lookup(tenant string, ds []digest.Digest, out []Place) {
	x.lookup(tenant, aboutLeaf, ds, out)
}

func (x *Index) lookup(tenant string, about byte, ds []digest.Digest, out []Place) {
	clear(out)
	scope := scopeHash(tenant)
	if !slices.ContainsFunc(ds, func(d digest.Digest) bool { return x.seen.may(scope, d) }) {
		return
	}
	x.using(func(db *pebble.DB) error {
		key := make([]byte, 0, 160)
		for i, d := range ds {
			if !x.seen.may(scope, d) {
				continue
			}
			key = appendKey(key[:0], tenant, about, d)
			v, closer, err := db.Get(key)
			if errors.Is(err, pebble.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if len(v) == 12 {
				out[i] = Place{binary.BigEndian.Uint32(v), int64(binary.BigEndian.Uint64(v[4:]))}
			}
			_ = closer.Close()
		}
		return nil
	})
}

// Add tells that the flow's leaves from first hold ds. Unknown, Free and skip (the leaf of zeros) are left out.
func (x *Index) Add(tenant string, flow uint32, first int64, ds []digest.Digest, skip digest.Digest) {
	x.add(tenant, aboutLeaf, flow, ds, skip, func(i int) int64 { return first + int64(i) })
}

func (x *Index) add(tenant string, about byte, flow uint32, ds []digest.Digest, skip digest.Digest, at func(i int) int64) {
	if x.bad.Load() || !x.room() {
		return
	}
	x.using(func(db *pebble.DB) error {
		b := db.NewBatch()
		defer b.Close()
		key := make([]byte, 0, 160)
		scope := scopeHash(tenant)
		var v [12]byte
		binary.BigEndian.PutUint32(v[:], flow)
		for i, d := range ds {
			if d == digest.Unknown || d == digest.Free || d == skip {
				continue
			}
			binary.BigEndian.PutUint64(v[4:], uint64(at(i)))
			x.seen.add(scope, d[:keyDigest]) // before the store has it, so that nothing in there is denied
			key = appendKey(key[:0], tenant, about, d)
			if err := b.Set(key, v[:], nil); err != nil {
				return err
			}
		}
		if b.Empty() {
			return nil
		}
		return db.Apply(b, pebble.NoSync)
	})
}

// recall adds what earlier runs left in the store to the filter, beside the daemon's start. A store with more than the filter is good for stays without one.
func (x *Index) recall() {
	x.recalled.Add(1)
	go func() {
		defer x.recalled.Done()
		x.using(func(db *pebble.DB) error {
			it, err := db.NewIter(nil)
			if err != nil {
				return err
			}
			defer it.Close()
			for ok := it.First(); ok; ok = it.Next() {
				if x.closing.Load() || x.bad.Load() || x.seen.keys.Load() > x.seen.room {
					return it.Error()
				}
				if k := it.Key(); len(k) > keyDigest {
					tenant := k[:len(k)-keyDigest-1]
					x.seen.add(scopeHash(string(tenant)), k[len(k)-keyDigest:])
				}
			}
			x.seen.whole.Store(it.Error() == nil)
			return it.Error()
		})
	}()
}

// Close writes out what is in memory, room permitting, and closes the index.
func (x *Index) Close() error {
	x.closing.Store(true)
	x.recalled.Wait()
	if !x.bad.Load() && x.room() {
		x.using(func(db *pebble.DB) error { return db.Flush() })
	}
	if x.bad.Load() {
		select {
		case <-x.end:
		case <-time.After(endLimit): // a goroutine of the library keeps what it holds; nobody needs it
		}
		return nil
	}
	x.use.Lock()
	defer x.use.Unlock()
	db := x.db
	if x.db = nil; db == nil {
		return nil
	}
	err := errors.New("dedup index: the library gave up")
	if p := apart(func() { err = db.Close() }); p != nil {
		err = fmt.Errorf("close the dedup index: %v", p)
	}
	return err
}
