package dir

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

func timeOf(st unix.Stat_t) time.Time { return time.Unix(st.Mtim.Sec, st.Mtim.Nsec).UTC() }

// temp is a file without its name yet.
type temp struct {
	s     *Store
	f     *os.File
	name  string
	ino   uint64 // 0: not sealed
	moved bool
}

func (s *Store) temp() (*temp, error) {
	t := &temp{s: s, name: strconv.FormatUint(s.next.Add(1), 36)}
	var err error
	if t.f, err = openAt(s.tmp, t.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, uint32(s.c.FileMode)); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("the folder %s was removed: %v", s.tmps, err) // no object is missing
		}
		return nil, err
	}
	if err := wrap("set the mode of", t.name, unix.Fchmod(int(t.f.Fd()), uint32(s.c.FileMode))); err != nil {
		t.drop()
		return nil, err
	}
	return t, nil
}

// drop closes the file, and removes it if it has got no other name.
func (t *temp) drop() {
	if !t.moved {
		unlinkAt(t.s.tmp, t.name, false)
		if t.ino != 0 && t.s.sided(t.f) {
			t.s.dropSide(t.ino)
		}
	}
	t.f.Close()
}

func (t *temp) moveTo(dir *os.File, name string, fresh bool) error {
	err := renameAt(t.s.tmp, t.name, dir, name, fresh)
	t.moved = err == nil
	return err
}

// reserve has the space of n bytes set aside, so that a full disk is known before they are written.
func (t *temp) reserve(n int64) error {
	if n < 128<<10 {
		return nil
	}
	err := unix.Fallocate(int(t.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return wrap("write", t.name, err)
	}
	return nil // not every filesystem can
}

// buffers are for bodies.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// take writes a body and gives its MD5.
func (t *temp) take(ctx context.Context, b objstore.Body) (sum [md5.Size]byte, err error) {
	if b.Size < 0 {
		return sum, fmt.Errorf("a body of %d bytes: %w", b.Size, objstore.ErrNotSupported)
	}
	if err := t.reserve(b.Size); err != nil {
		return sum, err
	}
	r, err := b.Open()
	if err != nil {
		return sum, &bodyError{err}
	}
	defer r.Close()
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	digest, body := md5.New(), objstore.Exactly(r, b.Size)
	for {
		if err := t.s.alive(ctx); err != nil {
			return sum, err
		}
		n, err := body.Read(*p)
		if n > 0 {
			digest.Write((*p)[:n])
			if _, err := t.f.Write((*p)[:n]); err != nil {
				return sum, err
			}
		}
		if err == io.EOF {
			return [md5.Size]byte(digest.Sum(nil)), nil
		} else if err != nil {
			return sum, &bodyError{err}
		}
	}
}

// seal makes the file durable together with its record; size is that which it has to have.
func (t *temp) seal(r *record, size int64) error {
	st, err := statOf(t.f)
	if err != nil {
		return err
	}
	if st.Size != size {
		return fmt.Errorf("the file has %d bytes, not %d: %w", st.Size, size, objstore.ErrCorrupt)
	}
	r.Size, r.Mtime, t.ino = st.Size, st.Mtim.Nano(), st.Ino
	if err := t.s.keep(t.f, r); err != nil {
		return err
	}
	return t.f.Sync()
}

// Put stores an object.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Written{}, s.fail("put", key, err)
	}
	defer s.leave()
	etag, err := s.put(ctx, key, b, o)
	return objstore.Written{ETag: etag}, s.fail("put", key, err)
}

func (s *Store) put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (string, error) {
	if err := errors.Join(s.writable(), allowed(key, o)); err != nil {
		return "", err
	}
	if o.Absent {
		if _, err := s.statObject(key); err == nil {
			return "", errThere
		}
	}
	t, err := s.temp()
	if err != nil {
		return "", err
	}
	defer t.drop()
	sum, err := t.take(ctx, b)
	if err != nil {
		return "", err
	}
	etag := hex.EncodeToString(sum[:])
	if err := t.seal(newRecord(o, etag), b.Size); err != nil {
		return "", err
	}
	if err := s.alive(ctx); err != nil {
		return "", err
	}
	if err := s.place(t, key, o.Absent); err != nil {
		return "", err
	}
	return etag, nil
}

