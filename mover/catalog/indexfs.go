package catalog

import (
	"io"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sinkFS stands between the library and the disk. The library ends the process when certain writes fail, as they do on a full disk. Here the first
// write that fails gives the index up, and from then on every write succeeds and goes nowhere: so the library can be closed in peace.
type sinkFS struct {
	vfs.FS
	x *Index
}

// failed notes an error of writing, and tells whether it is to be hidden.
func (s sinkFS) failed(err error) bool {
	if err != nil {
		s.x.giveUp(err)
	}
	return s.x.bad.Load()
}

func (s sinkFS) file(f vfs.File, err error) (vfs.File, error) {
	if s.failed(err) && err != nil {
		return new(sunk), nil
	}
	return &sinkFile{f, s}, nil
}

func (s sinkFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return s.file(s.FS.Create(name, c))
}

func (s sinkFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return s.file(s.FS.ReuseForWrite(from, to, c))
}

func (s sinkFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return s.file(s.FS.OpenReadWrite(name, c, opts...))
}

func (s sinkFS) OpenDir(name string) (vfs.File, error) {
	f, err := s.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &sinkFile{f, s}, nil
}

func (s sinkFS) Rename(from, to string) error {
	if err := s.FS.Rename(from, to); !s.failed(err) {
		return err
	}
	return nil
}

func (s sinkFS) Unwrap() vfs.FS { return s.FS }

// sinkFile is a file on the disk for as long as that takes what is written.
type sinkFile struct {
	vfs.File
	s sinkFS
}

func (f *sinkFile) Write(p []byte) (int, error) {
	n, err := 0, error(nil)
	if !f.s.x.bad.Load() {
		n, err = f.File.Write(p)
	}
	if f.s.failed(err) {
		return len(p), nil
	}
	return n, err
}

func (f *sinkFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := 0, error(nil)
	if !f.s.x.bad.Load() {
		n, err = f.File.WriteAt(p, off)
	}
	if f.s.failed(err) {
		return len(p), nil
	}
	return n, err
}

func (f *sinkFile) quietly(do func() error) error {
	if f.s.x.bad.Load() {
		return nil
	}
	if err := do(); !f.s.failed(err) {
		return err
	}
	return nil
}

func (f *sinkFile) Sync() error     { return f.quietly(f.File.Sync) }
func (f *sinkFile) SyncData() error { return f.quietly(f.File.SyncData) }

func (f *sinkFile) SyncTo(n int64) (full bool, err error) {
	err = f.quietly(func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// Preallocate is a wish only: writing tells.
func (f *sinkFile) Preallocate(off, n int64) error {
	_ = f.File.Preallocate(off, n)
	return nil
}

// sunk is a file that could not be made.
type sunk struct{ size int64 }

func (f *sunk) Write(p []byte) (int, error)            { f.size += int64(len(p)); return len(p), nil }
func (f *sunk) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (f *sunk) Read([]byte) (int, error)               { return 0, io.EOF }
func (f *sunk) ReadAt([]byte, int64) (int, error)      { return 0, io.EOF }
func (f *sunk) Close() error                           { return nil }
func (f *sunk) Sync() error                            { return nil }
func (f *sunk) SyncData() error                        { return nil }
func (f *sunk) SyncTo(int64) (bool, error)             { return false, nil }
func (f *sunk) Preallocate(int64, int64) error         { return nil }
func (f *sunk) Prefetch(int64, int64) error            { return nil }
func (f *sunk) Fd() uintptr                            { return vfs.InvalidFd }
func (f *sunk) Stat() (vfs.FileInfo, error)            { return sunkInfo{f.size}, nil }

type sunkInfo struct{ size int64 }

func (i sunkInfo) Name() string           { return "" }
func (i sunkInfo) Size() int64            { return i.size }
func (i sunkInfo) Mode() os.FileMode      { return 0o600 }
func (i sunkInfo) ModTime() time.Time     { return time.Time{} }
func (i sunkInfo) IsDir() bool            { return false }
func (i sunkInfo) Sys() any               { return nil }
func (i sunkInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
