// Package cost reckons what a migration costs and what it saved, from a file of dated prices that the operator owns. It does no I/O and
// reads no clock: who asks says what was used, and when.
package cost

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moverd/mover/internal/strict"
)

// Kinds of prices.
const (
	Line      = "line"      // the paid-for circuit
	Volume    = "volume"    // a cloud disk, by its whole size (CDS)
	Objects   = "bos"       // a storage class of objects
	Files     = "cfs"       // a network filesystem, by what lies on it
	Point     = "point"     // recovery points: snapshots
	Request   = "request"   // to objects of a class
	Retrieval = "retrieval" // of objects of a class
)

// Models of lines.
const (
	Flat       = "flat"        // so much a month for a rate, used or not
	Moved      = "moved"       // so much a GB
	Plain95    = "95"          // by the rate that 95 % of the month's samples do not exceed
	Enhanced95 = "enhanced-95" // by the mean of the five largest day peaks, each without its four largest samples
)

// None says on purpose that something costs nothing here.
const None = "none"

// Prices is a price file.
type Prices struct {
	File   string      `yaml:"-"`
	Zone   strict.Zone `yaml:"zone"` // where days and months begin
	Prices []Price     `yaml:"prices"`
	Use    Uses        `yaml:"use"`

	of map[string][]*Price // of each thing, oldest first
}

// Price is what one thing costs from a day on.
type Price struct {
	Kind     string      `yaml:"kind"`
	Name     string      `yaml:"name"`
	Model    string      `yaml:"model"` // of a line
	Price    Decimal     `yaml:"price"`
	Currency string      `yaml:"currency"` // three letters
	Unit     string      `yaml:"unit"`     // what Price is for
	Rate     strict.Rate `yaml:"rate"`     // of a line
	Floor    *int        `yaml:"floor"`    // of enhanced-95: percent of Rate that are billed at least
	MinDays  int         `yaml:"min-days"` // of bos: an object is billed for so long at least
	MinSize  strict.Size `yaml:"min-size"` // of bos: and as if it had so many bytes
	From     Date        `yaml:"from"`
	Until    Date        `yaml:"until"` // the last day; none: until the next From of the same thing
	Source   string      `yaml:"source"`
}

// Uses says what of the prices a migration uses: KIND/NAME each, or none.
type Uses struct {
	Line     string      `yaml:"line"`
	Billed   strict.Rate `yaml:"billed-rate"` // of a line by 95: what the provider bills
	Target   string      `yaml:"target"`      // what targets lie on
	Points   string      `yaml:"points"`      // what recovery points lie on
	Object   strict.Size `yaml:"object"`      // of bos: how large objects are
	ReadBack int         `yaml:"read-back"`   // of bos: how often all of it will be read
	Flows    []FlowUse   `yaml:"flows"`       // the first that matches counts
}

// FlowUse says otherwise for some flows.
type FlowUse struct {
	Flow   string `yaml:"flow"` // *, ? and [ab] stand for what has no slash
	Target string `yaml:"target"`
	Points string `yaml:"points"`
}

// defaultObject is the size of objects when the file does not say it.
const defaultObject = 16 << 20

// defaultFloor is percent.
const defaultFloor = 20

// Decimal is an amount of money, spelled 0.119.
type Decimal struct {
	Value float64
	Set   bool
}

var decimal = regexp.MustCompile(`^[0-9]{1,12}(\.[0-9]{1,9})?$`)

// Parse reads an amount.
func (d *Decimal) Parse(s string) error {
	if strings.HasPrefix(s, "-") {
		return fmt.Errorf("%q is negative", s)
	}
	if !decimal.MatchString(s) {
		return fmt.Errorf("%q is not an amount; write it as in 0.119", s)
	}
	v, err := strconv.ParseFloat(s, 64)
	d.Value, d.Set = v, err == nil
	return err
}

