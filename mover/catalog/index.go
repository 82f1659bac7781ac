package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/digest"
)

// Place is where a leaf with a given digest was seen: a hint, to be read back and digested before use.
type Place struct {
	Flow uint32 // Record.Number; 0: nothing was found
	Leaf int64
}

// Index maps the content of leaves to places, apart for each tenant. It is never synced: what it says is checked before use, so
// losing entries costs only wire bytes. Safe for concurrent use.
type Index struct {
	db  *pebble.DB
	dir string
	bad atomic.Bool // damage was met: nothing is looked up or added any more

	mu      sync.Mutex // guards all below
	checked time.Time  // when free space was last looked at
	paused  bool       // the state disk is nearly full
}

const (
	keyDigest = 16 // bytes of a digest in a key: enough for a hint
	// indexRoom is the free bytes of the state disk below which nothing is added: the library ends the process when it meets a full disk.
	indexRoom = 128 << 20
	badMark   = "unreadable" // a file that asks the next start to rebuild
)

// DefaultIndexMemory is the budget of an index in bytes.
const DefaultIndexMemory = 64 << 20

// OpenIndex opens the index in dir within memory bytes (0: DefaultIndexMemory). An index that cannot be read is thrown away.
func OpenIndex(dir string, memory int64, log *slog.Logger) (*Index, error) {
	if memory <= 0 {
		memory = DefaultIndexMemory
	}
	x := &Index{dir: dir}
	_, err := os.Stat(filepath.Join(dir, badMark))
	if err == nil {
		err = errors.New("damage was met while it was in use")
	} else if err = x.open(memory, log); err == nil {
		return x, nil
	}
	log.Warn("dedup index cannot be read and is rebuilt empty", "dir", dir, "error", err)
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove the unreadable dedup index: %w", err)
	}
	if err := x.open(memory, log); err != nil {
		return nil, fmt.Errorf("make the dedup index in %s: %w", dir, err)
	}
	return x, nil
}

func (x *Index) open(memory int64, log *slog.Logger) (err error) {
	// A damaged file may make the library panic; the answer is the same as to an error.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open: %v", p)
		}
	}()
	cache := pebble.NewCache(memory / 2)
	defer cache.Unref()
	o := &pebble.Options{
		Cache: cache,
		// Two memtables may live at once, one being flushed.
		MemTableSize:                uint64(memory / 4),
		MemTableStopWritesThreshold: 2,
		MaxOpenFiles:                200,
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      pebbleLog{log},
		FS:                          vfs.Default, // without the watch for slow disks, whose goroutine would outlive a failed open
		// Entries in memory are lost by a crash. They are hints; a log of them would cost as much as they are worth.
		DisableWAL: true,
		EventListener: &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
			log.Warn("dedup index is damaged and unused until the next start", "error", i.String())
			x.giveUp()
		}},
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	x.db, err = pebble.Open(x.dir, o)
	return err
}

// giveUp stops using the index and has the next start rebuild it.
func (x *Index) giveUp() {
	if !x.bad.Swap(true) {
		_ = os.WriteFile(filepath.Join(x.dir, badMark), nil, 0o600)
	}
}

// room tells whether the state disk can take more of the index; looked at once a second.
func (x *Index) room() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now := time.Now(); now.Sub(x.checked) > time.Second {
		x.checked = now
		free, _, err := DiskFree(x.dir)
		x.paused = err != nil || free < indexRoom
	}
	return !x.paused
}

// DiskFree is the bytes that are free and in all on the filesystem of path.
func DiskFree(path string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for free space at %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// pebbleLog keeps the library's chatter at debug level.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(f string, a ...any) {
	l.log.Debug(strings.TrimSpace(fmt.Sprintf(f, a...)), "from", "index")
}
func (l pebbleLog) Errorf(f string, a ...any) {
	l.log.Warn(strings.TrimSpace(fmt.Sprintf(f, a...)), "from", "index")
}
func (l pebbleLog) Fatalf(f string, a ...any) {
	panic(fmt.Sprintf("dedup index: "+f, a...))
}

func appendKey(b []byte, tenant string, d digest.Digest) []byte {
	b = append(b, tenant...)
	b = append(b, 0) // names hold no zero byte, so no tenant's keys are another's (C12)
	return append(b, d[:keyDigest]...)
}

// Lookup fills out[i] with the place of ds[i], or the zero Place. Damage means "not found".
func (x *Index) Lookup(tenant string, ds []digest.Digest, out []Place) {
	clear(out)
	if x.bad.Load() {
		return
	}
	key := make([]byte, 0, 160)
	for i, d := range ds {
		key = appendKey(key[:0], tenant, d)
		v, closer, err := x.db.Get(key)
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			x.giveUp()
			return
		}
		if len(v) == 12 {
			out[i] = Place{binary.BigEndian.Uint32(v), int64(binary.BigEndian.Uint64(v[4:]))}
		}
		_ = closer.Close()
	}
}

// Add tells that the flow's leaves from first hold ds. Unknown, Free and skip (the leaf of zeros) are left out.
func (x *Index) Add(tenant string, flow uint32, first int64, ds []digest.Digest, skip digest.Digest) {
	if x.bad.Load() || !x.room() {
		return
	}
	b := x.db.NewBatch()
	defer b.Close()
	key := make([]byte, 0, 160)
	var v [12]byte
	binary.BigEndian.PutUint32(v[:], flow)
	for i, d := range ds {
		if d == digest.Unknown || d == digest.Free || d == skip {
			continue
		}
		binary.BigEndian.PutUint64(v[4:], uint64(first)+uint64(i))
		key = appendKey(key[:0], tenant, d)
		if err := b.Set(key, v[:], nil); err != nil {
			x.giveUp()
			return
		}
	}
	if b.Empty() {
		return
	}
	if err := x.db.Apply(b, pebble.NoSync); err != nil {
		x.giveUp()
	}
}

// Close writes out what is in memory, room permitting, and closes the index.
func (x *Index) Close() error {
	if !x.bad.Load() && x.room() {
		if err := x.db.Flush(); err != nil {
			x.giveUp()
		}
	}
	return x.db.Close()
}
