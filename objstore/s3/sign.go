package s3

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// signer signs requests as version 4 has it for S3: what the SDK's signer gives (TestSign), in a quarter of its time. Every header that is set is signed.
type signer struct {
	region string

	mu   sync.Mutex // guards what follows: the key of a day
	of   [3]string  // day, id and secret
	kept []byte
}

const (
	longTime  = "20060102T150405Z"
	algorithm = "AWS4-HMAC-SHA256"
	scopeEnd  = "/s3/aws4_request"
)

// sign sets the headers of a signature. The query has to be sorted and encoded as AWS does it, like the path; digest is what is told of the body.
func (s *signer) sign(r *http.Request, keys aws.Credentials, digest []string, now time.Time) {
	stamp := now.UTC().Format(longTime)
	day := stamp[:8]
	r.Header["X-Amz-Date"] = []string{stamp}
	r.Header["X-Amz-Content-Sha256"] = digest
	if keys.SessionToken != "" {
		r.Header["X-Amz-Security-Token"] = []string{keys.SessionToken}
	}
	b := make([]byte, 0, 1024)
	b = append(append(b, r.Method...), '\n')
	b = append(append(b, r.URL.EscapedPath()...), '\n')
	b = append(append(b, r.URL.RawQuery...), '\n')
	b, names := canonical(b, r)
	b = append(append(b, '\n'), names...)
	b = append(append(b, '\n'), digest[0]...)
	sum := sha256.Sum256(b)

	scope := day + "/" + s.region + scopeEnd
	b = append(append(b[:0], algorithm...), '\n')
	b = append(append(b, stamp...), '\n')
	b = append(append(b, scope...), '\n')
	b = hex.AppendEncode(b, sum[:])
	signature := mac(s.key(day, keys), b)

	b = append(b[:0], algorithm+" Credential="...)
	b = append(append(b, keys.AccessKeyID...), '/')
	b = append(append(b, scope...), ", SignedHeaders="...)
	b = append(append(b, names...), ", Signature="...)
	b = hex.AppendEncode(b, signature)
	r.Header["Authorization"] = []string{string(b)}
}

// canonical appends the lines of all headers, and gives their names.
func canonical(b []byte, r *http.Request) (lines []byte, names string) {
	type field struct {
		name   string
		values []string
	}
	all := make([]field, 0, 24)
	all = append(all, field{"host", []string{r.Host}})
	if r.ContentLength > 0 {
		all = append(all, field{"content-length", []string{strconv.FormatInt(r.ContentLength, 10)}})
	}
	for name, values := range r.Header {
		low, ok := lowered[name]
		if !ok {
			low = strings.ToLower(name)
		}
		all = append(all, field{low, values})
	}
	slices.SortFunc(all, func(a, b field) int { return strings.Compare(a.name, b.name) })
	var list strings.Builder
	list.Grow(256)
	for i, f := range all {
		if i > 0 {
			list.WriteByte(';')
		}
		list.WriteString(f.name)
		b = append(append(b, f.name...), ':')
		for j, v := range f.values {
			if j > 0 {
				b = append(b, ',')
			}
			if strings.Contains(v, "  ") {
				v = strings.Join(strings.FieldsFunc(v, func(c rune) bool { return c == ' ' }), " ")
			}
			b = append(b, strings.TrimSpace(v)...)
		}
		b = append(b, '\n')
	}
	return b, list.String()
}

// lowered are names that most requests have.
var lowered = map[string]string{"Content-Md5": "content-md5", "Content-Type": "content-type", "If-Match": "if-match", "Range": "range", "X-Amz-Checksum-Mode": "x-amz-checksum-mode",
	"X-Amz-Content-Sha256": "x-amz-content-sha256", "X-Amz-Date": "x-amz-date", "X-Amz-Security-Token": "x-amz-security-token"}

// key is the key of a day.
func (s *signer) key(day string, keys aws.Credentials) []byte {
	of := [3]string{day, keys.AccessKeyID, keys.SecretAccessKey}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil || s.of != of {
		k := []byte("AWS4" + keys.SecretAccessKey)
		for _, part := range []string{day, s.region, "s3", "aws4_request"} {
			k = mac(k, []byte(part))
		}
		s.of, s.kept = of, k
	}
	return s.kept
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return h.Sum(nil)
}