// perUnit is what a price may be for, in bytes; 0 where it is not about bytes.
var perUnit = map[string]map[string]float64{
	Line + Flat:       {"month": 0},
	Line + Moved:      {"GB": 1e9, "GiB": 1 << 30},
	Line + Plain95:    {"Mbit/s-month": 0},
	Line + Enhanced95: {"Mbit/s-month": 0},
	Volume:            {"GiB-month": 1 << 30, "GB-month": 1e9},
	Objects:           {"GB-month": 1e9, "GiB-month": 1 << 30},
	Files:             {"GiB-month": 1 << 30, "GB-month": 1e9},
	Point:             {"GiB-month": 1 << 30, "GB-month": 1e9},
	Request:           {"10k": 0},
	Retrieval:         {"GB": 1e9, "GiB": 1 << 30},
}

// units are those of the price's kind, by name.
func (p *Price) units() map[string]float64 {
	if p.Kind == Line {
		return perUnit[Line+p.Model]
	}
	return perUnit[p.Kind]
}

// per is the bytes that the price is for.
func (p *Price) per() float64 { return p.units()[p.Unit] }

// Thing is what the price is of, KIND/NAME.
func (p *Price) Thing() string { return p.Kind + "/" + p.Name }

// At is the price of a thing on a day; nil: there is none.
func (p *Prices) At(thing string, d Date) *Price {
	for _, x := range slices.Backward(p.of[thing]) {
		if d.Before(x.From) {
			continue
		}
		if x.Until.IsZero() || !x.Until.Before(d) {
			return x
		}
		return nil // the latest that had begun has ended
	}
	return nil
}

// Location is where days and months begin.
func (p *Prices) Location() *time.Location { return p.Zone.Location() }

// Parse reads and checks a price file; raw came from file. Every error is a *strict.Error.
func Parse(file string, raw []byte) (*Prices, error) {
	p := &Prices{File: file, Zone: strict.ProviderZone}
	p.Use.Object = defaultObject
	f, err := strict.Decode(file, raw, p, "is empty; a price file needs prices:")
	if err != nil {
		return nil, err
	}
	if len(p.Prices) == 0 {
		f.Add("prices", "needs at least one price")
	}
	p.of = map[string][]*Price{}
	for i := range p.Prices {
		p.of[p.Prices[i].Thing()] = append(p.of[p.Prices[i].Thing()], &p.Prices[i])
		p.Prices[i].check(f, fmt.Sprintf("prices[%d]", i))
		p.order(f, i)
	}
	p.Use.check(f)
	return p, f.First()
}

var (
	nameForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	currencyForm = regexp.MustCompile(`^[A-Z]{3}$`)
)

// text checks a value that has to be there and to have a form; nil: any.
func text(f *strict.Faults, key, s string, form *regexp.Regexp, want string) {
	if s == "" {
		f.Add(key, "is missing; %s", want)
	} else if form != nil && !form.MatchString(s) {
		f.Add(key, "%q: %s", s, want)
	}
}

func (p *Price) check(f *strict.Faults, key string) {
	f.Among(key+".kind", p.Kind, Line, Volume, Objects, Files, Point, Request, Retrieval)
	text(f, key+".name", p.Name, nameForm, "name it with letters, digits, dots, - and _")
	if p.Kind == Line {
		f.Among(key+".model", p.Model, Flat, Moved, Plain95, Enhanced95)
	} else if p.Model != "" {
		f.Add(key+".model", "is only for a line")
	}
	if !p.Price.Set {
		f.Add(key+".price", "is missing; what costs nothing has the price 0")
	}
	text(f, key+".currency", p.Currency, currencyForm, "a currency has three capital letters, as in CNY")
	if allowed := p.units(); allowed != nil {
		if _, ok := allowed[p.Unit]; !ok {
			f.Add(key+".unit", "%q: the price of a %s is for one %s", p.Unit, strings.TrimSpace(p.Kind+" "+p.Model), strings.Join(sorted(allowed), " or "))
		}
	}
	if p.From.IsZero() {
		f.Add(key+".from", "is missing; every price has the day from which it counts")
	} else if !p.Until.IsZero() && p.Until.Before(p.From) {
		f.Add(key+".until", "%v is before from, %v", p.Until, p.From)
	}
	text(f, key+".source", strings.TrimSpace(p.Source), nil, "tell where the price is from: a page with its date, an offer, a contract")
	p.extras(f, key)
}

