package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// What could not be sent in time is told, with the exit code for it; flows that stand still are not asked.
func TestFlushInTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	f := &fake{role: "source"}
	serve(t, f, path)
	var out bytes.Buffer
	code := run(t.Context(), []string{"flush", "-s", path, "--limit", "100ms"}, &terminal{out: &out, err: &out})
	if code != 3 || !strings.Contains(out.String(), "root: not in time, 212 MiB left; data: not in time, 212 MiB left") || !strings.Contains(out.String(), "logs is stopped and left alone") {
		t.Errorf("exit %d\n%s", code, &out)
	}
	for _, asked := range f.asked {
		if strings.Contains(asked, "logs") {
			t.Errorf("asked: %s", asked)
		}
	}
}
