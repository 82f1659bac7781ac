package daemon

import (
	"os"
	"time"

	"github.com/moverd/mover/daemon/report"
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
	past, err := a.log.past.Read(flows)
	if err != nil {
		d.Trouble = err.Error()
	}
	d.Fill(past)
	d.Audit.Seq, d.Audit.Digest = a.log.trail.Head()
	return d, nil
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
