// Package session keeps the keys of a session good: it asks for new ones well before the old ones end, once for all who use them, and goes on with the old ones
// while nobody gives new ones.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/moverd/mover/objstore"
)

// Issuer gives keys for some time.
type Issuer interface {
	// Issue gives new keys, with their token, which end at Keys.Expires by this machine's clock. An error that wraps objstore.ErrTransient may pass.
	Issue(ctx context.Context) (objstore.Keys, error)
	// String names it for people, without secrets.
	String() string
	Close() error
}

// Config of a Renewer. Zero values are defaults.
type Config struct {
	Issuer Issuer
	Log    *slog.Logger
	First  time.Duration // the second try, where the first was in vain, comes within this; each further one within the double; 2 s
	Most   time.Duration // but within this; 1 min
	Limit  time.Duration // of one answer; 30 s
}

// Renewer is objstore.Credentials, and a Doubter. Keys are renewed while they are used: those that nobody has asked for since they came are left to end.
type Renewer struct {
	c      Config
	life   context.Context
	end    context.CancelFunc
	asking sync.WaitGroup

	mu      sync.Mutex // guards all below
	keys    objstore.Keys
	from    time.Time     // when they were asked for
	used    bool          // since then
	asked   chan struct{} // closed when the issuer has answered; nil: it is not asked
	err     error         // of the last answer
	vain    int           // answers in vain, in a row
	next    time.Time     // not asked before, after one in vain
	doubted time.Time     // when keys were doubted last
	timer   *time.Timer
	closed  bool
	renewed uint64
	failed  uint64
}

var _ objstore.Doubter = (*Renewer)(nil)

// New makes a Renewer, which the caller closes. Nothing is asked yet.
func New(c Config) *Renewer {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.First, 2 * time.Second}, {&c.Most, time.Minute}, {&c.Limit, 30 * time.Second}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	r := &Renewer{c: c}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// early is how long before their end keys are renewed at the latest, where their life is long enough for it.
const early = 5 * time.Minute

// due is when keys are renewed: after two thirds of their life, or five minutes before its end, but not in its first half.
func due(from, ends time.Time) time.Time {
	life := ends.Sub(from)
	return from.Add(max(life/2, min(life*2/3, life-early)))
}

// Keys gives the keys of now. It waits only where there are none, or they have ended; an error then is objstore.ErrTransient if new ones may come soon.
func (r *Renewer) Keys(ctx context.Context) (objstore.Keys, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = true
	for {
		now := time.Now()
		if now.Before(r.keys.Expires) {
			if !now.Before(due(r.from, r.keys.Expires)) {
				r.ask(now) // beside those that are used meanwhile; there is a timer for it, but that may have been too early
			}
			return r.keys, nil
		}
		if !r.ask(now) {
			return objstore.Keys{}, r.none()
		}
		asked := r.asked
		r.mu.Unlock()
		select {
		case <-asked:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil {
			return objstore.Keys{}, ctx.Err()
		}
		if r.err != nil {
			return objstore.Keys{}, r.none()
		}
	}
}

// none tells why there are no keys. mu is held.
func (r *Renewer) none() error {
	switch {
	case r.closed:
		return fmt.Errorf("%s: closed", r.c.Issuer)
	case r.keys.Expires.IsZero():
		return fmt.Errorf("a session cannot be begun: %v: %w", r.err, kind(r.err))
	}
	return fmt.Errorf("the session has ended and cannot be renewed: %v: %w", r.err, kind(r.err))
}

// kind is all that others are told of the kind of err: a role that is not found is no object that is not found.
func kind(err error) error {
	switch {
	case objstore.Retryable(err):
		return objstore.ErrTransient
	case errors.Is(err, objstore.ErrClock):
		return objstore.ErrClock
	}
	return objstore.ErrDenied
}

// ask asks for new keys, unless somebody does already. false: not before r.next. mu is held.
func (r *Renewer) ask(now time.Time) bool {
	if r.asked != nil {
		return true
	}
	if r.closed || now.Before(r.next) {
		return false
	}
	r.asked = make(chan struct{})
	r.asking.Go(func() {
		ctx, cancel := context.WithTimeout(r.life, r.c.Limit)
		defer cancel()
		keys, err := r.c.Issuer.Issue(ctx)
		if err == nil && (keys.Token == "" || !keys.Expires.After(time.Now())) {
			err = fmt.Errorf("%s gave keys without a token, or that have ended already: %w", r.c.Issuer, objstore.ErrTransient)
		}
		if err != nil && ctx.Err() != nil && r.life.Err() == nil {
			err = fmt.Errorf("%s has not answered in %v: %w", r.c.Issuer, r.c.Limit, objstore.ErrTransient)
		}
		r.answered(now, keys, err)
	})
	return true
}

// answered takes in what the issuer has said. from is when it was asked.
func (r *Renewer) answered(from time.Time, keys objstore.Keys, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.asked)
	r.asked = nil
	if r.closed {
		r.err = err
		return
	}
	now := time.Now()
	if err != nil {
		wait := r.c.wait(r.vain)
		r.failed, r.vain, r.next = r.failed+1, r.vain+1, now.Add(wait)
		if r.err == nil || r.err.Error() != err.Error() {
			r.c.Log.Warn("a session cannot be renewed; its keys are used until they end", "issuer", r.c.Issuer.String(), "error", err, "left", r.left(now), "again_in", wait)
		}
		if r.err = err; now.Before(r.keys.Expires) {
			r.at(r.next)
		} // else the next one who needs keys asks
		return
	}
	if r.err != nil {
		r.c.Log.Info("a session is renewed again", "issuer", r.c.Issuer.String(), "tries", r.vain+1)
	}
	r.keys, r.from, r.used = keys, from, false
	r.err, r.vain, r.next = nil, 0, time.Time{}
	r.renewed++
	r.at(due(from, keys.Expires))
}

