package s3_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/s3"
)

const secret = "a/secret+that+nobody+prints"

// against gives a store of a server that answers as f does.
func against(t *testing.T, f http.HandlerFunc) *s3.Store {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return to(t, server.URL)
}

func to(t *testing.T, endpoint string) *s3.Store {
	t.Helper()
	s, err := s3.New(s3.Config{Endpoint: endpoint, Bucket: "bucket", PathStyle: true, Credentials: objstore.Fixed{ID: "KEY", Secret: secret, Token: "the/token"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func sum(b []byte) string {
	m := md5.Sum(b)
	return hex.EncodeToString(m[:])
}

const modified = "Sat, 28 Nov 2026 09:00:00 GMT"

// object answers a GET or HEAD with b.
func object(w http.ResponseWriter, b []byte, header ...string) {
	h := w.Header()
	h.Set("Last-Modified", modified)
	h.Set("ETag", `"`+sum(b)+`"`)
	h.Set("Content-Length", fmt.Sprint(len(b)))
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	w.WriteHeader(200)
	_, _ = w.Write(b)
}

// kind checks that err is an *objstore.Error of that kind, nil being none, and prints no secret.
func kind(t *testing.T, err, want error) {
	t.Helper()
	var e *objstore.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is no *objstore.Error: %v", err, err)
	}
	if want == nil && e.Kind != nil || want != nil && !errors.Is(err, want) {
		t.Errorf("kind %v, want %v: %v", e.Kind, want, err)
	}
	if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, secret) || strings.Contains(text, "the/token") {
		t.Errorf("a secret: %s", text)
	}
}

func errorBody(code string) string {
	return `<?xml version="1.0"?><Error><Code>` + code + `</Code><Message>it says so</Message><RequestId>tx0001</RequestId></Error>`
}

// all calls of a store, each with what it ends with.
func all(s *s3.Store) map[string]error {
	ctx := context.Background()
	errs := map[string]error{}
	_, errs["list"] = s.List(ctx, objstore.Query{})
	_, errs["head"] = s.Head(ctx, "k")
	_, body, err := s.Get(ctx, "k", objstore.GetOptions{})
	if err == nil {
		_, err = io.Copy(io.Discard, body)
		body.Close()
	}
	errs["get"] = err
	_, errs["put"] = s.Put(ctx, "k", objstore.Bytes([]byte("x")), objstore.PutOptions{})
	_, errs["put, once"] = s.Put(ctx, "k", once([]byte("x")), objstore.PutOptions{})
	_, errs["delete"] = s.Delete(ctx, "k")
	_, errs["delete two"] = s.Delete(ctx, "k", "l")
	_, errs["begin"] = s.Begin(ctx, "k", objstore.PutOptions{})
	_, errs["put part"] = s.PutPart(ctx, "k", "u", 1, objstore.Bytes([]byte("x")))
	_, _, errs["parts"] = s.Parts(ctx, "k", "u", 0)
	_, errs["complete"] = s.Complete(ctx, "k", "u", []objstore.Part{{No: 1, Size: 1, ETag: sum([]byte("x"))}}, objstore.PutOptions{})
	errs["abort"] = s.Abort(ctx, "k", "u")
	_, _, errs["uploads"] = s.Uploads(ctx, "", objstore.UploadPlace{})
	_, errs["tags"] = s.Tags(ctx, "k")
	errs["set tags"] = s.SetTags(ctx, "k", map[string]string{"a": "b"})
	_, _, errs["grants"] = s.Grants(ctx, "k")
	errs["set grants"] = s.SetGrants(ctx, "k", "private")
	_, errs["versioned"] = s.Versioned(ctx)
	_, errs["location"] = s.Location(ctx)
	return errs
}

// once is a body that cannot be read twice in one opening.
func once(b []byte) objstore.Body {
	return objstore.Body{Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return io.NopCloser(io.MultiReader(bytes.NewReader(b))), nil }}
}

// TestRefusals has every call meet every way of a server to say no, or nothing.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"slow down": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(503)
			io.WriteString(w, errorBody("SlowDown"))
		}, objstore.ErrSlowDown},
		"503 of a proxy": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(503)
			io.WriteString(w, "<html><body>busy<br></body>")
		}, objstore.ErrSlowDown},
		"429": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(429) }, objstore.ErrSlowDown},
		"500": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			io.WriteString(w, errorBody("InternalError"))
		}, objstore.ErrTransient},
		"502": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(502); io.WriteString(w, "bad gateway") }, objstore.ErrTransient},
		"denied": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, errorBody("AccessDenied"))
		}, objstore.ErrDenied},
		"expired": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			io.WriteString(w, errorBody("ExpiredToken"))
		}, objstore.ErrDenied},
		"no bucket": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Request-Id", "1")
			w.WriteHeader(404)
			io.WriteString(w, errorBody("NoSuchBucket"))
		}, objstore.ErrNotFound},
		"clock": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(403)
			io.WriteString(w, errorBody("RequestTimeTooSkewed"))
		}, objstore.ErrClock},
		"404 of a proxy": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			io.WriteString(w, "<html><body>no such page")
		}, nil},
		"unknown user": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			io.WriteString(w, errorBody("XAdminUserNotFound"))
		}, nil},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere?X-Amz-Signature=s", http.StatusTemporaryRedirect)
		}, nil},
		"301 without a place": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
			w.WriteHeader(301)
			io.WriteString(w, errorBody("PermanentRedirect"))
		}, nil},
		"error inside a 200": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "HEAD" || r.Method == "GET" && r.URL.Path == "/bucket/k" && r.URL.RawQuery == "" {
				w.WriteHeader(500) // the bytes of an object may be anything
				return
			}
			io.WriteString(w, errorBody("InternalError"))
		}, objstore.ErrTransient},
		"cut":               {func(w http.ResponseWriter, r *http.Request) { hijack(w, "") }, objstore.ErrTransient},
		"cut in the header": {func(w http.ResponseWriter, r *http.Request) { hijack(w, "HTTP/1.1 200 OK\r\nContent-Le") }, objstore.ErrTransient},
		"cut in the body": {func(w http.ResponseWriter, r *http.Request) {
			hijack(w, "HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\n<Error><Code>")
		}, objstore.ErrTransient},
	} {
		t.Run(name, func(t *testing.T) {
			for call, err := range all(against(t, c.answer)) {
				t.Run(call, func(t *testing.T) {
					if err == nil {
						t.Fatal("no error")
					}
					if c.want == nil || name == "expired" && call == "head" { // which has no body to say so
						var e *objstore.Error
						if !errors.As(err, &e) || objstore.Retryable(err) || errors.Is(err, objstore.ErrNotFound) {
							t.Errorf("%v", err)
						}
						if strings.Contains(err.Error(), "Signature") {
							t.Errorf("a signature: %v", err)
						}
						return
					}
					kind(t, err, c.want)
				})
			}
		})
	}
}

