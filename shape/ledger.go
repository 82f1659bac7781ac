package shape

import (
	"slices"
	"time"
)

// Ledger shares one line among flows. Each holds a lease: a rate, under a serial. A lease that becomes smaller still counts as large until its
// holder says that he has taken it over, or until it has ended: so the leases never add up to more than the line may carry, but for what is
// under way. It is not safe for concurrent use.
type Ledger[K comparable] struct {
	holders map[K]*holder
	order   []K     // in which they came, so that rounding does not wander
	gone    []Lease // of those who left: what they may still be using
	claims  []Claim
	out     []int64
}

// Ask is what a holder says of himself.
type Ask struct {
	Class   Class  // 0: idle
	Want    int64  // bytes/s
	Backlog int64  // bytes that wait
	Serial  uint32 // of the last lease that he has taken over
}

// Lease is what a holder may use until it ends.
type Lease struct {
	Rate   int64 // bytes/s
	Serial uint32
	Until  time.Time
}

type holder struct {
	ask     Ask
	asked   time.Time
	lease   Lease
	held    int64 // the most that he may be using
	told    time.Time
	smaller time.Time // when the lease became smaller than held
}

const (
	// LeaseTime is how long a lease holds that is not renewed.
	LeaseTime = 2 * time.Second
	// renewEvery is how often a lease that stays is told again.
	renewEvery = LeaseTime / 4
	// takeOver is how long a holder may take to say that he has taken over a smaller lease. Who has not said so by then is stuck, and not sending.
	takeOver = 700 * time.Millisecond
	// Least is what everybody may use, bytes/s: keep-alives, questions, and the rest of a frame.
	Least = 16 << 10
)

// NewLedger makes an empty one.
func NewLedger[K comparable]() *Ledger[K] { return &Ledger[K]{holders: map[K]*holder{}} }

// Ask takes in what k says at now.
func (g *Ledger[K]) Ask(now time.Time, k K, a Ask) {
	h := g.holders[k]
	if h == nil {
		h = &holder{}
		g.holders[k] = h
		g.order = append(g.order, k)
	}
	h.ask, h.asked = a, now
	if a.Serial == h.lease.Serial {
		h.held, h.smaller = h.lease.Rate, time.Time{}
	}
}

// Leave forgets k, who cannot be told anything any more. What he holds counts until it ends.
func (g *Ledger[K]) Leave(k K) {
	h := g.holders[k]
	if h == nil {
		return
	}
	if h.held > 0 {
		g.gone = append(g.gone, Lease{Rate: h.held, Until: h.lease.Until})
	}
	delete(g.holders, k)
	g.order = slices.DeleteFunc(g.order, func(o K) bool { return o == k })
}

// Demand is what all want together, and may be using at now.
func (g *Ledger[K]) Demand(now time.Time) (d Demand) {
	g.expire(now)
	for _, h := range g.holders {
		d.Backlog += h.ask.Backlog
		d.Cutover = d.Cutover || h.ask.Class >= Cutover && h.ask.Want > 0
		d.Final = d.Final || h.ask.Class == Final && h.ask.Want > 0
		d.Held = plus(d.Held, h.held)
	}
	for _, l := range g.gone {
		d.Held = plus(d.Held, l.Rate)
	}
	return d
}

func plus(a, b int64) int64 {
	if a > Unlimited-b {
		return Unlimited
	}
	return a + b
}

// expire takes back what has ended.
func (g *Ledger[K]) expire(now time.Time) {
	g.gone = slices.DeleteFunc(g.gone, func(l Lease) bool { return !now.Before(l.Until) })
	for _, h := range g.holders {
		if h.held > 0 && !now.Before(h.lease.Until) {
			h.held, h.smaller = 0, time.Time{}
		}
	}
}

// Share divides rate anew and calls tell for each lease that is to be told.
func (g *Ledger[K]) Share(now time.Time, a Allowance, tell func(K, Lease)) {
	g.expire(now)
	g.claims, g.out = g.claims[:0], g.out[:0]
	total := a.Rate // or what the highest class has that wants something: those with less wait
	for _, h := range g.holders {
		if h.ask.Want > 0 && now.Sub(h.asked) <= LeaseTime {
			total = max(total, a.of(h.ask.Class))
		}
	}
	for _, k := range g.order {
		h := g.holders[k]
		if now.Sub(h.asked) > LeaseTime { // he will be found gone; what he had has ended
			h.ask, h.held = Ask{Serial: h.ask.Serial}, 0 // his lease has ended, too
		}
		if h.held > h.lease.Rate && now.Sub(h.smaller) > takeOver {
			h.held, h.smaller = h.lease.Rate, time.Time{}
		}
		c := Claim{Class: h.ask.Class, Want: h.ask.Want}
		if a.of(c.Class) < total || total == 0 {
			c.Want = 0
		}
		g.claims, g.out = append(g.claims, c), append(g.out, 0)
	}
	Share(total, g.claims, g.out)
	free := total
	for _, l := range g.gone {
		free -= l.Rate
	}
	for _, h := range g.holders {
		free -= h.held
	}
	for i, k := range g.order {
		h := g.holders[k]
		rate := g.out[i]
		if rate > h.held { // more: only what nobody else holds any more
			more := min(rate-h.held, max(0, free))
			rate = h.held + more
			free -= more
		}
		if changed(h.lease.Rate, rate) || now.Sub(h.told) >= renewEvery {
			if h.lease.Rate != rate {
				h.lease.Rate = rate
				h.lease.Serial++
			}
			if h.held < rate {
				h.held = rate
			} else if h.held > rate && h.smaller.IsZero() {
				h.smaller = now
			}
			h.lease.Until, h.told = now.Add(LeaseTime), now
			if !a.Until.IsZero() && a.Until.Before(h.lease.Until) {
				h.lease.Until = a.Until
			}
			tell(k, h.lease)
		}
	}
}

// changed tells whether a lease differs by enough to be told at once.
func changed(old, rate int64) bool {
	d := rate - old
	return d > old/50 || -d > old/50 || (rate == 0) != (old == 0)
}

// Held is the most that k may be using at now, bytes/s, and until when.
func (g *Ledger[K]) Held(now time.Time, k K) (rate int64, until time.Time) {
	g.expire(now)
	h := g.holders[k]
	if h == nil {
		return 0, time.Time{}
	}
	return h.held, h.lease.Until
}

// Lease is what k holds.
func (g *Ledger[K]) Lease(k K) (Lease, Ask, bool) {
	h := g.holders[k]
	if h == nil {
		return Lease{}, Ask{}, false
	}
	return h.lease, h.ask, true
}
