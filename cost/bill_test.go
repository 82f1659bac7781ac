package cost

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func item(t *testing.T, a *Answer, what string) *Item {
	t.Helper()
	for i := range a.Items {
		if a.Items[i].What == what {
			return &a.Items[i]
		}
	}
	t.Fatalf("no %s in %+v", what, a.Items)
	return nil
}

func is(t *testing.T, what string, got *Money, want float64) {
	t.Helper()
	if got == nil || math.Abs(got.Amount-want) > 0.00005 || got.Currency != "CNY" {
		t.Errorf("%s: %+v, want %v CNY", what, got, want)
	}
}

// disk asks for one flow on a disk.
func disk(size int64, began, now, until string) Ask {
	return Ask{Now: at(now), Until: at(until), Flows: []Flow{{Name: "root", Began: at(began), Size: size}}, Line: LineUse{Began: at(began), Over: true}}
}

const gib = 1 << 30

// Months are split by days: at a price change, in leap years, within a day, in the provider's zone, and by whole GiB.
func TestMonthly(t *testing.T) {
	p := parsed(t, good)
	a := p.Bill(disk(100*gib, "2026-02-01", "2026-03-01", "2026-04-01"))
	is(t, "14 days at 0.3 and 14 at 0.6 of 28", item(t, a, "target").SoFar.Cost, 45)
	is(t, "March at 0.6", item(t, a, "target").ToCome.Cost, 60)
	is(t, "February's line", item(t, a, "line").SoFar.Cost, 2800)
	if !a.Whole || len(a.Sums) != 1 || a.Sums[0] != (Sum{"CNY", 2845, 2860}) || a.Sums[0].Total() != 5705 {
		t.Errorf("%+v", a)
	}
	if s := item(t, a, "target").Source; len(s) != 2 || s[0] != "volume/ssd: 0.3 CNY for one GiB-month from 2026-01-01 until 2026-02-14: list" {
		t.Error(s)
	}

	a = p.Bill(disk(40*gib+1, "2026-02-10", "2026-02-20", "2026-02-20"))
	is(t, "5 days at 0.3 and 5 at 0.6 of 28, 41 GiB", item(t, a, "target").SoFar.Cost, 41*(5*0.3+5*0.6)/28)
	is(t, "nothing to come", item(t, a, "target").ToCome.Cost, 0)
	is(t, "10 of 28 days", item(t, a, "line").SoFar.Cost, 1000)

	a = p.Bill(disk(gib, "2028-02-10", "2028-02-20", "2028-03-01"))
	is(t, "10 of 29 days", item(t, a, "line").SoFar.Cost, 2800*10/29.0)
	is(t, "10 of 29 days", item(t, a, "line").ToCome.Cost, 2800*10/29.0)

	ask := disk(gib, "2026-03-01", "2026-03-01", "2026-03-01")
	ask.Now = ask.Now.Add(36 * time.Hour)
	is(t, "a day and a half of 31", item(t, p.Bill(ask), "line").SoFar.Cost, 2800*1.5/31)

	// In Shanghai the day of the change begins at 16:00 UTC of the day before: 16 hours of it are still at 0.3.
	east := parsed(t, strings.Replace(good, "zone: UTC\n", "", 1))
	a = east.Bill(disk(28*gib, "2026-02-14", "2026-02-15", "2026-02-15"))
	is(t, "16 hours at 0.3 and 8 at 0.6", item(t, a, "target").SoFar.Cost, 0.3*16/24+0.6*8/24)

	for _, c := range []struct {
		from string
		n    int
		want string
	}{{"2026-01-31", 1, "2026-02-28"}, {"2028-01-31", 1, "2028-02-29"}, {"2026-12-15", 2, "2027-02-15"}, {"2026-05-31", 0, "2026-05-31"}} {
		if got := AddMonths(at(c.from), c.n); !got.Equal(at(c.want)) {
			t.Errorf("%s and %d months: %v", c.from, c.n, got)
		}
	}
}

const moved = `zone: UTC
prices:
  - {kind: line, name: l, model: moved, price: 1, unit: GB, currency: CNY, from: 2026-01-01, source: a}
  - {kind: line, name: l, model: moved, price: 2, unit: GB, currency: CNY, from: 2026-02-01, source: b}
use: {line: line/l, target: none}
`

