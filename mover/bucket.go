package mover

import "time"

// Bucket is what a bucket flow tells beside the rest of its Status. Counts without another word are of the pass that is under way, or of the last one.
type Bucket struct {
	Pass    uint64 `json:"pass"` // number; 0: none has begun
	Listing bool   `json:"listing"`
	Final   bool   `json:"final"` // the writers stand still

	Listed       int64 `json:"listed_objects"` // at the source, that the filters take
	ListedBytes  int64 `json:"listed_bytes"`
	Left         int64 `json:"left_out_objects"` // by the filters
	Same         int64 `json:"same_objects"`     // not changed since the pass before
	Planned      int64 `json:"planned_objects"`  // to be copied
	PlannedBytes int64 `json:"planned_bytes"`
	Copied       int64 `json:"copied_objects"`
	CopiedBytes  int64 `json:"copied_bytes"`
	Changed      int64 `json:"changed_objects"`  // gone or changed again meanwhile: the next pass looks
	Vanished     int64 `json:"vanished_objects"` // gone at the source
	Deleted      int64 `json:"deleted_objects"`  // of those, at the target
	Again        int64 `json:"again_objects"`    // done a second time

	Objects int64 `json:"objects"` // at the target, of all passes
	Bytes   int64 `json:"bytes"`
	Refused int64 `json:"refused_objects"` // that cannot be carried, of all passes
	Failed  int64 `json:"failed_objects"`  // that were tried in vain, and are tried again
	Partly  int64 `json:"partly_objects"`  // that are at the target without some attribute

	Versions string `json:"versions,omitempty"` // what the source keeps beside its objects, and is not carried; for people

	Sent   int64                   `json:"sent_bytes"` // since start
	Passes int64                   `json:"passes"`     // ended since start
	Stores map[string]BucketCounts `json:"stores,omitempty"`
	Keys   map[string]BucketKeys   `json:"keys,omitempty"` // of the ends, source or target, that use a session's

	Workers []BucketWorker `json:"workers,omitempty"` // that were heard of lately
}

// Relay is what a bucket flow has sent by its gateway, since start. What crossed the line is in Status.WireOut and WireIn.
type Relay struct {
	Bodies  int64 `json:"body_bytes"`    // of the objects and parts
	Offered int64 `json:"offered_bytes"` // of their chunks, each once where several objects under way have it
	Needed  int64 `json:"needed_bytes"`  // of those, what the gateway did not have
	Packed  int64 `json:"packed_bytes"`  // compressed
	Resent  int64 `json:"resent_bytes"`  // of chunks that its cache had forgotten
	Calls   int64 `json:"calls"`
	Failed  int64 `json:"failed_calls,omitempty"` // of them; told by the gateway
	Objects int64 `json:"objects,omitempty"`      // and parts that it has stored; told by the gateway
}

// BucketKeys is how the session stands whose keys an end uses.
type BucketKeys struct {
	Issuer  string    `json:"issuer"`
	Ends    time.Time `json:"ends,omitzero"`     // zero: none has begun
	Left    float64   `json:"left_seconds"`      // until then
	Renewed uint64    `json:"renewed"`           // times since start
	Failed  uint64    `json:"failed"`            // times that it was tried in vain
	Trouble string    `json:"trouble,omitempty"` // why it cannot be renewed now
}

// BucketWorker is one worker of a bucket flow.
type BucketWorker struct {
	Name    string    `json:"name"` // of its certificate, or local
	Host    string    `json:"host,omitempty"`
	Objects int64     `json:"objects_under_way"`
	Rate    float64   `json:"objects_per_second"`
	Heard   time.Time `json:"heard"`
}

// BucketCounts is what was asked of one end, source or target, since start.
type BucketCounts struct {
	Calls  uint64            `json:"calls"`
	Errors map[string]uint64 `json:"errors,omitempty"` // by kind
	In     uint64            `json:"in_bytes"`
	Out    uint64            `json:"out_bytes"`
}

// BucketReport is the outcome of a cutover or a verification of a bucket flow.
type BucketReport struct {
	Pass    uint64 `json:"pass"`
	Passes  int    `json:"final_passes"`
	Objects int64  `json:"objects"` // that are at the target as they were written
	Bytes   int64  `json:"bytes"`
	Differ  int64  `json:"differ"` // that are not, or are missing
	Others  int64  `json:"others"` // at the target, not of this flow
	Refused int64  `json:"refused_objects"`
	Partly  int64  `json:"partly_objects"`
	Read    bool   `json:"read"` // every byte was read again
	// Attributes is how many objects had their headers, metadata, tags and rights compared too.
	Attributes int64    `json:"attributes_compared"`
	Versions   string   `json:"versions,omitempty"`
	Examples   []string `json:"examples,omitempty"`
	Swept      int      `json:"swept_uploads"`
	Foreign    int      `json:"foreign_uploads"` // of others; they stay
	Manifest   string   `json:"manifest,omitempty"`
	Root       string   `json:"manifest_root,omitempty"`
	Unproven   string   `json:"unproven,omitempty"` // why it is not proven that the writers stood still
}

// How tells by what both ends were compared.
func (b *BucketReport) How() string {
	if b.Read {
		return "digest"
	}
	return "size and ETag"
}

// BucketObject is one object of a bucket flow's ledger.
type BucketObject struct {
	Key      string   `json:"key,omitempty"`
	KeyBytes []byte   `json:"key_bytes,omitempty"` // in its place where it is no UTF-8
	Outcome  string   `json:"outcome"`
	Size     int64    `json:"size"`
	Why      string   `json:"why,omitempty"`
	Lost     []string `json:"lost,omitempty"`
}
