package bos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/baidubce/bce-sdk-go/auth"
	"github.com/baidubce/bce-sdk-go/bce"
	sdkhttp "github.com/baidubce/bce-sdk-go/http"
	"github.com/baidubce/bce-sdk-go/services/bos/api"
	sdkutil "github.com/baidubce/bce-sdk-go/util"

	"github.com/moverd/mover/objstore"
)

// call is one request, as the bce.Client that the functions of the SDK are given. It keeps what those throw away: headers, statuses, and causes as errors. The
// SDK's own client is not used: it keeps a transport in a global variable, turns causes into text, and takes redirects and errors inside a 200 for success.
type call struct {
	s       *Store
	ctx     context.Context
	caller  context.Context
	cancel  context.CancelCauseFunc
	stop    func() bool
	op, key string
	bytes   bool // the answer's body is an object's: it is left to the caller
	absent  bool // the call is refused where an object is there

	token   string // of the session that has signed it; may be empty
	header  http.Header
	status  int
	length  int64 // of the answer's body; -1: not told
	code    string
	message string
	cause   error
	done    bool // a good answer came
}

// begin starts a call. The caller ends it.
func (s *Store) begin(ctx context.Context, op, key string) *call {
	c := &call{s: s, caller: ctx, op: op, key: key}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.stop = context.AfterFunc(s.life, func() { c.cancel(context.Cause(s.life)) })
	if s.life.Err() != nil { // that function runs some time
		c.cancel(context.Cause(s.life))
	}
	return c
}

// end lets go of what the call holds; the body of its answer cannot be read after it.
func (c *call) end() {
	c.stop()
	c.cancel(context.Canceled)
}

// context is what the functions of the SDK are given. No MD5 of bodies, no path style: the SDK takes that for IP addresses and hosts that are not Baidu's anyway.
func (c *call) context() *api.BosContext {
	return &api.BosContext{Ctx: c.ctx, ApiVersion: api.API_VERSION_V1}
}

// GetBceClientConfig implements bce.Client.
func (c *call) GetBceClientConfig() *bce.BceClientConfiguration { return c.s.config }

// SendRequestV2 implements bce.Client.
func (c *call) SendRequestV2(req *bce.BceRequest, resp *bce.BceResponse) error {
	return c.SendRequest(req, resp)
}

// SendRequestFromBytes implements bce.Client.
func (c *call) SendRequestFromBytes(*bce.BceRequest, *bce.BceResponse, []byte) error {
	return errors.New("not used")
}

// SendRequest implements bce.Client: it signs, sends once, and gives back only clear successes.
func (c *call) SendRequest(req *bce.BceRequest, resp *bce.BceResponse) error {
	if err := req.ClientError(); err != nil {
		return err
	}
	if req.Endpoint() == "" { // functions of BOS set it, others leave it to the client
		req.SetEndpoint(c.s.endpoint)
	}
	if err := c.sign(req); err != nil {
		c.cause = err
		return err
	}
	answer, err := c.s.client.Do(c.build(req))
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) { // its text is the address; and any such error passes for one of the network
			err = u.Err
		}
		c.cause = err
		return err
	}
	c.header, c.status, c.length = answer.Header, answer.StatusCode, answer.ContentLength
	if c.status/100 != 2 {
		return c.refused(answer)
	}
	if !c.bytes {
		if err := c.read(answer); err != nil {
			return err
		}
	}
	var r sdkhttp.Response
	r.SetHttpResponse(answer)
	resp.SetHttpResponse(&r)
	resp.ParseResponse()
	c.done = true
	return nil
}

