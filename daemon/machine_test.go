package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/internal/sentinel"
)

// A copy of a server's disks on other hardware is refused, with the way out for the server itself; firmware that tells no name refuses nobody.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	uuid, serial := filepath.Join(dir, "product_uuid"), filepath.Join(dir, "board_serial")
	m := machine{file: filepath.Join(dir, "machine.json"), places: []string{uuid, serial}}
	is := func(path, name string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ok := func(what string) {
		t.Helper()
		if err := errors.Join(m.check(), m.record()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	ok("no firmware")
	if _, err := os.Stat(m.file); err == nil {
		t.Error("a name was noted that nobody told")
	}
	for _, none := range []string{"Not Specified\n", "00000000-0000-0000-0000-000000000000\n", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "To be filled by O.E.M.", "None", "\n"} {
		is(uuid, none)
		if name := m.hardware(); name != "" {
			t.Errorf("%q is a name: %s", none, name)
		}
	}
	is(serial, "ABC123\n")
	if name := m.hardware(); name != "board_serial:abc123" {
		t.Error(name)
	}
	is(uuid, "A4D4A8C8-6F2B-4E3A-9F27-1D2C3B4A5968\n")
	ok("first start")
	ok("second start")
	is(uuid, "a4d4a8c8-6f2b-4e3a-9f27-1d2c3b4a5968\n") // kernels differ in case
	ok("other case")

	is(uuid, "00112233-4455-6677-8899-aabbccddeeff\n")
	err := m.check()
	if !errors.Is(err, errForeign) || !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "rm "+m.file) {
		t.Errorf("another machine: %v", err)
	}
	if err := m.record(); err != nil { // changes nothing
		t.Error(err)
	}
	if err := m.check(); !errors.Is(err, errForeign) {
		t.Errorf("noted over: %v", err)
	}
	if err := os.Remove(m.file); err != nil {
		t.Fatal(err)
	}
	ok("taken over by the operator")
	ok("again")

	is(m.file, "{")
	if err := m.check(); err == nil || !strings.Contains(err.Error(), m.file) {
		t.Errorf("broken record: %v", err)
	}
}
