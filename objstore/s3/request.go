package s3

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/encoding/httpbinding"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// caller makes the calls that carry the bytes of objects (GetObject, PutObject, UploadPart) of net/http. The SDK's own thirty steps for each take more of a core than
// all else that a small object needs. Every other call is the SDK's. Errors are those that the SDK has, so fail reads both.
type caller struct {
	base      url.URL // of the bucket
	host      string
	keys      provider
	signer    signer
	transport http.RoundTripper
}

func newCaller(c Config, base *url.URL, transport http.RoundTripper) *caller {
	w := &caller{base: *base, host: base.Host, keys: provider{c.Credentials}, transport: transport, signer: signer{region: c.region()}}
	if port := base.Port(); base.Scheme == "http" && port == "80" || base.Scheme == "https" && port == "443" {
		w.host = strings.TrimSuffix(base.Host, ":"+port) // as servers sign it
	}
	return w
}

// What is signed as the digest of a body.
var (
	noBody   = []string{"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"} // SHA-256 of nothing
	unsigned = []string{"UNSIGNED-PAYLOAD"}                                                 // that would take a pass over it before; Content-MD5 is signed, where there is one
)

// content is the body of a request: bytes, or a stream.
type content struct {
	size   int64
	bytes  []byte // never changed again: the transport may look at it after the answer
	stream io.Reader
}

const expectFrom = 2 << 20 // bytes of a body that wait until the server has said that it takes them

var (
	agent     = []string{"mover"}
	identity  = []string{"identity"}
	expecting = []string{"100-continue"}
)

// do sends a request for key, with a query that is sorted and encoded as AWS does it, and gives an answer of success. c is nil for a GET, whose body is the caller's to
// close. The header becomes the request's. Nothing of c.stream is read after it has returned.
func (w *caller) do(ctx context.Context, method, key, query string, header http.Header, c *content) (*http.Response, error) {
	keys, err := w.keys.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	u := w.base
	u.RawPath = u.Path + "/" + httpbinding.EscapePath(key, false) // a bucket's name has nothing to escape
	u.Path += "/" + key
	u.RawQuery = query
	r := &http.Request{Method: method, URL: &u, Host: w.host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	digest := noBody
	var body *lent
	if c != nil {
		digest = unsigned
		switch r.ContentLength = c.size; {
		case c.size == 0:
		case c.bytes != nil:
			// With GetBody the transport takes another connection where the server has closed this one before anything was written.
			r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.bytes)), nil }
			r.Body, _ = r.GetBody()
		default:
			body = &lent{r: c.stream}
			r.Body = body
		}
	}
	w.signer.sign(r, keys, digest, time.Now())
	header["User-Agent"] = agent
	if c == nil {
		header["Accept-Encoding"] = identity // or a transport of the caller's may unpack what is stored
	} else if c.size >= expectFrom {
		header["Expect"] = expecting
	}
	resp, err := w.transport.RoundTrip(r.WithContext(ctx))
	if body != nil {
		body.Close()
	}
	if err != nil {
		return nil, &smithyhttp.RequestSendError{Err: err}
	}
	if resp.StatusCode/100 == 2 && c == nil {
		return resp, nil
	}
	return resp, judge(resp)
}

// textMost is how much of an answer is read that is no object.
const textMost = 256 << 10

// judge reads an answer that has no object's bytes to its end, so that its connection is free again. One that is no success becomes an error as the SDK has it; an
// error inside a 200 is one of the server.
func judge(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, textMost))
	resp.Body.Close()
	var said struct {
		XMLName   xml.Name
		Code      string `xml:"Code"`
		Message   string `xml:"Message"`
		RequestID string `xml:"RequestId"`
	}
	good := resp.StatusCode/100 == 2
	switch {
	case good && err != nil:
		return &smithyhttp.RequestSendError{Err: err}
	case err == nil && len(text) > 0:
		err = xml.Unmarshal(text, &said)
	}
	if good {
		if said.XMLName.Local != "Error" {
			return nil
		}
		resp.StatusCode = http.StatusInternalServerError
	}
	switch {
	case err != nil:
		err = &smithy.DeserializationError{Err: err}
	case said.Code == "" && said.Message == "": // the status has to do
		status := http.StatusText(resp.StatusCode)
		err = &smithy.GenericAPIError{Code: strings.ReplaceAll(status, " ", ""), Message: status}
	default:
		err = &smithy.GenericAPIError{Code: said.Code, Message: said.Message}
	}
	id := said.RequestID
	if id == "" {
		id = resp.Header.Get("X-Amz-Request-Id")
	}
	return &awshttp.ResponseError{RequestID: id, ResponseError: &smithyhttp.ResponseError{Response: &smithyhttp.Response{Response: resp}, Err: err}}
}

// lent is a stream that a transport reads until it has to give it back.
type lent struct {
	mu sync.Mutex
	r  io.Reader
}

// Read gives io.EOF after Close: a transport that has sent all may still look for the end, and one that has not finds that bytes are missing.
func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, io.EOF
	}
	return l.r.Read(p)
}

// Close waits for a Read that is under way.
func (l *lent) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = nil
	return nil
}