// place gives a sealed file its name, durably.
func (s *Store) place(t *temp, key string, absent bool) error {
	first, second := places(key)
	for range 10 { // programs that know of no lock may change the folders meanwhile
		if err := s.lock(); err != nil {
			return err
		}
		dir, old, err := s.rename(t, key, first, second, absent)
		s.unlock()
		if err == nil {
			err = dir.Sync()
			dir.Close()
			s.forget(old)
			return err
		}
		s.forget(old)
		if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) || t.moved {
			return err
		}
	}
	return fmt.Errorf("others change the folders of %q all the time", key)
}

// rename is place under mu. It gives the folder, and the files that had the name, held open.
func (s *Store) rename(t *temp, key string, first, second place, absent bool) (dir *os.File, old []*os.File, err error) {
	at := first
	if dir, err = s.folderFor(key, first.dir); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	st, err := statAt(dir, first.name)
	had := err == nil && regular(st)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, nil, err
	}
	other := false
	if first != second {
		var err error
		if other, err = s.has(second); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case absent && (had || other):
		return nil, nil, errThere
	case had:
	case err == nil && !isDir(st) || err == nil && first == second:
		return nil, nil, fmt.Errorf("%s is in the way, which is no object: remove it", kind(st))
	case err == nil || other:
		at = second
		if at.dir != first.dir {
			dir.Close()
			if dir, err = s.folderFor(key, at.dir); err != nil {
				return nil, nil, err
			}
		}
	}
	err = nil // ENOENT: nothing had the name
	if had || other {
		old = s.hold(first, second)
	}
	s.log.add(key)
	if err := t.moveTo(dir, at.name, absent); err != nil {
		if errors.Is(err, unix.EEXIST) && absent {
			err = errThere
		}
		return nil, old, err
	}
	if had && other { // a file of others came in front of it
		err = s.unlink(second.path(), false)
	}
	return dir, old, err
}

// has tells whether there is a file.
func (s *Store) has(p place) (bool, error) {
	st, err := s.stat(p.path())
	if nobody(err) {
		return false, nil
	}
	return err == nil && regular(st), err
}

// hold opens the files of an object whose side files have to go when they have no name any more. So long nobody gets their numbers.
func (s *Store) hold(all ...place) (files []*os.File) {
	for i, p := range all {
		if i > 0 && p == all[0] {
			break
		}
		if f, err := s.open(p.path(), unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			if st, err := statOf(f); err == nil && regular(st) && s.sided(f) {
				files = append(files, f)
				continue
			}
			f.Close()
		}
	}
	return files
}

// sided tells whether a file may have a side file.
func (s *Store) sided(f *os.File) bool {
	if s.side {
		return true
	}
	r, err := readXattr(f)
	return err == nil && r != nil && r.Side
}

// forget removes the side files of files that have no name any more.
func (s *Store) forget(files []*os.File) {
	for _, f := range files {
		if st, err := statOf(f); err == nil && st.Nlink == 0 {
			s.dropSide(st.Ino)
		}
		f.Close()
	}
}

// folderFor opens the folder of an object, under mu, and makes what is missing of it, durably. An object that stands where a folder has to be makes way.
func (s *Store) folderFor(key, path string) (*os.File, error) {
	d, err := s.openDir(path)
	if err == nil || !nobody(err) {
		return d, err
	}
	if d, err = s.openDir(""); err != nil {
		return nil, err
	}
	done := ""
	for _, name := range strings.Split(path, "/") {
		next, err := s.subfolder(d, done, name)
		d.Close()
		if err != nil {
			return nil, err
		}
		d, done = next, join(done, name)
	}
	return d, nil
}

