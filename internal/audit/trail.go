package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// MinKeep is the shortest time that records are kept.
const MinKeep = 180 * 24 * time.Hour

// pendingLimit bounds the records in memory during a freeze or while the disk is full: at most 64 KiB each, mostly 300 bytes.
const pendingLimit = 4096

// Config of a trail.
type Config struct {
	Dir   string           // made when missing, mode 0700
	Keep  time.Duration    // at least MinKeep; 0: MinKeep
	Spill string           // file on a tmpfs for what is on hold, so that a kill does not lose it; may be empty
	Now   func() time.Time // nil: time.Now
}

// Trail appends records. It touches its folder at the first record that is not on hold, and not before.
type Trail struct {
	cfg Config

	mu      sync.Mutex // guards all below; held while writing
	ready   bool
	file    *os.File
	name    string // of file
	size    int64
	head    *os.File
	seq     uint64  // of the last record
	last    string  // its digest
	found   *Record // the last one that an earlier process wrote; nil: not looked yet, or none
	held    int
	pending []Record
	lost    int  // records that did not fit into pending
	spilt   bool // Config.Spill holds records
	closed  bool
}

// New makes a trail.
func New(cfg Config) (*Trail, error) {
	if cfg.Keep == 0 {
		cfg.Keep = MinKeep
	}
	if cfg.Keep < MinKeep {
		return nil, fmt.Errorf("audit: keep %v is less than 180 days (4320h): %w", cfg.Keep, sentinel.ErrUsage)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &Trail{cfg: cfg, last: none}
	t.unspill()
	return t, nil
}

// Hold keeps records in memory until Release; holds nest. It returns when nothing is being written any more.
func (t *Trail) Hold() {
	t.mu.Lock()
	t.held++
	t.mu.Unlock()
}

// Release undoes one Hold. After the last one, what was held is written in its order; an error leaves it in memory for the next record.
func (t *Trail) Release() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held == 0 {
		return nil
	}
	t.held--
	return t.flush()
}

// Append writes r and what was not written before it. An error (a full disk) keeps r in memory for a later try.
func (t *Trail) Append(r Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.push(r)
	return t.flush()
}

// Require writes r or refuses: what must not be done without a record is not begun. While on hold r is taken into memory if there is room.
func (t *Trail) Require(r Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pending) >= pendingLimit {
		return fmt.Errorf("the audit trail has no room for a record of %s: %w", r.Event, sentinel.ErrRefused)
	}
	t.push(r)
	if err := t.flush(); err != nil {
		if n := len(t.pending); n > 0 {
			t.pending = t.pending[:n-1] // r itself: it was the last
		}
		return fmt.Errorf("%s is not begun, for the audit trail cannot be written: %w; make room below %s: %w", r.Event, err, t.cfg.Dir, sentinel.ErrRefused)
	}
	return nil
}

func (t *Trail) push(r Record) {
	if r.Time.IsZero() {
		r.Time = t.cfg.Now()
	}
	r.Time = r.Time.UTC()
	if r.Actor == "" {
		r.Actor = Daemon
	}
	if len(t.pending) >= pendingLimit || t.closed {
		t.lost++
		return
	}
	t.pending = append(t.pending, r)
	if t.held > 0 {
		t.spill(r)
	}
}

// flush writes all that is pending, in order. mu is held.
func (t *Trail) flush() error {
	if t.held > 0 || t.closed {
		return nil
	}
	if !t.ready {
		if err := t.open(); err != nil {
			return err
		}
	}
	for len(t.pending) > 0 {
		if err := t.write(t.pending[0]); err != nil {
			return err
		}
		t.pending = t.pending[1:]
	}
	if n := t.lost; n > 0 {
		if err := t.write(Record{Time: t.cfg.Now().UTC(), Actor: Daemon, Event: Dropped, Details: map[string]any{"records": n}}); err != nil {
			return err
		}
		t.lost = 0
	}
	if t.spilt {
		os.Remove(t.cfg.Spill)
		t.spilt = false
	}
	return nil
}

// write goes on to the file of r's month first where a new one began.
func (t *Trail) write(r Record) error {
	month := r.Time.Format("2006-01") + suffix
	if t.file == nil || month > t.name { // a clock that went back goes on in the newer file
		if err := t.next(month, r.Time); err != nil {
			return err
		}
	}
	return t.line(r)
}

// next begins a file, and drops what is too old.
func (t *Trail) next(name string, now time.Time) error {
	f, err := os.OpenFile(filepath.Join(t.cfg.Dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(t.cfg.Dir); err != nil {
		return errors.Join(err, f.Close())
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	old := t.name
	if t.file != nil {
		t.file.Close() // every record of it is synced
	}
	t.file, t.name, t.size = f, name, st.Size()
	if t.size == 0 {
		err := t.line(Record{Time: now, Actor: Daemon, Event: Continued, Details: map[string]any{"file_before": old, "seq_before": t.seq}})
		if err != nil {
			// Without its first record the file is not begun.
			t.file.Close()
			t.file, t.name = nil, old
			return err
		}
	}
	return t.prune()
}

// line is one write and one sync, then the head's.
func (t *Trail) line(r Record) error {
	r.Seq, r.Before = t.seq+1, t.last
	b, err := encode(&r)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(t.head.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the audit trail: %w", err)
	}
	defer unix.Flock(int(t.head.Fd()), unix.LOCK_UN)
	if _, err = t.file.Write(b); err == nil {
		err = unix.Fdatasync(int(t.file.Fd()))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", t.file.Name(), err), t.file.Truncate(t.size))
	}
	t.size += int64(len(b))
	t.seq, t.last = r.Seq, r.Digest
	if _, err := t.head.WriteAt(headOf(t.seq, t.last), 0); err != nil {
		return fmt.Errorf("write %s: %w", t.head.Name(), err)
	}
	return unix.Fdatasync(int(t.head.Fd()))
}

// Head is the last record's number and digest; zero before the first.
func (t *Trail) Head() (uint64, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seq, t.last
}

// Waiting is how many records the disk has not taken yet, though nothing holds them; they wait in memory.
func (t *Trail) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held > 0 {
		return 0
	}
	return len(t.pending) + t.lost
}

// Found is the last record that an earlier process wrote, as soon as the folder was looked at; told once.
func (t *Trail) Found() (Record, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.found == nil {
		return Record{}, false
	}
	r := *t.found
	t.found = nil
	return r, true
}

// Close writes what is left. What is still on hold stays in Config.Spill and comes into the trail at the next start.
func (t *Trail) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	err := t.flush()
	t.closed = true
	if n := len(t.pending); n > 0 && !t.spilt {
		err = errors.Join(err, fmt.Errorf("audit: %d records are lost: the filesystem below %s is frozen or full", n, t.cfg.Dir))
	}
	if t.file != nil {
		err = errors.Join(err, t.file.Close())
	}
	if t.head != nil {
		err = errors.Join(err, t.head.Close())
	}
	return err
}
