package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

const copyUnit = 4 << 20

// copyPoint writes the first size bytes of from to t, zeros as holes where t can have them, and compares what t holds then. It returns the
// bytes that were not zeros.
func copyPoint(ctx context.Context, from blockdev.Kept, t blockdev.Target, size int64, tell func(mover.Progress)) (written int64, err error) {
	a, b := make([]byte, copyUnit), make([]byte, copyUnit)
	step := func(name, text string, work func(p []byte, e extent.Extent) error) error {
		began, told := time.Now(), time.Time{}
		for off := int64(0); off < size; off += copyUnit {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(copyUnit, size-off)
			if err := readFull(from, a[:n], off); err != nil {
				return fmt.Errorf("read the recovery point: %w", err)
			}
			if err := work(a[:n], extent.Extent{Off: off, Len: n}); err != nil {
				return err
			}
			if tell != nil && (time.Since(told) > time.Second || off+n == size) {
				told = time.Now()
				done := off + n
				tell(mover.Progress{Step: name, Text: text, Done: done, Total: size, ETA: time.Since(began).Seconds() * float64(size-done) / float64(done)})
			}
		}
		return nil
	}
	err = step("copy", "writing the copy", func(p []byte, e extent.Extent) error {
		n, err := writeSparse(t, p, e)
		written += n
		return err
	})
	if err == nil {
		err = t.Sync()
	}
	if err != nil {
		return written, err
	}
	return written, step("verify", "reading the copy back", func(p []byte, e extent.Extent) error {
		if err := readFull(t, b[:len(p)], e.Off); err != nil {
			return fmt.Errorf("read the copy back: %w", err)
		}
		if !bytes.Equal(p, b[:len(p)]) {
			return fmt.Errorf("the copy reads otherwise than it was written, within %v: %w", e, sentinel.ErrCorrupt)
		}
		return nil
	})
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// writeSparse writes runs of leaves that are zeros, or are not. The end of an odd volume is filled up with zeros to a sector.
func writeSparse(t blockdev.Target, p []byte, e extent.Extent) (written int64, err error) {
	for at := 0; at < len(p); {
		zero, end := chunker.IsZero(p[at:min(at+leafSize, len(p))]), at
		for end < len(p) && chunker.IsZero(p[end:min(end+leafSize, len(p))]) == zero {
			end = min(end+leafSize, len(p))
		}
		run := p[at:end]
		if odd := len(run) % 512; odd != 0 && e.Off+int64(end)+int64(512-odd) <= t.Size() {
			run = append(append(make([]byte, 0, len(run)+512), run...), make([]byte, 512-odd)...)
		}
		if zero {
			err = t.Zero(extent.Extent{Off: e.Off + int64(at), Len: int64(len(run))})
		} else {
			_, err = t.WriteAt(run, e.Off+int64(at))
			written += int64(end - at)
		}
		if err != nil {
			return written, err
		}
		at = end
	}
	return written, nil
}
