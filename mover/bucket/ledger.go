package bucket

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/room"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/objstore"
)

// Ledger is the truth about a bucket flow, on disk: what became of each object, how far the listing is, which units are under way, which uploads have begun. What a
// method has returned from is durable. Safe for concurrent use.
//
// Keys of the store below, by their first byte:
//
//	i                        identity of the flow, gob
//	s                        State, gob
//	o key                    Record
//	w walk u64               span that is left to be listed: after, to
//	u unit u64               Unit, gob
//	m key                    upload in parts that has begun: Progress without parts, gob
//	p len(key) u16 key no u32  part of it: Done, gob
//
// Numbers are big-endian.
type Ledger struct {
	db    *pebble.DB
	dir   string
	least int64 // bytes that have to be free on its disk; ledgerRoom

	mu     sync.Mutex // orders changes of state with the records that they count
	state  State
	looked time.Time // for free space
}

// State is where a flow stands. Counts are of the pass, and exact: an item counts in the same write that records it.
type State struct {
	Pass     uint64 // 0: none has begun
	Listing  bool   // walks are left
	Final    bool   // the writers stand still
	Refusals bool   // what was refused is tried again
	LastUnit uint64
	Units    int64 // under way

	Listed, ListedBytes   int64 // at the source
	Left                  int64 // that filters leave out
	Same, SameBytes       int64 // not changed since the pass before
	Planned, PlannedBytes int64 // to be copied
	Copied, CopiedBytes   int64
	Sent                  int64 // bytes that went for it
	Refused, Failed       int64
	Changed               int64 // gone or changed again when it was to be copied: the next pass looks
	Vanished, Deleted     int64 // gone at the source; of those, deleted at the target
	Objects, Bytes        int64 // at the target, of all passes
	Again                 int64 // items done a second time
	Ever                  int64 // copied, in all passes

	NowRefused, NowFailed, NowPartly int64 // records of all passes that say so; partly: copied, without something

	Versions Versions
}

// stands counts n records like r.
func (s *State) stands(r Record, n int64) {
	switch {
	case r.Outcome == Refused:
		s.NowRefused += n
	case r.Outcome == Failed:
		s.NowFailed += n
	case r.Outcome == Copied && len(r.Lost) > 0:
		s.NowPartly += n
	}
}

// ledgerMemory is the bytes of memory that the store below takes: cache and memtables.
const ledgerMemory = 48 << 20

// ledgerRoom is the bytes of its disk below which the ledger takes nothing any more: the store below ends the program when it finds the disk full.
const ledgerRoom = 128 << 20

// OpenLedger opens or makes the ledger in dir. identity says what is moved where: another one than before is ErrRefused.
func OpenLedger(dir, identity string, log *slog.Logger) (*Ledger, error) {
	cache := pebble.NewCache(ledgerMemory / 3)
	defer cache.Unref()
	o := &pebble.Options{Cache: cache, MemTableSize: ledgerMemory / 3, MemTableStopWritesThreshold: 2, MaxOpenFiles: 200, FormatMajorVersion: pebble.FormatNewest,
		Logger: ledgerLog{log}, CompactionConcurrencyRange: func() (int, int) { return 1, 2 }}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open the ledger in %s: %w", dir, err)
	}
	l := &Ledger{db: db, dir: dir, least: ledgerRoom}
	if err := l.load(identity); err != nil {
		return nil, errors.Join(fmt.Errorf("open the ledger in %s: %w", dir, err), db.Close())
	}
	return l, nil
}

// ReadLedger opens the ledger in dir to be read, and writes nothing there. It keeps nobody from opening it meanwhile; then reading fails. ErrRefused: it is of another
// flow, or a daemon has it open.
func ReadLedger(dir, identity string, log *slog.Logger) (*Ledger, error) {
	if err := free(filepath.Join(dir, "LOCK")); err != nil {
		return nil, fmt.Errorf("the ledger in %s: %w", dir, err)
	}
	db, err := pebble.Open(dir, &pebble.Options{FS: unlocked{vfs.Default}, ReadOnly: true, MaxOpenFiles: 200, Logger: ledgerLog{log}})
	if err != nil {
		return nil, fmt.Errorf("open the ledger in %s: %w", dir, err)
	}
	l := &Ledger{db: db, dir: dir}
	var was string
	if _, err = l.get([]byte("i"), &was); err == nil {
		err = sameFlow(was, identity)
	}
	if err == nil {
		_, err = l.get([]byte("s"), &l.state)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the ledger in %s: %w", dir, err), db.Close())
	}
	return l, nil
}

