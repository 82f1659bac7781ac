// Package dir keeps a bucket in a folder: each object is a file that has the name of its key, as people would put it there. docs/objects.md has the format.
//
// Put returns when the bytes are on the disk: they were counted and their MD5 was taken as they were handed to the kernel, the file has that size, and fsync of
// the file and of the folder have succeeded. They are not read back: what a disk bends later is found when an object is read whole, as its MD5 is compared then
// (not that of an object of parts, which has none). A file appears under its name by a rename when all of this is done, so that neither a reader nor a crash
// ever finds half of it.
//
// Nothing is ever followed out of the folder: symbolic links in it are no objects, and a key whose way leads over one is refused.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

// Config of a bucket.
type Config struct {
	Path     string      // of a folder that exists
	ReadOnly bool        // nothing is written, not even what the driver keeps beside the objects
	FileMode fs.FileMode // of new files; 0: 0600
	DirMode  fs.FileMode // of new folders; 0: 0700
	Page     int         // keys of a page; 0: 1000
	// SideFiles keeps attributes in files of their own, as on a filesystem without extended attributes.
	SideFiles bool
}

// Validate names what is wrong.
func (c Config) Validate() error {
	switch {
	case c.Path == "":
		return errors.New("path: which folder?")
	case c.FileMode&^0o777 != 0 || c.FileMode != 0 && c.FileMode&0o600 != 0o600:
		return fmt.Errorf("file-mode: %v: the owner has to read and write", c.FileMode)
	case c.DirMode&^0o777 != 0 || c.DirMode != 0 && c.DirMode&0o700 != 0o700:
		return fmt.Errorf("dir-mode: %v: the owner has to read, write and enter", c.DirMode)
	case c.Page < 0:
		return fmt.Errorf("page: %d", c.Page)
	}
	return nil
}

// Store is a bucket in a folder.
type Store struct {
	c    Config
	name string
	root *os.File
	tmp  *os.File // the folder of this Store's temporary files; nil: read-only
	tmps string   // its path
	side bool     // attributes are in side files
	next atomic.Uint64

	life context.Context // ends with Close
	end  context.CancelFunc
	refs atomic.Int64 // Close, and calls under way: the last one closes the files

	mu    sync.Mutex // taken by lock, while names change
	own   *os.File   // the driver's own folder, whose lock keeps other processes from changing names meanwhile; nil: read-only
	log   changes    // has its own lock, taken inside mu
	walks walks
	share int // names of a folder from which on walks share its listing
}

// Open opens the bucket, and removes what a Store that was killed has left of its temporary files. ErrNotFound: there is no such folder.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.FileMode == 0 {
		c.FileMode = 0o600
	}
	if c.DirMode == 0 {
		c.DirMode = 0o700
	}
	if c.Page == 0 {
		c.Page = 1000
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, err
	}
	s := &Store{c: c, name: "dir://" + path, side: c.SideFiles, share: many}
	s.life, s.end = context.WithCancel(context.Background())
	s.refs.Store(1)
	if s.root, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, s.fail("open", "", err)
	}
	if !c.ReadOnly {
		err = s.prepare()
	} else if _, err2 := s.stat(own + "/attrs"); err2 == nil {
		s.side = true
	}
	if err != nil {
		s.end()
		s.root.Close()
		return nil, s.fail("open", "", err)
	}
	return s, nil
}

// String is "dir:///path".
func (s *Store) String() string { return s.name }

// Format prints String for every verb.
func (s *Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// Limits: a key has up to 1,024 bytes, whatever they are; the filesystem limits the rest.
func (s *Store) Limits() objstore.Limits {
	return objstore.Limits{Parts: 10_000, List: s.c.Page, Batch: 1000, Meta: 64 << 10, Header: goodPair, Pair: goodPair, Key: Key, Rule: "dir"}
}

// Close ends every call.
func (s *Store) Close() error {
	if s.life.Err() == nil {
		s.mu.Lock() // two at once count as one
		first := s.life.Err() == nil
		s.end()
		s.mu.Unlock()
		if first {
			s.leave()
		}
	}
	return nil
}

var errClosed = fmt.Errorf("the store is closed: %w", fs.ErrClosed)

// alive tells why a call cannot go on.
func (s *Store) alive(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.life.Err() != nil {
		return errClosed
	}
	return nil
}

// enter begins a call, which leave ends.
func (s *Store) enter(ctx context.Context) error {
	for {
		n := s.refs.Load()
		if n == 0 {
			return errClosed
		}
		if s.refs.CompareAndSwap(n, n+1) {
			break
		}
	}
	if err := s.alive(ctx); err != nil {
		s.leave()
		return err
	}
	return nil
}

func (s *Store) leave() {
	if s.refs.Add(-1) > 0 {
		return
	}
	s.walks.drop()
	if s.tmp != nil {
		s.unlink(s.tmps, true) // if it is not empty, the next one sweeps it
		s.tmp.Close()
		s.own.Close()
	}
	s.root.Close()
}

// lock keeps all others, other processes too, from changing names: where an object belongs depends on what is there.
func (s *Store) lock() error {
	s.mu.Lock()
	for {
		switch err := unix.Flock(int(s.own.Fd()), unix.LOCK_EX); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			s.mu.Unlock()
			return wrap("lock", own, err)
		}
	}
}

func (s *Store) unlock() {
	unix.Flock(int(s.own.Fd()), unix.LOCK_UN)
	s.mu.Unlock()
}

// writable tells why nothing can be written.
func (s *Store) writable() error {
	if s.tmp == nil {
		return fmt.Errorf("opened for reading only: %w", objstore.ErrDenied)
	}
	return nil
}

// fail makes the error of a call.
func (s *Store) fail(op, key string, err error) error {
	if err == nil {
		return nil
	}
	var done *objstore.Error
	if errors.As(err, &done) && done.Store == s.name && done.Op == op {
		return err
	}
	e := &objstore.Error{Op: op, Store: s.name, Key: key, Err: err}
	var no unix.Errno
	var body *bodyError
	switch {
	case errors.As(err, &body): // of whatever kind it is elsewhere, it is none of this store
	case errors.Is(err, errThere):
		e.Kind, e.Err = objstore.ErrExists, nil
	case !errors.As(err, &no):
		for _, kind := range []error{objstore.ErrNotFound, objstore.ErrNotSupported, objstore.ErrDenied, objstore.ErrCorrupt} {
			if errors.Is(err, kind) {
				e.Kind = kind
				break
			}
		}
	case no == unix.ENOENT || no == unix.ENOTDIR:
		e.Kind = objstore.ErrNotFound
	case no == unix.EACCES || no == unix.EPERM || no == unix.EROFS:
		e.Kind = objstore.ErrDenied
	case no == unix.EMFILE || no == unix.ENFILE:
		e.Kind = objstore.ErrTransient // others give theirs back
	case no == unix.EFBIG || no == unix.ENAMETOOLONG || no == unix.EILSEQ:
		e.Kind = objstore.ErrNotSupported
	case no == unix.ENOSPC || no == unix.EDQUOT:
		e.Err = fmt.Errorf("no space left for %s: free some or take another disk: %w", strings.TrimPrefix(s.name, "dir://"), err)
	}
	return e
}

// bodyError is an error of a body, not of the folder.
type bodyError struct{ err error }

func (b *bodyError) Error() string { return "the body: " + b.err.Error() }
func (b *bodyError) Unwrap() error { return b.err }

var (
	errThere = errors.New("an object is there")
	errNone  = fmt.Errorf("no such object: %w", unix.ENOENT)
)
