// Package history keeps what a report tells later, across restarts: events, and samples of throughput and lag. docs/formats.md has the bytes.
//
// Nobody waits for it. Events and samples are taken into memory and written by one goroutine, small and rarely, and never while somebody's
// writers stand still (Hold): the folder may lie on what is frozen. A disk that is full costs history, and nothing else. What is on hold is
// kept in a file on a tmpfs as well, so that a kill does not lose the record of a cutover.
package history

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/moverd/mover/mover"
)

// Config of a store.
type Config struct {
	Dir   string           // made when missing
	Spill string           // file on a tmpfs for what is on hold; may be empty
	Log   *slog.Logger     // told when the disk takes nothing
	Now   func() time.Time // nil: time.Now
}

const (
	sumFor       = time.Minute // deltas of one flow that follow each other within are one event
	emptyFor     = time.Hour   // and those that found nothing to do
	writeEvery   = time.Minute // samples are written so often
	pendingLimit = 4096        // events in memory while the disk takes nothing
	textLimit    = 4096        // bytes of a text from outside
	listLimit    = 64          // entries of a report's lists
)

// Store is the history of one daemon. Its methods may be called from any goroutine.
type Store struct {
	cfg  Config
	wake chan struct{} // capacity 1
	done chan struct{}

	mu      sync.Mutex // guards all below; never held during I/O but that on the tmpfs
	sums    map[string]*mover.Event
	pending []mover.Event
	rings   map[string]*ring
	held    int
	dropped int
	spilt   bool
	closed  bool
	failing bool

	file events // the writer's alone
}

// Open makes a store and starts its writer. The folder is touched later, and never while on hold.
func Open(cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, wake: make(chan struct{}, 1), done: make(chan struct{}), sums: map[string]*mover.Event{}, rings: map[string]*ring{},
		file: events{dir: cfg.Dir, limit: sizeLimit}}
	s.unspill()
	go s.run()
	return s
}

// Note takes an event in.
func (s *Store) Note(e mover.Event) {
	if e.Time.IsZero() {
		e.Time = s.cfg.Now()
	}
	trim(&e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if routine(&e) {
		if sum := s.sums[e.Flow]; sum != nil && joins(sum, &e) {
			join(sum, &e)
			return
		}
		s.settle(e.Flow)
		s.sums[e.Flow] = &e
		return
	}
	s.settle(e.Flow)
	s.push(e)
	s.nudge()
}

// routine is a delta that went as it should: what there are thousands of.
func routine(e *mover.Event) bool {
	return e.Kind == mover.PassEvent && e.Error == "" && e.Pass != nil && e.Pass.Kind == mover.Delta.String() && e.Pass.Consistency == mover.Fuzzy.String()
}

func joins(sum, e *mover.Event) bool {
	longest := sumFor
	if sum.Pass.Moved.Looked == 0 && e.Pass.Moved.Looked == 0 {
		longest = emptyFor
	}
	return e.Time.Sub(sum.Began) < longest && sum.Pass.Generation == e.Pass.Generation
}

func join(sum, e *mover.Event) {
	sum.Time = e.Time
	p := *sum.Pass // a reader may have the old one
	p.Passes, p.Epoch = p.Passes+e.Pass.Passes, e.Pass.Epoch
	p.Moved.Add(e.Pass.Moved)
	if p.Bucket != nil && e.Pass.Bucket != nil {
		b := p.Bucket.Join(*e.Pass.Bucket)
		p.Bucket = &b
	}
	sum.Pass = &p
}

// settle ends the sum of a flow's deltas. mu is held.
func (s *Store) settle(flow string) {
	if sum := s.sums[flow]; sum != nil {
		delete(s.sums, flow)
		s.push(*sum)
	}
}

// push queues an event. mu is held.
func (s *Store) push(e mover.Event) {
	if len(s.pending) >= pendingLimit {
		s.dropped++
		return
	}
	s.pending = append(s.pending, e)
	if s.held > 0 {
		s.spill(e)
	}
}

func (s *Store) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Hold keeps everything in memory until Release; holds nest. A write that is under way may still end.
func (s *Store) Hold() {
	s.mu.Lock()
	s.held++
	s.mu.Unlock()
}

// Release undoes one Hold.
func (s *Store) Release() {
	s.mu.Lock()
	s.held--
	s.mu.Unlock()
	s.nudge()
}

// Look takes a sample of every flow in. It is to be called every second.
func (s *Store) Look(all []mover.Status) {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		r := s.rings[all[i].Flow]
		if r == nil {
			r = newRing(s.cfg.Dir, all[i].Flow)
			s.rings[all[i].Flow] = r
		}
		r.look(now, &all[i])
	}
}

// run writes until Close.
func (s *Store) run() {
	defer close(s.done)
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for last := false; !last; {
		samples := false
		select {
		case <-s.wake:
		case <-tick.C:
			samples = true
		}
		s.mu.Lock()
		last = s.closed
		s.mu.Unlock()
		s.write(samples || last, last)
	}
	s.tell(s.file.close())
}