// hijack writes raw and cuts the connection.
func hijack(w http.ResponseWriter, raw string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		io.WriteString(conn, raw)
		conn.Close()
	}
}

// TestNothingInside has answers of success that say nothing.
func TestNothingInside(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "another document": "<html><body>Log in first</body></html>", "cut": `<?xml version="1.0"?><ListBucketResult><IsTruncated>fal`} {
		t.Run(name, func(t *testing.T) {
			for call, err := range all(against(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) })) {
				// Deletes, tags and the like have no content to miss.
				switch call {
				case "list", "head", "get", "put", "put, once", "begin", "put part", "parts", "complete", "uploads", "grants":
					if err == nil {
						t.Errorf("%s: taken for a success", call)
					} else if errors.Is(err, objstore.ErrNotFound) {
						t.Errorf("%s: %v", call, err)
					}
				}
			}
		})
	}
	left, err := against(t, func(w http.ResponseWriter, r *http.Request) {}).Delete(context.Background(), "a", "b")
	if len(left) != 2 {
		t.Errorf("deleted by an empty answer: left %v, %v", left, err)
	}
}

func TestLists(t *testing.T) {
	entry := func(key string) string {
		return `<Contents><Key>` + key + `</Key><LastModified>2026-11-28T09:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>5</Size><StorageClass>STANDARD</StorageClass></Contents>`
	}
	list := func(truncated bool, body string) string {
		return fmt.Sprintf(`<?xml version="1.0"?><ListBucketResult><EncodingType>url</EncodingType><IsTruncated>%v</IsTruncated>%s</ListBucketResult>`, truncated, body)
	}
	var text atomic.Value
	s := against(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text.Load().(string)) })
	for name, bad := range map[string]string{
		"truncated without entries": list(true, ""),
		"out of order":              list(false, entry("b")+entry("a")),
		"twice":                     list(false, entry("a")+entry("a")),
		"before the place":          list(false, entry("A")),
		"badly encoded":             list(false, entry("b%2")),
		"badly encoded too":         list(false, entry("b%zz")),
		"no key":                    list(false, entry("")),
		"no etag":                   list(false, strings.Replace(entry("b"), "&quot;e&quot;", "", 1)),
		"empty etag":                list(false, strings.Replace(entry("b"), "&quot;e&quot;", "&quot;&quot;", 1)),
		"no size":                   list(false, strings.Replace(entry("b"), "<Size>5</Size>", "", 1)),
		"size below zero":           list(false, strings.Replace(entry("b"), "5", "-5", 1)),
		"no time":                   list(false, strings.Replace(entry("b"), "2026-11-28T09:00:00.000Z", "", 1)),
		"another count":             list(false, "<KeyCount>2</KeyCount>"+entry("b")),
		"no end":                    list(false, entry("b"))[:150],
		"more than asked":           list(true, entry("b")+entry("c")+entry("d")),
	} {
		text.Store(bad)
		p, err := s.List(context.Background(), objstore.Query{After: "a", Max: 2})
		if err == nil {
			t.Errorf("%s: %+v", name, p)
			continue
		}
		kind(t, err, nil)
	}
	text.Store(list(true, entry("a%20b")+entry("b+c")+entry("c%2Bd")+entry("d%25%00%ff")))
	p, err := s.List(context.Background(), objstore.Query{})
	if err != nil || !p.More || len(p.Entries) != 4 || p.Now.IsZero() {
		t.Fatalf("%+v, %v", p, err)
	}
	for i, want := range []string{"a b", "b c", "c+d", "d%\x00\xff"} {
		if e := p.Entries[i]; e.Key != want || e.ETag != "e" || e.Size != 5 || e.Class != "" {
			t.Errorf("%+v, want %q", e, want)
		}
	}
	for name, bad := range map[string]string{
		"uploads": `<ListMultipartUploadsResult><IsTruncated>true</IsTruncated></ListMultipartUploadsResult>`,
		"parts":   `<ListPartsResult><IsTruncated>true</IsTruncated></ListPartsResult>`,
	} {
		text.Store(bad)
		if name == "uploads" {
			_, _, err = s.Uploads(context.Background(), "", objstore.UploadPlace{})
		} else {
			_, _, err = s.Parts(context.Background(), "k", "u", 0)
		}
		kind(t, err, nil)
	}
}

