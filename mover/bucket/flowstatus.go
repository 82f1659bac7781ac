package bucket

import (
	"sync"
	"time"

	"github.com/moverd/mover/mover"
)

// rateOver is the time that a rate is told of.
const rateOver = 10 * time.Second

// rates remembers what was sent when.
type rates struct {
	mu   sync.Mutex
	past []sample
}

type sample struct {
	at   time.Time
	sent int64
}

// look gives bytes per second.
func (r *rates) look(now time.Time, sent int64) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.past); n == 0 || now.Sub(r.past[n-1].at) >= time.Second/2 {
		r.past = append(r.past, sample{now, sent})
	}
	for len(r.past) > 2 && now.Sub(r.past[1].at) > rateOver {
		r.past = r.past[1:]
	}
	d := now.Sub(r.past[0].at).Seconds()
	if d < 0.1 {
		return 0
	}
	return float64(sent-r.past[0].sent) / d
}

// Status tells how the flow stands.
func (f *Flow) Status() mover.Status {
	s, now, sent := f.State(), time.Now(), f.sent.Load()
	f.mu.Lock()
	st, chief := f.stands, f.chief
	f.mu.Unlock()
	out := mover.Status{Flow: f.cfg.Name, Role: "source", Device: f.cfg.From, Peer: f.cfg.To, Size: s.ListedBytes, State: st.state, Reason: st.reason, Next: st.next, Since: st.since,
		LastError: st.err, Rate: f.rates.look(now, sent), WireOut: sent, Passes: f.ended.Load()}
	b := &mover.Bucket{Pass: s.Pass, Listing: s.Listing, Final: s.Final, Listed: s.Listed, ListedBytes: s.ListedBytes, Left: s.Left, Same: s.Same, Planned: s.Planned,
		PlannedBytes: s.PlannedBytes, Copied: s.Copied, CopiedBytes: s.CopiedBytes, Changed: s.Changed, Vanished: s.Vanished, Deleted: s.Deleted, Again: s.Again,
		Versions: s.Versions.String(), Objects: s.Objects, Bytes: s.Bytes, Refused: s.NowRefused, Failed: s.NowFailed, Partly: s.NowPartly, Sent: sent, Passes: f.ended.Load()}
	if f.cfg.Counts != nil {
		b.Stores = f.cfg.Counts()
	}
	if chief != nil {
		for _, m := range chief.Members() {
			b.Workers = append(b.Workers, mover.BucketWorker{Name: m.Name, Host: m.Host, Objects: m.Objects, Rate: m.Rate, Heard: m.Heard})
		}
		if text := chief.Waits(); text != "" {
			out.Reason = text
		}
	}
	out.Bucket = b
	if st.state == mover.Passing {
		out.Pass = &mover.Pass{Kind: kindOf(s), Mode: "objects", Epoch: s.Pass, Started: st.began, Total: s.PlannedBytes, Read: s.CopiedBytes, Acked: s.CopiedBytes, ETA: -1}
		if !s.Listing && out.Rate >= 1 {
			out.Pass.ETA = float64(max(0, s.PlannedBytes-s.CopiedBytes)) / out.Rate
		}
	}
	f.onLine(&out)
	return out
}
