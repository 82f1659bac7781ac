package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/room"
	"github.com/moverd/mover/internal/sentinel"
)

// The redo log of a flow: one file, a header and records, as in docs/formats.md. Each record's checksum includes its predecessor's, so
// that nothing left over from an earlier use of the file, or from behind a torn record, can be taken for a record.

const (
	logHeader  = 4096 // bytes before the first record
	recHeader  = 32
	maxMeta    = 1 << 20
	maxPayload = 16 << 20
	// logReserve is kept allocated behind the end for commit and switch records, so that a full disk cannot keep a pass from ending.
	logReserve = 64 << 10
	// logKeep is the bytes of file that stay for the next pass: writing over them needs no new blocks, which makes fdatasync cheap.
	logKeep = 128 << 20
	// stepStaged and stepDirect are allocated at a time.
	stepStaged = 32 << 20
	stepDirect = 1 << 20
	recMagic   = 0x4d76_5263
)

// RecKind is the kind of a record.
type RecKind uint8

// Kinds of records.
const (
	RecBatch  RecKind = 1 // a part of a staged batch; meta Batch, with payload
	RecDone   RecKind = 2 // a batch that is durable on the target; meta Batch without payload
	RecIntent RecKind = 3 // stretches of the target that are going to be written; meta AppendIntent
	RecAgain  RecKind = 4 // a done batch that is going to be written again
	RecSwitch RecKind = 5 // from here on the pass is direct
	RecCommit RecKind = 6 // the pass is committed; meta Commit
)

// ErrLogFull: the record does not fit within the log's limit or the state disk; nothing was written.
var ErrLogFull = errors.New("redo log is full")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Rec is a record without its payload. A batch may have several parts; the last one is Final. Of several attempts at a
// batch the highest counts (C10).
type Rec struct {
	Kind    RecKind
	Final   bool
	Attempt uint16
	Seq     uint32
	Meta    []byte
}

// Ref says where a record is.
type Ref struct {
	Off           int64
	Meta, Payload uint32
	crc           uint32 // of the payload
}

// LogOptions of a log.
type LogOptions struct {
	Limit int64     // bytes of records of staged batches
	Stats *LogStats // may be shared by many logs; nil: own
}

// LogStats counts fdatasyncs and the nanoseconds that they took.
type LogStats struct{ Syncs, NS atomic.Int64 }

// Log is an open redo log. Safe for concurrent use.
type Log struct {
	Head
	path string
	dir  string
	f    *os.File
	opt  LogOptions

	syncMu  sync.Mutex // held through an fdatasync; taken before mu
	durable int64      // guarded by syncMu: records before this offset are durable

	mu    sync.Mutex // guards all below
	end   int64      // behind the last record
	alloc int64      // size of the file
	crc   uint32     // of the last record's header
	buf   []byte
	err   error // an fdatasync went wrong: what is durable is no longer known
}

func (o LogOptions) withDefaults() LogOptions {
	if o.Stats == nil {
		o.Stats = new(LogStats)
	}
	return o
}

// CreateLog begins a log for a pass, over the file that an earlier pass left, if any.
func CreateLog(path string, h Head, o LogOptions) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the redo log: %w", err)
	}
	h.nonce = rand.Uint64()
	l := &Log{Head: h, path: path, dir: filepath.Dir(path), f: f, opt: o.withDefaults(), end: logHeader}
	head := h.append(nil)
	l.crc = binary.BigEndian.Uint32(head[len(head)-4:])
	st, err := f.Stat()
	isNew := err == nil && st.Size() == 0
	if err == nil {
		l.alloc = st.Size()
		if st.Size() < logHeader {
			l.alloc, err = logHeader, unix.Fallocate(int(f.Fd()), 0, 0, logHeader)
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = nil
			}
		}
	}
	if err == nil {
		_, err = f.WriteAt(append(head, make([]byte, logHeader-len(head))...), 0)
	}
	if err == nil {
		err = l.Sync()
	}
	if err == nil && isNew {
		err = syncDir(l.dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("begin the redo log of pass %v: %w", h.Pass, err)
	}
	return l, nil
}

// Append writes a record behind the last one. It is durable after the next Sync. ErrLogFull comes for RecBatch only when its limit is
// hit, for other kinds only when the state disk is full.
func (l *Log) Append(r Rec, payload ...[]byte) (Ref, error) {
	n, crc := 0, uint32(0)
	for _, p := range payload {
		n += len(p)
		crc = crc32.Update(crc, castagnoli, p)
	}
	if len(r.Meta) > maxMeta || n > maxPayload {
		return Ref{}, fmt.Errorf("redo log: record with %d bytes of meta and %d of payload: %w", len(r.Meta), n, sentinel.ErrProtocol)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return Ref{}, l.err
	}
	size := int64(recHeader + len(r.Meta) + n)
	if err := l.ensure(r.Kind, size); err != nil {
		return Ref{}, err
	}
	ref := Ref{l.end, uint32(len(r.Meta)), uint32(n), crc}
	l.buf = appendRecHeader(l.buf[:0], r, ref, l.crc)
	next := binary.BigEndian.Uint32(l.buf[recHeader-4:])
	l.buf = append(l.buf, r.Meta...)
	at := l.end
	for _, p := range append([][]byte{l.buf}, payload...) {
		if _, err := l.f.WriteAt(p, at); err != nil {
			return Ref{}, l.full(fmt.Errorf("write to the redo log: %w", err))
		}
		at += int64(len(p))
	}
	l.end, l.alloc, l.crc = at, max(l.alloc, at), next
	return ref, nil
}