// TestPutProofs has servers that store something else, or tell what they store in different ways.
func TestPutProofs(t *testing.T) {
	b := bytes.Repeat([]byte("content "), 1000)
	crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	crc.Write(b)
	good := base64.StdEncoding.EncodeToString(crc.Sum(nil))
	for name, c := range map[string]struct {
		header []string
		back   []byte // what a GET gives
		want   error  // errNone: it is right
	}{
		"right":                    {[]string{"ETag", `"` + sum(b) + `"`}, nil, errNone},
		"wrong":                    {[]string{"ETag", `"` + sum([]byte("x")) + `"`}, nil, objstore.ErrCorrupt},
		"none":                     {nil, nil, nil},
		"empty":                    {[]string{"ETag", `""`}, nil, nil},
		"checksum":                 {[]string{"ETag", `"opaque"`, "X-Amz-Checksum-Crc32c", good}, nil, errNone},
		"wrong checksum":           {[]string{"ETag", `"opaque"`, "X-Amz-Checksum-Crc32c", "AAAAAA=="}, nil, objstore.ErrCorrupt},
		"kms, checksum":            {[]string{"ETag", `"` + sum([]byte("x")) + `"`, "X-Amz-Server-Side-Encryption", "aws:kms", "X-Amz-Checksum-Crc32c", good}, nil, errNone},
		"kms, wrong checksum":      {[]string{"ETag", `"` + sum(b) + `"`, "X-Amz-Server-Side-Encryption", "aws:kms", "X-Amz-Checksum-Crc32c", "AAAAAA=="}, nil, objstore.ErrCorrupt},
		"aes256 is plain":          {[]string{"ETag", `"` + sum(b) + `"`, "X-Amz-Server-Side-Encryption", "AES256"}, nil, errNone},
		"aes256, wrong":            {[]string{"ETag", `"` + sum([]byte("x")) + `"`, "X-Amz-Server-Side-Encryption", "AES256"}, nil, objstore.ErrCorrupt},
		"read back":                {[]string{"ETag", `"opaque"`}, b, errNone},
		"read back, others":        {[]string{"ETag", `"opaque"`}, append(b[:len(b):len(b)], 'x')[1:], objstore.ErrCorrupt},
		"kms, read back":           {[]string{"ETag", `"` + sum([]byte("x")) + `"`, "X-Amz-Server-Side-Encryption", "aws:kms:dsse"}, b, errNone},
		"read back, gone":          {[]string{"ETag", `"opaque"`}, nil, objstore.ErrNotFound},
		"checksum of parts' sums":  {[]string{"ETag", `"opaque"`, "X-Amz-Checksum-Crc32c", good + "-1"}, b, errNone},
		"composite":                {[]string{"ETag", `"opaque"`, "X-Amz-Checksum-Crc32c", good, "X-Amz-Checksum-Type", "COMPOSITE"}, b, errNone},
		"kms, read back, one less": {[]string{"ETag", `"opaque"`}, b[1:], objstore.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			s := against(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "GET" {
					if c.back == nil {
						w.Header().Set("X-Amz-Request-Id", "1")
						w.WriteHeader(404)
						return
					}
					h := append([]string{}, c.header...)
					object(w, c.back, h...)
					return
				}
				got, err := io.ReadAll(r.Body)
				if err != nil || !bytes.Equal(got, b) {
					t.Errorf("the server got %d bytes: %v", len(got), err)
				}
				if md := r.Header.Get("Content-Md5"); md != "" {
					if raw, _ := base64.StdEncoding.DecodeString(md); hex.EncodeToString(raw) != sum(got) {
						t.Errorf("content-md5 %s", md)
					}
				}
				for i := 0; i < len(c.header); i += 2 {
					w.Header().Set(c.header[i], c.header[i+1])
				}
			})
			for _, body := range []objstore.Body{objstore.Bytes(b), once(b), once(b)} {
				w, err := s.Put(context.Background(), "k", body, objstore.PutOptions{})
				if c.want == errNone {
					if err != nil || w.ETag == "" {
						t.Errorf("%+v, %v", w, err)
					}
					continue
				}
				if err == nil {
					t.Fatal("taken for stored")
				}
				kind(t, err, c.want)
			}
		})
	}
}

