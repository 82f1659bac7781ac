package bucket

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// member is a worker as it was heard last.
type member struct {
	Alive
	first, heard time.Time

	rate    float64 // objects a second
	counted time.Time
}

// Member is one worker, for people.
type Member struct {
	Name, Host string
	Objects    int64   // under way
	Rate       float64 // objects a second
	Heard      time.Time
}

// memberFor is how long a silent worker is shown.
const memberFor = 10 * time.Minute

// Members are the workers that were heard of lately, each in its last life.
func (c *Coordinator) Members() (out []Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for who, m := range c.workers {
		if !slices.ContainsFunc(c.lives(who), func(o *member) bool { return o.first.After(m.first) }) {
			out = append(out, Member{m.Worker, m.Host, m.Objects, m.rate, m.heard})
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// lives are the other lives of a worker. mu is held.
func (c *Coordinator) lives(of Who) (out []*member) {
	for who, m := range c.workers {
		if who.Worker == of.Worker && who.Life != of.Life {
			out = append(out, m)
		}
	}
	return out
}

// dead tells whether a life of a worker is known to have ended: another one holds the lock of its name, and the former was not heard since. mu is held.
func (c *Coordinator) dead(life, by Who) bool {
	me, other := c.workers[by], c.workers[life]
	return me != nil && me.Sole && life.Worker == by.Worker && life.Life != by.Life && time.Since(me.first) >= c.cfg.pulse.every/2 && (other == nil || other.heard.Before(me.first))
}

// twin tells whether a worker is alive twice, on two machines: each has the lock of its own. mu is held.
func (c *Coordinator) twin(w Who) bool {
	me := c.workers[w]
	return me != nil && slices.ContainsFunc(c.lives(w), func(o *member) bool {
		return o.first.Before(me.first) && o.heard.Sub(me.first) > c.cfg.pulse.every/2 && time.Since(o.heard) < c.cfg.pulse.lease
	})
}

// Waits tells why a final pass has not ended although all is copied; "": it does not wait.
func (c *Coordinator) Waits() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waits
}

func (c *Coordinator) wait(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = text
}

// Local is the name of the worker in the coordinator's own process.
const Local = "local"

// errName: what a worker says was not sent under its name.
var errName = fmt.Errorf("it was sent under another name: %w", sentinel.ErrDenied)

// refuse tells why a worker, which the queue knows as sender, may not work; "": it may.
func (c *Coordinator) refuse(sender string, w Who, flow string) string {
	switch {
	case token(w.Worker) != sender:
		return errName.Error()
	case c.cfg.Workers != nil && w.Worker != Local && !slices.Contains(c.cfg.Workers, w.Worker):
		return fmt.Sprintf("%s is not among the workers of flow %s", w.Worker, c.cfg.Name)
	case flow != c.cfg.Flow:
		return fmt.Sprintf("flow %s is, here: %s; the worker has: %s", c.cfg.Name, c.cfg.Flow, flow)
	}
	return ""
}

// alive takes in which units a worker has, and answers which of them others have now.
func (c *Coordinator) alive(_ context.Context, worker string, b []byte) (any, error) {
	var a Alive
	if err := unpack(b, &a); err != nil {
		return nil, err
	}
	if text := c.refuse(worker, a.Who, a.Flow); text != "" {
		return Heard{Refused: text}, nil
	}
	c.mu.Lock()
	c.seen(a)
	twin := c.twin(a.Who)
	c.mu.Unlock()
	if twin {
		return Heard{Refused: fmt.Sprintf("another worker %s is alive; each machine needs a certificate of its own", a.Worker)}, nil
	}
	if err := c.ended(a); err != nil {
		return nil, err
	}
	h := Heard{Share: noRate}
	if c.cfg.Class != nil {
		h.Class = uint8(c.cfg.Class())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Rate != nil {
		h.Share = c.shares.share(a.Who, a.Use, c.cfg.Rate(), c.cfg.pulse.lease, time.Now())
	}
	for _, id := range a.Units {
		switch o := c.open[id]; {
		case o == nil && id > c.last:
			c.held[id] = a.Who
		case o == nil:
			h.Lost = append(h.Lost, id) // all of it is recorded
		case o.hold.Holder == a.Who:
			o.heard = time.Now()
		case o.hold.Holder != Who{}:
			h.Lost = append(h.Lost, id)
		}
	}
	if a.Sole {
		for _, o := range c.open {
			if w := o.hold.Holder; w.Worker == a.Worker && w.Life != a.Life {
				o.heard, o.offered = time.Time{}, time.Time{} // it is dead, and its unit is free
			}
		}
	}
	return h, nil
}

// hurry has all workers ask at once, for what they hear has changed.
func (c *Coordinator) hurry() { c.queue.say("who", true) }

// seen notes a worker. mu is held.
func (c *Coordinator) seen(a Alive) {
	at := time.Now()
	m := c.workers[a.Who]
	if m == nil {
		m = &member{Alive: a, first: at, counted: at}
		c.workers[a.Who] = m
	}
	if d := at.Sub(m.counted).Seconds(); d > 0.5 { // else it was asked
		m.rate += (float64(a.Done-m.Done)/d - m.rate) / 2
		m.Done, m.counted = a.Done, at
	}
	m.Objects, m.heard = a.Objects, at
	for who, o := range c.workers {
		if at.Sub(o.heard) > memberFor {
			delete(c.workers, who)
		}
	}
}
