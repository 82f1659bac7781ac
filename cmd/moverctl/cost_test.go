package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/cost"
)

// A price file that is wrong is told by check, cost and the report of both ends, and stops nothing; a right one is read without a restart.
func (w *world) prices(t *testing.T) {
	t.Helper()
	file := filepath.Join(w.dir, "prices.yaml")
	if out := w.must(0, "", "check", "-c", w.file("source")); !strings.Contains(out, "ok    prices") {
		t.Errorf("check:\n%s", out)
	}
	edit(t, file, "price: 3", "price: -3")
	wrong := `prices.yaml:3: prices[1].price: "-3" is negative`
	if out := w.must(1, "", "check", "-c", w.file("gateway")); !strings.Contains(out, "BAD   prices") || !strings.Contains(out, wrong) {
		t.Errorf("check:\n%s", out)
	}
	for _, role := range []string{"source", "gateway"} {
		if out := w.must(2, role, "cost"); !strings.Contains(out, wrong) {
			t.Errorf("cost at the %s:\n%s", role, out)
		}
		if out := w.must(0, role, "report"); !strings.Contains(out, wrong) || !strings.Contains(out, "timeline (UTC)") {
			t.Errorf("report of the %s:\n%s", role, out)
		}
	}
	w.end("source") // also a start goes on
	w.begin("source")
	w.logged("reports will not tell costs")
	w.must(0, "source", "sync", "root")
	edit(t, file, "price: -3", "price: 3")
	edit(t, file, "points: none", "points: cfs/none")
	var c cost.Answer
	if err := json.Unmarshal([]byte(w.must(0, "gateway", "cost", "acme/db1/root", "-o", "json")), &c); err != nil || len(c.Items) != 2 || c.Items[1].SoFar.Cost == nil || len(c.Saved.Rows) != 4 {
		t.Errorf("cost at the gateway: %v, %+v", err, c)
	}
	w.must(2, "gateway", "cost", "acme/db1/other")
}
