package wire

import (
	"fmt"

	"github.com/moverd/mover/internal/digest"
)

// What a source asks of an object store at the gateway. A CALL has an op and its arguments, the RESULT of the same seq the op and its values, or an error.

// Op is what a CALL asks for; values as in docs/protocol.md.
type Op uint8

const (
	OpOpen Op = iota + 1
	OpList
	OpHead
	OpGet
	OpRead
	OpDrop
	OpPut
	OpDelete
	OpBegin
	OpPutPart
	OpParts
	OpComplete
	OpAbort
	OpUploads
	OpTags
	OpSetTags
	OpGrants
	OpSetGrants
	OpVersioned
	OpLocation
	OpSum
)

// Limits of CALL, RESULT and CHUNKS.
const (
	MaxKey     = 4096      // bytes of a key, prefix or place
	MaxETag    = 256       // bytes
	MaxUpload  = 1024      // bytes of an upload's name
	MaxPage    = 1000      // entries, keys, uploads
	MaxParts   = 10_000    // of an object
	MaxSums    = 8192      // digests of blocks
	MaxPairs   = 1024      // of metadata, tags, grants
	MaxAttrs   = 128 << 10 // bytes of all attributes, or tags, together
	MaxPiece   = 256 << 10 // bytes of an object in a RESULT
	MaxChunk   = 256 << 10 // bytes of a chunk
	MaxBody    = 128 << 10 // chunks of a body
	MaxOffered = MaxLeaves // chunks of a CHUNKS, for NEED answers it
)

// Kinds of RESULT: those of errors of object stores.
const (
	ResultDone    uint8 = iota // it is no error
	ResultMissing              // chunks of the body are not there
	ResultFinal                // another try fails as well; none of those below
	ResultNotFound
	ResultDenied
	ResultCorrupt
	ResultNotSupported
	ResultRefused
	ResultChanged
	ResultExists
	ResultArchived
	ResultClock
	ResultSlowDown
	ResultTransient
	ResultCut  // bytes end early
	lastResult = ResultCut
)

// Flags of PutOptions.
const FlagAbsent = 1 << 0

type (
	// Call asks for an Op.
	Call struct {
		Op     Op
		Values // which of them: by Op
	}
	// Result answers a Call.
	Result struct {
		Op      Op
		Kind    uint8
		Missing Missing // of ResultMissing
		Failure Failure // of kinds after it
		Values          // of ResultDone; which of them: by Op
	}
	// Chunks offers chunks; Need answers it.
	Chunks struct{ Chunks []Chunk }

	// Chunk is a piece of content.
	Chunk struct {
		Digest digest.Digest
		Len    uint32
	}
	// Missing names chunks of a call that are not at the gateway.
	Missing struct {
		N      uint32
		Bitmap []byte
	}
	// Failure is an error of an object store.
	Failure struct {
		Status              uint16
		RetryMS             uint32
		Code, Request, Text string
	}

	// Values are the arguments of a call or the values of a result.
	Values struct {
		Key, Upload, Prefix, After, ETag string // bytes, not always UTF-8
		Name                             string // canned grants, or a region
		No, Most, Of                     uint32
		Off, Len                         uint64
		Put                              PutOptions
		Body                             []Chunk
		Keys, Grants                     []string
		Parts                            []Part
		Tags                             []Pair
		Flag                             bool // more; or versioned
		Now                              int64
		Store                            StoreTraits
		Entries                          []Entry
		Object                           Object
		Bytes                            []byte
		Left                             []Left
		Uploads                          []Upload
		Sums                             []digest.Digest
	}
	// StoreTraits is what a store is.
	StoreTraits struct {
		Name, Rule, Root                            string // for people; of keys; what the gateway puts before each key
		Put, Object, PartLeast, PartAlign, PartMost uint64
		Parts, List, Batch, Meta                    uint32
	}
	// PutOptions is objstore.PutOptions on the wire.
	PutOptions struct {
		Attrs Attrs
		Class string
		Flags uint8
	}
	// Attrs is objstore.Attrs on the wire.
	Attrs struct {
		Headers [6]string // content type, cache control, content disposition, encoding, language, expires
		Meta    []Pair
	}
	// Pair is a name and its value. Lists of them ascend by name.
	Pair struct{ Name, Value string }
	// Part is a part of an upload.
	Part struct {
		No   uint32
		Size uint64
		ETag string
	}
	// Entry is an object in a listing.
	Entry struct {
		Key      string
		Size     uint64
		ETag     string
		Modified int64 // ns; 0: zero
		Class    string
	}
	// Object is an object without its bytes.
	Object struct {
		Entry Entry
		Attrs Attrs
		Tags  int32 // -1: not told
	}
	// Left is a key that a delete has left.
	Left struct {
		Key  string
		Kind uint8
		Text string
	}
	// Upload is an upload that has not ended.
	Upload struct {
		Key, ID string
		Begun   int64 // ns; 0: not told
	}
)

// Known tells whether this version has the op.
func (o Op) Known() bool { return o >= OpOpen && int(o) < len(ops) }

func (o Op) String() string {
	if !o.Known() {
		return fmt.Sprintf("op %d", uint8(o))
	}
	return ops[o].name
}

// ops says which fields a CALL of an op has, and its RESULT, in this order.
var ops = [...]struct {
	name         string
	args, values []member
}{
	OpOpen:      {"open", nil, []member{vStore}},
	OpList:      {"list", []member{vPrefix, vAfter, vMost}, []member{vEntries, vFlag, vNow}},
	OpHead:      {"head", []member{vKey}, []member{vObject}},
	OpGet:       {"get", []member{vKey, vOff, vLength, vEtag}, []member{vObject}},
	OpRead:      {"read", []member{vOf, vMost}, []member{vBytes, vFlag}},
	OpDrop:      {"drop", []member{vOf}, nil},
	OpPut:       {"put", []member{vKey, vPut, vChunks}, []member{vEtag}},
	OpDelete:    {"delete", []member{vKeys}, []member{vLeft}},
	OpBegin:     {"begin", []member{vKey, vPut}, []member{vUpload}},
	OpPutPart:   {"put part", []member{vKey, vUpload, vNo, vChunks}, []member{vEtag}},
	OpParts:     {"parts", []member{vKey, vUpload, vNo}, []member{vParts, vFlag}},
	OpComplete:  {"complete", []member{vKey, vUpload, vPut, vParts}, []member{vEtag}},
	OpAbort:     {"abort", []member{vKey, vUpload}, nil},
	OpUploads:   {"uploads", []member{vPrefix, vAfter, vUpload}, []member{vUploads, vFlag, vAfter, vUpload}},
	OpTags:      {"tags", []member{vKey}, []member{vTags}},
	OpSetTags:   {"set tags", []member{vKey, vTags}, nil},
	OpGrants:    {"grants", []member{vKey}, []member{vName, vGrants}},
	OpSetGrants: {"set grants", []member{vKey, vName}, nil},
	OpVersioned: {"versioned", nil, []member{vFlag}},
	OpLocation:  {"location", nil, []member{vName}},
	OpSum:       {"sum", []member{vKey, vOff, vLength, vEtag}, []member{vObject, vSums}},
}
