package sender

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// Group is flows that are cut over, rehearse it, or get recovery points at one moment: the disks of one server. Every member runs its own
// cutover or point, and they wait for each other at each step: after a round, before the freeze, which is one for all, after the verdict,
// and around the release. The first that fails ends it for all, and the writers go on; unless a target was handed over already. A Group
// serves one cutover or one moment. Passed in the options; a flow without one is a group of its own.
type Group struct {
	Hooks bool // the freezer has hooks of applications to run (prepared); set before use

	name    string           // of recovery points and reports; "": one flow
	freezer blockdev.Freezer // of all members' filesystems; may be nil
	members int
	moment  mover.ID

	thawing sync.Once // by the first that has to
	thawErr error
	handed  atomic.Bool // a target was handed over, or may have been: nothing thaws by itself any more

	posting sync.Once
	posted  chan struct{} // closed when the post hooks have ended, or there is nothing to undo

	mu      sync.Mutex // guards all below
	conv    *mover.Converge
	here    int           // members that wait at the present step
	gate    chan struct{} // closed when all have come
	passed  *error        // what the step came to; of the gate that is closed next
	news    round         // of the members that have come
	verdict mover.Verdict
	froze   time.Time // when the freeze began
	thawed  time.Time // when it had ended
	hooked  bool      // pre hooks were begun: post has to follow
	ready   bool      // they went well
	worse   []string  // why the moment is not what freeze and hooks were to make it; the first of them
	fuzzy   bool      // something was written past the freeze
	refused []string  // targets that were not handed over, and why, while others may have been
	doubted []string  // targets of which nobody knows, and why
	postErr error
	broken  error
	failed  chan struct{} // closed with broken
}

// round is what members know of the rest, together.
type round struct {
	pause, elapsed time.Duration // the longest
	written, moved float64       // sums
}

// NewGroup makes a group of so many flows whose writers freezer stops. A single flow needs no name.
func NewGroup(name string, freezer blockdev.Freezer, members int) *Group {
	return &Group{name: name, freezer: freezer, members: members, moment: newID(), posted: make(chan struct{}), gate: make(chan struct{}), passed: new(error), failed: make(chan struct{})}
}

// step waits until all members have come; the last of them runs do for all.
func (g *Group) step(ctx context.Context, do func() error) error {
	g.mu.Lock()
	if g.broken != nil {
		defer g.mu.Unlock()
		return g.broken
	}
	gate, passed := g.gate, g.passed
	if g.here++; g.here == g.members {
		// The others wait, so nobody needs the lock but who breaks the group.
		g.here, g.gate, g.passed = 0, make(chan struct{}), new(error)
		g.mu.Unlock()
		if do != nil {
			*passed = do()
		}
		close(gate)
		return *passed
	}
	g.mu.Unlock()
	select {
	case <-gate:
	case <-g.failed:
		err := g.why()
		if g.left(gate, err) {
			return err
		}
	case <-ctx.Done():
		err := context.Cause(ctx)
		if g.left(gate, err) {
			return err
		}
	}
	<-gate
	return *passed
}

// left breaks the group for who does not wait any longer. false: all have come to this step already, and then all take it.
func (g *Group) left(gate chan struct{}, err error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate != gate {
		return false
	}
	g.breakUp(err)
	return true
}

// round decides for all together.
func (g *Group) round(ctx context.Context, limit, timeout time.Duration, r round) (mover.Verdict, error) {
	g.mu.Lock()
	if g.conv == nil {
		g.conv = &mover.Converge{Limit: limit, Timeout: timeout}
	}
	g.news.pause, g.news.elapsed = max(g.news.pause, r.pause), max(g.news.elapsed, r.elapsed)
	g.news.written, g.news.moved = g.news.written+r.written, g.news.moved+r.moved
	g.mu.Unlock()
	err := g.step(ctx, func() error {
		n := g.news
		g.news = round{}
		var err error
		g.verdict, err = g.conv.Round(n.pause, n.elapsed, n.written, n.moved)
		return err
	})
	return g.verdict, err
}

// fail ends it for all.
func (g *Group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.breakUp(err)
}

// breakUp: mu is held.
func (g *Group) breakUp(err error) {
	if g.broken == nil {
		g.broken = err
		close(g.failed)
	}
}

// refuse notes that a target was not handed over.
func (g *Group) refuse(flow string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = append(g.refused, fmt.Sprintf("%s (%v)", flow, err))
}

// doubtful notes that a target may have been handed over.
func (g *Group) doubtful(flow string, err error) {
	g.handed.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.doubted = append(g.doubted, fmt.Sprintf("%s (%v)", flow, err))
}

// partly tells whether some target was not handed over while another one was, or may have been.
func (g *Group) partly() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.handed.Load() && len(g.refused) > 0
}

// brokenOff is the error of a cutover that ended within the hand-over: some target was or may have been handed over, and another one was not or
// may not have been. nil: all were, or none.
func (g *Group) brokenOff() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.handed.Load() || len(g.refused)+len(g.doubted) == 0 {
		return nil
	}
	if g.members == 1 {
		return fmt.Errorf("RELEASE was sent and nobody knows whether the target of %s was handed over: %w", g.doubted[0], sentinel.ErrBrokenOff)
	}
	text := fmt.Sprintf("%d of %d targets of the group were handed over", g.members-len(g.refused)-len(g.doubted), g.members)
	if len(g.refused) > 0 {
		text += ", but not that of " + strings.Join(g.refused, ", ")
	}
	if len(g.doubted) > 0 {
		text += "; RELEASE was sent and nobody knows of that of " + strings.Join(g.doubted, ", ")
	}
	return fmt.Errorf("%s: %w", text, sentinel.ErrBrokenOff)
}

func (g *Group) why() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken
}

func (g *Group) freeze(ctx context.Context, deadline time.Duration) error {
	g.froze = time.Now()
	if g.freezer == nil {
		return nil
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), deadline)
	defer stop()
	return g.freezer.Freeze(ctx, deadline)
}

// thaw does it once, for all who ask. An error says that the freeze had been broken before. The post hooks follow by themselves.
func (g *Group) thaw() error {
	g.thawing.Do(func() {
		if g.freezer != nil {
			g.thawErr = g.freezer.Thaw()
		}
		g.mu.Lock()
		g.thawed = time.Now()
		g.mu.Unlock()
		go g.post()
	})
	return g.thawErr
}

// part thaws and then looks who may have written past the freeze. That the thaw goes well does not say that it is the first: the operator may
// have thawed by the same freezer. C13
func (g *Group) part() error {
	var err error
	if h, ok := g.freezer.(held); ok && !h.Held() {
		err = errors.New("the writers were let go on before")
	}
	err = errors.Join(err, g.thaw())
	if err == nil {
		g.look()
	}
	return err
}

// keep lets the freeze outlive everything. Who may have written past it is looked for now, since no thaw follows.
func (g *Group) keep() error {
	g.look()
	if g.freezer == nil {
		return nil
	}
	return g.freezer.Keep()
}
