package s3

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"
)

// TestSign: signatures are those of the SDK.
func TestSign(t *testing.T) {
	theirs := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	ours := &signer{region: "eu-west-1"}
	for i, c := range []struct {
		method, key, query string
		header             http.Header
		length             int64
		keys               aws.Credentials
	}{
		{"GET", "data/00/000001", "", http.Header{"If-Match": {`"x"`}, "X-Amz-Checksum-Mode": {"ENABLED"}}, 0, aws.Credentials{AccessKeyID: "K", SecretAccessKey: "s"}},
		{"GET", "a b/ä//../%+~", "", http.Header{"Range": {"bytes=1-2"}}, 0, aws.Credentials{AccessKeyID: "K", SecretAccessKey: "another"}},
		{"PUT", "k", "", http.Header{"Content-Md5": {"x=="}, "X-Amz-Meta-A-B": {"one  two   three", "four"}, "Cache-Control": {"a, b"}, "X-Amz-Meta-Empty": {""}}, 10240,
			aws.Credentials{AccessKeyID: "L", SecretAccessKey: "s", SessionToken: "token/+="}},
		{"PUT", "k", "partNumber=7&uploadId=" + httpbinding.EscapePath("2~a b+/=ü&x", true), http.Header{}, 5 << 30, aws.Credentials{AccessKeyID: "L", SecretAccessKey: "s"}},
		{"PUT", "empty", "", http.Header{"Expires": {"0"}, "If-None-Match": {"*"}, "X-Amz-Meta-Ü": {"ü  ü"}}, 0, aws.Credentials{AccessKeyID: "L", SecretAccessKey: "s"}},
	} {
		for day := range 2 {
			now := time.Date(2026, 11, 28+day, 23, 59, 59, 0, time.FixedZone("", 3600))
			u := &url.URL{Scheme: "http", Host: "127.0.0.1:7480", Path: "/bucket/" + c.key, RawPath: "/bucket/" + httpbinding.EscapePath(c.key, false), RawQuery: c.query}
			a := &http.Request{Method: c.method, URL: u, Host: u.Host, Header: c.header.Clone(), ContentLength: c.length}
			v := *u
			b := &http.Request{Method: c.method, URL: &v, Host: u.Host, Header: c.header.Clone(), ContentLength: c.length}
			ours.sign(a, c.keys, unsigned, now)
			b.Header["X-Amz-Content-Sha256"] = unsigned
			if err := theirs.SignHTTP(context.Background(), c.keys, b, unsigned[0], "s3", "eu-west-1", now); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(a.Header) != fmt.Sprint(b.Header) || a.URL.RawQuery != b.URL.RawQuery {
				t.Errorf("%d: %v %q\nwant %v %q", i, a.Header, a.URL.RawQuery, b.Header, b.URL.RawQuery)
			}
		}
	}
}