// wait is how long to wait after n answers in vain and another one. They who ask together do not come back together.
func (c Config) wait(n int) time.Duration {
	d := c.First
	for ; n > 0 && d < c.Most; n-- {
		d *= 2
	}
	d = min(d, c.Most)
	return d/2 + rand.N(d/2+1)
}

// at renews at a time, if the keys are used until then. mu is held.
func (r *Renewer) at(when time.Time) {
	if r.timer != nil {
		r.timer.Stop()
	}
	r.timer = time.AfterFunc(time.Until(when), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.used {
			r.ask(time.Now())
		}
	})
}

// Doubts: keys are believed in this long, and again after each doubt; what is refused meanwhile is refused for another reason than their end.
const (
	believed   = time.Second
	doubtAgain = 10 * time.Second
)

// Doubt has keys renewed that a store has refused: a session may be revoked.
func (r *Renewer) Doubt(token string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if token != r.keys.Token || r.asked != nil {
		return true
	}
	if now.Sub(r.from) < believed || now.Sub(r.doubted) < doubtAgain || !r.ask(now) {
		return false
	}
	r.doubted = now
	r.c.Log.Info("a store has refused a session before its end; it is renewed", "issuer", r.c.Issuer.String(), "left", r.left(now))
	return true
}

func (r *Renewer) left(now time.Time) time.Duration {
	return max(0, r.keys.Expires.Sub(now)).Round(time.Second)
}

// Status tells how the keys stand.
type Status struct {
	Issuer  string
	Used    bool      // somebody has asked for keys, and they have not been left to end
	Ends    time.Time // zero: there were none yet
	Renewed uint64
	Failed  uint64 // answers in vain
	Trouble string // why the last one was; "": it was not
}

// Status of now.
func (r *Renewer) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{Issuer: r.c.Issuer.String(), Ends: r.keys.Expires, Renewed: r.renewed, Failed: r.failed}
	s.Used = r.used || time.Now().Before(r.keys.Expires)
	if r.err != nil {
		s.Trouble = r.err.Error()
	}
	return s
}

// Close ends what is asked, and waits for it.
func (r *Renewer) Close() error {
	r.mu.Lock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	r.end()
	r.asking.Wait()
	return r.c.Issuer.Close()
}

// String names it; %#v and %+v print no more.
func (r *Renewer) String() string { return "session of " + r.c.Issuer.String() }

// GoString is String.
func (r *Renewer) GoString() string { return r.String() }
