package bucket

// A flow runs passes until it is cut over:
//
//	moving ──pause──▶ paused        both ways; a restart changes nothing
//	moving ──cutover─▶ done ──finish─▶ finished
//	   ▲───rollback────┘
//
// Whoever works on the flow holds busy: a pass, or a verb. What a flow is at stands in flow.json beside its ledger.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
)

// FlowConfig is the life of a bucket flow.
type FlowConfig struct {
	Name     string
	Dir      string // ledger, state, manifests
	Identity string // what is moved where: the state belongs to that
	From, To string // both ends, for people
	// Open gives both ends, whose stores are the flow's to close. Called again after each error.
	Open     func(ctx context.Context) (from, to End, err error)
	Dial     func() (*nats.Conn, error) // to the queue
	Filter   Filter
	Deletes  bool
	Claim    bool // the target may have objects before the first pass
	Interval time.Duration
	Settle   time.Duration // from the stop of the writers to the final pass; 0: what a store's clock needs to show each change
	Copy     CopyConfig
	Objects  int          // under way; 0: 256
	Rate     func() int64 // bytes a second of all workers together; 0, or nil: without a bound
	Moves    string       // what workers of other processes have to say that they move, and by which version
	Workers  []string     // that may work for the flow, beside Local; nil: any
	Stopper  Stopper
	Counts   func() map[string]mover.BucketCounts // of calls; may be nil
	Note     func(mover.Event)                    // keeps what a report tells later; may be nil
	Line     func() mover.LinkStatus              // what the flow may use of the line that it shares; nil: it shares none
	Log      *slog.Logger
}

// End is one end of a flow.
type End struct {
	Store   objstore.Store
	Regions []string // where the bucket may be; nil: anywhere
}

// Stopper stops the writers of the source, and lets them go on. nil: the operator does that before a cutover.
type Stopper interface {
	Stop(ctx context.Context) error
	Keep() error  // they stay stopped, beyond this process
	Start() error // also what an earlier process has stopped
}

// Flow is one bucket flow. Safe for concurrent use; Run is called once.
type Flow struct {
	cfg   FlowConfig
	log   *slog.Logger
	busy  chan struct{} // capacity 1: taken while a pass or a verb works
	wake  chan struct{} // capacity 1: the loop looks again
	sent  atomic.Int64
	ended atomic.Int64 // passes
	hurry atomic.Int32 // cutovers that were asked for and have not ended
	still atomic.Bool  // the writers stand still, or should

	pacing atomic.Int64 // callers whose bytes wait for their turn on the line

	s   *session     // of the stores; busy guards it
	use sync.RWMutex // held for reading while the ledger is read without busy

	mu     sync.Mutex // guards all below
	note   note
	ledger *Ledger
	chief  *Coordinator // of the session, for its status
	stands standing
	asked  uint64        // passes that were asked for
	served uint64        // of those, that have ended
	done   chan struct{} // closed when a pass has ended, or cannot
	why    error         // of the last end
	cancel context.CancelFunc
	rates  rates

	refusals bool // the next pass tries again what was refused
}

// standing is what the flow does, for people.
type standing struct {
	state             mover.State
	reason, next, err string
	since             time.Time
	began             time.Time // of the pass
}

// Bounds of what the flow waits for.
const (
	firstRetry = 5 * time.Second
	mostRetry  = 5 * time.Minute
	keysRetry  = 30 * time.Second // most, where only the keys are missing: whoever gives them may be back any time
)

// NewFlow reads where the flow stands. Nothing is opened yet.
func NewFlow(cfg FlowConfig) (*Flow, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the flow's folder: %w", err)
	}
	f := &Flow{cfg: cfg, log: cfg.Log, busy: make(chan struct{}, 1), wake: make(chan struct{}, 1), done: make(chan struct{})}
	if f.cfg.Settle <= 0 {
		f.cfg.Settle = settles + time.Second
	}
	pace := cfg.Copy.Pace
	f.cfg.Copy.Pace = func(ctx context.Context, n int) error {
		if pace != nil {
			f.pacing.Add(1)
			err := pace(ctx, n)
			f.pacing.Add(-1)
			if err != nil {
				return err
			}
		}
		f.sent.Add(int64(n))
		return nil
	}
	n, err := readNote(cfg.Dir)
	if err != nil {
		return nil, err
	}
	f.note, f.refusals = n, true // another config may take what was refused
	f.stand(mover.Connecting, "it has just started", "")
	return f, nil
}

// Run runs passes until ctx ends.
func (f *Flow) Run(ctx context.Context) error {
	defer f.shut()
	for wait := time.Duration(0); ; {
		err := f.turn(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			wait = 0
			continue
		}
		most := mostRetry
		if errors.Is(err, objstore.ErrKeys) && objstore.Retryable(err) {
			most = keysRetry
		}
		wait = min(most, max(firstRetry, 2*wait))
		f.failed(err, wait)
		if !f.idle(ctx, wait) {
			return nil
		}
	}
}

// turn is one pass and the wait behind it, or a wait for the operator.
func (f *Flow) turn(ctx context.Context) error {
	if err := f.openLedger(); err != nil {
		return err
	}
	f.settle()
	select {
	case <-f.wake: // who woke the loop gets what follows
	default:
	}
	if f.noted().moving() {
		if err := f.round(ctx); err != nil {
			return err
		}
		f.settle()
	}
	f.mu.Lock()
	wait, due := f.cfg.Interval, f.asked > f.served
	if !f.note.moving() {
		wait, due = 0, false
	}
	f.mu.Unlock()
	if due {
		return nil
	}
	if f.noted().moving() && wait <= 0 {
		return ctx.Err() // back to back
	}
	f.idle(ctx, wait)
	return nil
}