var errNone = errors.New("none")

// TestKnownDigest: a body that is not what its MD5 says is stored nowhere, whether the server looks or not.
func TestKnownDigest(t *testing.T) {
	for _, looks := range []bool{true, false} {
		s := against(t, func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if raw, _ := base64.StdEncoding.DecodeString(r.Header.Get("Content-Md5")); looks && hex.EncodeToString(raw) != sum(b) {
				w.WriteHeader(400)
				io.WriteString(w, errorBody("BadDigest"))
				return
			}
			w.Header().Set("ETag", `"`+sum(b)+`"`)
		})
		for _, n := range []int{0, 1, 10 << 10, 1 << 20} {
			b := bytes.Repeat([]byte("x"), n)
			md := md5.Sum(b)
			for _, body := range []objstore.Body{objstore.Bytes(b), once(b)} {
				body.MD5 = md[:]
				if _, err := s.Put(t.Context(), "k", body, objstore.PutOptions{}); err != nil {
					t.Errorf("%d bytes: %v", n, err)
				}
				body.MD5 = make([]byte, md5.Size)
				_, err := s.Put(t.Context(), "k", body, objstore.PutOptions{})
				kind(t, err, objstore.ErrCorrupt)
				_, err = s.PutPart(t.Context(), "k", "u", 1, body)
				kind(t, err, objstore.ErrCorrupt)
			}
		}
	}
}

