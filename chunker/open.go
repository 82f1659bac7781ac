package chunker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	defaultCache = 16 << 20
	leastCache   = 1 << 20
)

// OpenTable opens the table at path for a volume of size bytes, or creates it with every leaf unknown.
func OpenTable(path string, size int64) (*Table, error) {
	return OpenTableWith(path, size, TableConfig{})
}

// OpenTableWith is OpenTable with a config. A file that is not a table, damaged, or cut short is ErrCorrupt; one for a volume of
// another size, or in use by another process, ErrRefused; of another version, ErrNotSupported.
func OpenTableWith(path string, size int64, cfg TableConfig) (*Table, error) {
	if size <= 0 {
		return nil, fmt.Errorf("digest table for a volume of %d bytes: %w", size, sentinel.ErrRefused)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = createTable(path, size)
	}
	if err != nil {
		return nil, fmt.Errorf("open digest table: %w", err)
	}
	t, err := lockTable(f, path, size, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("digest table %s: %w", path, err), f.Close())
	}
	return t, nil
}

func lockTable(f *os.File, path string, size int64, cfg TableConfig) (*Table, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("in use by another process (%w): %w", err, sentinel.ErrRefused)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return loadTable(diskStore{f}, fi.Size(), path, size, cfg)
}

// createTable makes an empty table that appears under its name only when it is whole.
func createTable(path string, size int64) (*os.File, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return nil, err
	}
	err = func() error {
		if err := f.Truncate(newLayout(size).end); err != nil {
			return fmt.Errorf("%d bytes, sparse: %w", newLayout(size).end, err)
		}
		if _, err := f.WriteAt(header{}.encode(size), 0); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
		return dir.Sync()
	}()
	if err != nil {
		_ = os.Remove(f.Name())
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// loadTable reads what a table for a volume of size bytes keeps in memory; length is that of the file.
func loadTable(file store, length int64, path string, size int64, cfg TableConfig) (*Table, error) {
	t := &Table{layout: newLayout(size), file: file, path: path, powerCut: cfg.PowerCut}
	b := make([]byte, headerSize)
	if _, err := t.file.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("shorter than its header; remove it to start anew: %w", sentinel.ErrCorrupt)
	} else if err != nil {
		return nil, err
	}
	h, err := decodeHeader(b, t.size)
	if err != nil {
		return nil, err
	}
	if length != t.end {
		return nil, fmt.Errorf("%d bytes long, should be %d; remove it to start anew: %w", length, t.end, sentinel.ErrCorrupt)
	}
	t.owner = h.owner
	t.prepareSums()
	if cfg.Cache == 0 {
		cfg.Cache = defaultCache
	}
	for i := range t.parts {
		t.parts[i].t, t.parts[i].sums, t.parts[i].grown = t, map[int64]digest.Digest{}, map[int64]leafBits{}
		t.parts[i].cache = cache{file: t.file, most: int(max(cfg.Cache, leastCache) / shards / pageSize), pages: map[int64]*page{}}
	}
	if err := t.loadRows(); err != nil {
		return nil, err
	}
	if h.held { // the process ended while changes were only in memory
		if err := t.SetOwner([32]byte{}); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *Table) loadRows() error {
	t.nodes = make([]node, t.nodeCount)
	buf := make([]byte, 1<<20)
	for no := int64(0); no < t.nodeCount; {
		b := buf[:min(int64(len(buf)), (t.nodeCount-no)*rowSize)]
		if _, err := t.file.ReadAt(b, t.rows+no*rowSize); err != nil {
			return fmt.Errorf("read states: %w", err)
		}
		for ; len(b) > 0; b = b[rowSize:] {
			if err := t.loadRow(no, b[:rowSize]); err != nil {
				return err
			}
			no++
		}
	}
	return nil
}

func (t *Table) loadRow(no int64, b []byte) error {
	n, count := &t.nodes[no], t.groupsOf(no)
	n.stale = true
	n.all = state(b[0])
	for i, v := range b[:count] {
		if state(v) >= states {
			return fmt.Errorf("group %d has state %d; remove it to start anew: %w", no*fanOut+int64(i), v, sentinel.ErrCorrupt)
		}
		if state(v) != n.all {
			e := n.own()
			e.state[i], e.file[i] = state(v), state(v)
		}
	}
	return nil
}

// Owner is the tag that SetOwner stored last; zero for a new table, and for one whose process ended while it was held.
func (t *Table) Owner() [32]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.owner
}

