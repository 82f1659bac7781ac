package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

const (
	eventsName = "events.jsonl"
	header     = `{"mover_history":1}` + "\n"
	sizeLimit  = 8 << 20 // bytes; beyond, deltas are summed up, and then the oldest events go
	lineLimit  = 1 << 20
)

// events is the file of events.
type events struct {
	dir   string
	limit int64 // of its size
	file  *os.File
	size  int64
}

func (v *events) path() string { return filepath.Join(v.dir, eventsName) }

// open finds the end of the last whole line. A file of another version is set aside.
func (v *events) open() error {
	if v.file != nil {
		return nil
	}
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return err
	}
	raw, err := os.ReadFile(v.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(raw) > 0 && !bytes.HasPrefix(raw, []byte(header)) && !bytes.HasPrefix([]byte(header), raw) {
		if err := os.Rename(v.path(), v.path()+".other"); err != nil {
			return err
		}
		raw = nil
	}
	f, err := os.OpenFile(v.path(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	v.size = int64(bytes.LastIndexByte(raw, '\n') + 1)
	if err := f.Truncate(v.size); err != nil { // what a kill has torn
		return errors.Join(err, f.Close())
	}
	v.file = f
	return nil
}

// append writes all or nothing.
func (v *events) append(batch []mover.Event) error {
	if err := v.open(); err != nil {
		return err
	}
	var out bytes.Buffer
	if v.size == 0 {
		out.WriteString(header)
	}
	for i := range batch {
		if err := encode(&out, &batch[i]); err != nil {
			return err
		}
	}
	if v.size+int64(out.Len()) > v.limit {
		if err := v.squeeze(); err != nil {
			return err
		}
	}
	if _, err := v.file.WriteAt(out.Bytes(), v.size); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", v.path(), err), v.file.Truncate(v.size))
	}
	v.size += int64(out.Len())
	return nil
}

func encode(out *bytes.Buffer, e *mover.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("event %s: %w", e.Kind, err)
	}
	if len(b) >= lineLimit {
		return nil // nothing that Note lets in is
	}
	out.Write(b)
	out.WriteByte('\n')
	return nil
}

// squeeze makes the file half as large: deltas are summed up by the hour, by the day, or all of them; then the oldest of what is no
// cutover and the like goes. The new file takes the old one's place when it is whole.
func (v *events) squeeze() error {
	all, err := readEvents(v.dir)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for step := range 5 {
		switch step {
		case 0:
			all = summed(all, time.Hour)
		case 1:
			all = summed(all, 24*time.Hour)
		case 2:
			all = summed(all, 100*365*24*time.Hour)
		case 3:
			all = slices.DeleteFunc(all, func(e mover.Event) bool { return e.Report == nil && e.Pass == nil })
		case 4:
			all = all[len(all)/2:]
		}
		out.Reset()
		out.WriteString(header)
		for i := range all {
			if err := encode(&out, &all[i]); err != nil {
				return err
			}
		}
		if int64(out.Len()) <= v.limit/2 {
			break
		}
	}
	temp := v.path() + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(out.Bytes())
	if err = errors.Join(err, f.Sync()); err == nil {
		err = os.Rename(temp, v.path())
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(temp))
	}
	v.file.Close()
	v.file, v.size = f, int64(out.Len())
	return nil
}

// summed makes one event of all deltas of a flow and generation within a span, but for the last span: it stays as it is.
func summed(all []mover.Event, span time.Duration) []mover.Event {
	if len(all) == 0 {
		return nil
	}
	newest := all[len(all)-1].Time.Truncate(span)
	var out []mover.Event
	at := map[string]int{} // of a flow's sum in out
	for _, e := range all {
		if !routine(&e) || !e.Time.Truncate(span).Before(newest) && span < 365*24*time.Hour {
			out = append(out, e)
			continue
		}
		if i, ok := at[e.Flow]; ok && out[i].Time.Truncate(span).Equal(e.Time.Truncate(span)) && out[i].Pass.Generation == e.Pass.Generation {
			join(&out[i], &e)
			continue
		}
		at[e.Flow] = len(out)
		out = append(out, e)
	}
	return out
}

func (v *events) close() error {
	if v.file == nil {
		return nil
	}
	err := errors.Join(v.file.Sync(), v.file.Close())
	v.file = nil
	return err
}

// readEvents reads every whole line that is an event; a line that is none is passed over, as is a torn tail.
func readEvents(dir string) ([]mover.Event, error) {
	path := filepath.Join(dir, eventsName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, lineLimit)
	var out []mover.Event
	for first := true; ; first = false {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return out, fmt.Errorf("read %s: %w", path, err)
		case first && string(line) != header:
			return nil, fmt.Errorf("%s is of another version: %w", path, sentinel.ErrNotSupported)
		case first:
			continue
		}
		var e mover.Event
		if json.Unmarshal(line, &e) == nil && e.Kind != "" {
			out = append(out, e)
		}
	}
}
