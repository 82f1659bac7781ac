package bosemu

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// bce-auth-v1:
//
//	prefix    = bce-auth-v1/ACCESSKEY/2006-01-02T15:04:05Z/SECONDS
//	key       = hex(HMAC-SHA256(secret key, prefix)), used as text
//	canonical = METHOD \n path \n query \n headers
//	Authorization: prefix/SIGNED;HEADER;NAMES/hex(HMAC-SHA256(key, canonical))
//
// The path is percent-encoded but for its slashes; the query is sorted, without authorization; the headers are sorted, in lower case, trimmed, and left out where
// empty.
const (
	authVersion = "bce-auth-v1"
	authTime    = "2006-01-02T15:04:05Z"
)

// signature is an Authorization.
type signature struct {
	prefix, key, mac string
	at               time.Time
	expire           time.Duration
	headers          []string
}

func parseSignature(text string) (s signature, err error) {
	f := strings.Split(text, "/")
	if len(f) != 6 || f[0] != authVersion {
		return s, fail("InvalidHTTPAuthHeader", "the Authorization is not of the form %s/KEY/TIME/SECONDS/HEADERS/SIGNATURE", authVersion)
	}
	at, err1 := time.Parse(authTime, f[2])
	sec, err2 := strconv.Atoi(f[3])
	if err1 != nil || err2 != nil || sec <= 0 {
		return s, fail("InvalidHTTPAuthHeader", "the time or the seconds of the Authorization cannot be read")
	}
	s = signature{prefix: strings.Join(f[:4], "/"), key: f[1], mac: f[5], at: at, expire: time.Duration(sec) * time.Second}
	if f[4] != "" {
		s.headers = strings.Split(f[4], ";")
	}
	return s, nil
}

// authenticate finds out whose request it is; "" is nobody's.
func (q *request) authenticate() error {
	text, inHeader := q.r.Header.Get("Authorization"), true
	if text == "" {
		text, inHeader = q.query["authorization"], false
	}
	if text == "" {
		return nil
	}
	sig, err := parseSignature(text)
	if err != nil {
		return err
	}
	q.s.mu.Lock()
	who, ok := q.s.signers[sig.key]
	q.s.mu.Unlock()
	if !ok {
		return fail("InvalidAccessKeyId", "the access key %s does not exist", sig.key)
	}
	if err := q.timely(sig, inHeader); err != nil {
		return err
	}
	if err := q.token(who); err != nil {
		return err
	}
	if len(sig.headers) == 0 {
		sig.headers = q.mustSign()
	}
	for _, h := range q.mustSign() {
		if !slices.Contains(sig.headers, h) && inHeader {
			return fail("SignatureDoesNotMatch", "the header %s is not signed", h)
		}
	}
	mac := hmacHex(hmacHex(who.secret, sig.prefix), q.canonical(sig.headers))
	if !hmac.Equal([]byte(mac), []byte(sig.mac)) {
		return fail("SignatureDoesNotMatch", "the signature is not the one computed here")
	}
	q.account, q.session, q.policy = who.account, who.token != "", who.policy
	return nil
}

// timely refuses what is too old, or from a clock that differs.
func (q *request) timely(sig signature, inHeader bool) error {
	skewed := func(t time.Time) bool { return q.now.Sub(t).Abs() > q.s.cfg.Limits.Skew }
	if inHeader {
		at, err := time.Parse(authTime, q.r.Header.Get("x-bce-date"))
		if err != nil {
			at, err = http.ParseTime(q.r.Header.Get("Date"))
		}
		switch {
		case err != nil:
			return fail("InvalidHTTPRequest", "neither x-bce-date nor Date is there")
		case skewed(at):
			return fail("RequestTimeTooSkewed", "the request says %s, here it is %s", at.Format(authTime), q.now.UTC().Format(authTime))
		}
	}
	switch {
	case q.now.After(sig.at.Add(sig.expire)):
		return fail("RequestExpired", "request has expired, timestamp date is %s", sig.at.Format(authTime))
	case sig.at.After(q.now) && skewed(sig.at):
		return fail("RequestTimeTooSkewed", "the request was signed at %s, here it is %s", sig.at.Format(authTime), q.now.UTC().Format(authTime))
	}
	return nil
}

func (q *request) token(who signer) error {
	have := q.r.Header.Get("x-bce-security-token")
	if have == "" {
		have = q.query["x-bce-security-token"]
	}
	switch {
	case have != who.token && who.token == "":
		return fail("InvalidSessionToken", "this access key has no session")
	case have != who.token:
		return fail("InvalidSessionToken", "the session token is not that of the access key")
	case !who.expires.IsZero() && !q.now.Before(who.expires):
		return fail("InvalidSessionToken", "the session has expired")
	}
	return nil
}

// mustSign is the names of the headers of this request that have to be signed.
func (q *request) mustSign() []string {
	out := []string{"host"}
	for name, v := range q.r.Header {
		name = strings.ToLower(name)
		switch {
		case strings.TrimSpace(v[0]) == "" || name == "x-bce-request-id":
		case name == "content-type" || name == "content-md5" || strings.HasPrefix(name, "x-bce-"):
			out = append(out, name)
		}
	}
	if q.r.ContentLength > 0 {
		out = append(out, "content-length")
	}
	return out
}

// canonical is what is signed.
func (q *request) canonical(names []string) string {
	var headers, query []string
	for _, name := range names {
		name = strings.ToLower(name)
		value := q.r.Header.Get(name)
		switch name {
		case "host":
			value = q.r.Host
		case "content-length":
			value = strconv.FormatInt(q.r.ContentLength, 10)
		}
		if value = strings.TrimSpace(value); value != "" {
			headers = append(headers, encode(name, true)+":"+encode(value, true))
		}
	}
	for name, value := range q.query {
		if !strings.EqualFold(name, "authorization") {
			query = append(query, encode(name, true)+"="+encode(value, true))
		}
	}
	slices.Sort(headers)
	slices.Sort(query)
	path := "/" + encode(strings.TrimPrefix(q.r.URL.Path, "/"), false)
	return strings.Join([]string{q.r.Method, path, strings.Join(query, "&"), strings.Join(headers, "\n")}, "\n")
}

// encode percent-encodes all bytes but unreserved ones.
func encode(s string, slash bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == '~', c == '/' && !slash:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

func hmacHex(key, text string) string {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(text))
	return hex.EncodeToString(m.Sum(nil))
}
