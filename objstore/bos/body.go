package bos

import (
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/objstore"
)

// source is a body on its way out. The transport may read it for a moment after the call has its answer: end stops that.
type source struct {
	mu    sync.Mutex // held while in is read or closed
	in    io.ReadCloser
	left  int64
	size  int64
	sum   hash.Hash // MD5; nil: not asked for
	err   error     // of in
	ended bool
}

// wrongBody is a body that has not the bytes that it says.
type wrongBody struct{ error }

func (w wrongBody) Unwrap() error { return w.error }

func open(b objstore.Body, sum bool) (*source, error) {
	if b.Size < 0 {
		return nil, fmt.Errorf("a body of %d bytes", b.Size)
	}
	in, err := b.Open()
	if err != nil {
		return nil, fmt.Errorf("open what is to be stored: %w", err)
	}
	s := &source{in: in, left: b.Size, size: b.Size}
	if sum {
		s.sum = md5.New()
	}
	if b.Size == 0 { // nobody will read it
		if s.err = s.more(); s.err != nil {
			return nil, errors.Join(s.err, in.Close())
		}
	}
	return s, nil
}

// Read holds the last bytes back until it is known that none follow: the store must not have a whole body of what is not one.
func (s *source) Read(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return 0, s.err
	case s.ended:
		return 0, errors.New("the call has ended")
	case s.left == 0:
		return 0, io.EOF
	}
	n, err = s.in.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	switch {
	case s.left == 0:
		err = s.more()
	case err == io.EOF:
		err = wrongBody{fmt.Errorf("%d of %d bytes that are to be stored are missing: %w", s.left, s.size, io.ErrUnexpectedEOF)}
	}
	if err != nil {
		s.err = err
		return 0, err
	}
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	return n, nil
}

// more is the error of bytes behind the last.
func (s *source) more() error {
	var one [1]byte
	for {
		switch n, err := s.in.Read(one[:]); {
		case n > 0:
			return wrongBody{fmt.Errorf("what is to be stored has more than %d bytes: %w", s.size, objstore.ErrCorrupt)}
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// Close is called by the transport, and by end.
func (s *source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	s.ended = true
	return s.in.Close()
}

// end closes it and gives the error of what was read.
func (s *source) end() error {
	_ = s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// reading is the body of an object on its way in.
type reading struct {
	c     *call
	in    io.ReadCloser // of exactly the bytes that were announced
	timer *time.Timer
	sum   hash.Hash64 // nil: it is not told what it should be
	want  uint64
	err   error // what Read goes on to give

	closed atomic.Bool
}

var ecma = crc64.MakeTable(crc64.ECMA)

func (r *reading) Read(p []byte) (int, error) {
	switch {
	case r.closed.Load():
		return 0, errors.New("the body is closed")
	case r.err != nil:
		return 0, r.err
	case r.c.ctx.Err() != nil: // the transport needs a while to notice, in which much can be read
		r.err = r.c.failed(r.c.ctx.Err())
		return 0, r.err
	}
	r.timer.Reset(r.c.s.timeouts.Stall)
	n, err := r.in.Read(p)
	r.timer.Stop()
	if r.sum != nil {
		r.sum.Write(p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && r.sum != nil && r.sum.Sum64() != r.want:
		err = &objstore.Error{Op: r.c.op, Store: r.c.s.String(), Key: r.c.key, Kind: objstore.ErrCorrupt, Request: r.c.header.Get("x-bce-request-id"),
			Err: fmt.Errorf("the bytes have the CRC-64 %d, the store says %d", r.sum.Sum64(), r.want)}
	case err != io.EOF:
		r.c.cause = err
		err = r.c.failed(err)
	}
	r.err = err
	return n, err
}

// Close ends a Read under way too.
func (r *reading) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	r.timer.Stop()
	r.c.end()
	return r.in.Close()
}