// write takes what there is to the disk.
func (s *Store) write(samples, last bool) {
	s.mu.Lock()
	now := s.cfg.Now()
	for flow, sum := range s.sums {
		longest := sumFor
		if sum.Pass.Moved.Looked == 0 {
			longest = emptyFor
		}
		if last || now.Sub(sum.Began) >= longest {
			s.settle(flow)
		}
	}
	if s.held > 0 {
		s.mu.Unlock()
		return
	}
	batch, rings, dropped := slices.Clone(s.pending), slices.Collect(maps.Values(s.rings)), s.dropped
	taken := len(batch)
	if dropped > 0 {
		batch = append(batch, mover.Event{Time: now, Kind: "history.dropped", Details: map[string]any{"events": dropped}})
	}
	s.mu.Unlock()
	var err error
	if len(batch) > 0 {
		err = s.file.append(batch)
	}
	s.mu.Lock()
	if err == nil {
		s.pending = s.pending[taken:]
		s.dropped -= dropped
		if s.spilt && len(s.pending) == 0 {
			os.Remove(s.cfg.Spill)
			s.spilt = false
		}
	}
	s.mu.Unlock()
	if samples {
		for _, r := range rings {
			err = errors.Join(err, s.writeRing(r, last))
		}
	}
	s.tell(err)
}

func (s *Store) writeRing(r *ring, last bool) error {
	s.mu.Lock()
	slots := r.take(last)
	s.mu.Unlock()
	return r.write(slots)
}

// tell says once that the disk takes nothing, and once that it does again.
func (s *Store) tell(err error) {
	if err != nil && !s.failing {
		s.cfg.Log.Warn("the history for reports cannot be written; it waits in memory, replication goes on", "folder", s.cfg.Dir, "error", err)
	} else if err == nil && s.failing {
		s.cfg.Log.Info("the history for reports is written again", "folder", s.cfg.Dir)
	}
	s.failing = err != nil
}

// Close writes what is left, for as long as ctx lasts. What is on hold stays in Config.Spill.
func (s *Store) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for flow := range s.sums {
		s.settle(flow)
	}
	s.mu.Unlock()
	s.nudge()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trim bounds what comes from outside.
func trim(e *mover.Event) {
	cut := func(s *string) {
		if len(*s) > textLimit {
			*s = (*s)[:textLimit]
		}
	}
	cut(&e.Text)
	cut(&e.Error)
	if e.Report != nil {
		e.Report = shorter(e.Report)
	}
}

// shorter is a copy of r whose lists are cut.
func shorter(r *mover.Report) *mover.Report {
	c := *r
	c.Differ = c.Differ[:min(len(c.Differ), listLimit)]
	c.Unreadable = c.Unreadable[:min(len(c.Unreadable), listLimit)]
	c.Worse = c.Worse[:min(len(c.Worse), listLimit)]
	c.Error = c.Error[:min(len(c.Error), textLimit)]
	if r.Bucket != nil {
		b := *r.Bucket
		b.Examples = b.Examples[:min(len(b.Examples), listLimit)]
		c.Bucket = &b
	}
	c.Members = nil
	for _, m := range r.Members {
		c.Members = append(c.Members, shorter(m))
	}
	return &c
}

// spill keeps an event that is on hold where no freeze reaches. mu is held.
func (s *Store) spill(e mover.Event) {
	if s.cfg.Spill == "" {
		return
	}
	f, err := os.OpenFile(s.cfg.Spill, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return // memory still has it
	}
	s.spilt = json.NewEncoder(f).Encode(e) == nil || s.spilt
	f.Close()
}

// unspill takes in what an earlier process had on hold.
func (s *Store) unspill() {
	f, err := os.Open(s.cfg.Spill)
	if err != nil {
		return
	}
	defer f.Close()
	for in := json.NewDecoder(f); len(s.pending) < pendingLimit; {
		var e mover.Event
		if in.Decode(&e) != nil {
			return
		}
		s.pending = append(s.pending, e)
		s.spilt = true
	}
}

// Past is what is known, oldest first.
type Past struct {
	Events  []mover.Event
	Samples map[string][]Sample // by flow
}

// Read tells what is known of flows, and of the daemon itself. A disk that cannot be read is an error; what is in memory comes along.
func (s *Store) Read(flows []string) (Past, error) {
	p := Past{Samples: map[string][]Sample{}}
	s.mu.Lock()
	memory := slices.Clone(s.pending)
	for _, sum := range s.sums {
		memory = append(memory, *sum)
	}
	rings := map[string][]slot{}
	for _, f := range flows {
		if r := s.rings[f]; r != nil {
			rings[f] = r.unwritten()
		}
	}
	s.mu.Unlock()
	all, err := readEvents(s.cfg.Dir)
	mark := make(map[string]bool, len(memory)) // what was written between the two looks is in both
	key := func(e *mover.Event) string { return e.Time.UTC().Format(time.RFC3339Nano) + e.Kind + e.Flow }
	for i := range memory {
		mark[key(&memory[i])] = true
	}
	all = slices.DeleteFunc(all, func(e mover.Event) bool { return mark[key(&e)] })
	for _, e := range append(all, memory...) {
		if e.Flow == "" || slices.Contains(flows, e.Flow) {
			p.Events = append(p.Events, e)
		}
	}
	slices.SortStableFunc(p.Events, func(a, b mover.Event) int { return a.Time.Compare(b.Time) })
	for _, f := range flows {
		samples, serr := readSamples(s.cfg.Dir, f, rings[f], s.cfg.Now())
		err = errors.Join(err, serr)
		p.Samples[f] = samples
	}
	return p, err
}
