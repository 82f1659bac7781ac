package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moverd/mover/internal/audit"
)

// A thaw without a daemon is in the trail, but nothing is written while something is frozen, or beside a daemon that writes the trail itself.
func TestNoteThaw(t *testing.T) {
	run, state := t.TempDir(), t.TempDir()
	note := func(event string) {
		t.Helper()
		if err := NoteThaw(run, state, audit.Record{Actor: "uid:0/pid:1", Event: event}); err != nil {
			t.Fatal(err)
		}
	}
	kept := filepath.Join(run, "frozen-other.json")
	if err := os.WriteFile(kept, []byte(`{"kept":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	note("while another is frozen")
	if _, err := os.Stat(filepath.Join(state, "audit")); err == nil {
		t.Fatal("the trail was touched while something was frozen")
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	note("thaw.stale")
	if got := events(t, filepath.Join(state, "audit")); len(got) != 3 || got[1] != "while another is frozen" || got[2] != "thaw.stale" { // after audit.continued
		t.Errorf("%q", got)
	}
	unlock, err := lock(filepath.Join(run, Source+".lock"), Source)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	note("beside a daemon")
	if got := events(t, filepath.Join(state, "audit")); len(got) != 3 {
		t.Errorf("%q", got)
	}
	if got := takeNotes(run); len(got) != 1 || got[0].Event != "beside a daemon" || got[0].Time.IsZero() {
		t.Errorf("%+v", got)
	}
	if got := takeNotes(run); len(got) != 0 {
		t.Errorf("taken again: %+v", got)
	}
}