// full turns the errors of a full disk into ErrLogFull.
func (l *Log) full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: no space on the state disk at %s", ErrLogFull, l.dir)
	}
	return err
}

// ensure allocates room for size bytes. mu is held.
func (l *Log) ensure(k RecKind, size int64) error {
	need := l.end + size
	step := int64(stepDirect)
	floor := int64(0)
	if k == RecBatch {
		if need += logReserve; need > l.opt.Limit {
			return fmt.Errorf("%w: its limit is %d bytes", ErrLogFull, l.opt.Limit)
		}
		step = stepStaged
		if need > l.alloc {
			free, total, err := room.Of(l.dir)
			if err != nil {
				return err
			}
			// Room is left for what else lives on the state disk: tables, records, the index.
			floor = min(256<<20, total/20)
			if free-(need-l.alloc) < floor {
				return fmt.Errorf("%w: %d bytes are free on the state disk at %s", ErrLogFull, free, l.dir)
			}
			step = min(step, max(0, free-floor-(need-l.alloc)))
		}
	}
	if need <= l.alloc {
		return nil
	}
	for _, to := range []int64{need + step, need} {
		err := unix.Fallocate(int(l.f.Fd()), 0, l.alloc, to-l.alloc)
		if err == nil {
			l.alloc = to
			return nil
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // the write allocates
		}
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			return fmt.Errorf("allocate the redo log: %w", err)
		}
	}
	return fmt.Errorf("%w: no space on the state disk at %s", ErrLogFull, l.dir)
}

// Sync makes every record that was appended before the call durable. Concurrent calls share fdatasyncs.
func (l *Log) Sync() error {
	l.mu.Lock()
	want := l.end
	l.mu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.durable >= want {
		return nil
	}
	l.mu.Lock()
	end, err := l.end, l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	began := time.Now()
	err = unix.Fdatasync(int(l.f.Fd()))
	l.opt.Stats.Syncs.Add(1)
	l.opt.Stats.NS.Add(int64(time.Since(began)))
	if err != nil {
		// The kernel may have dropped the pages: a second try could succeed without them.
		l.mu.Lock()
		l.err = fmt.Errorf("make the redo log durable: %w", err)
		err = l.err
		l.mu.Unlock()
		return err
	}
	l.durable = end
	return nil
}

// Read reads a record's meta and payload into buf, which must hold Meta+Payload bytes, and checks the payload.
func (l *Log) Read(ref Ref, buf []byte) (meta, payload []byte, err error) {
	n := int(ref.Meta + ref.Payload)
	if len(buf) < n {
		return nil, nil, fmt.Errorf("redo log: record of %d bytes does not fit a buffer of %d: %w", n, len(buf), sentinel.ErrCorrupt)
	}
	if _, err := l.f.ReadAt(buf[:n], ref.Off+recHeader); err != nil {
		return nil, nil, fmt.Errorf("read the redo log at %d: %w", ref.Off, err)
	}
	meta, payload = buf[:ref.Meta], buf[ref.Meta:n]
	if crc32.Checksum(payload, castagnoli) != ref.crc {
		return nil, nil, fmt.Errorf("redo log: payload of the record at %d has changed: %w", ref.Off, sentinel.ErrCorrupt)
	}
	return meta, payload, nil
}

// Bytes is the size of the records.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end - logHeader
}

// Discard ends the log durably: a later OpenLog finds none. The file stays for the next pass.
func (l *Log) Discard() error {
	defer l.f.Close()
	if _, err := l.f.WriteAt(make([]byte, logHeader), 0); err != nil {
		return fmt.Errorf("discard the redo log: %w", err)
	}
	if l.alloc > logKeep {
		if err := l.f.Truncate(logKeep); err != nil {
			return fmt.Errorf("shorten the redo log: %w", err)
		}
	}
	if err := unix.Fdatasync(int(l.f.Fd())); err != nil {
		return fmt.Errorf("discard the redo log: %w", err)
	}
	return nil
}

// Close closes the file and leaves the log as it is.
func (l *Log) Close() error { return l.f.Close() }

// Rename moves the log over another one durably.
func (l *Log) Rename(path string) error {
	if err := os.Rename(l.path, path); err != nil {
		return err
	}
	l.path = path
	return syncDir(l.dir)
}
