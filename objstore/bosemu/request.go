package bosemu

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// request is one that is being answered.
type request struct {
	s   *Server
	w   http.ResponseWriter
	r   *http.Request
	id  string
	now time.Time

	op, key string
	name    string            // of the bucket
	bucket  *bucket           // nil: the service, or a bucket that is not there
	query   map[string]string // decoded
	account string            // who signed; "": nobody
	session bool              // by a session's keys
	policy  []statement       // what those may do at most; nil: anything
	fault   Fault
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, (*request).serve)
}

// answer has a request served, and tells of its failure.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, serve func(*request) error) {
	q := &request{s: s, w: w, r: r, id: newID(), now: s.cfg.Clock()}
	h := w.Header()
	h.Set("Server", "BceBos")
	h.Set("Date", q.now.UTC().Format(http.TimeFormat))
	h.Set("x-bce-request-id", q.id)
	h.Set("x-bce-debug-id", newID())
	var f *failure
	switch err := serve(q); {
	case err == nil:
	case errors.As(err, &f):
		q.answerFailure(f)
	case errors.Is(err, errCut):
		panic(http.ErrAbortHandler)
	default: // the client has gone, or a file cannot be read: an answer that is cut short is the only one left
		panic(http.ErrAbortHandler)
	}
}

func (q *request) serve() error {
	var (
		err    error
		region string
		byPath bool
	)
	if q.query, err = parseQuery(q.r.URL.RawQuery); err != nil {
		return fail("InvalidURI", "the query cannot be read: %v", err)
	}
	if q.name, q.key, region, byPath, err = q.s.address(q.r); err != nil {
		return err
	}
	q.op = operation(q.r, q.name, q.key, q.query)
	if q.suffer() {
		return nil
	}
	op, ok := operations[q.op]
	if !ok {
		return fail("NotImplemented", "%s %s is not implemented here", q.r.Method, q.op)
	}
	if err := q.authenticate(); err != nil {
		return err
	}
	if q.name != "" && q.op != "PutBucket" {
		b := q.s.bucket(q.name)
		if b == nil || region != "" && region != b.Region {
			return fail("NoSuchBucket", "the bucket %s does not exist in this region", q.name)
		}
		if byPath && region != "" && !b.ByPath {
			return fail("AccessDenied", "this bucket is addressed as %s.%s.%s", q.name, b.Region, q.s.cfg.Domain)
		}
		q.bucket = b
		if !b.admit(q.now, q.s.cfg.Limits.Rate) {
			e := fail("RequestRateLimitExceeded", "too many requests")
			e.status = q.s.cfg.Limits.RateStatus
			return e
		}
	}
	if err := q.allowed(op.needs); err != nil {
		return err
	}
	if q.key != "" {
		if err := q.goodKey(q.key); err != nil {
			return err
		}
	}
	return op.do(q)
}

// suffer lets go wrong what is to go wrong with the request. true: it is answered already.
func (q *request) suffer() bool {
	if q.fault = q.ask(); q.fault == (Fault{}) {
		return false
	}
	time.Sleep(q.fault.Delay)
	if q.fault.refuse(q) {
		return true
	}
	q.w = &bad{ResponseWriter: q.w, f: q.fault}
	q.r.Body = &spoilt{ReadCloser: q.r.Body, f: q.fault}
	return false
}

// ask counts the request and learns what is to go wrong with it.
func (q *request) ask() Fault {
	q.s.mu.Lock()
	q.s.counts[q.op]++
	n := q.s.counts[q.op]
	q.s.mu.Unlock()
	if q.s.cfg.Fault == nil {
		return Fault{}
	}
	part, _ := strconv.Atoi(q.query["partNumber"])
	return q.s.cfg.Fault(Request{q.op, q.name, q.key, part, n})
}

func (q *request) goodKey(key string) error {
	switch {
	case key == "" || len(key) > q.s.cfg.Limits.Key:
		return fail("InvalidObjectName", "the name has %d bytes; 1 to %d", len(key), q.s.cfg.Limits.Key)
	case key[0] == '/' || !utf8.ValidString(key):
		return fail("InvalidObjectName", "the name is no UTF-8, or begins with a slash")
	}
	return nil
}

func parseQuery(raw string) (map[string]string, error) {
	out := map[string]string{}
	for _, pair := range strings.Split(raw, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.PathUnescape(name) // a plus sign is one
		if err != nil {
			return nil, err
		}
		if out[name], err = url.PathUnescape(value); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// number is a parameter between least and most; def where it is not there.
func (q *request) number(name string, least, most, def int) (int, error) {
	text, ok := q.query[name]
	if !ok {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fail("InvalidArgument", "%s: %q is not between %d and %d", name, text, least, most)
	}
	return n, nil
}

// page is how many entries an answer has: more than there may be are so many.
func (q *request) page(name string) (int, error) {
	n, err := q.number(name, 0, 1<<31-1, q.s.cfg.Limits.Page)
	if n == 0 {
		n = q.s.cfg.Limits.Page
	}
	return min(n, q.s.cfg.Limits.Page), err
}

// matches tells whether etag is one of those of an If-Match or If-None-Match.
func matches(header, etag string) bool {
	for _, one := range strings.Split(header, ",") {
		if one = strings.Trim(strings.TrimSpace(one), `"`); one == "*" || one == etag {
			return true
		}
	}
	return false
}