// round is a pass of the loop.
func (f *Flow) round(ctx context.Context) error {
	if err := f.hold(ctx); err != nil {
		return err
	}
	defer f.release()
	if !f.noted().moving() { // a verb was faster
		return nil
	}
	_, err := f.pass(ctx, false)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil // paused
	}
	return err
}

func (f *Flow) hold(ctx context.Context) error {
	select {
	case f.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Flow) release() { <-f.busy }

// idle waits; 0: until it is woken. false: ctx ended.
func (f *Flow) idle(ctx context.Context, d time.Duration) bool {
	var late <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-late:
	case <-f.wake:
	case <-ctx.Done():
		return false
	}
	return true
}

func (f *Flow) stir() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// stand notes what the flow does.
func (f *Flow) stand(state mover.State, reason, next string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stands.state != state {
		f.stands.since = time.Now()
	}
	f.stands.state, f.stands.reason, f.stands.next = state, reason, next
}

// settle notes what the flow does when nothing is under way.
func (f *Flow) settle() {
	switch n := f.noted(); {
	case n.Phase == phaseFinished:
		f.stand(mover.Done, "finished at "+n.Finished.Format(time.RFC3339)+": the target is handed over for good", "take the flow out of the config")
	case n.Phase == phaseDone:
		f.stand(mover.Done, fmt.Sprintf("cut over at %s: %d objects, %s; manifest %s", n.Done.Format(time.RFC3339), n.Objects, units.Size(n.Bytes), n.Manifest),
			"moverctl finish "+f.cfg.Name+", or moverctl rollback")
	case n.Paused:
		f.stand(mover.Paused, "by the operator", "moverctl resume")
	default:
		f.stand(mover.Idle, "next pass in "+units.Duration(f.cfg.Interval), f.next())
	}
}

// next is what an operator does when a pass has ended.
func (f *Flow) next() string {
	switch s := f.State(); {
	case s.NowFailed > 0:
		return fmt.Sprintf("%d objects failed, and each pass tries them again: moverctl objects --failed shows why", s.NowFailed)
	case s.NowRefused > 0:
		return fmt.Sprintf("%d objects cannot be carried: moverctl objects --refused shows why", s.NowRefused)
	case s.Pass > 0 && s.Listed == 0 && s.Left > 0:
		return fmt.Sprintf("include and exclude leave out all of the %d objects of the source", s.Left)
	case s.Pass > 0 && s.Listed == 0 && s.Objects == 0:
		return fmt.Sprintf("the source lists nothing below the prefix %q: if there should be something, look at the bucket's name and the prefix", f.cfg.Copy.FromPrefix)
	}
	return "moverctl cutover"
}

// failed notes why the flow does not go on.
func (f *Flow) failed(err error, wait time.Duration) {
	state := mover.Stopped
	if objstore.Retryable(err) {
		state = mover.Connecting
	}
	hint := ""
	switch {
	case errors.Is(err, objstore.ErrClock):
		hint = "set this machine's clock (NTP); "
	case errors.Is(err, objstore.ErrKeys) && objstore.Retryable(err):
		hint = "the flow goes on when there are keys; "
	case errors.Is(err, objstore.ErrDenied), errors.Is(err, objstore.ErrKeys):
		hint = "look at the credentials and at what they may do; "
	case errors.Is(err, objstore.ErrNotFound):
		hint = "look at the bucket's or folder's name; "
	}
	next := fmt.Sprintf("%sit is tried again at %s, and at once by moverctl resume", hint, time.Now().Add(wait).Format(time.TimeOnly))
	f.stand(state, err.Error(), next)
	f.mu.Lock()
	again := f.stands.err == err.Error()
	f.stands.err = err.Error()
	f.answer(err)
	f.mu.Unlock()
	if !again {
		f.log.Error("bucket flow cannot go on", "error", err, "again_in", wait)
	}
}

// answer tells who waits for a pass how it ended. mu is held.
func (f *Flow) answer(err error) {
	f.why = err
	close(f.done)
	f.done = make(chan struct{})
}

func (f *Flow) noted() note {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.note
}

// change changes what the flow is at, durably.
func (f *Flow) change(change func(n *note)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.note
	change(&n)
	if err := n.write(f.cfg.Dir); err != nil {
		return err
	}
	f.note = n
	return nil
}

// openLedger opens the ledger, once.
func (f *Flow) openLedger() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ledger != nil {
		return nil
	}
	l, err := OpenLedger(f.ledgerDir(), f.cfg.Identity, f.log)
	if errors.Is(err, sentinel.ErrRefused) {
		err = fmt.Errorf("%w; give the flow another name, or move %s away to begin anew", err, f.cfg.Dir)
	}
	if err != nil {
		return err
	}
	f.ledger = l
	return nil
}

// known is the ledger, if it is open.
func (f *Flow) known() (*Ledger, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ledger == nil {
		return nil, fmt.Errorf("flow %s: its ledger is not open: %s: %w", f.cfg.Name, f.stands.reason, sentinel.ErrRefused)
	}
	return f.ledger, nil
}

// State is where the last pass stands, or stood.
func (f *Flow) State() State {
	if l, err := f.known(); err == nil {
		return l.State()
	}
	return State{}
}

// shut ends what is open. Verbs that still run find nothing.
func (f *Flow) shut() {
	f.busy <- struct{}{}
	f.close()
	f.use.Lock()
	defer f.use.Unlock()
	f.mu.Lock()
	l := f.ledger
	f.ledger = nil
	f.answer(fmt.Errorf("flow %s: the daemon ends", f.cfg.Name))
	f.mu.Unlock()
	if l != nil {
		if err := l.Close(); err != nil {
			f.log.Error("the ledger could not be closed", "error", err)
		}
	}
	<-f.busy
}
