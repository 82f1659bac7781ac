package daemon

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/daemon/report"
	"github.com/moverd/mover/internal/audit"
)

// document is what this end knows about a flow, a group, or (name empty) all.
func (a *audited) document(ctx context.Context, name string) (*report.Document, error) {
	who := a.Daemon()
	d := &report.Document{Made: time.Now(), Asked: name, Role: who.Role, Software: who.Version}
	d.Host, _ = os.Hostname()
	all := a.role.Status()
	var flows []string
	for _, s := range all {
		group := a.groupOf(s.Flow)
		if name == "" || name == s.Flow || name == group {
			d.Flows = append(d.Flows, report.Flow{Status: s, Group: group})
			flows = append(flows, s.Flow)
		}
	}
	if len(flows) == 0 && name != "" {
		return nil, unknownFlow(name, all)
	}
	names := slices.Clone(flows)
	for _, f := range d.Flows {
		if f.Group != "" && !slices.Contains(names, f.Group) {
			names = append(names, f.Group)
		}
	}
	past, err := a.log.past.Read(names)
	if err = errors.Join(err, a.kept(ctx, d)); err != nil {
		d.Trouble = err.Error()
	}
	d.Fill(past)
	d.Prices, d.Cost = a.cost(d)
	d.Audit.Seq, d.Audit.Digest = a.log.trail.Head()
	return d, nil
}

// kept adds recovery points and lines, which a gateway knows.
func (a *audited) kept(ctx context.Context, d *report.Document) error {
	if d.Role != Gateway {
		return nil
	}
	lines, err := a.role.Do(ctx, control.Lines, control.Request{}, nil)
	if err != nil {
		return err
	}
	d.Lines = lines.Lines
	r, err := a.role.Do(ctx, control.Points, control.Request{}, nil)
	for _, f := range r.Flows {
		for i := range d.Flows {
			if d.Flows[i].Status.Flow == f.Flow {
				d.Flows[i].Points = f.Points
			}
		}
	}
	return err
}

// cost is the price file and what it says, nothing when none is configured. The file is read each time: it is the operator's.
func (a *audited) cost(d *report.Document) (string, *cost.Answer) {
	file := pricesOf(d.Role, a.conf)
	if file == "" {
		return "", nil
	}
	p, err := config.LoadPrices(file)
	if err != nil {
		return string(file), cost.Unpriced(string(file), err)
	}
	return p.File, d.Price(p, cost.AddMonths(d.Made, report.CostMonths))
}

func pricesOf(role string, c *config.Config) config.File {
	switch {
	case role == Source && c.Source != nil:
		return c.Source.Prices
	case role == Gateway && c.Gateway != nil:
		return c.Gateway.Prices
	}
	return ""
}

// totals adds what tells whether the trail is written, and where it stands.
func (a *audited) totals() []metrics.Total {
	return append(a.role.totals(), TrailTotals(a.log.trail)...)
}

// TrailTotals are the metrics of an audit trail.
func TrailTotals(t *audit.Trail) []metrics.Total {
	return []metrics.Total{
		{Name: "mover_audit_records", Help: "Number of the audit trail's last record.", Gauge: true, Value: func() float64 { seq, _ := t.Head(); return float64(seq) }},
		{Name: "mover_audit_waiting_records", Help: "Records that the disk has not taken, without a freeze that holds them back.", Gauge: true,
			Value: func() float64 { return float64(t.Waiting()) }},
	}
}

// groupOf names the group that a flow of a source is a member of.
func (a *audited) groupOf(flow string) string {
	if s := a.conf.Source; s != nil {
		if g := s.GroupOf(flow); g != nil {
			return g.Name
		}
	}
	return ""
}