// SetOwner makes every leaf unknown, durably, and then stores the tag, durably.
func (t *Table) SetOwner(tag [32]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		return ErrHeld
	}
	if err := t.Reset(); err != nil {
		return err
	}
	if err := t.sync(); err != nil {
		return err
	}
	if err := t.writeHeader(header{owner: tag}); err != nil {
		return err
	}
	if err := t.datasync(); err != nil {
		return err
	}
	t.owner, t.marked = tag, false
	return nil
}

func (t *Table) writeHeader(h header) error {
	if _, err := t.file.WriteAt(h.encode(t.size), 0); err != nil {
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}

// Hold flushes and then stops all writing to the file, so that the filesystem below may be frozen; changes stay in memory until
// Release, beyond the cache's bound if need be. The file says that it is held: if the process ends before Release has
// succeeded, the next OpenTable starts with every leaf unknown and no owner. So a kill costs a reading, never truth.
func (t *Table) Hold() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		return nil
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := t.writeHeader(header{held: true, owner: t.owner}); err != nil {
		return err
	}
	t.held, t.marked = true, true
	t.setHeld(true)
	return nil
}

func (t *Table) setHeld(held bool) {
	for i := range t.parts {
		s := &t.parts[i]
		s.mu.Lock()
		s.held = held
		s.mu.Unlock()
	}
}

// Release ends Hold and writes what has changed. After an error the table is not held, and Flush tries again.
func (t *Table) Release() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.held {
		return nil
	}
	t.held = false
	t.setHeld(false)
	return t.flush()
}

// Flush hands all changes to the kernel: they survive a kill of this process, not a power cut. While held it does nothing,
// as a kill then voids the table anyway.
func (t *Table) Flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flush()
}

func (t *Table) flush() error {
	if err := t.bad(); err != nil || t.held {
		return err
	}
	if t.closed {
		return fs.ErrClosed
	}
	if err := t.flushParts(); err != nil {
		return err
	}
	if t.marked {
		if err := t.writeHeader(header{owner: t.owner}); err != nil {
			return err
		}
		t.marked = false
	}
	return nil
}

// flushParts flushes all shards together, so that they share the barrier.
func (t *Table) flushParts() error {
	for i := range t.parts {
		s := &t.parts[i]
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	barrier := false
	for i := range t.parts {
		born, err := t.parts[i].writePages()
		if err != nil {
			return err
		}
		barrier = barrier || born
	}
	if barrier {
		if err := t.datasync(); err != nil {
			return err
		}
	}
	for i := range t.parts {
		if err := t.parts[i].writeRows(); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes all changes durable. After an error of the disk the table can't be used any more: the kernel may have dropped what
// it could not write.
func (t *Table) Sync() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		return ErrHeld
	}
	return t.sync()
}

func (t *Table) sync() error {
	if err := t.flush(); err != nil {
		return err
	}
	return t.datasync()
}

func (t *Table) datasync() error {
	if err := t.file.datasync(); err != nil {
		err = fmt.Errorf("sync digest table %s: %w", t.path, err)
		t.failed.CompareAndSwap(nil, &err)
		return err
	}
	return nil
}

// Close flushes, unless held, and closes. It is idempotent.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	err := t.flush()
	t.closed = true
	gone := fmt.Errorf("digest table %s: %w", t.path, fs.ErrClosed)
	t.failed.CompareAndSwap(nil, &gone)
	return errors.Join(err, t.file.Close())
}
