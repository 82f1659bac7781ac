package daemon

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/looptest"
)

// TestCheckPoints: check says how points of a target are kept, or why there are none; a method that a target cannot have is a fault.
func TestCheckPoints(t *testing.T) {
	disk := looptest.New(t, 320<<20, looptest.Options{})
	looptest.Mkfs(t, disk.Dev, "xfs", "-m", "reflink=1")
	image := filepath.Join(looptest.Mount(t, disk.Dev), "disk.img")
	raw := looptest.New(t, 16<<20, looptest.Options{})
	for _, c := range []struct {
		target, method, want string
		bad                  bool
	}{
		{image, "auto", "keeps recovery points by reflink", false},
		{image, "lvm-thin", "is no block device", true},
		{raw.Dev, "auto", "keeps no recovery points: recovery points of " + raw.Dev, false},
		{raw.Dev, "lvm-thin", "is no logical volume", true},
		{raw.Dev, "none", "", false},
	} {
		var out bytes.Buffer
		k := &checks{w: &out}
		f := config.GatewayFlow{Tenant: "acme", Host: "db1", Name: "root", Target: config.File(c.target)}
		f.Points.Method = c.method
		k.points("flow acme/db1/root", f)
		if !strings.Contains(out.String(), c.want) || (c.want == "") != (out.Len() == 0) || (len(k.errs) > 0) != c.bad {
			t.Errorf("%s by %s: %q, %d faults", c.target, c.method, out.String(), len(k.errs))
		}
	}
}
