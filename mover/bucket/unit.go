package bucket

import (
	"bytes"
	"encoding/gob"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// Unit is the work that one worker takes at a time: objects of one stretch of the keyspace. It may be done twice, by whomever.
type Unit struct {
	ID    uint64
	Pass  uint64
	Items []Item
	Held  bool // in an answer: another worker has it
}

// Item is one object to be copied, or to be deleted at the target.
type Item struct {
	Delete bool
	Entry  objstore.Entry // at the source, as listed; of one to be deleted the key only
	Sure   bool           // Record.Sure
	Again  bool           // another worker had it, and has not told what became of it
	Upload *Progress
}

// Progress is an upload in parts that has begun.
type Progress struct {
	ID    string
	ETag  string // of the source's content
	Size  int64  // of a part, but the last
	Attrs uint64 // Marks.Attrs
	Parts []Done
}

// Done is a part that the target has confirmed.
type Done struct {
	No     int
	ETag   string
	Blocks []digest.Digest // see objstore.Digester
}

// A unit ends at one of these.
const (
	unitItems = 256
	unitBytes = 256 << 20
)

// Result is what a worker tells: what became of items, of any units; or that an upload has begun, or a part of it is done.
type Result struct {
	Who
	Items []ItemResult
	Part  *PartResult
}

// ItemResult is what became of one object.
type ItemResult struct {
	Unit   uint64
	Key    string
	Record Record
	Delete bool  // it was deleted at the target
	Sent   int64 // bytes that were moved for it

	cause error // why it failed; for the worker alone
}

// PartResult is a part of an upload; number 0: the upload itself.
type PartResult struct {
	Unit   uint64
	Key    string
	Upload string
	ETag   string // of the source's content
	Size   int64  // of a part
	Attrs  uint64 // Marks.Attrs
	Part   Done
}

// pack encodes what is kept in the ledger or sent to a worker: with gob, for keys are bytes, which JSON would change.
func pack(v any) ([]byte, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(v)
	return b.Bytes(), err
}

func unpack(b []byte, v any) error { return gob.NewDecoder(bytes.NewReader(b)).Decode(v) }
