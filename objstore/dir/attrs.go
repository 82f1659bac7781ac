package dir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

// xattr has the record of an object.
const xattr = "user.mover.object"

// record is what is known of an object beside its bytes, as JSON. ETag counts only while size and time of the file are those of the record: whoever changed the
// file since has made another object of it.
type record struct {
	V     int    `json:"v"`
	ETag  string `json:"etag,omitempty"`
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime"`         // nanoseconds since 1970
	Ino   uint64 `json:"ino,omitempty"` // in a side file: of which file
	Side  bool   `json:"side,omitempty"`

	Class string            `json:"class,omitempty"`
	Attrs *attrs            `json:"attrs,omitempty"`
	Tags  map[string]string `json:"tags,omitempty"`
}

type attrs struct {
	ContentType        string            `json:"content-type,omitempty"`
	CacheControl       string            `json:"cache-control,omitempty"`
	ContentDisposition string            `json:"content-disposition,omitempty"`
	ContentEncoding    string            `json:"content-encoding,omitempty"`
	ContentLanguage    string            `json:"content-language,omitempty"`
	Expires            string            `json:"expires,omitempty"`
	Meta               map[string]string `json:"meta,omitempty"`
}

const version = 1

func newRecord(o objstore.PutOptions, etag string) *record {
	a := attrs(o.Attrs)
	if len(a.Meta) == 0 {
		a.Meta = nil
	}
	return &record{V: version, ETag: etag, Class: o.Class, Attrs: &a}
}

// allowed tells why a key or attributes are not taken.
func allowed(key string, o objstore.PutOptions) error {
	if err := Key(key); err != nil {
		return fmt.Errorf("%w: %w", err, objstore.ErrNotSupported)
	}
	a := o.Attrs
	n := 0
	for _, v := range []string{a.ContentType, a.CacheControl, a.ContentDisposition, a.ContentEncoding, a.ContentLanguage, a.Expires, o.Class} {
		if n += len(v); !utf8.ValidString(v) {
			return fmt.Errorf("the attribute %q is not UTF-8: %w", v, objstore.ErrNotSupported)
		}
	}
	if n > 64<<10 {
		return fmt.Errorf("%d bytes of attributes: %w", n, objstore.ErrNotSupported)
	}
	return allowedPairs("metadata", a.Meta)
}

// Rule is that of "dir".
func Rule() objstore.Rule { return objstore.Rule{Key: Key, Header: goodPair, Pair: goodPair} }

// goodPair: JSON would bend what is no UTF-8.
func goodPair(name, value string) error {
	if !utf8.ValidString(name) || !utf8.ValidString(value) {
		return errors.New("it is no UTF-8")
	}
	return nil
}

func allowedPairs(what string, m map[string]string) error {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
		if err := goodPair(k, v); err != nil {
			return fmt.Errorf("%s %q=%q: %w: %w", what, k, v, err, objstore.ErrNotSupported)
		}
	}
	if n > 64<<10 {
		return fmt.Errorf("%d bytes of %s are more than 65,536: %w", n, what, objstore.ErrNotSupported)
	}
	return nil
}

// keep writes a record for an open file: into its xattr, or where that cannot be, or does not fit, into a side file.
func (s *Store) keep(f *os.File, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if !s.side {
		err := setXattr(f, b)
		if err == nil || !tooLarge(err) {
			return wrap("set attributes of", f.Name(), err)
		}
	}
	st, err := statOf(f)
	if err != nil {
		return err
	}
	large := *r
	large.Ino = st.Ino
	if b, err = json.Marshal(&large); err != nil {
		return err
	}
	if err := s.writeSide(st.Ino, b); err != nil || s.side {
		return err
	}
	b, err = json.Marshal(&record{V: version, Side: true})
	if err != nil {
		return err
	}
	return wrap("set attributes of", f.Name(), setXattr(f, b))
}

func setXattr(f *os.File, b []byte) error { return unix.Fsetxattr(int(f.Fd()), xattr, b, 0) }