// unlocked is files that are only read: taking the lock would write to its file, and keep a daemon that starts from its ledger.
type unlocked struct{ vfs.FS }

func (unlocked) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// free tells whether another process has locked a file.
func free(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return err
	}
	if l.Type != unix.F_UNLCK {
		return fmt.Errorf("process %d has it open, which can be asked: %w", l.Pid, sentinel.ErrRefused)
	}
	return nil
}

func sameFlow(was, identity string) error {
	if was != identity {
		return fmt.Errorf("it belongs to another flow: it is of %s, not of %s: %w", was, identity, sentinel.ErrRefused)
	}
	return nil
}

type ledgerLog struct{ *slog.Logger }

func (l ledgerLog) Infof(format string, args ...any)  { l.Debug(fmt.Sprintf(format, args...)) }
func (l ledgerLog) Errorf(format string, args ...any) { l.Error(fmt.Sprintf(format, args...)) }
func (l ledgerLog) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (l *Ledger) load(identity string) error {
	var was string
	switch found, err := l.get([]byte("i"), &was); {
	case err != nil:
		return err
	case !found:
		b, err := pack(identity)
		if err == nil {
			err = l.db.Set([]byte("i"), b, pebble.Sync)
		}
		if err != nil {
			return err
		}
	default:
		if err := sameFlow(was, identity); err != nil {
			return err
		}
	}
	_, err := l.get([]byte("s"), &l.state)
	return err
}

// get reads a value that pack has made.
func (l *Ledger) get(key []byte, v any) (bool, error) {
	b, done, err := l.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer done.Close()
	if err := unpack(b, v); err != nil {
		return false, fmt.Errorf("read %q: %v: %w", key, err, sentinel.ErrCorrupt)
	}
	return true, nil
}

// Close closes the store.
func (l *Ledger) Close() error { return l.db.Close() }

// State tells where the flow stands.
func (l *Ledger) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// change is one write: all of it or nothing.
type change struct {
	*pebble.Batch
	*State
}

// update makes a change, and returns when it is durable. f may read the ledger as it is.
func (l *Ledger) update(f func(c change) error) error {
	b := l.db.NewBatch()
	defer b.Close()
	l.mu.Lock()
	state := l.state
	err := l.room()
	if err == nil {
		err = f(change{b, &state})
	}
	if err == nil {
		var text []byte
		if text, err = pack(&state); err == nil {
			err = errors.Join(b.Set([]byte("s"), text, nil), l.db.Apply(b, pebble.NoSync))
		}
	}
	if err == nil {
		l.state = state
	}
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return l.db.LogData(nil, pebble.Sync) // what was written before is durable with it; several wait for one sync
}

// room refuses when the disk is nearly full; looked at once a second. mu is held.
func (l *Ledger) room() error {
	if now := time.Now(); now.Sub(l.looked) > time.Second {
		free, _, err := room.Of(l.dir)
		if err != nil {
			return err
		}
		if free < l.least {
			return fmt.Errorf("%s are free on the disk of %s, at least %s are needed: make room there; nothing is lost, and what was done goes on from here: %w", units.Size(free), l.dir,
				units.Size(l.least), sentinel.ErrRefused)
		}
		l.looked = now
	}
	return nil
}

func objectKey(key string) []byte { return append([]byte{'o'}, key...) }

func numbered(kind byte, n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{kind}, n) }

func partKey(key string, no int) []byte {
	b := binary.BigEndian.AppendUint16([]byte{'p'}, uint16(len(key)))
	return binary.BigEndian.AppendUint32(append(b, key...), uint32(no))
}

