package cost

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/strict"
)

// good has two prices of one disk.
const good = `zone: UTC
prices:
  - {kind: volume, name: ssd, price: 0.3, unit: GiB-month, currency: CNY, from: 2026-01-01, until: 2026-02-14, source: list}
  - kind: volume
    name: ssd
    price: 0.6
    unit: GiB-month
    currency: CNY
    from: 2026-02-15
    source: new list
  - {kind: line, name: l, model: flat, price: 2800, unit: month, rate: 80Mbit/s, currency: CNY, from: 2026-01-01, source: contract}
use:
  line: line/l
  target: volume/ssd
  points: none
`

func parsed(t *testing.T, text string) *Prices {
	t.Helper()
	p, err := Parse("prices.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func on(s string) Date {
	d, err := ParseDate(s)
	if err != nil {
		panic(err)
	}
	return d
}

func at(s string) time.Time {
	t, err := time.Parse(time.DateTime, s+" 00:00:00"[:max(0, 19-len(s))])
	if err != nil {
		panic(err)
	}
	return t
}

// The price that is valid on the day counts; one without an end counts until the next begins.
func TestAt(t *testing.T) {
	p := parsed(t, good+`  flows: [{flow: "acme/*", target: none}]
`)
	for day, want := range map[string]float64{"2025-12-31": 0, "2026-01-01": 0.3, "2026-02-14": 0.3, "2026-02-15": 0.6, "2036-01-01": 0.6} {
		got := 0.0
		if x := p.At("volume/ssd", on(day)); x != nil {
			got = x.Price.Value
		}
		if got != want {
			t.Errorf("%s: %v, want %v", day, got, want)
		}
	}
	open := parsed(t, strings.Replace(good, "until: 2026-02-14, ", "", 1))
	if x := open.At("volume/ssd", on("2026-02-14")); x == nil || x.Price.Value != 0.3 {
		t.Errorf("%+v", x)
	}
	hole := parsed(t, strings.Replace(good, "until: 2026-02-14", "until: 2026-02-10", 1))
	if x := hole.At("volume/ssd", on("2026-02-12")); x != nil {
		t.Errorf("a price that has ended counts: %+v", x)
	}
	if target, points := p.Use.of("acme/root"); target != None || points != None {
		t.Error(target, points)
	}
	if target, _ := p.Use.of("root"); target != "volume/ssd" {
		t.Error(target)
	}
}

// Whatever is wrong is told with its file, line and key.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "    source: new list", "    origin: new list", "prices.yaml:10: prices[1].origin: unknown key"},
		{"unknown kind", "kind: volume\n", "kind: disk\n", `prices.yaml:4: prices[1].kind: "disk" is none of`},
		{"bad unit", "    unit: GiB-month", "    unit: TB-month", `prices.yaml:7: prices[1].unit: "TB-month": the price of a volume is for one GB-month or GiB-month`},
		{"unit of another model", "model: flat", "model: moved", `prices[2].unit: "month": the price of a line moved is for one GB or GiB`},
		{"no unit", "    unit: GiB-month\n", "", `prices[1].unit: "": the price of a volume is for`},
		{"no date", "    from: 2026-02-15\n", "", "prices.yaml:4: prices[1].from: is missing"},
		{"bad date", "from: 2026-02-15", "from: 15.2.2026", `prices.yaml:9: prices[1].from: "15.2.2026" is not a date`},
		{"no such day", "from: 2026-02-15", "from: 2026-02-30", "prices[1].from"},
		{"until before from", "until: 2026-02-14", "until: 2025-02-14", "prices.yaml:3: prices[0].until: 2025-02-14 is before from, 2026-01-01"},
		{"overlap", "until: 2026-02-14", "until: 2026-02-15", "prices.yaml:9: prices[1].from: 2026-02-15 overlaps prices[0] of volume/ssd, which counts until 2026-02-15"},
		{"order", "from: 2026-02-15", "from: 2025-02-15", "prices.yaml:9: prices[1].from: 2025-02-15 is not after 2026-01-01 of prices[0]"},
		{"same day", "from: 2026-02-15", "from: 2026-01-01", "prices[1].from: 2026-01-01 is not after"},
		{"negative", "price: 0.6", "price: -0.6", `prices.yaml:6: prices[1].price: "-0.6" is negative`},
		{"no amount", "price: 0.6", "price: 1e3", `prices[1].price: "1e3" is not an amount`},
		{"not a number", "price: 0.6", "price: .nan", "is not an amount"},
		{"no price", "    price: 0.6\n", "", "prices[1].price: is missing"},
		{"currency", "    currency: CNY", "    currency: yuan", `prices.yaml:8: prices[1].currency: "yuan": a currency has three capital letters`},
		{"two currencies of one thing", "    currency: CNY", "    currency: EUR", "prices.yaml:8: prices[1].currency: EUR: prices[0] of volume/ssd is in CNY"},
		{"no source", "    source: new list\n", "", "prices[1].source: is missing"},
		{"no name", "    name: ssd\n", "", "prices[1].name: is missing"},
		{"no model", "model: flat, ", "", `prices.yaml:11: prices[2].model: "" is none of flat, moved, 95, enhanced-95`},
		{"flat without a rate", "rate: 80Mbit/s, ", "", "prices[2].rate: is missing"},
		{"rate", "rate: 80Mbit/s", "rate: 80Mbps", "prices.yaml:11: prices[2].rate: \"80Mbps\": unknown unit"},
		{"floor", "rate: 80Mbit/s", "rate: 80Mbit/s, floor: 20", "prices[2].floor: is only for"},
		{"model of no line", "until: 2026-02-14", "model: flat", "prices[0].model: is only for a line"},
		{"min-days", "until: 2026-02-14", "min-days: 30", "prices[0].min-days: is only for bos"},
		{"use", "target: volume/ssd", "target: ssd", `prices.yaml:14: use.target: "ssd": write KIND/NAME`},
		{"use of another kind", "line: line/l", "line: volume/ssd", "prices.yaml:13: use.line: "},
		{"pattern", "  points: none", "  flows: [{flow: '[', target: none}]", "use.flows[0].flow"},
		{"zone", "zone: UTC", "zone: Mars/Base", `prices.yaml:1: zone: "Mars/Base" is not a time zone`},
		{"empty", good, "", "prices.yaml: is empty"},
		{"none", good, "use: {}\n", "needs at least one price"},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Errorf("%s: nothing was changed", c.name)
		}
		_, err := Parse("prices.yaml", []byte(text))
		var e *strict.Error
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &e) || !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