// tooLarge tells whether a value does not fit; ext4 says ENOSPC, also on a disk that has space.
func tooLarge(err error) bool {
	return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func noXattr(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// recordOf reads the record of an open file; nil: it has none, as others put it there. fit: it has one, and that is of what the file is now.
func (s *Store) recordOf(f *os.File, st unix.Stat_t) (*record, error) {
	r, err := readXattr(f)
	if err != nil {
		return nil, err
	}
	if r == nil && s.side || r != nil && r.Side {
		r, err = s.readSide(st.Ino)
		if err != nil || r == nil || r.Ino != st.Ino || !r.fits(st) { // of a file that had this number before
			return nil, err
		}
	}
	return r, nil
}

// fits tells whether a record is of the file as it is.
func (r *record) fits(st unix.Stat_t) bool { return r.Size == st.Size && r.Mtime == st.Mtim.Nano() }

// values are buffers for attributes.
var values = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

func readXattr(f *os.File) (*record, error) {
	p := values.Get().(*[]byte)
	defer values.Put(p)
	b := *p
	for {
		n, err := unix.Fgetxattr(int(f.Fd()), xattr, b)
		switch {
		case err == unix.ERANGE && len(b) < 1<<20:
			b = make([]byte, 4*len(b))
			continue
		case err == unix.ENODATA || noXattr(err):
			return nil, nil
		case err != nil:
			return nil, wrap("read the attributes of", f.Name(), err)
		}
		return decode(b[:n])
	}
}

func decode(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("the attributes cannot be read (remove the extended attribute %s, or the side file, to take the file as it is): %w: %w", xattr, err, objstore.ErrCorrupt)
	}
	if r.V > version {
		return nil, fmt.Errorf("the attributes are of version %d: a newer version of Mover wrote them: %w", r.V, objstore.ErrNotSupported)
	}
	return &r, nil
}

func sidePath(ino uint64) (dir, name string) {
	return own + "/attrs/" + shard(ino), fmt.Sprint(ino)
}

func (s *Store) readSide(ino uint64) (*record, error) {
	dir, name := sidePath(ino)
	f, err := s.open(dir+"/"+name, unix.O_RDONLY, 0)
	if nobody(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<20))
	if err != nil {
		return nil, err
	}
	return decode(b)
}

// writeSide is durable when it returns.
func (s *Store) writeSide(ino uint64, b []byte) error {
	path, name := sidePath(ino)
	d, err := s.openDir(path)
	if nobody(err) {
		if d, err = s.makeOwn("attrs/" + shard(ino)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	defer d.Close()
	t, err := s.temp()
	if err != nil {
		return err
	}
	defer t.drop()
	_, err = t.f.Write(b)
	if err == nil {
		err = t.f.Sync()
	}
	if err == nil {
		err = t.moveTo(d, name, false)
	}
	if err == nil {
		err = d.Sync()
	}
	return err
}

func shard(ino uint64) string { return fmt.Sprintf("%02x", ino&0xff) }

// dropSide removes the side file of a file that is still held open but has no name any more: nobody else has its number yet.
func (s *Store) dropSide(ino uint64) {
	dir, name := sidePath(ino)
	s.unlink(dir+"/"+name, false) // what stays is of no file, and the next one with that number replaces it
}

// entryOf tells of a file.
func entryOf(key string, st unix.Stat_t, r *record) objstore.Object {
	o := objstore.Object{Entry: objstore.Entry{Key: key, Size: st.Size, Modified: timeOf(st)}}
	if r != nil {
		o.Class, o.Tags = r.Class, len(r.Tags)
		if r.Attrs != nil {
			o.Attrs = objstore.Attrs(*r.Attrs)
		}
		if r.fits(st) {
			o.ETag = r.ETag
		}
	}
	if o.ETag == "" {
		o.ETag = fmt.Sprintf("%x-%x-%x", st.Size, st.Mtim.Nano(), st.Ino)
	}
	return o
}
