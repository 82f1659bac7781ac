package bosemu_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moverd/mover/objstore/bosemu"
)

// Whatever comes, the emulator answers, by its own codes, and goes on.
func FuzzRequest(f *testing.F) {
	for _, c := range [][5]string{
		{"GET", "/photos/k", "", "Range", "bytes=1-2"}, {"GET", "/photos/k", "", "Range", "bytes=-99999999999999999999"}, {"HEAD", "/photos/k", "", "If-None-Match", "*"},
		{"PUT", "/photos/n", "", "x-bce-meta-a", "b"}, {"PUT", "/photos/n", "", "x-bce-copy-source", "/photos/k"}, {"PUT", "/photos/n", "partNumber=0&uploadId=x", "x-bce-copy-source-range", "bytes=5-"},
		{"POST", "/photos/n", "uploads", "x-bce-tagging", "a=b&c"}, {"POST", "/photos/n", "uploadId=", "", ""}, {"POST", "/photos", "delete", "", ""}, {"POST", "/photos/k", "restore", "x-bce-restore-days", "-1"},
		{"GET", "/photos", "prefix=k&delimiter=/&marker=%00&maxKeys=1", "", ""}, {"GET", "/photos", "uploads&maxUploads=-1", "", ""}, {"PUT", "/photos", "acl", "x-bce-acl", "public-read"},
		{"PUT", "/photos/k", "acl", "x-bce-grant-read", `id="`}, {"PUT", "/photos/k", "tagging", "", ""}, {"DELETE", "/photos/k", "%zz", "", ""},
		{"GET", "/photos/k", "authorization=bce-auth-v1/a/b/c/d/e", "Authorization", "bce-auth-v1/ak-alice/2026-01-01T00:00:00Z/1/;;/0"},
	} {
		f.Add(c[0], c[1], c[2], c[3], c[4], `{"objects":[{"key":"a"}]}`)
	}
	f.Fuzz(func(t *testing.T, method, path, query, name, value, body string) {
		emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "s"}},
			Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", ACL: "public-read-write"}}})
		if err != nil {
			t.Fatal(err)
		}
		send := func(method, path, query, name, value, body string) int {
			r, err := http.NewRequest(method, "http://emulator/", strings.NewReader(body))
			if err != nil {
				t.Skip()
			}
			r.URL.Path, r.URL.RawQuery = path, query
			if name != "" {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			emu.ServeHTTP(w, r)
			return w.Code
		}
		if code := send("PUT", "/photos/k", "", "", "", "hello"); code != 200 {
			t.Fatal(code)
		}
		if code := send(method, path, query, name, value, body); code >= 500 && code != 501 {
			t.Errorf("%s %q?%q %q: %q: %d", method, path, query, name, value, code)
		}
		if code := send("GET", "/photos/other", "", "", "", ""); code != 404 && code != 200 && code != 403 {
			t.Errorf("afterwards: %d", code)
		}
	})
}
