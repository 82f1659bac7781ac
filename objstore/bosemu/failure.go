package bosemu

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// failure is an error as BOS tells it.
type failure struct {
	status        int
	code, message string
}

func (f *failure) Error() string { return f.code + ": " + f.message }

func fail(code, format string, args ...any) *failure {
	status, ok := statuses[code]
	if !ok {
		status = http.StatusBadRequest
	}
	return &failure{status, code, fmt.Sprintf(format, args...)}
}

// statuses are those of the codes that are not 400.
var statuses = map[string]int{
	"AccessDenied": 403, "InvalidAccessKeyId": 403, "SignatureDoesNotMatch": 403, "RequestTimeTooSkewed": 403, "InvalidSessionToken": 403,
	"InvalidObjectState": 403, "AccountOverdue": 403,
	"NoSuchBucket": 404, "NoSuchKey": 404, "NoSuchUpload": 404, "RoleNotFound": 404,
	"MethodNotAllowed": 405, "BucketAlreadyExists": 409, "BucketNotEmpty": 409, "RestoreAlreadyInProgress": 409,
	"MissingContentLength": 411, "PreconditionFailed": 412, "InvalidRange": 416, "RequestRateLimitExceeded": 429,
	"InternalError": 500, "NotImplemented": 501, "ServiceUnavailable": 503, "SlowDown": 503,
}

// answerJSON writes v with its length, which no answer of BOS lacks.
func (q *request) answerJSON(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	q.w.WriteHeader(status)
	_, err = q.w.Write(b)
	return err
}

func (q *request) answerEmpty(status int) error {
	q.w.Header().Set("Content-Length", "0")
	q.w.WriteHeader(status)
	return nil
}

// answerFailure tells err; to a HEAD only by its status.
func (q *request) answerFailure(f *failure) {
	for _, h := range []string{"ETag", "Last-Modified", "Content-Range", "Content-Length"} {
		q.w.Header().Del(h)
	}
	if q.r.Method == http.MethodHead {
		q.w.WriteHeader(f.status)
		return
	}
	if f.code == "EntityTooLarge" && q.r.Body != nil { // who is still sending when the connection ends may not come to read why
		_, _ = io.CopyN(io.Discard, q.r.Body, 4<<20)
	}
	_ = q.answerJSON(f.status, map[string]string{"code": f.code, "message": f.message, "requestId": q.id})
}
