package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// Fault is where a trail is not as it was written.
type Fault struct {
	File string
	Line int // 0: the file as a whole
	Why  string
}

func (f *Fault) Error() string {
	if f.Line == 0 {
		return fmt.Sprintf("%s: %s", f.File, f.Why)
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Why)
}

// Is makes a fault a difference, so that commands exit with the code of one.
func (f *Fault) Is(target error) bool { return target == sentinel.ErrDiffer }

// Summary is what a whole trail holds.
type Summary struct {
	Records     int       `json:"records"`
	From, Until time.Time // of the first and the last record
	Seq         uint64    `json:"seq"` // of the last record
	Digest      string    `json:"digest"`
}

// Verify reads all of the trail in dir and checks each record's digest and the chain. The first *Fault ends it. A daemon may be writing: what it writes
// after Verify began is not looked at. each is called with every record that checked; it may be nil.
func Verify(dir string, each func(Record) error) (Summary, error) {
	s, err := take(dir)
	if err != nil {
		return Summary{}, err
	}
	defer s.close()
	c := &checker{dir: dir, last: none, each: each, headSeq: s.seq, headLast: s.last}
	for i, f := range s.files {
		if err := c.file(f, s.sizes[i]); err != nil {
			return c.sum, err
		}
	}
	return c.sum, c.end()
}

// snapshot is the trail at one moment.
type snapshot struct {
	files []*os.File
	sizes []int64
	seq   uint64
	last  string
}

func (s *snapshot) close() {
	for _, f := range s.files {
		f.Close()
	}
}

func take(dir string) (_ *snapshot, err error) {
	s := &snapshot{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	path := filepath.Join(dir, headName)
	h, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if names, lerr := files(dir); lerr == nil && len(names) > 0 {
			return nil, &Fault{path, 0, "is missing; it names the last record"}
		}
		return nil, fmt.Errorf("%s holds no audit trail: %w", dir, sentinel.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	defer h.Close()
	// Held for a moment only: a reader that is stopped must not stop the daemon.
	if err := unix.Flock(int(h.Fd()), unix.LOCK_SH); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	raw, err := io.ReadAll(h)
	if err != nil {
		return nil, err
	}
	if s.seq, s.last, err = parseHead(raw); err != nil {
		return nil, &Fault{path, 0, err.Error()}
	}
	names, err := files(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		s.files = append(s.files, f)
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		s.sizes = append(s.sizes, st.Size())
	}
	return s, nil
}

// checker walks along the chain.
type checker struct {
	dir      string
	each     func(Record) error
	sum      Summary
	last     string
	headSeq  uint64
	headLast string
	headSeen bool
	first    Record // of what remains
	begun    bool   // the first record is number 1, or a record of a pruned file leads to it
	path     string // where the first and the last record stand
	top      string
	line     int
}

func (c *checker) file(f *os.File, size int64) error {
	in := bufio.NewReaderSize(io.LimitReader(f, size), maxLine)
	c.path, c.line = f.Name(), 0
	for {
		line, err := in.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		c.line++
		fault := func(why string) error { return &Fault{c.path, c.line, why} }
		switch {
		case err == bufio.ErrBufferFull:
			return fault("is longer than any record")
		case err == io.EOF:
			return fault("is torn: a kill, or a cut; a daemon sets it aside at its next start")
		case err != nil:
			return err
		}
		r, derr := decode(bytes.TrimSuffix(line, []byte("\n")))
		if derr != nil {
			return fault(derr.Error())
		}
		if err := c.record(r, fault); err != nil {
			return err
		}
	}
}

func (c *checker) record(r Record, fault func(string) error) error {
	switch {
	case c.sum.Records == 0:
		c.first, c.top, c.begun = r, c.path, r.Seq == 1
		c.sum.From = r.Time
		if c.begun && r.Before != none {
			return fault("is the first record, and names one before it")
		}
	case r.Seq != c.sum.Seq+1:
		return fault(fmt.Sprintf("is record %d and follows record %d: records were removed, added or reordered", r.Seq, c.sum.Seq))
	case r.Before != c.last:
		return fault("does not follow the record before: its digest is another")
	}
	switch {
	case r.Event == Damaged:
		return fault(fmt.Sprintf("a start of the daemon found the trail damaged here: %v", r.Details["why"]))
	case r.Event == Pruned && r.Details["until_seq"] == float64(c.first.Seq-1) && r.Details["digest"] == c.first.Before:
		c.begun = true
	}
	c.headSeen = c.headSeen || r.Seq == c.headSeq && r.Digest == c.headLast
	c.sum.Records++
	c.sum.Seq, c.last, c.sum.Digest, c.sum.Until = r.Seq, r.Digest, r.Digest, r.Time
	if c.each != nil {
		return c.each(r)
	}
	return nil
}

func (c *checker) end() error {
	switch {
	case c.sum.Records == 0:
		return &Fault{filepath.Join(c.dir, headName), 0, fmt.Sprintf("names record %d, and there is none", c.headSeq)}
	case !c.begun:
		return &Fault{c.top, 1, fmt.Sprintf("is record %d, and no record tells that those before were pruned", c.first.Seq)}
	case !c.headSeen:
		return &Fault{c.path, c.line, fmt.Sprintf("the trail ends with record %d, and record %d was written last: its end was cut or altered", c.sum.Seq, c.headSeq)}
	case c.sum.Seq > c.headSeq+1: // one more is a kill between the two writes
		return &Fault{c.path, c.line, fmt.Sprintf("records were added behind record %d, which was written last", c.headSeq)}
	}
	return nil
}
