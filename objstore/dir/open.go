package dir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

// prepare makes what the driver keeps beside the objects: temporary files, uploads, and attributes where the filesystem takes none.
func (s *Store) prepare() error {
	for _, dir := range []string{"tmp", "uploads"} {
		d, err := s.makeOwn(dir)
		if err != nil {
			return err
		}
		d.Close()
	}
	var err error
	if s.own, err = s.openDir(own); err != nil {
		return err
	}
	if err = s.sweep(); err == nil {
		err = s.ownTemp()
	}
	if err == nil {
		if err = s.probe(); err != nil {
			s.unlink(s.tmps, true)
			s.tmp.Close()
		}
	}
	if err != nil {
		s.own.Close()
	}
	return err
}

// makeOwn opens a folder below the driver's own, and makes what is missing of it, durably.
func (s *Store) makeOwn(path string) (*os.File, error) {
	d, err := s.openDir("")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Split(own+"/"+path, "/") {
		err := unix.Mkdirat(int(d.Fd()), name, 0o700)
		if err == nil {
			err = d.Sync()
		} else if err == unix.EEXIST {
			err = nil
		}
		var next *os.File
		if err == nil {
			next, err = openAt(d, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		}
		d.Close()
		if err != nil {
			return nil, fmt.Errorf("make the folder %s/%s: %w", own, path, err)
		}
		d = next
	}
	return d, nil
}

// ownTemp makes the folder of this Store's temporary files. Its lock tells others that it is in use.
func (s *Store) ownTemp() error {
	all, err := s.openDir(own + "/tmp")
	if err != nil {
		return err
	}
	defer all.Close()
	for range 100 {
		name := random()
		if err := unix.Mkdirat(int(all.Fd()), name, 0o700); err != nil {
			return wrap("make a folder in", own+"/tmp", err)
		}
		d, err := openAt(all, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // somebody swept it before it was locked
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if st, err := statOf(d); err == nil && st.Nlink > 0 {
				s.tmp, s.tmps = d, own+"/tmp/"+name
				return nil
			}
		}
		d.Close()
	}
	return fmt.Errorf("the folders in %s/tmp are taken away all the time", own)
}

func random() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func isRandom(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 16 && name == strings.ToLower(name)
}

// sweep removes the temporary files of Stores that are no more. What they did not name themselves stays.
func (s *Store) sweep() error {
	all, err := s.openDir(own + "/tmp")
	if err != nil {
		return err
	}
	defer all.Close()
	names, err := all.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isRandom(name) {
			continue
		}
		d, err := openAt(all, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if nobody(err) {
			continue
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = s.empty(d)
			if err == nil {
				err = unlinkAt(all, name, true)
			}
		}
		d.Close()
		if err != nil && !nobody(err) {
			return fmt.Errorf("remove what was left in %s/tmp: %w", own, err)
		}
	}
	return nil
}

// empty removes the files in a folder of temporary files, and the uploads that were on their way out or in.
func (s *Store) empty(d *os.File) error {
	for {
		list, err := d.ReadDir(1024)
		for _, e := range list {
			if e.IsDir() {
				err := s.removeFolder(d, e.Name())
				if err != nil {
					return err
				}
				continue
			}
			f, err := openAt(d, e.Name(), unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err == nil {
				if st, err := statOf(f); err == nil && s.sided(f) {
					s.dropSide(st.Ino)
				}
			}
			if err2 := unlinkAt(d, e.Name(), false); err2 != nil && !nobody(err2) {
				return errors.Join(err2, closeIf(f))
			}
			closeIf(f)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func closeIf(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// removeFolder removes a folder of files.
func (s *Store) removeFolder(at *os.File, name string) error {
	d, err := openAt(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := unlinkAt(d, n, false); err != nil && !nobody(err) {
			return err
		}
	}
	return unlinkAt(at, name, true)
}

// probe looks what the filesystem can do.
func (s *Store) probe() error {
	t, err := s.temp()
	if err != nil {
		return err
	}
	defer t.drop()
	// Two keys must never be one file.
	f, err := openAt(s.tmp, "Case", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	_, err = statAt(s.tmp, "case")
	unlinkAt(s.tmp, "Case", false)
	if err == nil {
		return fmt.Errorf("the filesystem does not tell large letters from small ones, but keys do: take another: %w", objstore.ErrNotSupported)
	}
	if s.side {
		return s.sidesDir()
	}
	b := []byte(`{"v":1}`)
	switch err := setXattr(t.f, b); {
	case err == nil:
		return nil
	case noXattr(err):
		s.side = true
		return s.sidesDir()
	default:
		return wrap("try an extended attribute in", s.tmps, err)
	}
}

// sidesDir makes the folder of side files: a Store that only reads looks for it.
func (s *Store) sidesDir() error {
	d, err := s.makeOwn("attrs")
	if err != nil {
		return err
	}
	return d.Close()
}
