package dir

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

// lookup opens the file of an object.
func (s *Store) lookup(key string) (*os.File, objstore.Object, error) {
	if Key(key) != nil {
		return nil, objstore.Object{}, errNone // it cannot have been stored
	}
	first, second := places(key)
	f, o, err := s.openFile(first.path(), key)
	if nobody(err) && first != second {
		f, o, err = s.openFile(second.path(), key)
	}
	if nobody(err) {
		err = errNone
	}
	return f, o, err
}

// openFile opens a file as an object.
func (s *Store) openFile(path, key string) (*os.File, objstore.Object, error) {
	for {
		f, err := s.open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not hold us up
		if err != nil {
			return nil, objstore.Object{}, err
		}
		o, again, err := s.describe(f, key)
		if err == nil && !again {
			return f, o, nil
		}
		f.Close()
		if err != nil {
			return nil, objstore.Object{}, err
		}
	}
}

// describe tells of an open file; again: another has its name by now, and its side file is gone.
func (s *Store) describe(f *os.File, key string) (o objstore.Object, again bool, err error) {
	st, err := statOf(f)
	if err != nil {
		return o, false, err
	}
	if !regular(st) {
		return o, false, errNone
	}
	r, err := s.recordOf(f, st)
	if err != nil {
		return o, false, err
	}
	if r == nil {
		now, err := statOf(f)
		if err != nil || now.Nlink == 0 {
			return o, now.Nlink == 0, err
		}
	}
	return entryOf(key, st, r), false, nil
}

// statObject is lookup without the file.
func (s *Store) statObject(key string) (objstore.Object, error) {
	f, o, err := s.lookup(key)
	if err == nil {
		f.Close()
	}
	return o, err
}

// Head gives an object without its bytes.
func (s *Store) Head(ctx context.Context, key string) (objstore.Object, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Object{}, s.fail("head", key, err)
	}
	defer s.leave()
	o, err := s.statObject(key)
	return o, s.fail("head", key, err)
}

// Get opens the bytes of an object. One that is read whole is compared with its MD5.
func (s *Store) Get(ctx context.Context, key string, g objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Object{}, nil, s.fail("get", key, err)
	}
	defer s.leave()
	f, o, err := s.lookup(key)
	if err != nil {
		return objstore.Object{}, nil, s.fail("get", key, err)
	}
	r, err := s.reader(ctx, f, o, g)
	if err != nil {
		f.Close()
		return objstore.Object{}, nil, s.fail("get", key, err)
	}
	return o, r, nil
}

func (s *Store) reader(ctx context.Context, f *os.File, o objstore.Object, g objstore.GetOptions) (*reader, error) {
	switch {
	case g.IfTag != "" && g.IfTag != o.ETag:
		return nil, &objstore.Error{Op: "get", Store: s.name, Key: o.Key, Kind: objstore.ErrChanged, Err: fmt.Errorf("its ETag is %s", o.ETag)}
	case g.Off < 0 || g.Len < 0 || g.Off > 0 && g.Off >= o.Size:
		return nil, fmt.Errorf("%d bytes from %d on are not in an object of %d", g.Len, g.Off, o.Size)
	}
	st, err := statOf(f)
	if err != nil {
		return nil, err
	}
	r := &reader{s: s, ctx: ctx, f: f, o: o, ino: st, at: g.Off, end: o.Size}
	if g.Len > 0 && g.Len < o.Size-g.Off {
		r.end = g.Off + g.Len
	}
	if r.at == 0 && r.end == o.Size && len(o.ETag) == 2*md5.Size && !strings.Contains(o.ETag, "-") {
		r.digest = md5.New()
	}
	return r, nil
}

type reader struct {
	s       *Store
	ctx     context.Context
	f       *os.File
	o       objstore.Object
	ino     unix.Stat_t // when it was opened
	at, end int64
	digest  hash.Hash // nil: nothing to compare with
	err     error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	if err := r.s.alive(r.ctx); err != nil {
		r.err = r.s.fail("get", r.o.Key, err)
		return 0, r.err
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.end-r.at)], r.at)
	if r.at += int64(n); r.digest != nil {
		r.digest.Write(p[:n])
	}
	switch {
	case r.at == r.end:
		if r.err = r.over(); r.err == nil {
			r.err = io.EOF
		} else {
			return n, r.err // not a byte more than needed comes before the caller knows
		}
	case err == io.EOF:
		if r.err = r.over(); r.err == nil {
			r.err = fmt.Errorf("%d of %d bytes are missing: %w", r.end-r.at, r.o.Size, io.ErrUnexpectedEOF)
		}
		return n, r.err
	case err != nil && !errors.Is(err, fs.ErrClosed):
		r.err = r.s.fail("get", r.o.Key, err)
	case err != nil:
		r.err = err
	}
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// over looks whether what was read is one state: others may have written to the file meanwhile.
func (r *reader) over() error {
	st, err := statOf(r.f)
	switch {
	case err != nil:
		return r.s.fail("get", r.o.Key, err)
	case st.Size != r.ino.Size || st.Mtim != r.ino.Mtim:
		return &objstore.Error{Op: "get", Store: r.s.name, Key: r.o.Key, Kind: objstore.ErrChanged, Err: errors.New("the file was written to while it was read")}
	case r.digest != nil && hex.EncodeToString(r.digest.Sum(nil)) != r.o.ETag:
		return &objstore.Error{Op: "get", Store: r.s.name, Key: r.o.Key, Kind: objstore.ErrCorrupt, Err: errors.New("the bytes on the disk are not those that were stored")}
	}
	return nil
}

func (r *reader) Close() error {
	if err := r.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// Tags gives the tags of an object.
func (s *Store) Tags(ctx context.Context, key string) (map[string]string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, s.fail("tags", key, err)
	}
	defer s.leave()
	_, r, err := s.recordFor(key)
	if err != nil {
		return nil, s.fail("tags", key, err)
	}
	out := map[string]string{}
	if r != nil && r.Tags != nil {
		out = r.Tags
	}
	return out, nil
}

// recordFor reads the record of an object, which is nil for one that others put there.
func (s *Store) recordFor(key string) (st unix.Stat_t, r *record, err error) {
	f, _, err := s.lookup(key)
	if err != nil {
		return st, nil, err
	}
	defer f.Close()
	if st, err = statOf(f); err != nil {
		return st, nil, err
	}
	r, err = s.recordOf(f, st)
	return st, r, err
}

// SetTags replaces the tags of an object.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	if err := s.enter(ctx); err != nil {
		return s.fail("set tags", key, err)
	}
	defer s.leave()
	return s.fail("set tags", key, s.setTags(key, tags))
}

func (s *Store) setTags(key string, tags map[string]string) error {
	if err := errors.Join(s.writable(), allowedPairs("tags", tags)); err != nil {
		return err
	}
	if err := s.lock(); err != nil { // no other object takes its place meanwhile
		return err
	}
	defer s.unlock()
	f, _, err := s.lookup(key)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := statOf(f)
	if err != nil {
		return err
	}
	r, err := s.recordOf(f, st)
	if err != nil {
		return err
	}
	if r == nil {
		r = &record{V: version, Size: st.Size, Mtime: st.Mtim.Nano()}
	}
	if r.Tags = tags; len(tags) == 0 {
		r.Tags = nil
	}
	if err := s.keep(f, r); err != nil {
		return err
	}
	return f.Sync()
}