// record reads an object's record.
func (l *Ledger) record(key string) (r Record, found bool, err error) {
	b, done, err := l.db.Get(objectKey(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return r, false, nil
	} else if err != nil {
		return r, false, err
	}
	defer done.Close()
	r, err = decodeRecord(b)
	return r, err == nil, err
}

// scan calls f with what lies within s, ascending by key.
func (l *Ledger) scan(s span, f func(key string, r Record) error) error {
	upper := []byte{'o' + 1}
	if s.to != "" {
		upper = append(objectKey(s.to), 0)
	}
	lower := objectKey(s.after)
	if s.after != "" {
		lower = append(lower, 0)
	}
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var r Record
		if r, err = decodeRecord(it.Value()); err == nil {
			err = f(string(it.Key()[1:]), r)
		} else {
			err = fmt.Errorf("record of %q: %w", it.Key()[1:], err)
		}
	}
	return errors.Join(err, it.Close())
}

// each calls f with the keys and values that begin with prefix.
func (l *Ledger) each(prefix []byte, f func(key, value []byte) error) error {
	upper := bytes.Clone(prefix)
	for i := len(upper) - 1; i >= 0; i-- {
		if upper[i]++; upper[i] != 0 {
			upper = upper[:i+1]
			break
		}
	}
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: upper})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		err = f(it.Key(), it.Value())
	}
	return errors.Join(err, it.Close())
}

// walkAt notes that a walk is listed up to a key. Where it ends is as it was.
func (l *Ledger) walkAt(c change, walk uint64, upto string) error {
	var w walkRecord
	if _, err := l.get(numbered('w', walk), &w); err != nil {
		return err
	}
	w.After = upto
	return c.set(numbered('w', walk), w)
}

// walkRecord is a span that is left to be listed.
type walkRecord struct {
	After, To string
}

func (c change) set(key []byte, v any) error {
	b, err := pack(v)
	if err != nil {
		return err
	}
	return c.Set(key, b, nil)
}

// cut notes that the walk left ends where right begins.
func (l *Ledger) cut(left, right uint64, s span) error {
	return l.update(func(c change) error {
		var w walkRecord
		if _, err := l.get(numbered('w', left), &w); err != nil {
			return err
		}
		w.To = s.after
		return errors.Join(c.set(numbered('w', left), w), c.set(numbered('w', right), walkRecord{s.after, s.to}))
	})
}

// walks gives what is left to be listed.
func (l *Ledger) walks() (out []*walk, err error) {
	err = l.each([]byte{'w'}, func(key, value []byte) error {
		var w walkRecord
		if err := unpack(value, &w); err != nil || len(key) != 9 {
			return fmt.Errorf("walk %x: %v: %w", key, err, sentinel.ErrCorrupt)
		}
		out = append(out, &walk{id: binary.BigEndian.Uint64(key[1:]), span: span{w.After, w.To}})
		return nil
	})
	return out, err
}

// unitsAfter gives at most n units with an id above after.
func (l *Ledger) unitsAfter(after uint64, n int) (out []Unit, err error) {
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: numbered('u', after+1), UpperBound: []byte{'u' + 1}})
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok && len(out) < n; ok = it.Next() {
		var u Unit
		if err := unpack(it.Value(), &u); err != nil {
			return nil, errors.Join(fmt.Errorf("unit %x: %v: %w", it.Key(), err, sentinel.ErrCorrupt), it.Close())
		}
		out = append(out, u)
	}
	return out, it.Close()
}

