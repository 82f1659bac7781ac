package chunker

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// store is where a table lives: a file, or in tests one that fails or dies.
type store interface {
	io.ReaderAt
	io.WriterAt
	// writev writes bufs one after the other at off.
	writev(bufs [][]byte, off int64) error
	// punch gives space back; what it held reads as zeros afterwards, or as before where that is not possible.
	punch(off, n int64) error
	datasync() error
	Close() error
}

type diskStore struct{ *os.File }

func (s diskStore) writev(bufs [][]byte, off int64) error {
	if len(bufs) > 1 {
		total := 0
		for _, b := range bufs {
			total += len(b)
		}
		if n, err := unix.Pwritev(int(s.Fd()), bufs, off); err == nil && n == total {
			return nil
		}
	}
	for _, b := range bufs { // one buffer; or short or refused: the plain way gives the error its name
		if _, err := s.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

func (s diskStore) punch(off, n int64) error {
	err := unix.Fallocate(int(s.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil && err != unix.EOPNOTSUPP {
		return fmt.Errorf("punch digest table: %w", err)
	}
	return nil
}

func (s diskStore) datasync() error { return unix.Fdatasync(int(s.Fd())) }
