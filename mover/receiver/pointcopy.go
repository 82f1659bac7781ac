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
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
)

const copyUnit = groupSize

// walk reads the first size bytes of a point, a group at a time.
func walk(ctx context.Context, from io.ReaderAt, size int64, name, text string, tell func(mover.Progress), work func(p []byte, e extent.Extent) error) error {
	buf := make([]byte, copyUnit)
	began, told := time.Now(), time.Time{}
	for off := int64(0); off < size; off += copyUnit {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(copyUnit, size-off)
		if err := readFull(from, buf[:n], off); err != nil {
			return fmt.Errorf("read the recovery point: %w", err)
		}
		if err := work(buf[:n], extent.Extent{Off: off, Len: n}); err != nil {
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

// copyPoint writes the first size bytes of from to t, zeros as holes where t can have them, and compares what t holds then. It returns the
// bytes that were not zeros, and the root of what was read back.
func copyPoint(ctx context.Context, from io.ReaderAt, t blockdev.Target, size int64, tell func(mover.Progress)) (written int64, root digest.Digest, err error) {
	step := func(name, text string, work func(p []byte, e extent.Extent) error) error {
		return walk(ctx, from, size, name, text, tell, work)
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
		return written, root, err
	}
	b, tree := make([]byte, copyUnit), chunker.NewTree(size)
	err = step("verify", "reading the copy back", func(p []byte, e extent.Extent) error {
		if err := readFull(t, b[:len(p)], e.Off); err != nil {
			return fmt.Errorf("read the copy back: %w", err)
		}
		if !bytes.Equal(p, b[:len(p)]) {
			return fmt.Errorf("the copy reads otherwise than it was written, within %v: %w", e, sentinel.ErrCorrupt)
		}
		tree.Add(chunker.Digests(b[:len(p)], nil))
		return nil
	})
	return written, tree.Root(), err
}

// claims compares what was read of a point with the root that it was recorded with. false: it has none.
func claims(kp catalog.KeptPoint, root digest.Digest) (bool, error) {
	switch kp.Image {
	case "":
		return false, nil
	case root.String():
		return true, nil
	}
	return false, fmt.Errorf("recovery point %s is damaged: its bytes have root %s, recorded was %.16s; use another point, and look at the disk that keeps it: %w",
		kp.ID, root.Short(), kp.Image, sentinel.ErrCorrupt)
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
