package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/moverd/mover/internal/sentinel"
)

// Kinds of errors, for errors.Is.
var (
	ErrNotFound     = sentinel.ErrNotFound     // bucket, object or upload
	ErrDenied       = sentinel.ErrDenied       // wrong key, signature or right; an expired token
	ErrCorrupt      = sentinel.ErrCorrupt      // bytes are not what they were
	ErrNotSupported = sentinel.ErrNotSupported // the store cannot do it, or takes no such key, size or attribute
	ErrRefused      = sentinel.ErrRefused      // a region that is not allowed

	ErrChanged   = errors.New("changed")       // the object is not in the state that was asked for
	ErrExists    = errors.New("exists")        // an object of this key is there
	ErrArchived  = errors.New("archived")      // the object has to be restored first
	ErrClock     = errors.New("clock")         // clocks differ by too much
	ErrSlowDown  = errors.New("slow down")     // the store asks for fewer requests
	ErrTransient = errors.New("tried in vain") // the store or the line failed: another try may succeed
	ErrKeys      = errors.New("no keys")       // there is nothing to sign with: so it is for every object
)

// Error is a call that failed.
type Error struct {
	Op      string // "get", "put part", ...
	Store   string // as Store.String
	Key     string // or upload, part; may be empty
	Status  int    // of HTTP; 0: none came
	Code    string // as the store calls it; may be empty
	Request string // the store's id of the request; may be empty
	Kind    error  // one of those above; nil: none of them
	Err     error  // the cause; may be nil
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", e.Op)
	if e.Key != "" {
		fmt.Fprintf(&b, " %q", e.Key)
	}
	fmt.Fprintf(&b, " (%s)", e.Store)
	if e.Kind != nil {
		fmt.Fprintf(&b, ": %v", e.Kind)
	}
	if e.Status != 0 || e.Code != "" {
		fmt.Fprintf(&b, ": %s", strings.TrimSpace(fmt.Sprintf("%s %s", status(e.Status), e.Code)))
	}
	if e.Request != "" {
		fmt.Fprintf(&b, ", request %s", e.Request)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func status(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// Unwrap lets errors.Is find the kind and the cause.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Retryable tells whether the same call may succeed at another try. Errors that are not known are final; so is the end of the caller's context.
func Retryable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrTransient) {
		return false
	}
	return errors.Is(err, ErrSlowDown) || errors.Is(err, ErrTransient)
}

// KindOf sorts an answer by its status and code, and what came instead of one. The codes are those that S3 and BOS have in common; a driver asks its own first.
func KindOf(status int, code string, err error) error {
	if kind, ok := codes[code]; ok {
		return kind
	}
	var op net.Error
	switch {
	case status == 404:
		return ErrNotFound
	case status == 401 || status == 403:
		return ErrDenied
	case status == 412:
		return ErrChanged
	case status == 429 || status == 503:
		return ErrSlowDown
	case status == 408 || status >= 500 && status != 501:
		return ErrTransient
	case status == 501:
		return ErrNotSupported
	case status == 0 && (errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		return ErrTransient
	}
	return nil
}

var codes = map[string]error{
	"NoSuchKey": ErrNotFound, "NoSuchBucket": ErrNotFound, "NoSuchUpload": ErrNotFound, "NotFound": ErrNotFound,
	"AccessDenied": ErrDenied, "InvalidAccessKeyId": ErrDenied, "SignatureDoesNotMatch": ErrDenied, "ExpiredToken": ErrDenied, "InvalidToken": ErrDenied,
	"InvalidSessionToken": ErrDenied, "AccountProblem": ErrDenied,
	"RequestTimeTooSkewed": ErrClock, "RequestExpired": ErrClock,
	"PreconditionFailed": ErrChanged, "InvalidObjectState": ErrArchived,
	"SlowDown": ErrSlowDown, "RequestRateLimitExceeded": ErrSlowDown, "TooManyRequests": ErrSlowDown, "Throttling": ErrSlowDown, "QpsLimitExceeded": ErrSlowDown,
	"InternalError": ErrTransient, "ServiceUnavailable": ErrSlowDown, "RequestTimeout": ErrTransient, "OperationAborted": ErrTransient,
	"BadDigest": ErrCorrupt, "XAmzContentSHA256Mismatch": ErrCorrupt, "IncompleteBody": ErrTransient,
	"EntityTooLarge": ErrNotSupported, "KeyTooLongError": ErrNotSupported, "MetadataTooLarge": ErrNotSupported, "MetaExceedLimit": ErrNotSupported,
	"NotImplemented": ErrNotSupported,
}
