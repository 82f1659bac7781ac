package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// Link is one way from a source to its gateway.
type Link struct {
	Name      string `yaml:"name"`
	Kind      string `yaml:"kind"`                     // dedicated, vpn: for people
	Address   string `yaml:"address,omitempty"`        // of the gateway on this way; default gateway.address
	Source    Addr   `yaml:"source-address,omitempty"` // of this host
	Interface string `yaml:"interface,omitempty"`      // default the one with source-address
	DSCP      int    `yaml:"dscp,omitempty"`           // 0 to 63
	Price     int    `yaml:"price"`                    // lower ones are used first; equal ones are shared by rate
	Rate      Rate   `yaml:"rate,omitempty"`           // for that share
	SafeRate  Rate   `yaml:"safe-rate,omitempty"`      // of this host while the gateway does not say what it may use
}

// Way is the link as wire wants it.
func (l Link) Way() wire.Way {
	return wire.Way{Source: netip.Addr(l.Source), Device: l.Interface, DSCP: uint8(l.DSCP)}
}

// Line is a circuit that sources share, as the gateway sees it.
type Line struct {
	Name      string   `yaml:"name"`
	From      []Prefix `yaml:"from,omitempty,flow"` // addresses of the sources on it; none: all
	Rate      Rate     `yaml:"rate,omitempty"`      // 0: not bounded
	Zone      Zone     `yaml:"zone"`                // of the timetable, days and months
	Timetable []Span   `yaml:"timetable,omitempty"`
	Month     Size     `yaml:"month,omitempty"` // bytes; 0: any
	Billing   Billing  `yaml:"billing,omitempty"`
}

// Span is a time of the week with a rate of its own.
type Span struct {
	Days Days  `yaml:"days"`
	From Clock `yaml:"from"`
	To   Clock `yaml:"to"` // at or before From: of the next day
	Rate Rate  `yaml:"rate"`
}

// Billing is how the provider charges for the line.
type Billing struct {
	Model  string   `yaml:"model"`            // flat, 95, enhanced-95
	Peak   Rate     `yaml:"peak,omitempty"`   // that may be billed
	Sample Duration `yaml:"sample"`           // that the provider averages over
	Keep   int      `yaml:"keep"`             // free samples that are kept for cutovers
	Period Duration `yaml:"period,omitempty"` // instead of a calendar month
	Day    Duration `yaml:"day,omitempty"`    // instead of a calendar day, of enhanced-95
}

func (l *Link) Defaults() { l.Kind = "dedicated" }

func (l *Line) Defaults() {
	l.Zone = strict.ProviderZone
	l.Billing = Billing{Model: "flat", Sample: Duration(5 * time.Minute)}
}

func (s *Span) Defaults() { s.Days, s.To = everyDay, 24*60 }

// Shape is the line as shape wants it. l is valid.
func (l Line) Shape() shape.LineConfig {
	zone := l.Zone.Location()
	model, _ := shape.ParseModel(l.Billing.Model)
	c := shape.LineConfig{Timetable: shape.Timetable{Zone: zone, Rate: int64(l.Rate)}, Month: int64(l.Month),
		Billing: shape.Billing{Model: model, Peak: int64(l.Billing.Peak), Sample: time.Duration(l.Billing.Sample), Zone: zone, Keep: l.Billing.Keep,
			Period: time.Duration(l.Billing.Period), Day: time.Duration(l.Billing.Day)}}
	for _, s := range l.Timetable {
		c.Timetable.Spans = append(c.Timetable.Spans, shape.Span{Days: s.Days, From: int(s.From), To: int(s.To), Rate: int64(s.Rate)})
	}
	return c
}

// Addr is an IP address.
type Addr netip.Addr

func (v *Addr) Parse(s string) error {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("%q is not an IP address", s)
	}
	*v = Addr(a)
	return nil
}

func (v Addr) IsZero() bool              { return !netip.Addr(v).IsValid() }
func (v Addr) MarshalYAML() (any, error) { return netip.Addr(v).String(), nil }

// Prefix is a network, or one address.
type Prefix netip.Prefix

func (v *Prefix) Parse(s string) error {
	if a, err := netip.ParseAddr(s); err == nil {
		*v = Prefix(netip.PrefixFrom(a, a.BitLen()))
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is not a network; write it as in 10.8.0.0/16", s)
	}
	if p != p.Masked() {
		return fmt.Errorf("%q has bits behind its mask; the network is %v", s, p.Masked())
	}
	*v = Prefix(p)
	return nil
}

func (v Prefix) MarshalYAML() (any, error) { return netip.Prefix(v).String(), nil }

// Clock is a time of the day in minutes, spelled 08:00; 24:00 is its end.
type Clock int

func (v *Clock) Parse(s string) error {
	hour, minute, ok := strings.Cut(s, ":")
	h, err1 := strconv.Atoi(hour)
	m, err2 := strconv.Atoi(minute)
	if !ok || err1 != nil || err2 != nil || len(minute) != 2 || h < 0 || m < 0 || m > 59 || h*60+m > 24*60 {
		return fmt.Errorf("%q is not a time of the day; write it as in \"08:00\", with quotes", s)
	}
	*v = Clock(h*60 + m)
	return nil
}

func (v Clock) MarshalYAML() (any, error) { return fmt.Sprintf("%02d:%02d", v/60, v%60), nil }

