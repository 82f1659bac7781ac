package report

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/mover"
)

const prices = `zone: UTC
prices:
  - {kind: line, name: l, model: moved, price: 1, unit: GB, currency: CNY, from: 2026-01-01, source: contract}
  - {kind: volume, name: ssd, price: 0.3, unit: GiB-month, currency: CNY, from: 2026-01-01, source: list}
  - {kind: point, name: snap, price: 0.1, unit: GiB-month, currency: CNY, from: 2026-01-01, source: list}
use: {line: line/l, target: volume/ssd, points: point/snap}
`

func priced(t *testing.T, text string) *cost.Prices {
	t.Helper()
	p, err := cost.Parse("/etc/mover/prices.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What a source knows becomes costs: wire bytes of all passes, those of the one under way, what is left, and the change of a day.
func TestCost(t *testing.T) {
	p := priced(t, prices)
	began := now.Add(-5 * 24 * time.Hour)
	done := func(kind string, at time.Time, looked, wire int64, failed string) mover.Event {
		return mover.Event{Kind: mover.PassEvent, Flow: "root", Began: at, Time: at.Add(time.Hour), Error: failed, Pass: &mover.EndedPass{Kind: kind, Passes: 2,
			Moved: mover.Moved{Looked: looked, Free: looked / 2, Sent: looked / 2, Payload: wire, Wire: wire}}}
	}
	d := &Document{Made: now, Role: "source", Host: "db1", Flows: []Flow{{Status: mover.Status{Flow: "root", Size: 40 << 30, State: mover.Idle, Dirty: 8e9, PointEpoch: 9}}}}
	past := history.Past{Samples: map[string][]history.Sample{}, Events: []mover.Event{
		done("full", began, 40<<30, 10e9, ""), done("delta", began.Add(24*time.Hour), 4e9, 1e9, ""), done("delta", began.Add(30*time.Hour), 4e9, 3e9, "link lost")}}
	for at := began; at.Before(now); at = at.Add(30 * time.Minute) { // 20 GB a day, of which a tenth on the line
		past.Samples["root"] = append(past.Samples["root"], history.Sample{Time: at, Span: 1800, Seen: 1800, Rate: 20e9 / 86400, Wire: 2e9 / 86400})
	}
	d.Fill(past)
	a := d.Price(p, now.AddDate(0, 0, 10))
	line := a.Items[0]
	if line.SoFar.Bytes != 14e9 || line.SoFar.Cost.Amount != 14 || a.Left != 2e9 || a.Day == nil || math.Abs(float64(*a.Day)-2e9) > 1 || math.Abs(float64(line.ToCome.Bytes)-22e9) > 20 {
		t.Errorf("%+v, left %d, %v a day", line, a.Left, a.Day)
	}
	if !a.From.Equal(began) || a.Items[1].What != "target" || a.Items[1].SoFar.Bytes != 40<<30 || len(a.Items) != 2 || !a.Whole {
		t.Errorf("%+v", a)
	}
	if s := a.Saved; s.Plain != 40<<30+4e9 || s.Net.Bytes != s.Plain-11e9 || s.Deltas != 2 || s.Unchanged != 80<<30-4e9 {
		t.Errorf("%+v", s)
	}

	f := &d.Flows[0] // a rescan under way: as it has gone in its last two hours
	f.Status.Pass = &mover.Pass{Kind: "rescan", Started: now.Add(-2 * time.Hour), Total: 40 << 30, Acked: 10 << 30}
	a = d.Price(p, now.AddDate(0, 0, 10))
	if got := a.Items[0].SoFar.Bytes; math.Abs(float64(got)-14e9-2e9/12) > 20 || a.Day != nil || a.Items[0].ToCome.Cost != nil {
		t.Errorf("%d, %+v", got, a.Items[0])
	}
	if want := int64(float64(int64(30<<30)) * 10e9 / (40 << 30)); a.Left != want {
		t.Errorf("%d left, want %d", a.Left, want)
	}
	f.Status.Pass, f.Status.State = nil, mover.Done
	if a = d.Price(p, now.AddDate(0, 0, 10)); a.Items[0].ToCome.Bytes != 0 || a.Items[0].ToCome.Cost.Amount != 0 {
		t.Errorf("%+v", a.Items[0])
	}

	fresh := &Document{Made: now, Role: "source", Flows: []Flow{{Status: mover.Status{Flow: "root", Size: 40 << 30, State: mover.Connecting}}}}
	fresh.Fill(history.Past{})
	if a = fresh.Price(p, now.AddDate(0, 1, 0)); a.Left != 40<<30 || a.Items[0].SoFar.Bytes != 0 || a.Whole {
		t.Errorf("%+v", a)
	}
}

// A gateway knows the line by what it saw each second, and its recovery points.
func TestCostOfGateway(t *testing.T) {
	d := &Document{Made: now, Role: "gateway", Flows: []Flow{{Status: mover.Status{Flow: "acme/db1/root", Size: 40 << 30, State: mover.Idle},
		Points: []mover.RecoveryPoint{{Time: now.Add(-24 * time.Hour)}, {Time: now.Add(-48 * time.Hour)}}}}}
	e := mover.Event{Kind: mover.PassEvent, Flow: "acme/db1/root", Began: now.Add(-30 * time.Hour), Time: now.Add(-29 * time.Hour),
		Pass: &mover.EndedPass{Kind: "delta", Passes: 1, Moved: mover.Moved{Looked: 3 << 30, Sent: 3 << 30}}}
	old := e
	old.Began, old.Time = now.Add(-60*time.Hour), now.Add(-59*time.Hour)
	d.Fill(history.Past{Events: []mover.Event{old, e}, Samples: map[string][]history.Sample{"acme/db1/root": {{Time: now.Add(-30 * time.Hour), Span: 1800, Seen: 1000, Wire: 1e6}}}})
	a := d.Price(priced(t, prices), now.AddDate(0, 1, 0))
	if a.Items[0].SoFar.Bytes != 1e9 || len(a.Items) != 3 || a.Items[2].SoFar.Bytes != 3<<30 || a.Items[2].Text != "2 kept" || len(a.Saved.Rows) != 4 {
		t.Errorf("%+v", a)
	}
}

// A line by 95 is billed by the gateway's own samples, and later months by the peak that was set.
func TestCostOfPeak(t *testing.T) {
	text := `zone: UTC
prices: [{kind: line, name: l, model: 95, price: 60, unit: Mbit/s-month, currency: CNY, from: 2026-01-01, source: contract}]
use: {line: line/l, target: none}
`
	began := now.AddDate(0, 0, -6)
	d := &Document{Made: now, Role: "gateway", Flows: []Flow{{Status: mover.Status{Flow: "acme/db1/root", State: mover.Idle, Pass: &mover.Pass{Kind: "full", Started: began}}}},
		Lines: []mover.LineStatus{{Name: "other", Billing: "95", Billed: 1e9}, {Name: "l", Billing: "95", Peak: 100e6 / 8, Billed: 20e6 / 8, Month: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}}}
	d.Fill(history.Past{})
	a := d.Price(priced(t, text), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
	left := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC).Sub(now).Hours() / 24
	if line := a.Items[0]; !a.Whole || math.Abs(line.SoFar.Cost.Amount-60*20*6/30.0) > 1e-3 || math.Abs(line.ToCome.Cost.Amount-60*20*left/30-60*100) > 1e-3 {
		t.Errorf("%+v %+v %v", a.Items[0].SoFar.Cost, a.Items[0].ToCome.Cost, a.Missing)
	}
}

// The report has the costs in each form, and tells what is wrong with a price file.
func TestCostInReport(t *testing.T) {
	doc, past := month(30*24*time.Hour, "data", "wal")
	doc.Fill(past)
	doc.Cost = doc.Price(priced(t, strings.Replace(prices, "from: 2026-01-01, source: list", "from: 2026-11-20, source: list", 1)), now.AddDate(0, 1, 0))
	out := render(t, "cost", doc)
	for _, want := range []string{"What it costs", "volume/ssd", "at least ", "no price of volume/ssd from 2026-10-28 to 2026-11-19", "Saved on the line", "recovery points are known at the gateway", "line/l: 1 CNY for one GB"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(out, "nil") || strings.Count(out, ">unknown<") < 2 {
		t.Error("what is not known is not told in the page")
	}
	doc.Cost = cost.Unpriced("/etc/mover/prices.yaml", errors.New("/etc/mover/prices.yaml:3: prices[0].unit: <b>"))
	if out := render(t, "cost-trouble", doc); !strings.Contains(out, "prices[0].unit: &lt;b&gt;") {
		t.Error("the page does not tell what is wrong with the price file")
	}
}