// extras checks what only some kinds have.
func (p *Price) extras(f *strict.Faults, key string) {
	floor := p.Model == Enhanced95 && p.floor() > 0
	switch {
	case p.Kind != Line && p.Rate != 0:
		f.Add(key+".rate", "is only for a line")
	case p.Kind == Line && p.Rate == 0 && (p.Model == Flat || floor):
		f.Add(key+".rate", "is missing; what the price is for, as in 200Mbit/s")
	}
	if p.Floor != nil && p.Model != Enhanced95 {
		f.Add(key+".floor", "is only for a line by enhanced-95")
	} else if p.Floor != nil && (*p.Floor < 0 || *p.Floor > 100) {
		f.Add(key+".floor", "%d is outside 0 to 100 percent", *p.Floor)
	}
	if p.Kind != Objects && p.MinDays != 0 {
		f.Add(key+".min-days", "is only for bos")
	} else if p.MinDays < 0 || p.MinDays > 3650 {
		f.Add(key+".min-days", "%d is outside 0 to 3650", p.MinDays)
	}
	if p.Kind != Objects && p.MinSize != 0 {
		f.Add(key+".min-size", "is only for bos")
	}
}

func (p *Price) floor() int {
	if p.Floor == nil {
		return defaultFloor
	}
	return *p.Floor
}

// order checks entry i against the one before it of the same thing.
func (p *Prices) order(f *strict.Faults, i int) {
	b := &p.Prices[i]
	for k := range slices.Backward(p.Prices[:i]) {
		a := &p.Prices[k]
		if a.Thing() != b.Thing() {
			continue
		}
		key := fmt.Sprintf("prices[%d]", i)
		switch {
		case a.From.IsZero() || b.From.IsZero(): // told already
		case !a.From.Before(b.From):
			f.Add(key+".from", "%v is not after %v of prices[%d], the entry before it of %s; write them in the order of their dates", b.From, a.From, k, b.Thing())
		case !a.Until.IsZero() && !a.Until.Before(b.From):
			f.Add(key+".from", "%v overlaps prices[%d] of %s, which counts until %v", b.From, k, b.Thing(), a.Until)
		}
		if a.Currency != b.Currency {
			f.Add(key+".currency", "%s: prices[%d] of %s is in %s; what is in two currencies cannot be added up", b.Currency, k, b.Thing(), a.Currency)
		}
		return
	}
}

func (u *Uses) check(f *strict.Faults) {
	thing(f, "use.line", u.Line, Line)
	thing(f, "use.target", u.Target, Volume, Objects, Files)
	thing(f, "use.points", u.Points, Point, Objects, Files, Volume)
	if u.Object <= 0 {
		f.Add("use.object", "must be more than 0")
	}
	if u.ReadBack < 0 || u.ReadBack > 1000 {
		f.Add("use.read-back", "%d is outside 0 to 1000", u.ReadBack)
	}
	for i, x := range u.Flows {
		key := fmt.Sprintf("use.flows[%d]", i)
		if x.Flow == "" {
			f.Add(key+".flow", "is missing; the name of a flow, or as in acme/db1/*")
		} else if _, err := path.Match(x.Flow, ""); err != nil {
			f.Add(key+".flow", "%q is not a pattern", x.Flow)
		}
		thing(f, key+".target", x.Target, Volume, Objects, Files)
		thing(f, key+".points", x.Points, Point, Objects, Files, Volume)
	}
}

func thing(f *strict.Faults, key, s string, kinds ...string) {
	if s == "" || s == None {
		return
	}
	kind, name, _ := strings.Cut(s, "/")
	if !slices.Contains(kinds, kind) || !nameForm.MatchString(name) {
		f.Add(key, "%q: write KIND/NAME of a price, of kind %s, or none", s, strings.Join(kinds, ", "))
	}
}

// of is what a flow's target and points lie on; "" is not said.
func (u *Uses) of(flow string) (target, points string) {
	target, points = u.Target, u.Points
	for _, x := range u.Flows {
		if ok, _ := path.Match(x.Flow, flow); ok {
			if x.Target != "" {
				target = x.Target
			}
			if x.Points != "" {
				points = x.Points
			}
			break
		}
	}
	return target, points
}

func sorted(m map[string]float64) (names []string) {
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
