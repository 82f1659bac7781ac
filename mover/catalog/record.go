package catalog

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// RecordVersion is the version of flow.json that this build writes and reads.
const RecordVersion = 1

// ID is a blockdev.ID that reads and writes itself as hex.
type ID blockdev.ID

// MarshalText writes 32 hex digits, or nothing for no id.
func (id ID) MarshalText() ([]byte, error) {
	if id == (ID{}) {
		return nil, nil
	}
	return []byte(hex.EncodeToString(id[:])), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(b []byte) error {
	*id = ID{}
	if len(b) == 0 {
		return nil
	}
	if len(b) != 2*len(id) {
		return fmt.Errorf("id of %d characters", len(b))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// Record is flow.json: everything about a flow that must survive, but for what is in its table and its redo log.
type Record struct {
	Version int    `json:"version"`
	Number  uint32 `json:"number"` // stands for the flow in the dedup index
	Flow    string `json:"flow"`   // TENANT/HOST/NAME
	Tenant  string `json:"tenant"`
	Host    string `json:"host"`
	Name    string `json:"name"`

	Target Target `json:"target"` // the claim
	Volume Volume `json:"volume"` // zero before the first OPEN

	Phase      mover.Phase   `json:"phase"`
	Generation ID            `json:"generation"`
	Epoch      uint64        `json:"epoch"` // last committed epoch in Generation
	Point      RecoveryPoint `json:"point"`
	Open       *OpenPass     `json:"open,omitempty"` // the pass that made the target incomplete (C6)

	Report     string          `json:"report,omitempty"` // of the release
	Released   time.Time       `json:"released,omitzero"`
	Finished   time.Time       `json:"finished,omitzero"`    // the way back was given up: the target is no longer the flow's
	Unreadable []extent.Extent `json:"unreadable,omitempty"` // zeros stand in for these
	Group      string          `json:"group,omitempty"`      // that the last confirmed point was taken with
	Points     []KeptPoint     `json:"points,omitempty"`     // that are kept, the oldest first
	PointOwner ID              `json:"point_owner,omitzero"` // in the names of kept points; new with each claim
	Updated    time.Time       `json:"updated"`
}

// Target is a claim: which device or file belongs to the flow.
type Target struct {
	Path     string    `json:"path"`
	Identity string    `json:"identity"`
	Size     int64     `json:"size_bytes"`
	Created  bool      `json:"created"` // an image file that the gateway made
	Claimed  time.Time `json:"claimed"`
}

// Volume is what the source said about its volume.
type Volume struct {
	Identity  string `json:"identity"`
	Size      int64  `json:"size_bytes"`
	BlockSize uint32 `json:"block_bytes"`
}

// RecoveryPoint tells what the last recovery point is worth.
type RecoveryPoint struct {
	Time        time.Time         `json:"time,omitzero"`
	Consistency mover.Consistency `json:"consistency"`
	Proven      bool              `json:"proven"`
	Pass        ID                `json:"pass"`
	Mode        mover.Mode        `json:"mode,omitzero"` // of the pass, as the next: what its COMMITTED says should it be asked for again
	Counts      mover.Counts      `json:"counts,omitzero"`
	Moment      ID                `json:"moment,omitzero"` // set once the source has confirmed what the point is worth (C13)
}

// KeptPoint is a recovery point of which a copy is kept.
type KeptPoint struct {
	ID          string            `json:"id"`
	Generation  ID                `json:"generation"`
	Epoch       uint64            `json:"epoch"`
	Time        time.Time         `json:"time"`
	Consistency mover.Consistency `json:"consistency"`
	Proven      bool              `json:"proven"`
	Root        string            `json:"root,omitempty"`       // of the target, free leaves apart, as reports compare it
	Image       string            `json:"image_root,omitempty"` // of the copy as it reads, free leaves as zeros
	NoRoot      string            `json:"no_root,omitempty"`    // why there is neither
	Size        int64             `json:"size_bytes"`           // of the volume
	Pass        ID                `json:"pass"`
	Pinned      bool              `json:"pinned,omitempty"`
	Rehearsed   bool              `json:"rehearsed,omitempty"`
	Cutover     bool              `json:"cutover,omitempty"`
	Moment      ID                `json:"moment,omitzero"` // shared by the points of a group under one freeze
	Group       string            `json:"group,omitempty"`
	Members     uint16            `json:"members,omitempty"` // flows of the moment
	Method      string            `json:"method"`
}

// OpenPass names a pass.
type OpenPass struct {
	ID         ID             `json:"id"`
	Kind       mover.PassKind `json:"kind"`
	Generation ID             `json:"generation"`
	Epoch      uint64         `json:"epoch"`
	Began      time.Time      `json:"began"`
}

// Clone copies what r points to, so that records can be handed out and changed by value.
func (r Record) Clone() Record {
	if r.Open != nil {
		p := *r.Open
		r.Open = &p
	}
	r.Unreadable = append([]extent.Extent(nil), r.Unreadable...)
	r.Points = append([]KeptPoint(nil), r.Points...)
	return r
}

func decodeRecord(path string, b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read flow record %s: %v: %w; restore it from a backup, or move its directory away to forget the flow",
			path, err, sentinel.ErrCorrupt)
	}
	if r.Version != RecordVersion {
		return r, fmt.Errorf("read flow record %s: version %d, this build knows %d: %w", path, r.Version, RecordVersion, sentinel.ErrNotSupported)
	}
	if r.Flow != r.Tenant+"/"+r.Host+"/"+r.Name || r.Number == 0 || r.Phase < mover.Fresh || r.Phase > mover.Released {
		return r, fmt.Errorf("read flow record %s: fields contradict each other: %w", path, sentinel.ErrCorrupt)
	}
	return r, nil
}