// sign asks for the keys that are good now, and signs what goes out.
func (c *call) sign(req *bce.BceRequest) error {
	keys, err := c.s.keys.Keys(c.ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", objstore.ErrKeys, err)
	}
	if keys.ID == "" || keys.Secret == "" {
		return fmt.Errorf("%w: the access key or its secret is empty: %w", objstore.ErrKeys, objstore.ErrDenied)
	}
	c.token = keys.Token
	req.BuildHttpRequest()
	req.SetHeader(sdkhttp.HOST, req.Host())
	req.SetHeader(sdkhttp.USER_AGENT, c.s.agent)
	req.SetHeader(sdkhttp.BCE_DATE, sdkutil.FormatISO8601Date(sdkutil.NowUTCSeconds()))
	if req.Header(sdkhttp.CONTENT_TYPE) == "" {
		req.SetHeader(sdkhttp.CONTENT_TYPE, bce.DEFAULT_CONTENT_TYPE)
	}
	new(auth.BceV1Signer).Sign(&req.Request, &auth.BceCredentials{AccessKeyId: keys.ID, SecretAccessKey: keys.Secret, SessionToken: keys.Token},
		&auth.SignOptions{HeadersToSign: auth.DEFAULT_HEADERS_TO_SIGN, ExpireSeconds: auth.DEFAULT_EXPIRE_SECONDS})
	return nil
}

// build makes the request of net/http. Its path is encoded as it was signed.
func (c *call) build(req *bce.BceRequest) *http.Request {
	r := &http.Request{
		Method: req.Method(), Header: http.Header{}, ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: req.Protocol(), Host: req.Host(), Path: req.Uri(), RawPath: sdkutil.UriEncode(req.Uri(), false), RawQuery: req.QueryString()},
	}
	for k, v := range req.Headers() {
		r.Header.Set(k, v)
	}
	r.Header.Set("Accept-Encoding", "identity")
	if req.Body() != nil && req.Length() > 0 {
		r.Body, r.ContentLength = req.Body(), req.Length()
	}
	return r.WithContext(c.ctx)
}

// answerMost bounds what is read of an answer that is not an object: a page of 1,000 long names, all escaped, has 8 MB.
const answerMost = 32 << 20

// read takes the body of an answer into memory and looks for an error in it.
func (c *call) read(answer *http.Response) error {
	timer := c.patience()
	defer timer.Stop()
	defer answer.Body.Close()
	var b bytes.Buffer
	for {
		n, err := io.CopyN(&b, answer.Body, 64<<10)
		timer.Reset(c.s.timeouts.Stall)
		if err == io.EOF {
			break
		}
		if err != nil {
			c.cause = err
			return err
		}
		if n > 0 && b.Len() > answerMost {
			c.cause = fmt.Errorf("the answer has more than %d bytes", answerMost)
			return c.cause
		}
	}
	answer.Body = io.NopCloser(bytes.NewReader(b.Bytes()))
	if b.Len() == 0 {
		answer.Header.Set("Content-Length", "0") // the SDK reads a body that is not there otherwise
	}
	if b.Len() < 8<<10 && c.inside(b.Bytes()) {
		return errors.New("an error inside an answer of success")
	}
	return nil
}

// inside tells whether a body is an error.
func (c *call) inside(b []byte) bool {
	var f struct{ Code, Message, RequestID string }
	if json.Unmarshal(b, &f) != nil || f.Code == "" || strings.EqualFold(f.Code, "success") {
		return false
	}
	c.code, c.message = f.Code, f.Message
	return true
}

// refused reads why. An answer to HEAD has no body.
func (c *call) refused(answer *http.Response) error {
	defer answer.Body.Close()
	timer := c.patience()
	defer timer.Stop()
	b, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if !c.inside(b) && c.status/100 == 3 {
		to, _ := url.Parse(answer.Header.Get("Location"))
		if to == nil {
			to = new(url.URL)
		}
		c.message = fmt.Sprintf("redirected to %q: the endpoint is not that of the bucket's region", to.Host)
	}
	return errors.New("refused")
}

// patience ends the call when nothing comes for a while.
func (c *call) patience() *time.Timer {
	return time.AfterFunc(c.s.timeouts.Stall, func() { c.cancel(errStalled) })
}

var errStalled = errors.New("no byte came for too long")

