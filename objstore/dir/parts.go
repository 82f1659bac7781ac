package dir

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

// An upload is the folder .mover/uploads/ID with the file "about" and one file for each part, named by its number in five digits. The last 16 bytes of a part's
// file are the MD5 of those before.

type about struct {
	V      int       `json:"v"`
	Key    []byte    `json:"key"` // any bytes, where a string of JSON could not have them
	Begun  time.Time `json:"begun"`
	Class  string    `json:"class,omitempty"`
	Absent bool      `json:"absent,omitempty"`
	Attrs  *attrs    `json:"attrs,omitempty"`
}

const uploads = own + "/uploads"

var errPart = errors.New("part")

// Begin starts an upload in parts.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	if err := s.enter(ctx); err != nil {
		return "", s.fail("begin", key, err)
	}
	defer s.leave()
	id, err := s.begin(key, o)
	return id, s.fail("begin", key, err)
}

func (s *Store) begin(key string, o objstore.PutOptions) (string, error) {
	if err := errors.Join(s.writable(), allowed(key, o)); err != nil {
		return "", err
	}
	a := attrs(o.Attrs)
	b, err := json.Marshal(about{version, []byte(key), time.Now().UTC(), o.Class, o.Absent, &a})
	if err != nil {
		return "", err
	}
	id := random()
	if err := unix.Mkdirat(int(s.tmp.Fd()), id, 0o700); err != nil {
		return "", wrap("make a folder in", s.tmps, err)
	}
	err = s.fill(id, b)
	if err != nil {
		s.removeFolder(s.tmp, id)
		return "", err
	}
	return id, s.syncDir(uploads)
}

// fill writes what an upload is about, and gives it its place.
func (s *Store) fill(id string, b []byte) error {
	d, err := openAt(s.tmp, id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	f, err := openAt(d, "about", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.Sync()
	}
	if err != nil {
		return err
	}
	all, err := s.openDir(uploads)
	if err != nil {
		return err
	}
	defer all.Close()
	return renameAt(s.tmp, id, all, id, false)
}

// upload opens the folder of an upload.
func (s *Store) upload(key, id string) (*os.File, *about, error) {
	none := fmt.Errorf("no upload %q: %w", id, objstore.ErrNotFound)
	if !isRandom(id) {
		return nil, nil, none
	}
	d, err := s.openDir(uploads + "/" + id)
	if nobody(err) {
		return nil, nil, none
	}
	if err != nil {
		return nil, nil, err
	}
	a, err := readAbout(d)
	if err == nil && string(a.Key) != key {
		err = none
	}
	if err != nil {
		d.Close()
		return nil, nil, err
	}
	return d, a, nil
}

func readAbout(d *os.File) (*about, error) {
	f, err := openAt(d, "about", unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<20))
	if err != nil {
		return nil, err
	}
	var a about
	if err := json.Unmarshal(b, &a); err != nil || a.V != version {
		return nil, fmt.Errorf("the file about an upload cannot be read, or is of version %d: %w: %v", a.V, objstore.ErrCorrupt, err)
	}
	return &a, nil
}

func partName(no int) string { return fmt.Sprintf("%05d", no) }

// PutPart stores a part.
func (s *Store) PutPart(ctx context.Context, key, id string, no int, b objstore.Body) (objstore.Written, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Written{}, s.fail("put part", key, err)
	}
	defer s.leave()
	etag, err := s.putPart(ctx, key, id, no, b)
	return objstore.Written{ETag: etag}, s.fail("put part", key, err)
}

func (s *Store) putPart(ctx context.Context, key, id string, no int, b objstore.Body) (string, error) {
	if err := s.writable(); err != nil {
		return "", err
	}
	if no < 1 || no > s.Limits().Parts {
		return "", fmt.Errorf("there is no part %d: %w", no, objstore.ErrNotSupported)
	}
	d, _, err := s.upload(key, id)
	if err != nil {
		return "", err
	}
	defer d.Close()
	t, err := s.temp()
	if err != nil {
		return "", err
	}
	defer t.drop()
	sum, err := t.take(ctx, b)
	if err != nil {
		return "", err
	}
	if _, err := t.f.Write(sum[:]); err != nil {
		return "", err
	}
	st, err := statOf(t.f)
	if err == nil && st.Size != b.Size+md5.Size {
		err = fmt.Errorf("the file has %d bytes, not %d: %w", st.Size, b.Size+md5.Size, objstore.ErrCorrupt)
	}
	if err == nil {
		err = t.f.Sync()
	}
	if err == nil {
		err = s.alive(ctx)
	}
	if err == nil {
		err = t.moveTo(d, partName(no), false)
	}
	if err == nil {
		err = d.Sync()
	}
	if err == nil { // it may have ended while the part was on its way
		var again *os.File
		if again, _, err = s.upload(key, id); err == nil {
			again.Close()
		}
	}
	return hex.EncodeToString(sum[:]), err
}

