// Package control is how moverctl talks to a daemon: HTTP and JSON over a unix socket that only root may use.
//
// GET /v1/daemon answers Daemon, GET /v1/status a list of mover.Status. POST /v1/VERB takes Request and streams Lines,
// one JSON value on each line: progress while it lasts, then one line that ends it.
package control

import (
	"context"
	"errors"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/report"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// Verbs that a Service may know.
const (
	Pause    = "pause"
	Resume   = "resume"
	Sync     = "sync"
	Cutover  = "cutover"
	Rollback = "rollback"
	Verify   = "verify"
	Thaw     = "thaw"
	Claim    = "claim"
	Points   = "points"
	Restore  = "restore"
	Export   = "export"
	Serve    = "serve"
	Finish   = "finish"
	Point    = "point"
	Lines    = "line"   // of a gateway: how lines stand, or with Set what is changed
	Report   = "report" // a look at the past; Flow is empty, a flow or a group

	Manifest = "manifest" // of a bucket flow: written to To, or to its folder
	Objects  = "objects"  // of a bucket flow: those with one of Outcomes, behind After
	Plan     = "plan"     // of a bucket flow: what a pass would do
)

// Verbs lists all of them.
var Verbs = []string{Pause, Resume, Sync, Cutover, Rollback, Verify, Thaw, Claim, Points, Restore, Export, Serve, Finish, Report, Point, Lines, Manifest, Objects, Plan}

// FreezeStep is the step of a cutover from which on a lost client changes nothing.
const FreezeStep = "freeze"

// Daemon tells whom one talks to.
type Daemon struct {
	Role    string `json:"role"`
	Version string `json:"version"`
	Pid     int    `json:"pid"`
	Config  string `json:"config"` // path of the file
}

// Request is the body of a POST. What a verb does not know must be zero.
type Request struct {
	Flow      string  `json:"flow"`                       // or the group
	Rehearse  bool    `json:"rehearse,omitempty"`         // cutover
	Limit     float64 `json:"limit_seconds,omitempty"`    // cutover, point; 0: as configured
	Deadline  float64 `json:"deadline_seconds,omitempty"` // cutover, point
	Leave     string  `json:"leave,omitempty"`            // cutover
	All       bool    `json:"all,omitempty"`              // verify: read every leaf again
	Overwrite bool    `json:"overwrite,omitempty"`        // claim a target that is not blank
	Drop      bool    `json:"drop,omitempty"`             // claim: forget it
	Point     string  `json:"point,omitempty"`            // points, restore, export, serve: its id, or that of a moment
	Moments   bool    `json:"moments,omitempty"`          // points: those of groups, not those of each flow
	Change    string  `json:"change,omitempty"`           // points: pin, unpin, remove
	To        string  `json:"to,omitempty"`               // restore, export: an absolute path
	Dir       string  `json:"dir,omitempty"`              // restore, export of a moment: the absolute path of a folder
	Format    string  `json:"format,omitempty"`           // export: raw, qcow2

	WithoutRefused bool     `json:"without_refused,omitempty"` // cutover of a bucket flow: although some objects cannot be carried
	Outcomes       []string `json:"outcomes,omitempty"`        // objects: refused, failed, partly, gone, copied; none: the first four
	After          []byte   `json:"after,omitempty"`           // objects: only those behind this key

	Line string         `json:"line,omitempty"` // line: its name; empty: all
	Set  *mover.LineSet `json:"set,omitempty"`  // line: what is changed; empty: nothing is any more
}

// Line is one line of an answer. Exactly one field is set.
type Line struct {
	Progress *mover.Progress `json:"progress,omitempty"`
	Result   *Result         `json:"result,omitempty"` // the last line when all went well
	Failure  *Failure        `json:"failure,omitempty"`
}

// Result is what a verb came to.
type Result struct {
	Text    string                `json:"text,omitempty"`
	Report  *mover.Report         `json:"report,omitempty"`
	Points  []mover.RecoveryPoint `json:"points,omitempty"` // of a single flow
	Flows   []mover.FlowPoints    `json:"flows,omitempty"`
	Moments []mover.Moment        `json:"moments,omitempty"`
	Past    *report.Document      `json:"past,omitempty"`
	Lines   []mover.LineStatus    `json:"lines,omitempty"`
	Objects []mover.BucketObject  `json:"objects,omitempty"`
	Next    []byte                `json:"next,omitempty"` // objects: After of the next page; empty: this was the last
	Plan    *mover.BucketPlan     `json:"plan,omitempty"`
	Cost    *cost.Answer          `json:"cost,omitempty"` // plan: of what it would do, where prices are configured
}

// Failure is an error on its way through JSON. A report may come with it: of what differed.
type Failure struct {
	Code   string        `json:"code"`
	Text   string        `json:"text"`
	Report *mover.Report `json:"report,omitempty"`
}

// codes are the sentinels that survive the way; all others become "failed".
var codes = []struct {
	name string
	is   error
}{
	{"broken-off", sentinel.ErrBrokenOff}, // first: what it was broken off by is of less weight
	{"not-found", sentinel.ErrNotFound},
	{"usage", sentinel.ErrUsage},
	{"not-converged", sentinel.ErrNotConverged},
	{"differ", sentinel.ErrDiffer},
	{"refused", sentinel.ErrRefused},
	{"denied", sentinel.ErrDenied},
	{"fenced", sentinel.ErrFenced},
	{"corrupt", sentinel.ErrCorrupt},
	{"not-supported", sentinel.ErrNotSupported},
}

// failure packs err.
func failure(err error, report *mover.Report) *Failure {
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return &Failure{Code: c.name, Text: err.Error(), Report: report}
		}
	}
	return &Failure{Code: "failed", Text: err.Error(), Report: report}
}

func (f *Failure) Error() string { return f.Text }

// Is finds the sentinel again that err had on the other side.
func (f *Failure) Is(target error) bool {
	for _, c := range codes {
		if c.name == f.Code {
			return c.is == target
		}
	}
	return false
}

// Service is what a daemon does. Do may be called at the same time for several flows. progress is never called after Do returned.
type Service interface {
	Daemon() Daemon
	Status() []mover.Status
	// Do runs a verb. A report may come together with an error.
	Do(ctx context.Context, verb string, r Request, progress func(mover.Progress)) (Result, error)
}
