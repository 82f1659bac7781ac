package mover

import (
	"time"

	"github.com/moverd/mover/extent"
)

// State is what a flow is doing, for people and metrics.
type State string

const (
	Connecting State = "connecting" // no link; Reason says why
	Idle       State = "idle"       // waiting for the next pass; Reason says until when
	Passing    State = "pass"       // Pass says which
	Settling   State = "settling"   // reading leaves back for a root
	Frozen     State = "frozen"     // writers are stopped, on the way to the commit
	Done       State = "done"       // cut over
	Paused     State = "paused"     // by the operator
	Stopped    State = "stopped"    // cannot go on without the operator; Reason says what to do
	Applying   State = "applying"   // gateway: a committed log is being applied
	Waiting    State = "waiting"    // gateway: no source is connected
)

// Status is what one end tells about one flow.
type Status struct {
	Flow      string    `json:"flow"`
	Role      string    `json:"role"`               // source or gateway
	Device    string    `json:"device"`             // volume or target as configured
	Identity  string    `json:"identity,omitempty"` // of it
	Peer      string    `json:"peer,omitempty"`     // the gateway's address; at a gateway the volume's identity
	Size      int64     `json:"size_bytes"`
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty"` // why it stands still or takes time
	Next      string    `json:"next,omitempty"`   // the next step open to the operator
	Since     time.Time `json:"since"`
	Pass      *Pass     `json:"pass,omitempty"`
	Tracking  string    `json:"tracking,omitempty"` // method and detail
	Gap       string    `json:"gap,omitempty"`      // why the history was last lost
	Dirty     int64     `json:"dirty_bytes"`        // dirty and taken
	DirtyRate float64   `json:"dirty_bytes_per_second"`
	Rate      float64   `json:"rate_bytes_per_second"` // logical, over the last seconds
	WireRate  float64   `json:"wire_bytes_per_second"` // both over all connections
	WireOut   int64     `json:"wire_out_bytes"`        // since start
	WireIn    int64     `json:"wire_in_bytes"`
	Totals    Counts    `json:"totals"` // since start
	Passes    int64     `json:"passes"` // committed since start
	Rescans   int64     `json:"rescans"`
	Lag       float64   `json:"lag_seconds"` // age of the oldest change the target lacks; 0: none
	Cutover   string    `json:"cutover_estimate,omitempty"`
	Estimate  float64   `json:"cutover_estimate_seconds"`

	PointTime        time.Time    `json:"point_time"` // zero: no point yet
	PointEpoch       uint64       `json:"point_epoch"`
	PointConsistency string       `json:"point_consistency,omitempty"`
	Points           int          `json:"points,omitempty"`       // gateway: kept
	PointError       string       `json:"points_error,omitempty"` // gateway: why the last commit has none
	Phase            string       `json:"phase,omitempty"`
	HandOver         string       `json:"hand_over,omitempty"` // source, after a cutover: yes, no, unknown
	Conns            int          `json:"connections"`
	Links            []LinkStatus `json:"links,omitempty"` // source: the ways to the gateway, where there are several or the line is shared out
	RTT              float64      `json:"rtt_seconds"`
	Group            *Group       `json:"group,omitempty"`    // source: that the flow is in; or the flow's own moments
	Memory           int64        `json:"buffer_bytes"`       // handed out of the budget
	MemoryLimit      int64        `json:"buffer_limit_bytes"` // the budget
	Log              int64        `json:"log_bytes"`          // gateway: redo log in use
	LogLimit         int64        `json:"log_limit_bytes"`
	Unreadable       []string     `json:"unreadable,omitempty"` // extents that were skipped on the operator's word
	Reconnects       int64        `json:"reconnects"`
	Resent           int64        `json:"resent_bytes"` // logical bytes sent again after a cut, none of them acked before
	LastError        string       `json:"last_error,omitempty"`
	Bucket           *Bucket      `json:"bucket,omitempty"` // of a bucket flow; what is of volumes is zero then
	Relay            *Relay       `json:"relay,omitempty"`  // what went by the gateway, of a bucket flow that does; at the gateway too
}

// Pass is a pass under way.
type Pass struct {
	Kind    string    `json:"kind"`
	Mode    string    `json:"mode"`
	Epoch   uint64    `json:"epoch"`
	Started time.Time `json:"started"`
	Total   int64     `json:"total_bytes"` // logical bytes to look at
	Read    int64     `json:"read_bytes"`
	Acked   int64     `json:"acked_bytes"`
	ETA     float64   `json:"eta_seconds"` // negative: not known yet
	Counts  Counts    `json:"counts"`
}

// Progress is one line of news from a long command.
type Progress struct {
	Step  string  `json:"step"`
	Text  string  `json:"text"`
	Done  int64   `json:"done_bytes"`
	Total int64   `json:"total_bytes"`
	ETA   float64 `json:"eta_seconds"`
}

// Report is the outcome of a cutover, a rehearsal, a recovery point or a verification; of a group, the whole and in Members each flow.
type Report struct {
	Flow        string          `json:"flow"` // or the group, in a report with Members
	Group       string          `json:"group,omitempty"`
	Kind        string          `json:"kind"` // cutover, rehearsal, point, verify
	OK          bool            `json:"ok"`
	Error       string          `json:"error,omitempty"`
	Started     time.Time       `json:"started"`
	Ended       time.Time       `json:"ended"`
	Pause       float64         `json:"pause_seconds"` // writers stopped until the verdict
	Steps       []Step          `json:"steps"`
	Rounds      int             `json:"rounds"` // delta passes before the freeze
	FinalDelta  int64           `json:"final_delta_bytes"`
	SourceRoot  string          `json:"source_root"`
	TargetRoot  string          `json:"target_root"`
	Compared    int64           `json:"compared_bytes"`
	Free        int64           `json:"free_bytes"` // free space, not compared
	Differ      []extent.Extent `json:"differ,omitempty"`
	Unreadable  []string        `json:"unreadable,omitempty"`
	Consistency string          `json:"consistency"`
	Proof       string          `json:"tracker_proof"`
	Left        string          `json:"source_left"` // frozen, read-only, stopped, running
	Generation  string          `json:"generation"`
	Epoch       uint64          `json:"epoch"`
	Totals      Counts          `json:"totals"`
	WireOut     int64           `json:"wire_out_bytes"`

	Released   bool      `json:"released,omitempty"`           // the target was handed over
	Doubt      bool      `json:"in_doubt,omitempty"`           // the target may have been handed over: the gateway has not answered
	Partly     bool      `json:"partly,omitempty"`             // some targets of the group were, or may have been, handed over and some were not
	Moment     string    `json:"moment,omitempty"`             // id that the recovery points of one freeze share
	MomentTime time.Time `json:"moment_time,omitzero"`         // when the freeze began
	Point      string    `json:"point,omitempty"`              // id of the copy that the gateway keeps
	PointError string    `json:"point_error,omitempty"`        // why it keeps none
	Viewed     bool      `json:"read_from_snapshot,omitempty"` // after the thaw
	Unviewed   string    `json:"no_snapshot,omitempty"`        // why it was read within the freeze although a snapshot was asked for
	Worse      []string  `json:"worse,omitempty"`              // why the moment is worth less than the freeze and the hooks were to make it
	HookError  string    `json:"hook_error,omitempty"`         // of post: what pre did to the applications may stand
	Members    []*Report `json:"members,omitempty"`

	Bucket *BucketReport `json:"bucket,omitempty"` // of a bucket flow; what is of volumes is zero then
}

// Step is one timed step of a report.
type Step struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}
