// Package audit is an append-only trail of what was done, and by whom: JSON lines in one file for each UTC month, every record chained to the
// one before by its digest, also across files (docs/formats.md).
//
// A record is durable when Append returns nil and the trail is not on hold. The file head names the last record, so that an end that was cut off is
// found. The chain has no key: who is root may write all of it anew, but not without changing the digest that the daemon logs at its starts.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/digest"
)

// Record is one line. Seq, Before and Digest are given by the trail, Time too where it is zero.
type Record struct {
	Seq     uint64         `json:"seq"`
	Time    time.Time      `json:"time"`  // UTC
	Actor   string         `json:"actor"` // uid:0/pid:17, mover://tenant/host, daemon
	Event   string         `json:"event"`
	Flow    string         `json:"flow,omitempty"`
	Details map[string]any `json:"details,omitempty"`
	Before  string         `json:"before"` // digest of the record before in hex; of the first 64 zeros
	Digest  string         `json:"digest,omitempty"`
}

// Daemon is the actor of what nobody asked for.
const Daemon = "daemon"

// Events of the trail itself.
const (
	Continued = "audit.continued" // first record of a file: what the chain came from
	Torn      = "audit.torn"      // a last line that a kill had cut was set aside
	Pruned    = "audit.pruned"    // an old file is dropped
	Dropped   = "audit.dropped"   // records that did not fit into memory during a freeze
	Damaged   = "audit.damaged"   // a start found the end of the trail not as it was left
)

// maxLine bounds a record in bytes.
const maxLine = 64 << 10

var none = digest.Unknown.String()

const tail = `,"digest":"`

// encode closes r: the digest is of all bytes of the line before its last key.
func encode(r *Record) ([]byte, error) {
	r.Digest = ""
	body, err := json.Marshal(r)
	if err == nil && len(body) > maxLine-128 {
		r.Details = map[string]any{"left_out_bytes": len(body)}
		body, err = json.Marshal(r)
	}
	if err != nil {
		return nil, fmt.Errorf("audit record %s: %w", r.Event, err)
	}
	body = body[:len(body)-1]
	r.Digest = digest.Sum(body).String()
	return append(body, tail+r.Digest+"\"}\n"...), nil
}

// decode checks one line, without its newline, against its own digest.
func decode(line []byte) (Record, error) {
	var r Record
	at := len(line) - len(tail) - 2*digest.Size - 2
	if at < 1 || !bytes.Equal(line[at:at+len(tail)], []byte(tail)) || !bytes.HasSuffix(line, []byte(`"}`)) {
		return r, errors.New("is no record")
	}
	if got := digest.Sum(line[:at]).String(); got != string(line[at+len(tail):len(line)-2]) {
		return r, errors.New("was altered: its digest is of other bytes")
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("is no record: %w", err)
	}
	return r, nil
}