// results records what became of items, and counts it, in one write (C17).
func (l *Ledger) results(items []ItemResult, again int64) error {
	if len(items) == 0 && again == 0 {
		return nil
	}
	return l.update(func(c change) error {
		c.Again += again
		for _, it := range items {
			if err := l.outcome(c, it); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Ledger) outcome(c change, it ItemResult) error {
	was, found, err := l.record(it.Key)
	if err != nil {
		return err
	}
	c.Sent += it.Sent
	there := found && was.Target != ""
	r := it.Record
	if r.Outcome == Copied && r.Digest == digest.Unknown {
		if r.Digest, err = l.digestOfParts(it.Key, r.Size); errors.Is(err, sentinel.ErrCorrupt) {
			r.Outcome, r.Why = Failed, err.Error() // it is there, but nobody knows that it is right
		} else if err != nil {
			return err
		}
	}
	c.stands(was, -1)
	switch {
	case it.Delete:
		if c.Deleted++; there {
			c.Objects, c.Bytes = c.Objects-1, c.Bytes-was.Size
		}
		return c.Delete(objectKey(it.Key), nil)
	case r.Outcome == Gone:
		c.Changed++ // a copy that nobody has told of may be at the target: what is recorded is deleted, where deletes are followed
		if err := l.forget(c, it.Key); err != nil {
			return err
		}
	case r.Outcome == Copied:
		if !there {
			c.Objects, was.Size = c.Objects+1, 0
		}
		c.Ever++
		c.Copied, c.CopiedBytes, c.Bytes = c.Copied+1, c.CopiedBytes+r.Size, c.Bytes+r.Size-was.Size
		if err := l.forget(c, it.Key); err != nil {
			return err
		}
	case r.Outcome == Refused:
		c.Refused++
	default:
		c.Failed++
	}
	if r.Outcome != Copied && there { // the target has an older state of it
		r.Target, r.Digest, r.Size = was.Target, was.Digest, was.Size
	}
	c.stands(r, 1)
	return c.Set(objectKey(it.Key), r.append(nil), nil)
}

// uploadRecord is an upload that has begun.
type uploadRecord struct {
	ID, ETag string
	Size     int64
	Attrs    uint64
}

func uploadKey(key string) []byte { return append([]byte{'m'}, key...) }

// part records that an upload has begun, or that a part of it is done.
func (l *Ledger) part(p PartResult) error {
	return l.update(func(c change) error {
		if p.Part.No == 0 {
			return errors.Join(l.forget(c, p.Key), c.set(uploadKey(p.Key), uploadRecord{p.Upload, p.ETag, p.Size, p.Attrs}))
		}
		var u uploadRecord
		found, err := l.get(uploadKey(p.Key), &u)
		if err != nil || !found || u.ID != p.Upload { // another one has begun since
			return err
		}
		return c.set(partKey(p.Key, p.Part.No), p.Part)
	})
}

// forget drops what is known of an upload. Most objects had none.
func (l *Ledger) forget(c change, key string) error {
	var u uploadRecord
	if found, err := l.get(uploadKey(key), &u); err != nil || !found {
		return err
	}
	return errors.Join(c.Delete(uploadKey(key), nil), c.DeleteRange(partKey(key, 0), partKey(key, maxPart), nil))
}

const maxPart = 1<<32 - 1

// progress gives the upload of an object that has begun, without digests; nil: none has.
func (l *Ledger) progress(key string) (*Progress, error) {
	var u uploadRecord
	if found, err := l.get(uploadKey(key), &u); err != nil || !found {
		return nil, err
	}
	p := &Progress{ID: u.ID, ETag: u.ETag, Size: u.Size, Attrs: u.Attrs}
	err := l.parts(key, func(d Done) {
		d.Blocks = nil
		p.Parts = append(p.Parts, d)
	})
	return p, err
}

// parts calls f with the parts that are done, ascending.
func (l *Ledger) parts(key string, f func(Done)) error {
	prefix := partKey(key, 0)
	return l.each(prefix[:len(prefix)-4], func(_, value []byte) error {
		var d Done
		if err := unpack(value, &d); err != nil {
			return fmt.Errorf("part of %q: %v: %w", key, err, sentinel.ErrCorrupt)
		}
		f(d)
		return nil
	})
}

// digestOfParts is the digest of an object of size bytes by those of its parts. ErrCorrupt: not all of them are known.
func (l *Ledger) digestOfParts(key string, size int64) (digest.Digest, error) {
	var all []digest.Digest
	no, whole := 0, true
	err := l.parts(key, func(d Done) {
		no++
		whole = whole && d.No == no
		all = append(all, d.Blocks...)
	})
	if err == nil && (!whole || int64(len(all)) != (size+objstore.BlockSize-1)/objstore.BlockSize) {
		err = fmt.Errorf("of %q %d parts with %d blocks are recorded, which are not all of %d bytes; it is copied again: %w", key, no, len(all), size, sentinel.ErrCorrupt)
	}
	return objstore.ObjectDigest(all), err
}
