package bosemu

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// object is one state of an object. Grants, tags and thaw change under the bucket's lock; the rest does not.
type object struct {
	body     body
	etag     string
	parted   bool // made of parts: no MD5 is known
	digests  digests
	modified time.Time
	class    string
	headers  map[string]string // Content-Type and the like
	meta     map[string]string // names in lower case

	grants []grant // nil: those of the bucket
	tags   map[string]string
	ready  time.Time // of a restore that was asked for; zero: none was
	until  time.Time
}

// frozen tells whether the bytes have to be restored first.
func (o *object) frozen(now time.Time) bool {
	return o.class == "ARCHIVE" && (o.ready.IsZero() || now.Before(o.ready) || !now.Before(o.until))
}

// described are the headers that are kept with an object.
var described = []string{"Content-Type", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"}

// describe makes an object of what the headers of a request say.
func (q *request) describe() (*object, error) {
	h := q.r.Header
	o := &object{class: q.bucket.Class, headers: map[string]string{"Content-Type": "application/octet-stream"}}
	for _, name := range described {
		if v := h.Get(name); v != "" {
			o.headers[name] = v
		}
	}
	if c := h.Get("x-bce-storage-class"); c != "" {
		if !slices.Contains(classes, c) {
			return nil, fail("InvalidArgument", "x-bce-storage-class: %q is unknown", c)
		}
		o.class = c
	}
	var err error
	if o.meta, err = q.meta(); err != nil {
		return nil, err
	}
	if o.tags, err = tagging(h.Get("x-bce-tagging")); err != nil {
		return nil, err
	}
	if grants, ok, err := q.asked(false); err != nil {
		return nil, err
	} else if ok {
		o.grants = grants
	}
	return o, nil
}

// meta reads x-bce-meta-*.
func (q *request) meta() (map[string]string, error) {
	meta, n := map[string]string{}, 0
	for name, v := range q.r.Header {
		if key, ok := strings.CutPrefix(strings.ToLower(name), "x-bce-meta-"); ok && key != "" {
			meta[key] = v[0]
			n += len(key) + len(v[0])
		}
	}
	if n > q.s.cfg.Limits.Meta {
		return nil, fail("MetadataTooLarge", "%d bytes of user metadata; at most %d", n, q.s.cfg.Limits.Meta)
	}
	return meta, nil
}

// mayReplace keeps the conditions of a write. The caller holds the bucket's lock.
func (q *request) mayReplace(old *object) error {
	h := q.r.Header
	tag := ""
	if old != nil {
		tag = old.etag
	}
	m, n := h.Get("If-Match"), h.Get("If-None-Match")
	if m != "" && (old == nil || !matches(m, tag)) || n != "" && old != nil && matches(n, tag) ||
		old != nil && h.Get("x-bce-forbid-overwrite") == "true" {
		return fail("PreconditionFailed", "the object is not in the state that was asked for")
	}
	return nil
}

// keep makes o the object of the request's key.
func (q *request) keep(o *object) error {
	q.bucket.mu.Lock()
	defer q.bucket.mu.Unlock()
	if err := q.mayReplace(q.bucket.objects[q.key]); err != nil {
		o.body.drop()
		return err
	}
	o.modified = q.s.cfg.Clock().UTC().Truncate(time.Second)
	q.bucket.put(q.key, o)
	return nil
}

func (q *request) putObject() error {
	o, err := q.describe()
	if err != nil {
		return err
	}
	c, d, err := q.receive()
	if err != nil {
		return err
	}
	o.body, o.digests, o.etag = body{c}, d, hex.EncodeToString(d.md5[:])
	if err := q.keep(o); err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Content-MD5", base64.StdEncoding.EncodeToString(d.md5[:]))
	h.Set("x-bce-storage-class", o.class)
	d.tell(h)
	return q.answerEmpty(http.StatusOK)
}

// tell puts o into the headers of an answer.
func (o *object) tell(h http.Header, now time.Time) {
	for k, v := range o.headers {
		h.Set(k, v)
	}
	for k, v := range o.meta {
		h.Set("x-bce-meta-"+k, v)
	}
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Last-Modified", o.modified.Format(http.TimeFormat))
	h.Set("Accept-Ranges", "bytes")
	h.Set("x-bce-storage-class", o.class)
	h.Set("x-bce-object-type", "Normal")
	if !o.parted {
		h.Set("Content-MD5", base64.StdEncoding.EncodeToString(o.digests.md5[:]))
	}
	if len(o.tags) > 0 {
		h.Set("x-bce-tagging-count", strconv.Itoa(len(o.tags)))
	}
	switch {
	case o.class != "ARCHIVE" || o.ready.IsZero() || !now.Before(o.until):
	case now.Before(o.ready):
		h.Set("x-bce-restore", `ongoing-request="true"`)
	default:
		h.Set("x-bce-restore", fmt.Sprintf(`ongoing-request="false", expiry-date="%s"`, o.until.UTC().Format(http.TimeFormat)))
	}
	o.digests.tell(h)
}

// getObject answers GET and HEAD.
func (q *request) getObject() error {
	q.bucket.mu.RLock()
	o := q.bucket.objects[q.key]
	if o == nil {
		q.bucket.mu.RUnlock()
		return fail("NoSuchKey", "the object does not exist")
	}
	h := q.w.Header()
	o.tell(h, q.now)
	frozen, b := o.frozen(q.now), o.body.hold()
	q.bucket.mu.RUnlock()
	defer b.drop()
	if done, err := q.unwanted(o); done || err != nil {
		return err
	}
	for name, header := range map[string]string{"responseContentType": "Content-Type", "responseContentDisposition": "Content-Disposition",
		"responseContentLanguage": "Content-Language", "responseExpires": "Expires", "responseCacheControl": "Cache-Control", "responseContentEncoding": "Content-Encoding"} {
		if v := q.query[name]; v != "" {
			h.Set(header, v)
		}
	}
	size := b.size()
	if q.r.Method == http.MethodHead {
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		q.w.WriteHeader(http.StatusOK)
		return nil
	}
	if frozen {
		return fail("InvalidObjectState", "the object is archived: restore it first")
	}
	off, n, ranged, err := parseRange(q.r.Header.Get("Range"), size)
	if err != nil {
		return err
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	if ranged {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size))
		q.w.WriteHeader(http.StatusPartialContent)
	} else {
		q.w.WriteHeader(http.StatusOK)
	}
	return b.writeTo(q.w, off, n)
}