// TestPartProofs: where nothing in the answer proves a part, its digest is declared before.
func TestPartProofs(t *testing.T) {
	b := bytes.Repeat([]byte("a part of some length. "), 2000) // shorter ones are read before they are sent
	var declared atomic.Int32
	etag := `"opaque"`
	s := against(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Header.Get("Content-Md5") != "" {
			declared.Add(1)
		}
		w.Header().Set("ETag", etag)
	})
	ctx := context.Background()
	_, err := s.PutPart(ctx, "k", "u", 1, once(b))
	kind(t, err, objstore.ErrTransient)
	if declared.Load() != 0 {
		t.Error("a body that cannot be read twice was declared")
	}
	for range 2 {
		if _, err := s.PutPart(ctx, "k", "u", 1, once(b)); err != nil {
			t.Error(err)
		}
	}
	if declared.Load() != 2 {
		t.Errorf("%d of 2 were declared", declared.Load())
	}
	etag = `"` + sum([]byte("another")) + `"`
	_, err = s.PutPart(ctx, "k", "u", 1, once(b))
	kind(t, err, objstore.ErrCorrupt)
}

func TestCompleteProofs(t *testing.T) {
	one, two := sum([]byte("one")), sum([]byte("two"))
	raw, _ := hex.DecodeString(one + two)
	good := sum(raw) + "-2"
	parts := []objstore.Part{{No: 1, Size: 3, ETag: one}, {No: 2, Size: 3, ETag: two}}
	for name, c := range map[string]struct {
		answer string
		size   int
		want   error
	}{
		"right":            {good, 0, errNone},
		"wrong":            {sum([]byte("x")) + "-2", 0, objstore.ErrCorrupt},
		"other count":      {sum(raw) + "-3", 0, objstore.ErrCorrupt},
		"opaque":           {"opaque", 6, errNone},
		"opaque and short": {"opaque", 5, objstore.ErrCorrupt},
		"empty":            {"", 6, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := against(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "HEAD" {
					object(w, make([]byte, c.size), "ETag", `"`+c.answer+`"`)
					return
				}
				fmt.Fprintf(w, `<CompleteMultipartUploadResult><ETag>&quot;%s&quot;</ETag></CompleteMultipartUploadResult>`, c.answer)
			})
			w, err := s.Complete(context.Background(), "k", "u", parts, objstore.PutOptions{})
			if c.want == errNone {
				if err != nil || w.ETag != c.answer {
					t.Errorf("%+v, %v", w, err)
				}
				return
			}
			if err == nil {
				t.Fatal("taken for complete")
			}
			kind(t, err, c.want)
		})
	}
}

