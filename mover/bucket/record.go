package bucket

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
)

// Outcome is what became of an object.
type Outcome uint8

const (
	Copied  Outcome = iota + 1 // the target has it
	Refused                    // it cannot be carried: Record.Why
	Failed                     // it was tried in vain: Record.Why; the next pass tries again
	Gone                       // the source has it no longer; the target has it still, or may have
)

func (o Outcome) String() string {
	if int(o) < len(outcomes) {
		return outcomes[o]
	}
	return fmt.Sprintf("unknown(%d)", uint8(o))
}

var outcomes = [...]string{"unknown", "copied", "refused", "failed", "gone"}

// Record is what the ledger holds of one object.
type Record struct {
	Outcome  Outcome
	Sure     bool // no: it was changed so shortly before it was listed that another change may not show
	Size     int64
	Modified time.Time // at the source
	ETag     string    // of the source's content that was copied
	Class    string    // at the source
	Target   string    // ETag that the target has confirmed
	Digest   digest.Digest
	Marks    Marks
	Lost     []string // what could not be carried with it, for people
	Why      string
}

// is tells whether the record is of the state that a listing shows now.
func (r Record) is(e objstore.Entry) bool {
	return r.Sure && (r.Outcome == Copied || r.Outcome == Refused) && r.Size == e.Size && r.ETag == e.ETag && r.Modified.Equal(e.Modified) && r.Class == e.Class
}

const recordVersion = 2 // 1 had no marks

// append encodes r.
func (r Record) append(b []byte) []byte {
	sure := byte(0)
	if r.Sure {
		sure = 1
	}
	b = append(b, recordVersion, byte(r.Outcome), sure)
	b = binary.AppendVarint(b, r.Size)
	b = binary.AppendVarint(b, r.Modified.UnixNano())
	for _, s := range []string{r.ETag, r.Class, r.Target, r.Why} {
		b = appendText(b, s)
	}
	b = append(b, r.Digest[:]...)
	b = binary.AppendUvarint(b, uint64(len(r.Lost)))
	for _, s := range r.Lost {
		b = appendText(b, s)
	}
	return r.Marks.append(b)
}

// decodeRecord decodes what append has made.
func decodeRecord(b []byte) (r Record, err error) {
	d := decoder{b: b}
	v := d.byte()
	if d.err == nil && (v < 1 || v > recordVersion) {
		return r, fmt.Errorf("record of version %d: %w", v, sentinel.ErrCorrupt)
	}
	r.Outcome, r.Sure = Outcome(d.byte()), d.byte() == 1
	r.Size, r.Modified = d.int(), time.Unix(0, d.int()).UTC()
	r.ETag, r.Class, r.Target, r.Why = d.text(), d.text(), d.text(), d.text()
	copy(r.Digest[:], d.take(digest.Size))
	for n := d.uint(); n > 0 && d.err == nil; n-- {
		r.Lost = append(r.Lost, d.text())
	}
	if v > 1 {
		r.Marks = d.marks()
	}
	return r, d.end()
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder takes values from the front of b; after an error it gives zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err == nil && (n < 0 || n > len(d.b)) {
		d.err = fmt.Errorf("it is cut short: %w", sentinel.ErrCorrupt)
	}
	if d.err != nil {
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		n = -1
	}
	d.take(n)
	return v
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		n = -1
	}
	d.take(n)
	return v
}

func (d *decoder) text() string {
	n := d.uint()
	return string(d.take(int(min(n, 1<<31))))
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%d bytes too many: %w", len(d.b), sentinel.ErrCorrupt)
	}
	return d.err
}
