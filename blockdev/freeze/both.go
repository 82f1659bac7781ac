package freeze

import (
	"context"
	"errors"
	"time"
)

// Pair stops an application first and freezes filesystems then: what an application that is stopped has written still lies in the page
// cache, and others may write too.
type Pair struct {
	Between func() // runs when the application is stopped and the filesystems are not frozen, before and after; may be nil

	hook *Hook
	fs   *Freezer
}

// Both combines a hook and a freezer.
func Both(hook *Hook, fs *Freezer) *Pair { return &Pair{hook: hook, fs: fs} }

// Names lists both.
func (p *Pair) Names() []string { return append(p.hook.Names(), p.fs.Names()...) }

// Freeze runs the stop hook, then freezes; the deadline counts from the freeze.
func (p *Pair) Freeze(ctx context.Context, deadline time.Duration) error {
	if err := p.hook.halt(ctx); err != nil {
		return err
	}
	p.between()
	if err := p.fs.Freeze(ctx, deadline); err != nil {
		return errors.Join(err, p.hook.Thaw())
	}
	p.hook.arm(deadline)
	return nil
}

// Thaw thaws, then runs the start hook, also when the thaw was late.
func (p *Pair) Thaw() error {
	err := p.fs.Thaw()
	p.between()
	return errors.Join(err, p.hook.Thaw())
}

func (p *Pair) between() {
	if p.Between != nil {
		p.Between()
	}
}

// Keep keeps both.
func (p *Pair) Keep() error {
	if err := p.fs.Keep(); err != nil {
		return err
	}
	return p.hook.Keep()
}

// Held tells whether both have held without a break.
func (p *Pair) Held() bool { return p.hook.Held() && p.fs.Held() }

// Thawed is closed when the freeze is void or over; the hook's deadline is never earlier than that of the filesystems.
func (p *Pair) Thawed() <-chan struct{} {
	if len(p.fs.dirs) == 0 {
		return p.hook.Thawed()
	}
	return p.fs.Thawed()
}
