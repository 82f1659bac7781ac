package bosemu

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Request is what Config.Fault is told.
type Request struct {
	Op, Bucket, Key string
	Part            int   // of UploadPart and UploadPartCopy
	Count           int64 // requests of this operation so far, this one included
}

// Fault is what goes wrong with a request. The zero value is nothing; several may be set.
type Fault struct {
	Delay time.Duration // before anything is done

	Code     string // this error is the answer, and nothing is done
	Status   int    // of Code, or alone, without a body that could be read; 0: as documented
	Inside   bool   // Code comes in the body of an answer with status 200
	Redirect string // a 307 to there is the answer, and nothing is done

	CutRequest int64 // >0: the connection ends when so many bytes of the request's body have come
	FlipSent   bool  // the first byte of the request's body is another when it arrives

	LoseAnswer bool  // all is done, then the connection ends without an answer
	CutAnswer  int64 // >0: the connection ends after so many bytes of the answer's body
	Short      int64 // >0: the answer's body has so many bytes, and its length says so
	Flip       bool  // the first byte of the answer's body is another
	Rate       int64 // >0: bytes per second of the answer's body, roughly
	NoETag     bool
	NoDigest   bool // no CRC is told
}

// refuse answers instead of the service, where f asks for that.
func (f Fault) refuse(q *request) bool {
	switch {
	case f.Redirect != "":
		q.w.Header().Set("Location", f.Redirect)
		_ = q.answerEmpty(http.StatusTemporaryRedirect)
	case f.Code != "" && f.Inside:
		_ = q.answerJSON(http.StatusOK, map[string]string{"code": f.Code, "message": "by request", "requestId": q.id})
	case f.Code != "":
		e := fail(f.Code, "by request")
		if f.Status != 0 {
			e.status = f.Status
		}
		q.answerFailure(e)
	case f.Status != 0:
		_ = q.answerEmpty(f.Status)
	default:
		return false
	}
	return true
}

// spoilt is the body of a request on a bad line.
type spoilt struct {
	io.ReadCloser
	f    Fault
	seen int64
}

var errCut = errors.New("the connection was cut by request")

func (s *spoilt) Read(p []byte) (int, error) {
	if s.f.CutRequest > 0 {
		if s.seen >= s.f.CutRequest {
			return 0, errCut
		}
		p = p[:min(int64(len(p)), s.f.CutRequest-s.seen)]
	}
	n, err := s.ReadCloser.Read(p)
	if s.f.FlipSent && s.seen == 0 && n > 0 {
		p[0] ^= 1
	}
	s.seen += int64(n)
	return n, err
}

// bad is an answer on a bad line.
type bad struct {
	http.ResponseWriter
	f    Fault
	sent int64
}

func (b *bad) WriteHeader(status int) {
	h := b.Header()
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && b.f.Short > 0 && n > b.f.Short {
		h.Set("Content-Length", strconv.FormatInt(b.f.Short, 10))
	}
	if b.f.NoETag {
		h.Del("ETag")
	}
	if b.f.NoDigest {
		h.Del("x-bce-content-crc64ecma")
		h.Del("x-bce-content-crc32")
		h.Del("Content-MD5")
	}
	if b.f.LoseAnswer {
		panic(http.ErrAbortHandler)
	}
	b.ResponseWriter.WriteHeader(status)
}

func (b *bad) Write(p []byte) (int, error) {
	all := len(p)
	if b.f.Flip && b.sent == 0 && all > 0 {
		p = append([]byte(nil), p...)
		p[0] ^= 1
	}
	limit := b.f.Short
	if b.f.CutAnswer > 0 {
		limit = b.f.CutAnswer
	}
	if limit > 0 {
		p = p[:min(int64(len(p)), max(0, limit-b.sent))]
	}
	if _, err := b.ResponseWriter.Write(p); err != nil {
		return 0, err
	}
	if b.sent += int64(len(p)); b.f.CutAnswer > 0 && b.sent >= b.f.CutAnswer {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	if b.f.Rate > 0 {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(b.f.Rate))
	}
	return all, nil
}
