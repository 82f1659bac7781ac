package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/moverd/mover/objstore"
)

// kinds are the codes of S3 and Ceph RGW that the contract does not know, or that mean something else here.
var kinds = map[string]error{
	"InvalidObjectName": objstore.ErrNotSupported, "InvalidURI": objstore.ErrNotSupported, "KeyTooLong": objstore.ErrNotSupported,
	"EntityTooSmall": objstore.ErrNotSupported, "InvalidStorageClass": objstore.ErrNotSupported, "InvalidTag": objstore.ErrNotSupported,
	"MethodNotAllowed": objstore.ErrNotSupported, "AccessControlListNotSupported": objstore.ErrNotSupported, "InvalidPartNumber": objstore.ErrNotSupported,
	"ConditionalRequestConflict": objstore.ErrTransient, "InvalidDigest": objstore.ErrCorrupt,
	// Final, though their statuses look like a right or a hurry.
	"QuotaExceeded": nil, "AuthorizationHeaderMalformed": nil, "PermanentRedirect": nil, "TemporaryRedirect": nil, "Redirect": nil, "InvalidRange": nil,
}

// gone are the codes that say that something is not there. A HEAD has none: its status counts if the answer has the id that stores give each request.
var gone = map[string]bool{"NoSuchKey": true, "NoSuchBucket": true, "NoSuchUpload": true}

// skewed is by how much clocks may differ before servers refuse signatures.
const skewed = 15 * time.Minute

// fail is err as the contract has it. ctx is the one of the call, op and key are what was asked for.
func (s *Store) fail(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	e := &objstore.Error{Op: op, Store: s.name, Key: key}
	var answer *smithyhttp.ResponseError
	var header http.Header
	if errors.As(err, &answer) && answer.Response != nil && answer.Response.Response != nil {
		e.Status = answer.Response.StatusCode
		header = answer.Response.Header
		s.learn(header)
	}
	var id interface{ ServiceRequestID() string }
	if errors.As(err, &id) {
		e.Request = id.ServiceRequestID()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		e.Code = api.ErrorCode()
		if text := api.ErrorMessage(); text != "" && text != e.Code && text != "UnknownError" && !strings.EqualFold(text, http.StatusText(e.Status)) {
			e.Err = errors.New(text)
		}
		e.Kind = kindOf(e.Status, e.Code)
		if e.Kind == objstore.ErrDenied && header != nil && apart(header.Get("Date"), time.Now()) > skewed {
			// A HEAD has no body to say it in.
			e.Kind, e.Err = objstore.ErrClock, fmt.Errorf("the server's clock shows %s", header.Get("Date"))
		}
	} else {
		e.Err = cause(ctx, err)
		e.Kind = sentKind(ctx, err, e.Status)
	}
	if (e.Kind == objstore.ErrDenied || e.Kind == nil && e.Status == http.StatusBadRequest) && objstore.Refused(s.keys, signed(answer)) {
		// A session may end before its time, and HEAD does not say that it has.
		e.Kind = objstore.ErrTransient
	}
	if e.Kind == objstore.ErrNotFound && !gone[e.Code] && (e.Code != "NotFound" || e.Request == "") {
		// A proxy's page, a user that is not known: not that the object is gone, which a flow may act upon.
		e.Kind, e.Err = nil, errors.Join(e.Err, errors.New("it is not the store that says so, or not of the object"))
	}
	if e.Status >= 300 && e.Status < 400 {
		e.Kind, e.Err = nil, fmt.Errorf("the store points elsewhere (%s), which is not followed: check endpoint and region", place(header))
	}
	return e
}

// signed is the token of the session that signed the request which this answers.
func signed(answer *smithyhttp.ResponseError) string {
	if answer == nil || answer.Response == nil || answer.Response.Response == nil || answer.Response.Response.Request == nil {
		return ""
	}
	return answer.Response.Response.Request.Header.Get("X-Amz-Security-Token")
}

// kindOf sorts what the server has said.
func kindOf(status int, code string) error {
	if kind, ok := kinds[code]; ok {
		return kind
	}
	return objstore.KindOf(status, code, nil)
}

// sentKind sorts what happened where the server has said nothing that was understood.
func sentKind(ctx context.Context, err error, status int) error {
	var unsent *smithyhttp.RequestSendError
	var wrong *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var body errBody
	var keys errKeys
	switch {
	case errors.As(err, &body), errors.As(err, &keys):
		return nil // it has its own kind, or none
	case ctx.Err() != nil:
		return nil // the caller's end. A dial that took too long calls itself context.DeadlineExceeded too
	case errors.As(err, &wrong), errors.As(err, &record), errors.As(err, &alert), errors.Is(err, http.ErrSchemeMismatch):
		return nil // another try meets the same server
	case errors.Is(err, io.ErrUnexpectedEOF):
		return objstore.ErrTransient // an answer was cut, whatever its status
	case status != 0:
		return objstore.KindOf(status, "", nil)
	case errors.As(err, &unsent):
		return objstore.ErrTransient
	}
	return objstore.KindOf(0, "", err)
}

// cause takes off what the SDK has wrapped around an error.
func cause(ctx context.Context, err error) error {
	var body errBody
	var keys errKeys
	var unsent *smithyhttp.RequestSendError
	var unread *smithy.DeserializationError
	var operation *smithy.OperationError
	switch {
	case errors.As(err, &body):
		return body
	case errors.As(err, &keys):
		return keys
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &unsent):
		return unsent.Err
	case errors.As(err, &unread):
		return fmt.Errorf("an answer that is not understood: %w", unread.Err)
	case errors.As(err, &operation):
		return operation.Err
	}
	return err
}

// apart is how far the date of an answer is from now; 0 where it has none.
func apart(date string, now time.Time) time.Duration {
	t, err := http.ParseTime(date)
	if err != nil {
		return 0
	}
	return t.Sub(now).Abs()
}

// place is where a redirect points, without a query that may have a signature in it.
func place(header http.Header) string {
	to, _, _ := strings.Cut(header.Get("Location"), "?")
	if region := header.Get("X-Amz-Bucket-Region"); region != "" {
		to = strings.TrimSpace(to + " region " + region)
	}
	if to == "" {
		return "it does not say where"
	}
	return to
}

// wrong is an answer of success that is none.
func (s *Store) wrong(op, key string, kind error, format string, a ...any) error {
	return &objstore.Error{Op: op, Store: s.name, Key: key, Kind: kind, Err: fmt.Errorf(format, a...)}
}

// errBody wraps what the body of a request has failed with itself.
type errBody struct{ error }

func (e errBody) Unwrap() error { return e.error }
