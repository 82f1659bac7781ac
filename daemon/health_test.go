package daemon

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/moverd/mover/daemon/config"
)

// What cannot be looked at is NaN, never a number that an alert would believe.
func TestHealthUnknown(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.pem")
	if err := os.WriteFile(bad, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Gateway: &config.Gateway{State: config.File(dir), TLS: config.TLS{Cert: config.File(bad), CA: config.File(dir + "/none")},
		Flows: []config.GatewayFlow{{Tenant: "a", Host: "b", Name: "c", Target: config.File(dir + "/image")}, {Tenant: "a", Host: "b", Name: "d", Target: config.File(dir + "/none/image")}}}}
	seen := map[string]int{}
	for _, m := range Health(Gateway, c) {
		seen[m.Name]++
		v := m.Value()
		away := m.Name == "mover_certificate_expiry_timestamp_seconds" || m.Labels["flow"] == "a/b/d"
		if away != math.IsNaN(v) || !away && v <= 0 {
			t.Errorf("%s%v = %v", m.Name, m.Labels, v)
		}
	}
	if seen["mover_certificate_expiry_timestamp_seconds"] != 2 || seen["mover_target_free_bytes"] != 2 || seen["mover_state_free_bytes"] != 1 {
		t.Errorf("shown: %v", seen)
	}
}