// unwanted answers a read whose conditions do not hold.
func (q *request) unwanted(o *object) (done bool, err error) {
	h := q.r.Header
	since := func(name string) (time.Time, bool) {
		t, err := http.ParseTime(h.Get(name))
		return t, err == nil
	}
	not := fail("PreconditionFailed", "the object is not in the state that was asked for")
	if m := h.Get("If-Match"); m != "" {
		if !matches(m, o.etag) {
			return false, not
		}
	} else if t, ok := since("If-Unmodified-Since"); ok && o.modified.After(t) {
		return false, not
	}
	same := false
	if n := h.Get("If-None-Match"); n != "" {
		same = matches(n, o.etag)
	} else if t, ok := since("If-Modified-Since"); ok {
		same = !o.modified.After(t)
	}
	if same {
		q.w.WriteHeader(http.StatusNotModified)
	}
	return same, nil
}

// parseRange reads bytes=FIRST-LAST, bytes=FIRST- and bytes=-COUNT.
func parseRange(text string, size int64) (off, n int64, ranged bool, err error) {
	if text == "" {
		return 0, size, false, nil
	}
	spec, ok := strings.CutPrefix(text, "bytes=")
	a, b, ok2 := strings.Cut(spec, "-")
	if !ok || !ok2 || strings.Contains(spec, ",") || size == 0 {
		return 0, 0, false, fail("InvalidArgument", "the range %q is none of this object", text)
	}
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	switch {
	case a == "" && err2 == nil && last > 0:
		first, last = max(0, size-last), size-1
	case err1 == nil && b == "":
		last = size - 1
	case err1 != nil || err2 != nil || last < first:
		return 0, 0, false, fail("InvalidArgument", "the range %q cannot be read", text)
	}
	if first >= size {
		return 0, 0, false, fail("InvalidRange", "the object has %d bytes", size)
	}
	return first, min(last, size-1) - first + 1, true, nil
}

func (q *request) deleteObject() error {
	q.bucket.mu.Lock()
	defer q.bucket.mu.Unlock()
	if q.bucket.objects[q.key] == nil {
		return fail("NoSuchKey", "the object does not exist")
	}
	q.bucket.remove(q.key)
	return q.answerEmpty(http.StatusNoContent)
}