func TestGetProofs(t *testing.T) {
	b := bytes.Repeat([]byte("content "), 1000)
	crc := crc32.NewIEEE()
	crc.Write(b)
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		options objstore.GetOptions
		want    error
	}{
		"right":       {func(w http.ResponseWriter, r *http.Request) { object(w, b) }, objstore.GetOptions{}, errNone},
		"other bytes": {func(w http.ResponseWriter, r *http.Request) { object(w, b, "ETag", `"`+sum([]byte("x"))+`"`) }, objstore.GetOptions{}, objstore.ErrCorrupt},
		"encrypted": {func(w http.ResponseWriter, r *http.Request) {
			object(w, b, "ETag", `"`+sum([]byte("x"))+`"`, "X-Amz-Server-Side-Encryption", "aws:kms")
		}, objstore.GetOptions{}, errNone},
		"checksum": {func(w http.ResponseWriter, r *http.Request) {
			object(w, b, "ETag", `"x-2"`, "X-Amz-Checksum-Crc32", base64.StdEncoding.EncodeToString(crc.Sum(nil)))
		}, objstore.GetOptions{}, errNone},
		"wrong checksum": {func(w http.ResponseWriter, r *http.Request) {
			object(w, b, "ETag", `"x-2"`, "X-Amz-Checksum-Crc32", "AAAAAA==")
		}, objstore.GetOptions{}, objstore.ErrCorrupt},
		"cut": {func(w http.ResponseWriter, r *http.Request) {
			hijack(w, "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nLast-Modified: "+modified+"\r\nContent-Length: 1000\r\n\r\nshort")
		}, objstore.GetOptions{}, io.ErrUnexpectedEOF},
		"no length": {func(w http.ResponseWriter, r *http.Request) {
			hijack(w, "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nLast-Modified: "+modified+"\r\n\r\nshort")
		}, objstore.GetOptions{}, nil},
		"longer than its range": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/8000")
			object(w, b[:20], "ETag", `"x"`)
		}, objstore.GetOptions{Len: 10}, objstore.ErrCorrupt},
		"another range": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 10-19/8000")
			object(w, b[:10], "ETag", `"x"`)
		}, objstore.GetOptions{Off: 5, Len: 10}, objstore.ErrCorrupt},
		"a short range": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/8000")
			object(w, b[:5], "ETag", `"x"`)
		}, objstore.GetOptions{Off: 5, Len: 10}, objstore.ErrCorrupt},
		"a range that ends early": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/8000")
			object(w, b[:5], "ETag", `"x"`)
		}, objstore.GetOptions{Off: 5}, objstore.ErrCorrupt},
		"no range":        {func(w http.ResponseWriter, r *http.Request) { object(w, b) }, objstore.GetOptions{Off: 5}, objstore.ErrNotSupported},
		"a range unasked": {func(w http.ResponseWriter, r *http.Request) { object(w, b, "Content-Range", "bytes 0-7999/9000") }, objstore.GetOptions{}, objstore.ErrCorrupt},
		"another state":   {func(w http.ResponseWriter, r *http.Request) { object(w, b) }, objstore.GetOptions{IfTag: "old"}, objstore.ErrChanged},
		"no etag":         {func(w http.ResponseWriter, r *http.Request) { object(w, b, "ETag", "") }, objstore.GetOptions{}, nil},
		"no time":         {func(w http.ResponseWriter, r *http.Request) { object(w, b, "Last-Modified", "") }, objstore.GetOptions{}, nil},
		"metadata hidden": {func(w http.ResponseWriter, r *http.Request) { object(w, b, "X-Amz-Missing-Meta", "1") }, objstore.GetOptions{}, objstore.ErrNotSupported},
		"archived": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, errorBody("InvalidObjectState"))
		}, objstore.GetOptions{},
			objstore.ErrArchived},
		"412": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(412)
			io.WriteString(w, errorBody("PreconditionFailed"))
		},
			objstore.GetOptions{IfTag: "x"}, objstore.ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			s := against(t, c.answer)
			_, body, err := s.Get(context.Background(), "k", c.options)
			n := 0
			if err == nil {
				// A reader that stops at the last byte must not get it before all was proven.
				buf := make([]byte, len(b)+1)
				for err == nil && n < len(b) {
					var m int
					m, err = body.Read(buf[n:])
					n += m
				}
				body.Close()
				if err == io.EOF {
					err = nil
				}
			}
			if c.want == errNone {
				if err != nil || n != len(b) {
					t.Errorf("%d bytes, %v", n, err)
				}
				return
			}
			if err == nil {
				t.Fatalf("%d bytes were taken", n)
			}
			kind(t, err, c.want)
			if n >= len(b) {
				t.Error("all bytes were given though they are not right")
			}
			if errors.Is(c.want, io.ErrUnexpectedEOF) && !objstore.Retryable(err) {
				t.Error("a cut body is final")
			}
		})
	}
}

// TestHeadClock: a HEAD has no body in which the server could say what is wrong.
func TestHeadClock(t *testing.T) {
	s := against(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(20*time.Minute).UTC().Format(http.TimeFormat))
		w.WriteHeader(403)
	})
	_, err := s.Head(context.Background(), "k")
	kind(t, err, objstore.ErrClock)
	s = against(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) })
	_, err = s.Head(context.Background(), "k")
	kind(t, err, objstore.ErrDenied)
}

