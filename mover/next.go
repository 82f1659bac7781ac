package mover

import (
	"encoding/binary"
	"fmt"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

// Facts is all that the choice of the next pass rests on.
type Facts struct {
	Scan    bool             // the tracker knows nothing
	Lost    error            // why the tracker lost its history since the last choice, nil: it did not
	History blockdev.History // of the tracker, before the Take
	Table   Tag              // of the source's digest table
	Force   string           // why a rescan is wanted all the same, empty: it is not
	Reclaim bool             // the operator takes a released target back
	Size    int64            // of the volume
	State   FlowState        // what the gateway said last
}

// Tag is the owner of the source's digest table: the full pass or rescan that filled it. The table knows which leaves are free at
// the target, and a delta relies on that: a free leaf that is written in part has to be sent whole.
type Tag struct {
	Generation ID
	Epoch      uint64
}

// Bytes packs the tag for the table's header.
func (t Tag) Bytes() (b [32]byte) {
	copy(b[:16], t.Generation[:])
	binary.BigEndian.PutUint64(b[16:], t.Epoch)
	return b
}

// ParseTag is the reverse of Bytes.
func ParseTag(b [32]byte) Tag {
	return Tag{ID(b[:16]), binary.BigEndian.Uint64(b[16:])}
}

// Valid tells whether the pass that filled the table is part of what the gateway has committed.
func (t Tag) Valid(s FlowState) bool {
	return t.Epoch > 0 && t.Generation == s.Generation && t.Epoch <= s.Epoch
}

// Choice is the next pass.
type Choice struct {
	Kind    PassKind
	Restart bool   // the tracker has to begin a new generation before the Take (C2)
	Why     string // for people
}

// Next chooses the next pass. It is refused (ErrRefused) when only an operator may go on.
func Next(f Facts) (Choice, error) {
	if f.State.Phase == Released && !f.Reclaim {
		return Choice{}, fmt.Errorf("%w: the target was handed over at epoch %d; rollback takes it back", sentinel.ErrRefused, f.State.Epoch)
	}
	kind, why := choose(f)
	return Choice{kind, f.Lost != nil, why}, nil
}

func choose(f Facts) (PassKind, string) {
	s, h := f.State, f.History
	switch {
	case s.Phase == Fresh:
		return Full, "the target is fresh"
	case f.Reclaim:
		return Rescan, "the target was handed over and is taken back"
	case f.Lost != nil:
		return Rescan, f.Lost.Error()
	case f.Force != "":
		return Rescan, f.Force
	case f.Scan:
		return Rescan, "changes are found by scanning"
	case s.VolumeSize != f.Size:
		return Rescan, fmt.Sprintf("the volume had %d bytes and now has %d", s.VolumeSize, f.Size)
	case s.Epoch == 0 && s.Phase == Incomplete:
		return Rescan, "the first pass was interrupted"
	case h.Generation.IsZero() || s.Generation != h.Generation:
		return Rescan, "the target is at another tracking history"
	case s.Epoch == 0 || s.Epoch < h.Retired:
		return Rescan, fmt.Sprintf("the target is at epoch %d, changes are known since epoch %d", s.Epoch, h.Retired)
	case s.Epoch > h.Taken:
		return Rescan, fmt.Sprintf("the target is at epoch %d, which the tracker has not seen", s.Epoch)
	case !f.Table.Valid(s):
		return Rescan, "the source's digest table does not belong to this tracking history"
	}
	return Delta, fmt.Sprintf("the target is at epoch %d", s.Epoch)
}