// Days are days of the week by time.Weekday, spelled mon-fri or sat,sun or daily.
type Days [7]bool

var (
	everyDay = Days{true, true, true, true, true, true, true}
	dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
)

func (v *Days) Parse(s string) error {
	*v = Days{}
	if s == "daily" {
		*v = everyDay
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, span := strings.Cut(strings.TrimSpace(part), "-")
		if !span {
			to = from
		}
		a, b := slices.Index(dayNames, from), slices.Index(dayNames, to)
		if a < 0 || b < 0 {
			return fmt.Errorf("%q is not days of the week; write them as in mon-fri or sat,sun, or daily", s)
		}
		for d := a; ; d = (d + 1) % 7 {
			v[d] = true
			if d == b {
				break
			}
		}
	}
	return nil
}

func (v Days) MarshalYAML() (any, error) {
	var names []string
	for i := range 7 {
		if d := (i + 1) % 7; v[d] {
			names = append(names, dayNames[d])
		}
	}
	if len(names) == 7 {
		return "daily", nil
	}
	return strings.Join(names, ","), nil
}

// leastRate is the lowest rate of a line that makes sense.
const leastRate = 64 << 10

func (v *validator) rate(key string, r Rate) {
	if r != 0 && r < leastRate {
		v.bad(key, "is under 64KiB/s, which is less than a flow needs to stay alive")
	}
}

func (v *validator) links(section string, s *Source) {
	names := map[string]int{}
	if n := len(s.Links); n > 4 {
		v.bad(section+".links", "has %d links, at most 4 are allowed", n)
	} else if n > 0 && s.Gateway.Connections+n > wire.MaxConns {
		v.bad(section+".gateway.connections", "%d and one for each of %d links are more than %d", s.Gateway.Connections, n, wire.MaxConns)
	}
	for i, l := range s.Links {
		key := fmt.Sprintf("%s.links[%d]", section, i)
		v.name(key+".name", l.Name)
		v.once(key+".name", "name", l.Name, i, section+".links", names)
		v.among(key+".kind", l.Kind, "dedicated", "vpn")
		if l.Address != "" {
			v.address(key+".address", l.Address, "10.0.0.7:9465")
		}
		if l.Source.IsZero() && l.Interface == "" && l.Address == "" {
			v.bad(key, "needs source-address, interface or address, or it is no way of its own")
		}
		if len(l.Interface) > 15 || strings.ContainsAny(l.Interface, "/ ") {
			v.bad(key+".interface", "%q is not the name of an interface", l.Interface)
		}
		if l.DSCP < 0 || l.DSCP > 63 {
			v.bad(key+".dscp", "%d is outside 0 to 63", l.DSCP)
		}
		if l.Price < 0 {
			v.bad(key+".price", "%d is negative", l.Price)
		}
		v.rate(key+".rate", l.Rate)
		v.rate(key+".safe-rate", l.SafeRate)
	}
}

func (v *validator) linesOf(g *Gateway) {
	names := map[string]int{}
	for i, l := range g.Lines {
		key := fmt.Sprintf("gateway.lines[%d]", i)
		v.name(key+".name", l.Name)
		v.once(key+".name", "name", l.Name, i, "gateway.lines", names)
		v.rate(key+".rate", l.Rate)
		if len(l.From) == 0 && i < len(g.Lines)-1 {
			v.bad(key+".from", "is missing: without it the line takes every source, and the next ones get none")
		}
		for j, s := range l.Timetable {
			at := fmt.Sprintf("%s.timetable[%d]", key, j)
			if s.Rate != 0 {
				v.rate(at+".rate", s.Rate)
			}
			if l.Rate == 0 {
				v.bad(key+".rate", "is missing: the line's own, for the times that the timetable does not name")
			}
			if s.From == 24*60 {
				v.bad(at+".from", "24:00 is the end of a day; write 00:00")
			}
		}
		v.billing(key+".billing", l)
	}
}

func (v *validator) billing(key string, l Line) {
	b := l.Billing
	v.among(key+".model", b.Model, "flat", "95", "enhanced-95")
	v.rate(key+".peak", b.Peak)
	sample := time.Duration(b.Sample)
	switch {
	case b.Model == "flat" && b.Peak != 0:
		v.bad(key+".peak", "is only for 95 and enhanced-95")
	case b.Model != "flat" && b.Peak == 0:
		v.bad(key+".peak", "is missing: the rate that may be billed")
	case b.Model != "flat" && l.Rate == 0:
		v.bad(strings.TrimSuffix(key, ".billing")+".rate", "is missing: what the line carries in a sample that costs nothing")
	case sample < time.Second || sample > time.Hour:
		v.bad(key+".sample", "%v is outside 1s to 1h", sample)
	case b.Keep < 0 || b.Model == "enhanced-95" && b.Keep > 4:
		v.bad(key+".keep", "%d is outside 0 to 4, or of 95 is negative", b.Keep)
	case b.Period != 0 && (b.Period < 20*b.Sample || b.Period%b.Sample != 0):
		v.bad(key+".period", "%v is not at least 20 samples, all of them whole", time.Duration(b.Period))
	case b.Day != 0 && (b.Day < 5*b.Sample || b.Day%b.Sample != 0):
		v.bad(key+".day", "%v is not at least 5 samples, all of them whole", time.Duration(b.Day))
	}
}
