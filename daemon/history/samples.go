package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moverd/mover/mover"
)

// Sample is how a flow stood during a span of time.
type Sample struct {
	Time  time.Time `json:"time"`              // the span's begin
	Span  float64   `json:"span_seconds"`      // its length
	Seen  float64   `json:"seen_seconds"`      // of these, observed
	Lag   float64   `json:"lag_seconds"`       // the largest
	Rate  float64   `json:"rate_bytes_second"` // means of what was observed: logical bytes acked,
	Wire  float64   `json:"wire_bytes_second"` // bytes on the line,
	Dirty float64   `json:"dirty_bytes"`       // bytes that the target lacks,
	Churn float64   `json:"dirty_bytes_second"`
}

// levels of the ring, finest first: three hours, a day and a half, a month, a year.
var levels = []struct {
	step  int64 // seconds
	slots int64
}{{10, 1080}, {120, 1080}, {1800, 1440}, {21600, 1460}}

const (
	ringMagic   = "MOVRSMP\n"
	ringVersion = 1
	ringHeader  = 64
	slotSize    = 32
)

// ringSize is the length of a flow's file, in bytes.
func ringSize() int64 {
	n := int64(ringHeader)
	for _, l := range levels {
		n += l.slots * slotSize
	}
	return n
}

// slot is one span of one level.
type slot struct {
	level int
	at    int64 // Unix seconds, a multiple of the level's step
	seen  float64
	v     [5]float64 // lag (largest), rate, wire, dirty, churn (means)
}

func (s *slot) add(seen float64, v [5]float64) {
	s.v[0] = max(s.v[0], v[0])
	for i := 1; i < len(v); i++ {
		s.v[i] = (s.v[i]*s.seen + v[i]*seen) / (s.seen + seen)
	}
	s.seen += seen
}

// offset is where a slot has its place: a span's place follows from its time.
func (s *slot) offset() int64 {
	at := int64(ringHeader)
	for _, l := range levels[:s.level] {
		at += l.slots * slotSize
	}
	return at + s.at/levels[s.level].step%levels[s.level].slots*slotSize
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *slot) encode() []byte {
	b := make([]byte, slotSize)
	binary.BigEndian.PutUint32(b, uint32(s.at))
	binary.BigEndian.PutUint32(b[4:], math.Float32bits(float32(s.seen)))
	for i, v := range s.v {
		binary.BigEndian.PutUint32(b[8+4*i:], math.Float32bits(float32(v)))
	}
	binary.BigEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return b
}

func decodeSlot(level int, b []byte) (slot, bool) {
	if binary.BigEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return slot{}, false
	}
	s := slot{level: level, at: int64(binary.BigEndian.Uint32(b)), seen: float64(math.Float32frombits(binary.BigEndian.Uint32(b[4:])))}
	ok := s.seen > 0 && !math.IsInf(s.seen, 0)
	for i := range s.v {
		s.v[i] = float64(math.Float32frombits(binary.BigEndian.Uint32(b[8+4*i:])))
		ok = ok && s.v[i] >= 0 && !math.IsInf(s.v[i], 0)
	}
	return s, ok
}

// ring is the samples of a flow. Guarded by Store.mu, but for path.
type ring struct {
	path  string
	last  time.Time
	spans []*slot // one of each level, growing; nil: none yet
	ready []slot  // ended, not written
}

func newRing(dir, flow string) *ring {
	return &ring{path: ringPath(dir, flow), spans: make([]*slot, len(levels))}
}

func ringPath(dir, flow string) string { return filepath.Join(dir, "samples-"+url.PathEscape(flow)) }

// look takes in what a flow says now, for the time since the look before.
func (r *ring) look(now time.Time, s *mover.Status) {
	seen := now.Sub(r.last).Seconds()
	if r.last.IsZero() || seen <= 0 || seen > 10 {
		seen = 1
	}
	r.last = now
	v := [5]float64{s.Lag, s.Rate, s.WireRate, float64(s.Dirty), s.DirtyRate}
	for i, l := range levels {
		at := now.Unix() / l.step * l.step
		if cur := r.spans[i]; cur == nil || cur.at != at {
			if cur != nil {
				r.ready = append(r.ready, *cur)
			}
			r.spans[i] = &slot{level: i, at: at}
		}
		r.spans[i].add(seen, v)
	}
	if n := len(r.ready); n > int(levels[0].slots) { // the disk takes nothing
		r.ready = r.ready[n-int(levels[0].slots):]
	}
}

