package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/internal/digest"
)

const (
	suffix   = ".jsonl"
	headName = "head"
	headSize = 20 + 1 + 2*digest.Size + 1
)

// headOf fills one line of fixed length, so that it is written over in place.
func headOf(seq uint64, last string) []byte { return fmt.Appendf(nil, "%020d %s\n", seq, last) }

func parseHead(b []byte) (seq uint64, last string, err error) {
	if _, err := fmt.Sscanf(string(b), "%d %s\n", &seq, &last); err != nil || !bytes.Equal(headOf(seq, last), b) || len(b) != headSize {
		return 0, "", errors.New("does not name a record")
	}
	return seq, last, nil
}

// files lists the months in order.
func files(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range all {
		if strings.HasSuffix(e.Name(), suffix) {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// open finds where the chain ends. A torn line is set aside; an end that is not as the head says goes on behind what the head says, so
// that the break stays in the chain for Verify.
func (t *Trail) open() (err error) {
	if err := os.MkdirAll(t.cfg.Dir, 0o700); err != nil {
		return err
	}
	names, err := files(t.cfg.Dir)
	if err != nil {
		return err
	}
	if t.head, err = os.OpenFile(filepath.Join(t.cfg.Dir, headName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			t.head.Close()
			if t.file != nil {
				t.file.Close()
			}
			t.file, t.name, t.seq, t.last = nil, "", 0, none
		}
	}()
	var news []Record
	note := func(event string, details map[string]any) {
		news = append(news, Record{Time: t.cfg.Now().UTC(), Actor: Daemon, Event: event, Details: details})
	}
	if len(names) > 0 {
		if err := t.end(names[len(names)-1], note); err != nil {
			return err
		}
	}
	raw, err := os.ReadFile(t.head.Name())
	if err != nil {
		return err
	}
	seq, last, herr := parseHead(raw)
	switch {
	case len(raw) == 0 && t.seq <= 1: // a new trail, or a kill behind its first record
	case herr != nil:
		note(Damaged, map[string]any{"why": "the file head " + herr.Error()})
	case seq > t.seq || seq == t.seq && last != t.last:
		note(Damaged, map[string]any{"why": "the last record is not the one that was written last", "found_seq": t.seq, "written_seq": seq})
		t.seq, t.last = seq, last
	case t.seq > seq+1: // one ahead is a kill between the two writes
		note(Damaged, map[string]any{"why": "there are more records than were written", "found_seq": t.seq, "written_seq": seq})
	}
	for _, r := range news {
		if err := t.write(r); err != nil {
			return err
		}
	}
	t.ready = true
	return nil
}

// end reads the last file, and sets aside what follows its last newline.
func (t *Trail) end(name string, note func(string, map[string]any)) error {
	path := filepath.Join(t.cfg.Dir, name)
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	whole := raw[:bytes.LastIndexByte(raw, '\n')+1]
	if torn := raw[len(whole):]; len(torn) > 0 {
		aside := fmt.Sprintf("torn-%s-%d", strings.TrimSuffix(name, suffix), len(whole))
		if err := writeSynced(filepath.Join(t.cfg.Dir, aside), torn); err != nil {
			return err
		}
		note(Torn, map[string]any{"bytes": len(torn), "digest": digest.Sum(torn).String(), "kept_in": aside})
	}
	if t.file, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	t.name, t.size = name, int64(len(whole))
	if err := t.file.Truncate(t.size); err != nil {
		return err
	}
	// The last line that is a record; one that is none is told by the head.
	lines := bytes.Split(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	for _, line := range slices.Backward(lines) {
		if r, err := decode(line); err == nil {
			t.seq, t.last, t.found = r.Seq, r.Digest, &r
			return nil
		}
	}
	if len(whole) > 0 {
		note(Damaged, map[string]any{"why": name + " has no whole record"})
	}
	// Only the first record of a file was torn: the chain ended in the file before.
	if seq, last, err := lastBefore(t.cfg.Dir, name); err == nil {
		t.seq, t.last = seq, last
	}
	return nil
}

func lastBefore(dir, name string) (uint64, string, error) {
	names, err := files(dir)
	if err != nil {
		return 0, "", err
	}
	i := slices.Index(names, name)
	if i < 1 {
		return 0, none, nil
	}
	seq, last, _, err := lastOf(filepath.Join(dir, names[i-1]))
	return seq, last, err
}

// lastOf reads the last record of a file.
func lastOf(path string) (seq uint64, last string, at time.Time, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, "", at, err
	}
	raw = bytes.TrimSuffix(raw, []byte("\n"))
	r, err := decode(raw[bytes.LastIndexByte(raw, '\n')+1:])
	if err != nil {
		return 0, "", at, fmt.Errorf("the last line of %s %w", path, err)
	}
	return r.Seq, r.Digest, r.Time, nil
}

// prune drops files whose last record is too old. The record of it is durable before the file goes. A file that does not end in a record stays.
func (t *Trail) prune() error {
	names, err := files(t.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(t.cfg.Dir, name)
		seq, last, at, err := lastOf(path)
		if name >= t.name || err != nil || t.cfg.Now().Sub(at) <= t.cfg.Keep {
			return nil
		}
		if err := t.line(Record{Time: t.cfg.Now().UTC(), Actor: Daemon, Event: Pruned,
			Details: map[string]any{"file": name, "until_seq": seq, "digest": last}}); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// spill keeps a record that is on hold where no freeze reaches. A kill behind the flush writes it twice rather than never. mu is held.
func (t *Trail) spill(r Record) {
	if t.cfg.Spill == "" {
		return
	}
	f, err := os.OpenFile(t.cfg.Spill, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return // memory still has it
	}
	t.spilt = json.NewEncoder(f).Encode(r) == nil || t.spilt
	f.Close()
}

// unspill takes in what an earlier process had on hold.
func (t *Trail) unspill() {
	f, err := os.Open(t.cfg.Spill)
	if err != nil {
		return
	}
	defer f.Close()
	for in := json.NewDecoder(f); len(t.pending) < pendingLimit; {
		var r Record
		if in.Decode(&r) != nil {
			return
		}
		t.pending = append(t.pending, r)
		t.spilt = true
	}
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