// failed makes the error of a call. err is what the SDK said, which is used only where nothing better is known.
func (c *call) failed(err error) error {
	e := &objstore.Error{Op: c.op, Store: c.s.name, Key: c.key, Status: c.status, Code: c.code, Request: c.header.Get("x-bce-request-id")}
	switch cause := context.Cause(c.ctx); {
	case c.caller.Err() != nil:
		e.Err = context.Cause(c.caller)
		if !errors.Is(e.Err, c.caller.Err()) {
			e.Err = errors.Join(c.caller.Err(), e.Err)
		}
		return e
	case errors.Is(cause, errClosed):
		e.Err = errClosed
		return e
	case errors.Is(cause, errStalled):
		e.Kind, e.Err = objstore.ErrTransient, errStalled
		return e
	case errors.As(c.cause, new(wrongBody)): // another try would have the same bytes
		e.Err = c.cause
		return e
	case c.cause != nil:
		if e.Kind, e.Err = objstore.KindOf(0, "", c.cause), c.cause; e.Kind == nil && broken(c.cause) {
			e.Kind = objstore.ErrTransient
		}
		return e
	case c.done: // a good status, and a body that cannot be read: cut short, or of something in between
		e.Kind, e.Err = objstore.ErrTransient, fmt.Errorf("the answer cannot be read: %w", err)
		return e
	case c.code == "" && c.status == 0: // the SDK sent nothing
		e.Err = err
		return e
	}
	if e.Kind = c.kind(); c.message != "" {
		e.Err = errors.New(c.message)
	}
	if e.Kind == objstore.ErrDenied && objstore.Refused(c.s.keys, c.token) { // a session may end before its time, and HEAD does not say that it has
		e.Kind = objstore.ErrTransient
	}
	return e
}

// broken tells of errors of net/http that have a text only: a connection that ended when it was to be used again, or what is no HTTP.
func broken(err error) bool {
	text := err.Error()
	return strings.Contains(text, "server closed idle connection") || strings.Contains(text, "connection broken") || strings.Contains(text, "malformed HTTP")
}

// kind sorts an answer that is no success.
func (c *call) kind() error {
	if c.absent && (c.status == http.StatusPreconditionFailed || c.status == http.StatusConflict) {
		return objstore.ErrExists
	}
	if kind, ok := kinds[c.code]; ok {
		return kind
	}
	if c.code == "" && (c.status == http.StatusBadRequest || c.status == http.StatusForbidden) {
		// HEAD does not say why: the clocks do.
		if at, err := http.ParseTime(c.header.Get("Date")); err == nil && time.Since(at).Abs() > 10*time.Minute {
			return objstore.ErrClock
		}
	}
	status := c.status
	if status/100 <= 3 {
		status = 0
	}
	return objstore.KindOf(status, c.code, nil)
}

// kinds are codes of BOS that objstore does not know.
var kinds = map[string]error{
	"InvalidHTTPAuthHeader": objstore.ErrDenied, "AccountOverdue": objstore.ErrDenied, "OptInRequired": objstore.ErrDenied,
	"InvalidObjectName": objstore.ErrNotSupported, "EntityTooSmall": objstore.ErrNotSupported, "MethodNotAllowed": objstore.ErrNotSupported,
	"NoSuchVersion": objstore.ErrNotFound, "SymlinkTargetNotExist": objstore.ErrNotFound,
}

// unclear is the error of an answer that lacks something.
func (c *call) unclear(format string, args ...any) error {
	return &objstore.Error{Op: c.op, Store: c.s.name, Key: c.key, Status: c.status, Request: c.header.Get("x-bce-request-id"),
		Kind: objstore.ErrTransient, Err: fmt.Errorf("the answer is no clear success: "+format, args...)}
}

// unfit is the error of a call that is not sent.
func (s *Store) unfit(op, key string, err error) error {
	return &objstore.Error{Op: op, Store: s.name, Key: key, Kind: objstore.ErrNotSupported, Err: err}
}
