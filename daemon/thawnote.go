package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/internal/audit"
)

// notesPath has what others than the daemon have to tell the trail, one JSON record a line: on a tmpfs, which no freeze reaches.
func notesPath(run string) string { return filepath.Join(run, "notes.audit") }

// NoteThaw records what was thawed without the source's daemon. To be called after the thaw. It writes the trail only while no daemon runs and
// nothing is recorded as frozen: the trail may lie there. Else the record waits in the run folder for the daemon, or its next start.
func NoteThaw(run, state string, r audit.Record) error {
	r.Time = time.Now()
	unlock, err := lock(filepath.Join(run, Source+".lock"), Source)
	if err != nil {
		return leaveNote(run, r)
	}
	defer unlock()
	frozen, err := filepath.Glob(filepath.Join(run, "frozen-*.json"))
	if err != nil || len(frozen) > 0 {
		return errors.Join(err, leaveNote(run, r))
	}
	if _, err := os.Stat(state); err != nil { // it is elsewhere, and the daemon knows where
		return leaveNote(run, r)
	}
	// How long records are kept is the config's business, so none is dropped here.
	t, err := audit.New(audit.Config{Dir: filepath.Join(state, "audit"), Keep: forGood, Spill: filepath.Join(run, Source+".audit")})
	if err != nil {
		return err
	}
	for _, n := range takeNotes(run) {
		err = errors.Join(err, t.Append(n))
	}
	if err = errors.Join(err, t.Append(r), t.Close()); err != nil {
		return errors.Join(fmt.Errorf("the audit trail cannot be written: %w", err), leaveNote(run, r))
	}
	return nil
}

// forGood is longer than any trail is kept.
const forGood = 100 * 365 * 24 * time.Hour

func leaveNote(run string, r audit.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(notesPath(run), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("leave a record for the audit trail: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// takeNotes takes what was left for the trail. A kill behind it loses them; a line that is torn is left out.
func takeNotes(run string) (all []audit.Record) {
	path := notesPath(run)
	taken := path + ".taken" // what is appended meanwhile begins a new file
	if err := os.Rename(path, taken); errors.Is(err, fs.ErrNotExist) || err != nil {
		return nil
	}
	f, err := os.Open(taken)
	if err != nil {
		return nil
	}
	defer os.Remove(taken)
	defer f.Close()
	for in := json.NewDecoder(f); len(all) < laterQueue; {
		var r audit.Record
		if in.Decode(&r) != nil {
			break
		}
		all = append(all, r)
	}
	return all
}
