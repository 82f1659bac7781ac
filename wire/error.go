package wire

import (
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

var codes = [...]struct {
	name string
	is   error
}{
	CodeProtocol: {"protocol", sentinel.ErrProtocol},
	CodeVersion:  {"version", sentinel.ErrNotSupported},
	CodeDenied:   {"denied", sentinel.ErrDenied},
	CodeFenced:   {"fenced", sentinel.ErrFenced},
	CodeRefused:  {"refused", sentinel.ErrRefused},
	CodeTargetIO: {"target I/O", nil},
	CodeBusy:     {"busy", nil},
	CodeCorrupt:  {"corrupt", sentinel.ErrCorrupt},
	CodeInternal: {"internal", nil},
	CodeStopping: {"stopping", nil},
}

func (e *Error) Error() string {
	name := fmt.Sprintf("code %d", e.Code)
	if int(e.Code) < len(codes) && e.Code > 0 {
		name = codes[e.Code].name
	}
	if e.RetryMS > 0 {
		return fmt.Sprintf("%s: %s (again after %v)", name, e.Text, e.RetryAfter())
	}
	return name + ": " + e.Text
}

// Is maps codes to sentinels. Target I/O, busy, internal and stopping have none: they are worth another try.
func (e *Error) Is(target error) bool {
	return target != nil && e.Code > 0 && int(e.Code) < len(codes) && codes[e.Code].is == target
}

// RetryAfter is how long the peer asks to be left alone.
func (e *Error) RetryAfter() time.Duration { return time.Duration(e.RetryMS) * time.Millisecond }

// ErrorOf is what to send a peer about err: err itself if it is one already, else the code of its sentinel, else internal.
func ErrorOf(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	for code := CodeProtocol; int(code) < len(codes); code++ {
		if is := codes[code].is; is != nil && errors.Is(err, is) {
			return &Error{Code: code, Text: err.Error()}
		}
	}
	return &Error{Code: CodeInternal, Text: err.Error()}
}

// Pick chooses the version of a connection that begins with m, or says why there is none.
func (m *Hello) Pick() (uint16, error) {
	if m.MinVersion > Version || m.MaxVersion < Version {
		return 0, &Error{Code: CodeVersion, Text: fmt.Sprintf("source speaks versions %d to %d, gateway %d to %d: upgrade the older one",
			m.MinVersion, m.MaxVersion, Version, Version)}
	}
	if m.Capabilities&CapZstd == 0 {
		return 0, &Error{Code: CodeVersion, Text: "source does not announce zstd, which version 1 needs"}
	}
	return Version, nil
}