// openPart opens the file of a part.
func openPart(d *os.File, no int) (*os.File, objstore.Part, error) {
	f, err := openAt(d, partName(no), unix.O_RDONLY, 0)
	if err != nil {
		return nil, objstore.Part{}, err
	}
	st, err := statOf(f)
	var sum [md5.Size]byte
	if err == nil {
		_, err = f.ReadAt(sum[:], max(0, st.Size-md5.Size))
	}
	if err != nil {
		f.Close()
		return nil, objstore.Part{}, fmt.Errorf("read part %d: %w", no, err)
	}
	return f, objstore.Part{No: no, Size: st.Size - md5.Size, ETag: hex.EncodeToString(sum[:])}, nil
}

// Parts gives the parts of an upload.
func (s *Store) Parts(ctx context.Context, key, id string, after int) ([]objstore.Part, bool, error) {
	if err := s.enter(ctx); err != nil {
		return nil, false, s.fail("parts", key, err)
	}
	defer s.leave()
	parts, more, err := s.parts(key, id, after)
	return parts, more, s.fail("parts", key, err)
}

func (s *Store) parts(key, id string, after int) (out []objstore.Part, more bool, err error) {
	d, _, err := s.upload(key, id)
	if err != nil {
		return nil, false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, false, err
	}
	var nos []int
	for _, name := range names {
		if no, err := strconv.Atoi(name); err == nil && no > after && name == partName(no) {
			nos = append(nos, no)
		}
	}
	slices.Sort(nos)
	if len(nos) > s.c.Page {
		nos, more = nos[:s.c.Page], true
	}
	for _, no := range nos {
		f, p, err := openPart(d, no)
		if err != nil {
			return nil, false, err
		}
		f.Close()
		out = append(out, p)
	}
	return out, more, nil
}

// Complete makes the object of copies of its parts, for which there has to be space. The options of Begin count. That the parts are what was asked for is known
// by their sizes and digests; the copies are not read again.
func (s *Store) Complete(ctx context.Context, key, id string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Written{}, s.fail("complete", key, err)
	}
	defer s.leave()
	etag, err := s.complete(ctx, key, id, parts, o)
	return objstore.Written{ETag: etag}, s.fail("complete", key, err)
}

func (s *Store) complete(ctx context.Context, key, id string, parts []objstore.Part, o objstore.PutOptions) (string, error) {
	if err := s.writable(); err != nil {
		return "", err
	}
	d, a, err := s.upload(key, id)
	if err != nil {
		return "", err
	}
	defer d.Close()
	etag, size, err := joined(d, parts)
	if err != nil {
		return "", err
	}
	if a.Absent || o.Absent {
		if _, err := s.statObject(key); err == nil {
			return "", errThere
		}
	}
	t, err := s.temp()
	if err != nil {
		return "", err
	}
	defer t.drop()
	if err := t.reserve(size); err != nil {
		return "", err
	}
	for _, p := range parts {
		if err := s.append(ctx, t.f, d, p); err != nil {
			return "", err
		}
	}
	r := &record{V: version, ETag: etag, Class: a.Class, Attrs: a.Attrs}
	if err := t.seal(r, size); err != nil {
		return "", err
	}
	if err := s.alive(ctx); err != nil {
		return "", err
	}
	if err := s.place(t, key, a.Absent || o.Absent); err != nil {
		return "", err
	}
	// The object is there. An upload that stays because of an error can be completed again, or aborted.
	return etag, s.takeAway(id)
}