// A line by the GB costs what was moved on each day at that day's price, and what will be.
func TestMoved(t *testing.T) {
	p := parsed(t, moved)
	noon := at("2026-01-31").Add(12 * time.Hour)
	day := int64(1e9)
	ask := Ask{Now: at("2026-02-10"), Until: at("2026-02-20"), Line: LineUse{Began: at("2026-01-10"), Left: 5e9, Day: &day, SoFar: []Bytes{
		{at("2026-01-20"), at("2026-01-20").Add(time.Hour), 3e9}, {at("2026-02-01"), at("2026-02-01"), 2e9}, {noon, noon.Add(24 * time.Hour), 4e9}}}}
	a := p.Bill(ask)
	is(t, "3 at 1, 2 at 2, 4 half and half", item(t, a, "line").SoFar.Cost, 3+4+2+4)
	is(t, "5 left and 10 days of 1 at 2", item(t, a, "line").ToCome.Cost, 30)
	if it := item(t, a, "line"); it.SoFar.Bytes != 9e9 || it.ToCome.Bytes != 15e9 || it.SoFar.Basis != Measured || it.ToCome.Basis != Estimated || it.Text != "moved" {
		t.Errorf("%+v", it)
	}
	ask.Line.Day = nil
	a = p.Bill(ask)
	if it := item(t, a, "line"); it.ToCome.Cost != nil || a.Whole || len(a.Missing) != 1 || !strings.Contains(a.Missing[0], "how much changes in a day") {
		t.Errorf("an unknown change is taken as none: %+v %v", it, a.Missing)
	}
	ask.Until = ask.Now
	is(t, "no time to come", item(t, p.Bill(ask), "line").ToCome.Cost, 0)
	ask.Until, ask.Line.Over = at("2026-02-20"), true
	is(t, "all is cut over", item(t, p.Bill(ask), "line").ToCome.Cost, 0)
}

// Lines by 95 cost their billed rate: of the month's samples, else as given; enhanced not less than its floor; and nothing is guessed.
func TestBilledRate(t *testing.T) {
	text := `zone: UTC
prices:
  - {kind: line, name: l, model: enhanced-95, price: 50, unit: Mbit/s-month, rate: 500Mbit/s, currency: CNY, from: 2026-01-01, source: a}
  - {kind: line, name: l, model: enhanced-95, price: 60, unit: Mbit/s-month, rate: 500Mbit/s, floor: 0, currency: CNY, from: 2026-06-16, source: a}
  - {kind: line, name: p, model: 95, price: 80, unit: Mbit/s-month, currency: CNY, from: 2026-01-01, source: a}
use: {line: line/l, target: none}
`
	p := parsed(t, text)
	ask := Ask{Now: at("2026-06-01"), Until: at("2026-07-01"), Line: LineUse{Began: at("2026-05-01"), Over: true, Billed: 40 * mbit}}
	a := p.Bill(ask)
	is(t, "May by its floor of 20 % of 500", item(t, a, "line").SoFar.Cost, 5000)
	is(t, "June half by the floor, half by 40", item(t, a, "line").ToCome.Cost, 50*100/2+60*40/2)
	if it := item(t, a, "line"); it.SoFar.Basis != Given {
		t.Errorf("%+v", it)
	}
	ask.Line.Peaks = []Peak{{on("2026-05-01"), 120 * mbit}}
	is(t, "May by its samples", item(t, p.Bill(ask), "line").SoFar.Cost, 6000)
	p.Use.Line = "line/p"
	a = p.Bill(ask)
	is(t, "plain", item(t, a, "line").SoFar.Cost, 9600)
	is(t, "plain, as given", item(t, a, "line").ToCome.Cost, 3200)
	ask.Line.Billed = 0
	a = p.Bill(ask)
	is(t, "May by its samples", item(t, a, "line").SoFar.Cost, 9600)
	if it := item(t, a, "line"); it.ToCome.Cost != nil || !slices.Equal(a.Missing, []string{"the rate that line/p is billed by: set use.billed-rate in prices.yaml"}) {
		t.Errorf("%+v %v", it, a.Missing)
	}
}