// TestEarlyYes: a server that says yes before it has read the body has not stored it.
func TestEarlyYes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 4096)
				conn.Read(buf)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nETag: \""+sum(nil)+"\"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				io.Copy(io.Discard, conn)
			}()
		}
	}()
	s := to(t, "http://"+l.Addr().String())
	for _, b := range []objstore.Body{objstore.Bytes(make([]byte, 64<<20)), once(make([]byte, 64<<20))} {
		if _, err := s.Put(context.Background(), "k", b, objstore.PutOptions{}); err == nil {
			t.Error("taken for stored")
		} else if !errors.Is(err, objstore.ErrCorrupt) && !errors.Is(err, objstore.ErrTransient) {
			t.Error(err)
		}
	}
}

// TestKeysAreAsked: keys are asked for at each request, and what is wrong with them is told.
func TestKeysAreAsked(t *testing.T) {
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, credential, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		id, _, _ := strings.Cut(credential, "/")
		got = append(got, id+" "+r.Header.Get("X-Amz-Security-Token"))
		object(w, nil)
	}))
	defer server.Close()
	keys := &turning{}
	s, err := s3.New(s3.Config{Endpoint: server.URL, Bucket: "bucket", PathStyle: true, Credentials: keys})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 3 {
		if _, err := s.Head(context.Background(), "k"); (err != nil) != (i == 2) {
			t.Error(err)
		} else if err != nil && (!errors.Is(err, errTurned) || objstore.Retryable(err)) {
			t.Error(err)
		}
	}
	if want := []string{"KEY0 ", "KEY1 token1"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("keys %q, want %q", got, want)
	}
}

type turning struct{ n int }

var errTurned = errors.New("no more keys")

func (k *turning) Keys(context.Context) (objstore.Keys, error) {
	defer func() { k.n++ }()
	switch k.n {
	case 0:
		return objstore.Keys{ID: "KEY0", Secret: "x"}, nil
	case 1:
		return objstore.Keys{ID: "KEY1", Secret: "y", Token: "token1", Expires: time.Now().Add(time.Second)}, nil
	}
	return objstore.Keys{}, errTurned
}

func TestRequests(t *testing.T) {
	type request struct{ host, uri, header string }
	var got request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got = request{r.Host, r.RequestURI, fmt.Sprint(r.Header)}
		w.Header().Set("ETag", `"`+sum([]byte("x"))+`"`)
	}))
	defer server.Close()
	// Every name is this server: what matters is the Host of the request.
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}}
	defer transport.CloseIdleConnections()
	for _, c := range []struct {
		config s3.Config
		key    string
		want   request
	}{
		{s3.Config{Endpoint: "http://rgw.example:7480", Bucket: "photos", PathStyle: true}, "a b/ä", request{"rgw.example:7480", "/photos/a%20b/%C3%A4", ""}},
		{s3.Config{Endpoint: "http://rgw.example:7480", Bucket: "photos"}, "/a//../%", request{"photos.rgw.example:7480", "//a//../%25", ""}},
		{s3.Config{Endpoint: "http://rgw.example", Bucket: "Photos_1", PathStyle: true}, "/", request{"rgw.example", "/Photos_1//", ""}},
		{s3.Config{Endpoint: "http://rgw.example", Bucket: "x--use1-az4--x-s3"}, "k", request{"x--use1-az4--x-s3.rgw.example", "/k", ""}},
	} {
		c.config.Credentials, c.config.Transport = objstore.Fixed{ID: "KEY", Secret: secret}, transport
		s, err := s3.New(c.config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Put(context.Background(), c.key, objstore.Bytes([]byte("x")), objstore.PutOptions{})
		if err != nil || got.host != c.want.host || got.uri != c.want.uri {
			t.Errorf("%q at %s: %s %s, want %s %s; %v", c.key, s, got.host, got.uri, c.want.host, c.want.uri, err)
		}
		for _, word := range []string{"Trailer", "aws-chunked", "Amz-Sdk-Invocation-Id", "octet-stream", "Checksum"} {
			if strings.Contains(got.header, word) {
				t.Errorf("%s in the header: %s", word, got.header)
			}
		}
	}
}

