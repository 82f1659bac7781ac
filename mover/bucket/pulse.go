package bucket

import (
	"time"

	"github.com/moverd/mover/mover"
)

// Pulse tells a watchdog whether the flow hangs: it is at work while a pass or a comparison is under way, but not while shaping holds bytes back, and hooks have limits of
// their own. A store that is away is asked again, and each answer and each error counts as done.
func (f *Flow) Pulse() mover.Pulse {
	p := mover.Pulse{Flow: f.cfg.Name, Done: f.sent.Load() + f.ended.Load()}
	if f.cfg.Counts != nil {
		for _, c := range f.cfg.Counts() {
			p.Done += int64(c.Calls + c.In + c.Out)
		}
	}
	s := f.State()
	p.Done += s.Listed + s.Left + s.Copied + s.Refused + s.Failed + s.Changed + s.Vanished + s.Deleted + s.Again
	f.mu.Lock()
	defer f.mu.Unlock()
	p.Working = (f.cancel != nil || f.stands.state == mover.Settling) && f.pacing.Load() == 0 && (f.chief == nil || f.chief.Waits() == "")
	return p
}

// tellPass keeps a pass that has ended for reports: err says why it was not finished. One that is tried again and again in vain is told once.
func (f *Flow) tellPass(began time.Time, was, s State, err error) {
	if f.cfg.Note == nil {
		return
	}
	p := &mover.EndedPass{Kind: kindOf(s), Passes: 1, Epoch: s.Pass, Consistency: mover.Fuzzy.String()}
	copied, bytes, sent := s.Copied, s.CopiedBytes, s.Sent
	if was.Pass == s.Pass { // what was done of it before was told, or is of an earlier process
		copied, bytes, sent = s.Copied-was.Copied, s.CopiedBytes-was.CopiedBytes, s.Sent-was.Sent
	}
	p.Moved = mover.Moved{Looked: bytes, Sent: bytes, Payload: bytes, Wire: sent}
	p.Bucket = &mover.BucketPass{Listed: s.Listed, Copied: copied, Vanished: s.Vanished, Deleted: s.Deleted, Objects: s.Objects, Bytes: s.Bytes,
		Refused: s.NowRefused, Failed: s.NowFailed, Partly: s.NowPartly}
	e := mover.Event{Time: time.Now(), Began: began, Kind: mover.PassEvent, Flow: f.cfg.Name, Pass: p}
	if err != nil {
		e.Error = err.Error()
	}
	f.cfg.Note(e)
}

// kindOf names a pass.
func kindOf(s State) string {
	switch {
	case s.Final:
		return "final"
	case s.Pass <= 1:
		return "first"
	}
	return mover.Delta.String()
}