// A price that is missing is named with its days, makes its item unknown, and its sum one of the rest.
func TestMissing(t *testing.T) {
	p := parsed(t, strings.Replace(good, "until: 2026-02-14", "until: 2026-02-09", 1))
	a := p.Bill(disk(100*gib, "2025-12-30", "2026-02-12", "2026-03-01"))
	if it := item(t, a, "target"); it.SoFar.Cost != nil || it.ToCome.Cost != nil || it.SoFar.Bytes != 100*gib {
		t.Errorf("%+v", it)
	}
	want := []string{"prices.yaml has no price of line/l from 2025-12-30 to 2025-12-31", "prices.yaml has no price of volume/ssd from 2025-12-30 to 2025-12-31",
		"prices.yaml has no price of volume/ssd from 2026-02-10 to 2026-02-14"}
	if a.Whole || !slices.Equal(a.Missing, want) {
		t.Errorf("%q", a.Missing)
	}
	var b bytes.Buffer
	if a.Text(&b); !strings.Contains(b.String(), "at least 1,700.00 CNY") || !strings.Contains(b.String(), want[2]) { // 17 of 28 days of the line
		t.Error(b.String())
	}
	p.Use.Line, p.Use.Target, p.Use.Points = "line/other", "", ""
	a = p.Bill(disk(gib, "2026-01-01", "2026-02-12", "2026-03-01"))
	if len(a.Sums) != 0 || len(a.Missing) != 2 || !strings.Contains(a.Missing[0], "line/other from 2026-01-01 to 2026-02-28") || !strings.Contains(a.Missing[1], "set use.target") {
		t.Errorf("%+v", a)
	}
	raw, err := json.Marshal(a)
	if err != nil || !strings.Contains(string(raw), `"cost":null`) || !strings.Contains(string(raw), `"complete":false`) {
		t.Errorf("%s %v", raw, err)
	}
}

// Amounts in different currencies stay apart.
func TestCurrencies(t *testing.T) {
	p := parsed(t, strings.Replace(good, "rate: 80Mbit/s, currency: CNY", "rate: 80Mbit/s, currency: EUR", 1))
	a := p.Bill(disk(100*gib, "2026-03-01", "2026-04-01", "2026-04-01"))
	if !slices.Equal(a.Sums, []Sum{{"EUR", 2800, 0}, {"CNY", 60, 0}}) || !slices.ContainsFunc(a.Notes, func(n string) bool { return strings.Contains(n, "not added up") }) {
		t.Errorf("%+v %v", a.Sums, a.Notes)
	}
}

// Objects: bytes in use, least days, least size, requests, reading back; and recovery points.
func TestObjects(t *testing.T) {
	text := `zone: UTC
prices:
  - {kind: bos, name: COLD, price: 0.03, unit: GB-month, min-days: 60, currency: CNY, from: 2025-01-01, source: a}
  - {kind: bos, name: ARCHIVE, price: 0.01, unit: GB-month, min-size: 64KiB, currency: CNY, from: 2025-01-01, source: a}
  - {kind: request, name: COLD, price: 0.1, unit: 10k, currency: CNY, from: 2025-01-01, source: a}
  - {kind: request, name: ARCHIVE, price: 0, unit: 10k, currency: CNY, from: 2025-01-01, source: a}
  - {kind: retrieval, name: COLD, price: 0.2, unit: GB, currency: CNY, from: 2025-01-01, source: a}
  - {kind: point, name: snap, price: 0.1, unit: GiB-month, currency: CNY, from: 2025-01-01, source: a}
use: {line: none, target: bos/COLD, points: point/snap, object: 1MB, read-back: 2}
`
	p := parsed(t, text)
	ask := disk(900e9, "2026-01-01", "2026-01-11", "2026-01-31")
	ask.Flows[0].InUse, ask.Flows[0].Day = 100e9, 5e9
	ask.Flows[0].Points = &Kept{Count: 3, Bytes: 31 * gib, Oldest: at("2026-01-06")}
	a := p.Bill(ask)
	is(t, "10 of 31 days of 100 GB", item(t, a, "target").SoFar.Cost, 3*10/31.0)
	is(t, "to the end of 60 days: 21 of January, February, 1 of March", item(t, a, "target").ToCome.Cost, 3*(21/31.0+1+1/31.0))
	is(t, "100,000 objects written", item(t, a, "requests").SoFar.Cost, 1)
	is(t, "100,000 written in 20 days, 200,000 read", item(t, a, "requests").ToCome.Cost, 3)
	is(t, "200 GB read back", item(t, a, "retrieval").ToCome.Cost, 40)
	is(t, "5 days of 31 GiB", item(t, a, "points").SoFar.Cost, 0.5)
	is(t, "20 days of 31 GiB", item(t, a, "points").ToCome.Cost, 2)
	if it := item(t, a, "points"); it.SoFar.Basis != Estimated || it.Text != "3 kept" || !a.Whole {
		t.Errorf("%+v %v", it, a.Missing)
	}
	p.Use.Target, p.Use.Object, p.Use.ReadBack = "bos/ARCHIVE", 32<<10, 0
	ask.Until = at("2026-02-11")
	ask.Flows[0].InUse = 32 << 10 * 1000
	if it := item(t, p.Bill(ask), "target"); it.SoFar.Cost.Amount != round(0.01*65536*1000/1e9*10/31) {
		t.Errorf("%+v", it)
	}
}

