package bosemu

import (
	"crypto/md5"
	"encoding/hex"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// upload is an object that comes in parts.
type upload struct {
	key   string
	made  time.Time
	o     *object // what Initiate said of it
	parts map[int]*part
}

type part struct {
	content  *content
	digests  digests
	etag     string
	modified time.Time
}

func (u *upload) drop() {
	for _, p := range u.parts {
		p.content.drop()
	}
}

// find gives the upload of the request. The caller holds the bucket's lock.
func (q *request) find() (*upload, error) {
	u := q.bucket.uploads[q.query["uploadId"]]
	if u == nil || u.key != q.key {
		return nil, fail("NoSuchUpload", "the upload %q does not exist", q.query["uploadId"])
	}
	return u, nil
}

// initiate keeps no user metadata: that comes with complete.
func (q *request) initiate() error {
	o, err := q.describe()
	if err != nil {
		return err
	}
	o.meta = nil
	id := newID()
	q.bucket.mu.Lock()
	q.bucket.uploads[id] = &upload{q.key, q.s.cfg.Clock().UTC().Truncate(time.Second), o, map[int]*part{}}
	q.bucket.mu.Unlock()
	return q.answerJSON(http.StatusOK, map[string]string{"bucket": q.name, "key": q.key, "uploadId": id})
}

// numbered is the number of the part, of an upload that is there.
func (q *request) numbered() (int, error) {
	no, err := q.number("partNumber", 1, q.s.cfg.Limits.Parts, 0)
	if err != nil {
		return 0, err
	}
	q.bucket.mu.RLock()
	defer q.bucket.mu.RUnlock()
	_, err = q.find()
	return no, err
}

// add keeps a part, in place of one of the same number.
func (q *request) add(no int, p *part) error {
	q.bucket.mu.Lock()
	defer q.bucket.mu.Unlock()
	u, err := q.find()
	if err != nil {
		p.content.drop()
		return err
	}
	if old := u.parts[no]; old != nil {
		old.content.drop()
	}
	p.etag, p.modified = hex.EncodeToString(p.digests.md5[:]), q.s.cfg.Clock().UTC().Truncate(time.Second)
	u.parts[no] = p
	return nil
}

func (q *request) uploadPart() error {
	no, err := q.numbered()
	if err != nil {
		return err
	}
	c, d, err := q.receive()
	if err != nil {
		return err
	}
	p := &part{content: c, digests: d}
	if err := q.add(no, p); err != nil {
		return err
	}
	q.w.Header().Set("ETag", `"`+p.etag+`"`)
	d.tell(q.w.Header())
	return q.answerEmpty(http.StatusOK)
}

func (q *request) uploadPartCopy() error {
	no, err := q.numbered()
	if err != nil {
		return err
	}
	src, err := q.source()
	if err != nil {
		return err
	}
	defer src.body.drop()
	off, n, _, err := parseRange(q.r.Header.Get("x-bce-copy-source-range"), src.body.size())
	if err != nil {
		return err
	}
	if n > q.s.cfg.Limits.Put {
		return fail("EntityTooLarge", "%d bytes; at most %d", n, q.s.cfg.Limits.Put)
	}
	c, sum := &content{mem: make([]byte, 0, n), size: n}, newSummer(http.Header{})
	c.hold()
	if err := src.body.writeTo(grow{c, sum}, off, n); err != nil {
		return err
	}
	p := &part{content: c, digests: sum.sums()}
	if err := q.add(no, p); err != nil {
		return err
	}
	return q.answerJSON(http.StatusOK, copied{p.modified.Format(authTime), q.tag(p.etag)})
}

// grow appends to a content in memory.
type grow struct {
	c   *content
	sum *summer
}

func (g grow) Write(p []byte) (int, error) {
	g.c.mem = append(g.c.mem, p...)
	return g.sum.Write(p)
}

func (q *request) complete() error {
	var in struct {
		Parts []struct {
			PartNumber int    `json:"partNumber"`
			ETag       string `json:"eTag"`
		} `json:"parts"`
	}
	if err := q.decode(&in); err != nil {
		return err
	}
	meta, err := q.meta()
	if err != nil {
		return err
	}
	q.bucket.mu.Lock()
	defer q.bucket.mu.Unlock()
	u, err := q.find()
	if err != nil {
		return err
	}
	if len(in.Parts) == 0 || len(in.Parts) > q.s.cfg.Limits.Parts {
		return fail("InappropriateJSON", "%d parts; 1 to %d", len(in.Parts), q.s.cfg.Limits.Parts)
	}
	o := *u.o
	all, last := md5.New(), 0
	for i, named := range in.Parts {
		p := u.parts[named.PartNumber]
		switch {
		case named.PartNumber <= last:
			return fail("InvalidPartOrder", "part %d comes after part %d", named.PartNumber, last)
		case p == nil || !matches(named.ETag, p.etag) || named.ETag == "*":
			return fail("InvalidPart", "part %d is not there with the ETag %q", named.PartNumber, named.ETag)
		case i < len(in.Parts)-1 && p.content.size < q.s.cfg.Limits.PartLeast:
			return fail("EntityTooSmall", "part %d has %d bytes; at least %d", named.PartNumber, p.content.size, q.s.cfg.Limits.PartLeast)
		}
		last = named.PartNumber
		o.body = append(o.body, p.content)
		all.Write(p.digests.md5[:])
		o.digests.crc64 = join(crc64.ECMA, o.digests.crc64, p.digests.crc64, p.content.size, 64)
		o.digests.crc32 = uint32(join(crc32.IEEE, uint64(o.digests.crc32), uint64(p.digests.crc32), p.content.size, 32))
	}
	if want := q.r.Header.Get("x-bce-content-crc64ecma"); want != "" && want != strconv.FormatUint(o.digests.crc64, 10) {
		return fail("BadDigest", "the x-bce-content-crc64ecma that was given is not that of the parts")
	}
	if err := q.mayReplace(q.bucket.objects[q.key]); err != nil {
		return err
	}
	o.body = slices.Clone(o.body).hold()
	u.drop()
	delete(q.bucket.uploads, q.query["uploadId"])
	o.meta, o.parted, o.etag = meta, true, "-"+hex.EncodeToString(all.Sum(nil))
	o.modified = q.s.cfg.Clock().UTC().Truncate(time.Second)
	q.bucket.put(q.key, &o)
	o.digests.tell(q.w.Header())
	return q.answerJSON(http.StatusOK, map[string]string{"location": "http://" + q.r.Host + q.r.URL.Path, "bucket": q.name, "key": q.key, "eTag": q.tag(o.etag)})
}

func (q *request) abort() error {
	q.bucket.mu.Lock()
	defer q.bucket.mu.Unlock()
	u, err := q.find()
	if err != nil {
		return err
	}
	u.drop()
	delete(q.bucket.uploads, q.query["uploadId"])
	return q.answerEmpty(http.StatusNoContent)
}