// joined checks that parts are those of an upload.
func joined(d *os.File, parts []objstore.Part) (etag string, size int64, err error) {
	if len(parts) == 0 {
		return "", 0, errors.New("no parts")
	}
	sums := md5.New()
	for i, want := range parts {
		if i > 0 && want.No <= parts[i-1].No {
			return "", 0, fmt.Errorf("part %d stands behind part %d", want.No, parts[i-1].No)
		}
		f, p, err := openPart(d, want.No)
		if errors.Is(err, unix.ENOENT) {
			return "", 0, fmt.Errorf("part %d is not there", want.No)
		}
		if err != nil {
			return "", 0, err
		}
		f.Close()
		if p != want {
			return "", 0, fmt.Errorf("%w %d has %d bytes with ETag %s, not %d with %s", errPart, p.No, p.Size, p.ETag, want.Size, want.ETag)
		}
		sum, _ := hex.DecodeString(p.ETag)
		sums.Write(sum)
		size += p.Size
	}
	return fmt.Sprintf("%x-%d", sums.Sum(nil), len(parts)), size, nil
}

// append copies a part to the end of a file, in the kernel where it can.
func (s *Store) append(ctx context.Context, to, d *os.File, want objstore.Part) error {
	f, p, err := openPart(d, want.No)
	if err != nil {
		return err
	}
	defer f.Close()
	if p != want {
		return fmt.Errorf("%w %d was replaced meanwhile", errPart, p.No)
	}
	for left := p.Size; left > 0; {
		if err := s.alive(ctx); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(f.Fd()), nil, int(to.Fd()), nil, int(min(left, 16<<20)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EFBIG || err == unix.EIO:
			return wrap("write", "the object", err)
		case err != nil || n == 0: // not with these filesystems
			m, err := io.CopyN(struct{ io.Writer }{to}, f, min(left, 1<<20))
			if err != nil {
				return err
			}
			n = int(m)
		}
		left -= int64(n)
	}
	return nil
}

// takeAway takes an upload away.
func (s *Store) takeAway(id string) error {
	all, err := s.openDir(uploads)
	if err != nil {
		return err
	}
	defer all.Close()
	if err := renameAt(all, id, s.tmp, id, false); err != nil {
		if nobody(err) {
			return nil
		}
		return err
	}
	if err := all.Sync(); err != nil {
		return err
	}
	return s.removeFolder(s.tmp, id)
}

// Abort forgets an upload.
func (s *Store) Abort(ctx context.Context, key, id string) error {
	if err := s.enter(ctx); err != nil {
		return s.fail("abort", key, err)
	}
	defer s.leave()
	return s.fail("abort", key, s.abort(key, id))
}

func (s *Store) abort(key, id string) error {
	if err := s.writable(); err != nil {
		return err
	}
	d, _, err := s.upload(key, id)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d.Close()
	return s.takeAway(id)
}

// Uploads lists uploads by key, then by name.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) ([]objstore.Upload, *objstore.UploadPlace, error) {
	if err := s.enter(ctx); err != nil {
		return nil, nil, s.fail("uploads", "", err)
	}
	defer s.leave()
	out, next, err := s.uploads(prefix, after)
	return out, next, s.fail("uploads", "", err)
}

func (s *Store) uploads(prefix string, after objstore.UploadPlace) (out []objstore.Upload, next *objstore.UploadPlace, err error) {
	all, err := s.openDir(uploads)
	if nobody(err) {
		return nil, nil, nil // opened for reading only, and nobody has written
	}
	if err != nil {
		return nil, nil, err
	}
	defer all.Close()
	names, err := all.Readdirnames(-1)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range names {
		if !isRandom(id) {
			continue
		}
		d, err := openAt(all, id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if nobody(err) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		a, err := readAbout(d)
		d.Close()
		if nobody(err) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		u := objstore.Upload{Key: string(a.Key), ID: id, Begun: a.Begun}
		if strings.HasPrefix(u.Key, prefix) && (u.Key > after.Key || u.Key == after.Key && u.ID > after.ID) {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(a, b objstore.Upload) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.ID, b.ID))
	})
	if most := s.c.Page; len(out) > most {
		out = out[:most]
		next = &objstore.UploadPlace{Key: out[most-1].Key, ID: out[most-1].ID}
	}
	return out, next, nil
}

var _ interface {
	objstore.Store
	objstore.Tagger
} = (*Store)(nil)