func (s *Store) subfolder(d *os.File, at, name string) (*os.File, error) {
	next, err := openAt(d, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == nil || !nobody(err) {
		return next, err
	}
	if !errors.Is(err, unix.ENOENT) {
		st, err := statAt(d, name)
		if err != nil {
			return nil, err
		}
		if !regular(st) {
			return nil, fmt.Errorf("%s is in the way at %s, which is no object and no folder: remove it", kind(st), join(at, name))
		}
		if err := s.makeWay(d, at, name); err != nil {
			return nil, err
		}
	}
	made := unix.Mkdirat(int(d.Fd()), name, uint32(s.c.DirMode))
	if made != nil && made != unix.EEXIST {
		return nil, wrap("make the folder", name, made)
	}
	if next, err = openAt(d, name, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	if made == nil { // exactly, whatever the umask
		err = unix.Fchmod(int(next.Fd()), uint32(s.c.DirMode))
	}
	if err == nil {
		err = d.Sync() // before anything in it counts as durable
	}
	if err != nil {
		next.Close()
		return nil, err
	}
	return next, nil
}

// makeWay moves an object to its second place.
func (s *Store) makeWay(d *os.File, at, name string) error {
	key, ok := keyOf(join(at, name))
	if !ok {
		return fmt.Errorf("%s is in the way: remove it", join(at, name))
	}
	_, second := places(key)
	to := d
	if second.dir != at {
		var err error
		if to, err = s.folderFor(key, second.dir); err != nil {
			return err
		}
		defer to.Close()
	}
	s.log.add(key)
	err := renameAt(d, name, to, second.name, true)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("both %s and %s are the object %q: remove one", join(at, name), second.path(), key)
	}
	if err == nil {
		err = to.Sync()
	}
	return err
}

// Delete removes keys, durably.
func (s *Store) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	if err := s.enter(ctx); err != nil {
		return nil, s.fail("delete", "", err)
	}
	defer s.leave()
	if err := s.writable(); err != nil {
		return nil, s.fail("delete", "", err)
	}
	if len(keys) > 1000 {
		return nil, s.fail("delete", "", fmt.Errorf("%d keys are more than the 1,000 of one call: %w", len(keys), objstore.ErrNotSupported))
	}
	var left map[string]error
	dirs := map[string][]string{} // to be made durable, and whose keys that concerns
	fail := func(key string, err error) {
		if left == nil {
			left = map[string]error{}
		}
		left[key] = s.fail("delete", key, err)
	}
	for _, key := range keys {
		if err := s.alive(ctx); err != nil {
			return left, s.fail("delete", "", err)
		}
		where, err := s.remove(key)
		if err != nil {
			fail(key, err)
		}
		for _, dir := range where {
			dirs[dir] = append(dirs[dir], key)
		}
	}
	for dir, keys := range dirs {
		err := s.syncDir(dir)
		for nobody(err) && dir != "" { // a later key has emptied it
			dir, _ = split(dir)
			err = s.syncDir(dir)
		}
		if err != nil {
			for _, key := range keys {
				fail(key, err)
			}
		}
	}
	return left, nil
}

// remove removes the files of an object, and folders that are empty then. It gives the folders that have to be made durable.
func (s *Store) remove(key string) (where []string, err error) {
	if Key(key) != nil {
		return nil, nil // there is none
	}
	first, second := places(key)
	if err := s.lock(); err != nil {
		return nil, err
	}
	old := s.hold(first, second)
	defer s.forget(old)
	defer s.unlock()
	for i, p := range []place{first, second} {
		if i > 0 && p == first {
			break
		}
		if there, err := s.has(p); err != nil {
			return where, err
		} else if !there {
			continue
		}
		s.log.add(key)
		if err := s.unlink(p.path(), false); err != nil && !nobody(err) {
			return where, err
		}
		dir := p.dir
		for dir != "" && s.unlink(dir, true) == nil {
			dir, _ = split(dir)
		}
		where = append(where, dir)
	}
	return where, nil
}
