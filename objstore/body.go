package objstore

import (
	"bytes"
	"fmt"
	"io"
)

// Body is what is stored: Size bytes that can be read again for another try.
type Body struct {
	Size int64
	// Open gives a reader of all of it, from the beginning. Where that is an io.Seeker too, drivers may read it twice.
	Open func() (io.ReadCloser, error)
	// MD5 is that of all of it, where it is known before; nil: it is not. What is stored has to have it.
	MD5 []byte
}

// Bytes is b as a Body. b must not change until the call that stores it has returned.
func Bytes(b []byte) Body {
	return Body{Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return memory{bytes.NewReader(b)}, nil }}
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// Exactly reads n bytes from r: fewer are io.ErrUnexpectedEOF, others behind them ErrCorrupt. A driver wraps the body of an answer in it.
func Exactly(r io.ReadCloser, n int64) io.ReadCloser { return &exactly{r, n, n} }

type exactly struct {
	io.ReadCloser
	left, all int64
}

func (e *exactly) Read(p []byte) (n int, err error) {
	if e.left == 0 {
		var one [1]byte
		switch n, err := e.ReadCloser.Read(one[:]); {
		case n > 0:
			return 0, fmt.Errorf("more than the %d bytes that were announced: %w", e.all, ErrCorrupt)
		case err == nil: // nothing, and no end: ask again
			return 0, nil
		default:
			return 0, err
		}
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err = e.ReadCloser.Read(p)
	if e.left -= int64(n); err == io.EOF && e.left > 0 {
		err = fmt.Errorf("%d of %d bytes are missing: %w", e.left, e.all, io.ErrUnexpectedEOF)
	} else if err == io.EOF && n > 0 {
		err = nil // the next call says so
	}
	return n, err
}
