package lint

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/metrics"
)

// exported lists every metric that a daemon of either role shows.
func exported() []string {
	names := metrics.Names()
	both := &config.Config{Source: &config.Source{}, Gateway: &config.Gateway{Flows: []config.GatewayFlow{{Target: "/nowhere/image"}}}}
	totals := slices.Concat(daemon.Totals(nil), daemon.Health(daemon.Source, both), daemon.Health(daemon.Gateway, both), daemon.TrailTotals(nil), daemon.LineTotals([]string{"x"}, nil), daemon.RelayTotals(nil))
	for _, t := range totals {
		if !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}

// An alert or a panel on a metric that nobody shows is silent for ever.
func TestMonitoringNamesMetrics(t *testing.T) {
	names := exported()
	word := regexp.MustCompile(`\bmover_[a-z_]+`)
	for _, file := range []string{"monitoring/alerts.yaml", "monitoring/alerts_test.yaml", "monitoring/grafana.json"} {
		found := word.FindAllString(read(t, file), -1)
		if len(found) < 10 {
			t.Errorf("%s names only %d metrics", file, len(found))
		}
		for _, name := range found {
			if !slices.Contains(names, name) {
				t.Errorf("%s names %s, which no code shows", file, name)
			}
		}
	}
}

func TestDashboard(t *testing.T) {
	var d struct {
		Templating struct{ List []struct{ Name, Type string } }
		Panels     []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "monitoring/grafana.json")), &d); err != nil {
		t.Fatal(err)
	}
	if l := d.Templating.List; len(l) != 2 || l[0].Name != "datasource" || l[1].Name != "flow" {
		t.Errorf("variables: %+v", l)
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q: its id is taken, or it shows nothing", p.ID, p.Title)
		}
		ids[p.ID] = true
	}
}

// Each alert is tried to fire and to stay silent, by the program that evaluates it.
func TestAlerts(t *testing.T) {
	tests := read(t, "monitoring/alerts_test.yaml")
	for _, m := range regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(read(t, "monitoring/alerts.yaml"), -1) {
		if !strings.Contains(tests, m[1]+" fires\n") || !strings.Contains(tests, m[1]+" is silent\n") {
			t.Errorf("alerts_test.yaml does not try %s both ways", m[1])
		}
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = filepath.Join(root(t), "monitoring")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v (Debian package prometheus)\n%s", strings.Join(args, " "), err, out)
		}
	}
}
