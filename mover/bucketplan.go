package mover

import "time"

// BucketSum is a number of objects.
type BucketSum struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// Add counts one more.
func (s *BucketSum) Add(bytes int64) { s.Objects, s.Bytes = s.Objects+1, s.Bytes+bytes }

func (s *BucketSum) plus(o BucketSum) { s.Objects, s.Bytes = s.Objects+o.Objects, s.Bytes+o.Bytes }

// BucketPlan is what a pass of a bucket flow would do, by both listings and the ledger. Nothing was written for it.
type BucketPlan struct {
	Flow     string    `json:"flow"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Made     time.Time `json:"made"`
	Seconds  float64   `json:"seconds"`             // that it took
	Pass     uint64    `json:"pass"`                // that was the last one; 0: none has begun
	UnderWay bool      `json:"under_way,omitempty"` // it has not ended: what it copies meanwhile may be counted as to be copied
	Deletes  bool      `json:"deletes"`             // are followed
	Refusals []string  `json:"would_not_begin"`     // why a pass would not begin
	Notes    []string  `json:"notes,omitempty"`     // what this does not know
	Source   BucketSum `json:"source"`              // that the filters take
	LeftOut  int64     `json:"left_out_objects"`    // that they do not
	Same     BucketSum `json:"same"`                // not changed since they were copied
	Copy     BucketSum `json:"copy"`                // to be copied:
	New      int64     `json:"new_objects"`         // of these, never copied,
	Changed  int64     `json:"changed_objects"`     // changed since,
	Unsure   int64     `json:"unsure_objects"`      // copied so shortly after a change that another may not show,
	Again    int64     `json:"failed_objects"`      // or tried in vain before
	Large    BucketSum `json:"large"`               // of these, in parts
	Delete   BucketSum `json:"delete"`              // gone at the source: to be deleted at the target,
	Stay     BucketSum `json:"stay"`                // or to stay there
	Refused  BucketSum `json:"refused"`             // that cannot be carried
	Ours     BucketSum `json:"at_target"`           // at the target, of this flow
	Others   BucketSum `json:"others"`              // at the target, of names that the flow does not have
	Missing  int64     `json:"missing_objects"`     // copied, not changed, and not at the target: a verification has them copied again
	Differ   int64     `json:"differ_objects"`      // likewise, at the target in another state
	Alike    int64     `json:"overwritten_alike"`   // of overwrite, of the same size and ETag
	Rate     int64     `json:"rate,omitempty"`      // limits.rate, bytes per second; 0: none
	Transfer float64   `json:"transfer_seconds"`    // of the bytes at that rate; 0: there is none
	Requests Requests  `json:"requests"`            // that a pass takes, without tries again, tags and grants

	Overwrite BucketSum            `json:"overwrite"` // of copy: at the target, not of this flow, under a name that it has too
	Classes   map[string]BucketSum `json:"classes"`   // of the source, by storage class; "" is its standard

	RefusedKeys []BucketObject `json:"refused_keys"` // the first ones, and why
	Examples    []BucketObject `json:"examples"`     // the first ones that differ, or would be overwritten
}

// Requests to both ends.
type Requests struct {
	List   int64 `json:"source_list"`
	Head   int64 `json:"source_head"`
	Get    int64 `json:"source_get"`
	Put    int64 `json:"target_put"`
	Part   int64 `json:"target_part"`
	Upload int64 `json:"target_upload"` // begin and complete
	Delete int64 `json:"target_delete"`
}

// Source is all of them to the source.
func (r Requests) Source() int64 { return r.List + r.Head + r.Get }

// Target is all of them to the target.
func (r Requests) Target() int64 { return r.Put + r.Part + r.Upload + r.Delete }

// Add takes in what a part of the listing has come to; names and classes bound what is kept of those.
func (p *BucketPlan) Add(o *BucketPlan, names, classes int) {
	for _, s := range []struct {
		to *BucketSum
		n  BucketSum
	}{{&p.Source, o.Source}, {&p.Same, o.Same}, {&p.Copy, o.Copy}, {&p.Large, o.Large}, {&p.Delete, o.Delete}, {&p.Stay, o.Stay}, {&p.Refused, o.Refused}, {&p.Ours, o.Ours},
		{&p.Others, o.Others}, {&p.Overwrite, o.Overwrite}} {
		s.to.plus(s.n)
	}
	r, q := &p.Requests, o.Requests
	for _, s := range []struct {
		to *int64
		n  int64
	}{{&p.LeftOut, o.LeftOut}, {&p.New, o.New}, {&p.Changed, o.Changed}, {&p.Unsure, o.Unsure}, {&p.Again, o.Again}, {&p.Missing, o.Missing}, {&p.Differ, o.Differ}, {&p.Alike, o.Alike},
		{&r.List, q.List}, {&r.Head, q.Head}, {&r.Get, q.Get}, {&r.Put, q.Put}, {&r.Part, q.Part}, {&r.Upload, q.Upload}, {&r.Delete, q.Delete}} {
		*s.to += s.n
	}
	for class, n := range o.Classes {
		if _, known := p.Classes[class]; !known && len(p.Classes) >= classes {
			class = "others"
		}
		sum := p.Classes[class]
		sum.plus(n)
		p.Classes[class] = sum
	}
	p.RefusedKeys = append(p.RefusedKeys, o.RefusedKeys[:min(len(o.RefusedKeys), max(0, names-len(p.RefusedKeys)))]...)
	p.Examples = append(p.Examples, o.Examples[:min(len(o.Examples), max(0, names-len(p.Examples)))]...)
}
