package daemon

import (
	"os"
	"slices"
	"time"

	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/daemon/report"
	"github.com/moverd/mover/internal/audit"
)

// document is what this end knows about a flow, a group, or (name empty) all.
func (a *audited) document(name string) (*report.Document, error) {
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
	if err != nil {
		d.Trouble = err.Error()
	}
	d.Fill(past)
	d.Audit.Seq, d.Audit.Digest = a.log.trail.Head()
	return d, nil
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