// The example that is installed can be used as it is, also with everything that is commented out.
func TestExample(t *testing.T) {
	raw, err := os.ReadFile("../docs/examples/prices.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if p := parsed(t, string(raw)); len(p.Prices) < 7 {
		t.Errorf("%d prices", len(p.Prices))
	}
	text := strings.NewReplacer("\n  #-", "\n  -", "\n#use", "\nuse", "\n#  ", "\n  ", "\n#    ", "\n    ").Replace(string(raw))
	p := parsed(t, text)
	if len(p.Prices) != 15 || p.Use.Line != "line/express" || p.Use.Billed != 15e6 || len(p.Use.Flows) != 1 || p.Location().String() != "Asia/Shanghai" {
		t.Errorf("%d prices, %+v", len(p.Prices), p.Use)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("prices: [{kind: line, model: enhanced-95, floor: -1}]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Parse("prices.yaml", raw)
		if err != nil {
			if !errors.Is(err, sentinel.ErrUsage) {
				t.Error(err)
			}
			return
		}
		now := at("2026-02-10")
		day := int64(1 << 30)
		p.Bill(Ask{Now: now, Until: AddMonths(now, 2), Flows: []Flow{{Name: "root", Size: 1 << 40, Points: &Kept{Count: 1, Bytes: 1 << 30, Oldest: now}}}, Line: LineUse{Day: &day, Left: 5}})
	})
}