// TestTLS: a body that cannot be read twice goes over https too, and a server that is not the one it says it is gets nothing.
func TestTLS(t *testing.T) {
	b := bytes.Repeat([]byte("content "), 10_000)
	var got atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Add(n)
		w.Header().Set("ETag", `"`+sum(b)+`"`)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer server.Close()
	put := func(endpoint string, transport http.RoundTripper) error {
		s, err := s3.New(s3.Config{Endpoint: endpoint, Bucket: "bucket", PathStyle: true, Credentials: objstore.Fixed{ID: "KEY", Secret: secret}, Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Put(context.Background(), "k", once(b), objstore.PutOptions{})
		return err
	}
	for _, host := range []string{server.URL, "https://" + strings.Replace(server.Listener.Addr().String(), "127.0.0.1", "localhost", 1)} {
		err := put(host, nil)
		if err == nil {
			t.Fatal("an unknown certificate is taken")
		}
		kind(t, err, nil)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	err := put(strings.Replace(plain.URL, "http", "https", 1), nil)
	if err == nil {
		t.Fatal("no TLS at all is taken")
	}
	kind(t, err, nil)
	if got.Load() != 0 {
		t.Errorf("%d bytes went to a stranger", got.Load())
	}
	transport := s3.NewTransport()
	transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	transport.TLSClientConfig.RootCAs.AddCert(server.Certificate())
	if err := put(server.URL, transport); err != nil || got.Load() != int64(len(b)) {
		t.Errorf("%d bytes, %v", got.Load(), err)
	}
}

func TestConfig(t *testing.T) {
	good := s3.Config{Endpoint: "https://rgw.example", Bucket: "photos", Credentials: objstore.Fixed{ID: "KEY", Secret: secret}}
	for _, c := range []struct {
		change func(*s3.Config)
		want   string
	}{
		{func(c *s3.Config) {}, ""},
		{func(c *s3.Config) { c.Endpoint = "rgw.example" }, ""},
		{func(c *s3.Config) { c.Endpoint = "http://127.0.0.1:80/"; c.PathStyle = true }, ""},
		{func(c *s3.Config) { c.Endpoint, c.Region = "", "cn-north-1" }, ""},
		{func(c *s3.Config) { c.Endpoint = "" }, "region:"},
		{func(c *s3.Config) { c.Region = "cn north" }, "region:"},
		{func(c *s3.Config) { c.Region = "a\nb" }, "region:"},
		{func(c *s3.Config) { c.Endpoint = "ftp://rgw.example" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "https://rgw.example/photos" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "https://rgw.example?x" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "https://" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "https://user:" + secret + "@rgw.example" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "https://" + secret + "@rgw:x" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "http://127.0.0.1:80" }, "endpoint:"},
		{func(c *s3.Config) { c.Endpoint = "http://[::1]:80" }, "endpoint:"},
		{func(c *s3.Config) { c.Bucket = "" }, "bucket:"},
		{func(c *s3.Config) { c.Bucket = "a/b" }, "bucket:"},
		{func(c *s3.Config) { c.Bucket = "../b"; c.PathStyle = true }, "bucket:"},
		{func(c *s3.Config) { c.Bucket = "Photos" }, "bucket:"},
		{func(c *s3.Config) { c.Bucket = "a.b" }, "bucket:"},
		{func(c *s3.Config) { c.Bucket = "a.b"; c.PathStyle = true }, ""},
		{func(c *s3.Config) { c.Credentials = nil }, "credentials:"},
	} {
		config := good
		c.change(&config)
		err := config.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", config, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("a secret: %v", err)
		}
		if _, err2 := s3.New(config); (err2 == nil) != (err == nil) {
			t.Errorf("validate says %v, new %v", err, err2)
		}
	}
	s, err := s3.New(good)
	if err != nil || s.String() != "s3://photos at https://rgw.example" || fmt.Sprintf("%#v", s) != s.String() {
		t.Errorf("%#v, %v", s, err)
	}
}
