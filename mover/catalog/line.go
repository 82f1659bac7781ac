package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
)

// LineRecord is what the gateway remembers of a line: STATE/lines/NAME.json.
type LineRecord struct {
	Name    string        `json:"name"`
	Used    shape.Used    `json:"used"`
	Set     mover.LineSet `json:"set"` // by the operator
	Saved   time.Time     `json:"saved"`
	Open    bool          `json:"open"`    // the gateway was running; more may have gone over the line since
	Allowed int64         `json:"allowed"` // bytes/s, then
}

func (c *Catalog) linePath(name string) string { return filepath.Join(c.dir, "lines", name+".json") }

// Line reads a line's record; an empty one if there is none.
func (c *Catalog) Line(name string) (r LineRecord, err error) {
	if err := CheckName(name); err != nil {
		return r, err
	}
	b, err := os.ReadFile(c.linePath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return LineRecord{Name: name}, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil || r.Name != name {
		return r, fmt.Errorf("record of line %s: %s holds something else (%v); move it away if the month may be counted anew: %w", name, c.linePath(name), err, sentinel.ErrCorrupt)
	}
	return r, nil
}

// PutLine replaces a line's record durably.
func (c *Catalog) PutLine(r LineRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.linePath(r.Name)), 0o700); err != nil {
		return err
	}
	return writeFile(c.linePath(r.Name), b)
}