// What each way saved: each byte once, in money by the GB, or by the time that the line would have been needed for it.
func TestSaved(t *testing.T) {
	m := Move{From: at("2026-02-05"), Until: at("2026-02-05").Add(time.Hour), Looked: 2000e9, Free: 864e9, Zero: 432e9, Same: 86.4e9, Copied: 43.2e9, Unreadable: 4.4e9,
		Sent: 570e9, Payload: 138e9, Wire: 146.64e9}
	ask := disk(2000e9, "2026-02-05", "2026-02-10", "2026-03-01")
	ask.Flows[0].Moves, ask.Flows[0].Compression, ask.Flows[0].Deltas, ask.Flows[0].Unchanged = []Move{m}, true, 7, 5e12
	check := func(name string, p *Prices, want ...float64) {
		t.Helper()
		s := p.Bill(ask).Saved
		sum := int64(0)
		for i, r := range append(slices.Clone(s.Rows), s.Net) {
			is(t, name+", "+r.Name, r.Cost, want[i])
			if i < len(s.Rows) {
				sum += r.Bytes
			}
		}
		if sum != s.Net.Bytes || s.Plain-s.Net.Bytes != m.Wire || s.Plain != m.Looked-m.Unreadable || s.Deltas != 7 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// 80 Mbit/s carry 864 GB in a day, which is 100 of February's 2,800.
	check("flat", parsed(t, good), 100, 50, 10, 5, 50, -1, 214)
	check("by the GB", parsed(t, strings.Replace(moved, "target: none", "target: none", 1)), 1728, 864, 172.8, 86.4, 864, -17.28, 3697.92)
	// 1 Mbit/s for February carries 302.4 GB.
	p95 := parsed(t, `zone: UTC
prices: [{kind: line, name: l, model: 95, price: 302.4, unit: Mbit/s-month, currency: CNY, from: 2026-01-01, source: a}]
use: {line: line/l, target: none, billed-rate: 10Mbit/s}
`)
	check("by 95", p95, 864, 432, 86.4, 43.2, 432, -8.64, 1848.96)
	ask.Flows[0].Compression = false // a gateway does not know the line
	if s := parsed(t, good).Bill(ask).Saved; len(s.Rows) != 4 || s.Net.Bytes != 1425.6e9 {
		t.Errorf("%+v", s)
	}
	none := parsed(t, strings.Replace(good, "line: line/l", "line: none", 1)).Bill(ask).Saved
	if none.Net.Cost == nil || none.Net.Cost.Amount != 0 {
		t.Errorf("%+v", none)
	}
	unsaid := parsed(t, strings.Replace(good, "  line: line/l\n", "", 1)).Bill(ask).Saved
	if unsaid.Net.Cost != nil {
		t.Errorf("%+v", unsaid)
	}
}
