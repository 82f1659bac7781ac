package mover

import "time"

// Kinds of events. Verbs and changes of state have the names that the audit trail gives them.
const (
	PassEvent   = "pass"   // Pass tells which; Error: it ended without a commit
	GapEvent    = "gap"    // the history of changes was lost; Text tells why
	MomentEvent = "moment" // a freeze for recovery points ended; Pause, Consistency, Moment, and Error when nothing came of it
	PointEvent  = "point"  // the gateway kept a recovery point, Text is its id; Error: it could not
)

// Event is something that a report tells about a flow, or about the daemon (Flow empty).
type Event struct {
	Time        time.Time      `json:"time"` // of its end
	Began       time.Time      `json:"began,omitzero"`
	Kind        string         `json:"kind"`
	Flow        string         `json:"flow,omitempty"`
	Group       string         `json:"group,omitempty"`
	Actor       string         `json:"actor,omitempty"` // as in the audit trail; empty: the daemon itself
	Text        string         `json:"text,omitempty"`
	Error       string         `json:"error,omitempty"`
	Moment      string         `json:"moment,omitempty"` // hex
	Consistency string         `json:"consistency,omitempty"`
	Pause       float64        `json:"pause_seconds,omitempty"` // writers stood still
	Pass        *EndedPass     `json:"pass,omitempty"`
	Report      *Report        `json:"report,omitempty"`
	Details     map[string]any `json:"details,omitempty"` // as in the audit trail
}

// EndedPass is a pass that has ended, or several of one kind as one.
type EndedPass struct {
	Kind        string `json:"kind"`
	Passes      int    `json:"passes"` // that this sums up
	Why         string `json:"why,omitempty"`
	Epoch       uint64 `json:"epoch"` // the last
	Generation  string `json:"generation,omitempty"`
	Consistency string `json:"consistency,omitempty"`
	Moved       Moved  `json:"moved"`

	Bucket *BucketPass `json:"bucket,omitempty"` // of a bucket flow: objects
}

// BucketPass is what a pass of a bucket flow, or several, came to. What is not of the pass is how it stood after the last one.
type BucketPass struct {
	Listed   int64 `json:"listed_objects"` // by the last one
	Copied   int64 `json:"copied_objects"` // by all
	Vanished int64 `json:"vanished_objects"`
	Deleted  int64 `json:"deleted_objects"`
	Objects  int64 `json:"objects"` // at the target
	Bytes    int64 `json:"bytes"`
	Refused  int64 `json:"refused_objects"`
	Failed   int64 `json:"failed_objects"`
	Partly   int64 `json:"partly_objects"`
}

// Join takes in a later one.
func (b BucketPass) Join(later BucketPass) BucketPass {
	later.Copied, later.Vanished, later.Deleted = later.Copied+b.Copied, later.Vanished+b.Vanished, later.Deleted+b.Deleted
	return later
}

// Moved tells what became of the bytes that were looked at, each exactly once:
//
//	Looked = Free + Zero + Same + Copied + Unreadable + Sent
//
// of which Sent is carried by Payload bytes; Wire is all that went over the line meanwhile, with digests, frames, TLS and what had
// to be sent again. All in bytes.
type Moved struct {
	Looked     int64 `json:"looked_at_bytes"`
	Free       int64 `json:"free_bytes"`       // free space of filesystems, by their own word
	Zero       int64 `json:"zero_bytes"`       // zeros, told without data
	Same       int64 `json:"same_bytes"`       // the target had them at that place
	Copied     int64 `json:"copied_bytes"`     // found elsewhere at the gateway, also single pages of leaves
	Unreadable int64 `json:"unreadable_bytes"` // skipped on the operator's word
	Sent       int64 `json:"sent_bytes"`       // before compression
	Payload    int64 `json:"payload_bytes"`    // the same, compressed
	Wire       int64 `json:"wire_bytes"`
}

// Add adds o to m.
func (m *Moved) Add(o Moved) {
	m.Looked += o.Looked
	m.Free += o.Free
	m.Zero += o.Zero
	m.Same += o.Same
	m.Copied += o.Copied
	m.Unreadable += o.Unreadable
	m.Sent += o.Sent
	m.Payload += o.Payload
	m.Wire += o.Wire
}

// Skipped is what was told without data: free space and zeros.
func (m Moved) Skipped() int64 { return m.Free + m.Zero }

// Compressed is what compression saved.
func (m Moved) Compressed() int64 { return m.Sent - m.Payload }

// Overhead is what the line carried beside the payload; negative where the figures of two ends of a pass were mixed.
func (m Moved) Overhead() int64 { return m.Wire - m.Payload }
