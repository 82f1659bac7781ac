package bosemu

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"strconv"
)

var (
	ecma       = crc64.MakeTable(crc64.ECMA)
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// digests are what BOS tells of bytes.
type digests struct {
	md5   [md5.Size]byte
	crc64 uint64
	crc32 uint32
}

// summer computes digests, and those that a request asks to be checked.
type summer struct {
	io.Writer
	md5, sha256 hash.Hash
	crc64       hash.Hash64
	crc32, c32c hash.Hash32
}

func newSummer(h http.Header) *summer {
	s := &summer{md5: md5.New(), crc64: crc64.New(ecma), crc32: crc32.NewIEEE()}
	all := []io.Writer{s.md5, s.crc64, s.crc32}
	if h.Get("x-bce-content-sha256") != "" {
		s.sha256 = sha256.New()
		all = append(all, s.sha256)
	}
	if h.Get("x-bce-content-crc32c") != "" {
		s.c32c = crc32.New(castagnoli)
		all = append(all, s.c32c)
	}
	s.Writer = io.MultiWriter(all...)
	return s
}

func (s *summer) sums() (d digests) {
	copy(d.md5[:], s.md5.Sum(nil))
	d.crc64, d.crc32 = s.crc64.Sum64(), s.crc32.Sum32()
	return d
}

// check compares with what the request says of its body.
func (s *summer) check(h http.Header) error {
	is := func(name, have string) error {
		if want := h.Get(name); want != "" && want != have {
			return fail("BadDigest", "the %s that was given is not that of the bytes that came", name)
		}
		return nil
	}
	d := s.sums()
	checks := []error{
		is("Content-MD5", base64.StdEncoding.EncodeToString(d.md5[:])),
		is("x-bce-content-crc64ecma", strconv.FormatUint(d.crc64, 10)),
		is("x-bce-content-crc32", strconv.FormatUint(uint64(d.crc32), 10)),
	}
	if s.sha256 != nil {
		checks = append(checks, is("x-bce-content-sha256", hex.EncodeToString(s.sha256.Sum(nil))))
	}
	if s.c32c != nil {
		checks = append(checks, is("x-bce-content-crc32c", strconv.FormatUint(uint64(s.c32c.Sum32()), 10)))
	}
	for _, err := range checks {
		if err != nil {
			return err
		}
	}
	return nil
}

// tell puts d into the headers of an answer.
func (d digests) tell(h http.Header) {
	h.Set("x-bce-content-crc64ecma", strconv.FormatUint(d.crc64, 10))
	h.Set("x-bce-content-crc32", strconv.FormatUint(uint64(d.crc32), 10))
}

// join gives the CRC of a followed by b, from those of both and the length of b: b's bytes of zero are run through the register of a by
// squaring the matrix of one zero bit. poly is reflected; the CRCs begin and end inverted.
func join(poly, a, b uint64, bytes int64, bits int) uint64 {
	if bytes <= 0 {
		return a
	}
	m := make([]uint64, bits) // one zero bit
	m[0] = poly
	for i := 1; i < bits; i++ {
		m[i] = 1 << (i - 1)
	}
	m = square(square(square(m))) // one zero byte
	for n := bytes; n > 0; n >>= 1 {
		if n&1 != 0 {
			a = times(m, a)
		}
		if n > 1 {
			m = square(m)
		}
	}
	return a ^ b
}

func times(m []uint64, v uint64) (out uint64) {
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			out ^= m[i]
		}
	}
	return out
}

func square(m []uint64) []uint64 {
	out := make([]uint64, len(m))
	for i := range m {
		out[i] = times(m, m[i])
	}
	return out
}