// deleteObjects tells of keys that are not there as of errors, like the single call.
func (q *request) deleteObjects() error {
	var in struct {
		Objects []struct {
			Key string `json:"key"`
		} `json:"objects"`
	}
	if err := q.decode(&in); err != nil {
		return err
	}
	if len(in.Objects) == 0 || len(in.Objects) > q.s.cfg.Limits.Page {
		return fail("InappropriateJSON", "%d objects; 1 to %d", len(in.Objects), q.s.cfg.Limits.Page)
	}
	type entry struct {
		Key     string `json:"key"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	var errs []entry
	q.bucket.mu.Lock()
	for _, o := range in.Objects {
		if q.bucket.objects[o.Key] == nil {
			errs = append(errs, entry{o.Key, "NoSuchKey", "the object does not exist"})
			continue
		}
		q.bucket.remove(o.Key)
	}
	q.bucket.mu.Unlock()
	if errs == nil {
		return q.answerEmpty(http.StatusOK)
	}
	return q.answerJSON(http.StatusOK, map[string]any{"errors": errs})
}

// source finds the object of x-bce-copy-source, /BUCKET/KEY in percent-encoding, and holds its bytes.
func (q *request) source() (object, error) {
	h := q.r.Header
	text, err := url.PathUnescape(h.Get("x-bce-copy-source"))
	name, key, ok := strings.Cut(strings.TrimPrefix(text, "/"), "/")
	if err != nil || !ok {
		return object{}, fail("InvalidArgument", "x-bce-copy-source: %q is not of the form /BUCKET/KEY", text)
	}
	b := q.s.bucket(name)
	if b == nil {
		return object{}, fail("NoSuchBucket", "the bucket %s does not exist", name)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	o := b.objects[key]
	m, n := h.Get("x-bce-copy-source-if-match"), h.Get("x-bce-copy-source-if-none-match")
	switch {
	case !b.mayRead(q.account, o):
		return object{}, fail("AccessDenied", "access denied")
	case o == nil:
		return object{}, fail("NoSuchKey", "the object does not exist")
	case m != "" && !matches(m, o.etag) || n != "" && matches(n, o.etag):
		return object{}, fail("PreconditionFailed", "the source is not in the state that was asked for")
	case o.frozen(q.now):
		return object{}, fail("InvalidObjectState", "the source is archived: restore it first")
	}
	c := *o
	c.body.hold()
	return c, nil
}

type copied struct {
	LastModified string `json:"lastModified"`
	ETag         string `json:"eTag"`
}

func (q *request) copyObject() error {
	src, err := q.source()
	if err != nil {
		return err
	}
	o, err := q.describe()
	if err != nil {
		src.body.drop()
		return err
	}
	h := q.r.Header
	if h.Get("x-bce-metadata-directive") != "replace" {
		o.headers, o.meta = maps.Clone(src.headers), maps.Clone(src.meta)
	}
	if h.Get("x-bce-tagging-directive") != "replace" && o.tags == nil {
		o.tags = maps.Clone(src.tags)
	}
	o.body, o.etag, o.digests, o.parted = src.body, src.etag, src.digests, src.parted
	if err := q.keep(o); err != nil {
		return err
	}
	return q.answerJSON(http.StatusOK, copied{o.modified.Format(authTime), q.tag(o.etag)})
}

// tag is an ETag as a body tells it.
func (q *request) tag(etag string) string {
	if q.fault.NoETag {
		return ""
	}
	return etag
}

// restoreObject thaws for 1 to 30 days, 7 where none are given (page RestoreObject, 2025-11-03).
func (q *request) restoreObject() error {
	h := q.r.Header
	days, err := 7, error(nil)
	if text := h.Get("x-bce-restore-days"); text != "" {
		days, err = strconv.Atoi(text)
	}
	after, ok := map[string]time.Duration{"Expedited": 30 * time.Minute, "": 5 * time.Hour, "Standard": 5 * time.Hour, "LowCost": 12 * time.Hour}[h.Get("x-bce-restore-tier")]
	if err != nil || days < 1 || days > 30 || !ok {
		return fail("InvalidArgument", "x-bce-restore-days is 1 to 30, x-bce-restore-tier Expedited, Standard or LowCost")
	}
	if err := q.change(func(o *object) error {
		switch {
		case o.class != "ARCHIVE":
			return fail("InvalidObjectState", "the object is not archived")
		case !o.ready.IsZero() && q.now.Before(o.ready):
			return fail("RestoreAlreadyInProgress", "the object is being restored")
		case o.frozen(q.now):
			o.ready = q.now.Add(after)
		}
		o.until = o.ready.Add(time.Duration(days) * 24 * time.Hour)
		return nil
	}); err != nil {
		return err
	}
	return q.answerEmpty(http.StatusOK)
}
