package bucket

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/zeebo/blake3"

	"github.com/moverd/mover/internal/digest"
)

// Line is one object of a manifest.
type Line struct {
	Key      string    `json:"key,omitempty"`
	KeyBytes []byte    `json:"key_bytes,omitempty"` // in its place, base64, where it is no UTF-8
	Outcome  string    `json:"outcome"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	ETag     string    `json:"etag"`             // at the source
	Class    string    `json:"class,omitempty"`  // at the source
	Target   string    `json:"target,omitempty"` // ETag at the target
	Digest   string    `json:"digest,omitempty"` // objstore.ObjectDigest, in hex
	Lost     []string  `json:"lost,omitempty"`
	Why      string    `json:"why,omitempty"`
}

// Closing is the last line of a manifest.
type Closing struct {
	Pass    uint64 `json:"pass"`
	Objects int64  `json:"objects"` // that the target has
	Bytes   int64  `json:"bytes"`
	Others  int64  `json:"others"` // lines of objects that it has not
	Root    string `json:"root"`   // BLAKE3 of all lines before, with their ends, in hex
	// NotCarried is what is carried of no object, and Versions what the source keeps beside the objects; both for people.
	NotCarried []string `json:"not_carried,omitempty"`
	Versions   string   `json:"versions,omitempty"`
}

// Manifest writes one line of JSON for each object that the ledger knows, ascending by key, and a closing one, which also says what is carried of no object. The
// same ledger gives the same bytes.
func (l *Ledger) Manifest(w io.Writer, notCarried ...string) (Closing, error) {
	h := blake3.New()
	buf := bufio.NewWriter(w)
	both := json.NewEncoder(io.MultiWriter(h, buf))
	both.SetEscapeHTML(false)
	s := l.State()
	out := Closing{Pass: s.Pass, NotCarried: notCarried, Versions: s.Versions.String()}
	err := l.scan(span{}, func(key string, r Record) error {
		line := Line{Outcome: r.Outcome.String(), Size: r.Size, Modified: r.Modified, ETag: r.ETag, Class: r.Class, Target: r.Target, Lost: r.Lost, Why: r.Why}
		if utf8.ValidString(key) {
			line.Key = key
		} else {
			line.KeyBytes = []byte(key)
		}
		if r.Digest != digest.Unknown {
			line.Digest = r.Digest.String()
		}
		if r.Outcome == Copied {
			out.Objects, out.Bytes = out.Objects+1, out.Bytes+r.Size
		} else {
			out.Others++
		}
		return both.Encode(line)
	})
	if err != nil {
		return out, fmt.Errorf("write the manifest: %w", err)
	}
	out.Root = digest.Digest(h.Sum(nil)).String()
	end := json.NewEncoder(buf)
	if err := end.Encode(out); err != nil {
		return out, fmt.Errorf("write the manifest: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return out, fmt.Errorf("write the manifest: %w", err)
	}
	return out, nil
}