// take hands out what is to be written; at the end also spans that have not ended, which the next process goes on with.
func (r *ring) take(last bool) []slot {
	out := r.ready
	r.ready = nil
	if last {
		out = r.withSpans(out)
	}
	return out
}

func (r *ring) unwritten() []slot { return r.withSpans(slices.Clone(r.ready)) }

func (r *ring) withSpans(out []slot) []slot {
	for _, s := range r.spans {
		if s != nil {
			out = append(out, *s)
		}
	}
	return out
}

// write puts slots into their places; one that has its span there already is joined with it.
func (r *ring) write(slots []slot) error {
	if len(slots) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ready(f); err != nil {
		return err
	}
	for _, s := range slots {
		b := make([]byte, slotSize)
		if _, err := f.ReadAt(b, s.offset()); err != nil {
			return fmt.Errorf("read %s: %w", r.path, err)
		}
		if old, ok := decodeSlot(s.level, b); ok && old.at == s.at && old.seen+s.seen <= float64(levels[s.level].step)+2 {
			s.add(old.seen, old.v)
		}
		if _, err := f.WriteAt(s.encode(), s.offset()); err != nil {
			return fmt.Errorf("write %s: %w", r.path, err)
		}
	}
	return nil
}

// ready makes an empty file, or one of another kind, a ring without samples.
func ready(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, ringHeader)
	copy(head, ringMagic)
	binary.BigEndian.PutUint32(head[8:], ringVersion)
	have := make([]byte, ringHeader)
	if _, err := f.ReadAt(have, 0); err == nil && string(have) == string(head) && st.Size() == ringSize() {
		return nil
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	return f.Truncate(ringSize())
}

// readSamples reads a flow's samples, each moment by the finest level that has it, oldest first. memory is what is not written yet.
func readSamples(dir, flow string, memory []slot, now time.Time) ([]Sample, error) {
	path := ringPath(dir, flow)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err != nil {
		return nil, err
	}
	found := make([]map[int64]slot, len(levels))
	for i := range found {
		found[i] = map[int64]slot{}
	}
	if int64(len(raw)) == ringSize() && string(raw[:8]) == ringMagic && binary.BigEndian.Uint32(raw[8:]) == ringVersion {
		at := ringHeader
		for i, l := range levels {
			for range l.slots {
				s, ok := decodeSlot(i, raw[at:at+slotSize])
				at += slotSize
				age := now.Unix() - s.at
				if ok && age >= 0 && age < l.step*l.slots && s.at%l.step == 0 {
					found[i][s.at] = s
				}
			}
		}
	}
	for _, s := range memory {
		if l := levels[s.level]; now.Unix()-s.at >= l.step*l.slots {
			continue
		}
		if old, ok := found[s.level][s.at]; ok && old.seen+s.seen <= float64(levels[s.level].step)+2 {
			s.add(old.seen, old.v)
		}
		found[s.level][s.at] = s
	}
	return finest(found, now), nil
}

// finest takes each level for the time before the next finer one begins.
func finest(found []map[int64]slot, now time.Time) []Sample {
	var out []Sample
	until := now.Unix() + 1
	for i, l := range levels {
		begin := until
		for at, s := range found[i] {
			if at+l.step > until && i > 0 { // reaches into what a finer level tells
				continue
			}
			begin = min(begin, at)
			out = append(out, Sample{Time: time.Unix(at, 0).UTC(), Span: float64(l.step), Seen: s.seen, Lag: s.v[0], Rate: s.v[1], Wire: s.v[2], Dirty: s.v[3], Churn: s.v[4]})
		}
		until = begin
	}
	slices.SortFunc(out, func(a, b Sample) int { return a.Time.Compare(b.Time) })
	return out
}
