package mover

import (
	"cmp"
	"slices"
	"time"
)

// RecoveryPoint is a recovery point, as operators see it.
type RecoveryPoint struct {
	ID          string      `json:"id"`
	Time        time.Time   `json:"time"` // of the commit, by the source's clock
	Consistency Consistency `json:"-"`
	Worth       string      `json:"consistency"`
	Proven      bool        `json:"proven"` // the tracker's account was proven by its witness
	Generation  string      `json:"generation"`
	Epoch       uint64      `json:"epoch"`
	Pass        string      `json:"pass"`
	Size        int64       `json:"size_bytes"`           // of the volume
	Root        string      `json:"root,omitempty"`       // Merkle root of the target, when it was known; as in reports
	Image       string      `json:"image_root,omitempty"` // the same with free leaves as zeros: what a copy is verified by
	NoRoot      string      `json:"no_root,omitempty"`    // why there is neither
	Pinned      bool        `json:"pinned"`
	Rehearsed   bool        `json:"rehearsed"`
	Cutover     bool        `json:"cutover"`          // of the hand-over
	Moment      string      `json:"moment,omitempty"` // what the points of a group under one freeze share; empty: never confirmed
	Group       string      `json:"group,omitempty"`
	Members     int         `json:"members,omitempty"` // flows of the moment
	Method      string      `json:"method"`
}

// Keep says how many points stay: the last ones, and the best one of each of the latest hours and days (UTC) that have any.
type Keep struct {
	Last   int `json:"last"`
	Hourly int `json:"hourly"`
	Daily  int `json:"daily"`
}

// Expired tells which points go, by their ids. Pinned points never go and count for nothing; neither does the newest point, nor the newest
// rehearsed one. Of an hour or a day the point of the best consistency stays, of several such the newest. The answer depends on nothing
// else, so that asking again about what stays gives nothing.
func Expired(points []RecoveryPoint, keep Keep) (ids []string) {
	var all []RecoveryPoint
	for _, p := range points {
		if !p.Pinned {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b RecoveryPoint) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(b.ID, a.ID))
	})
	stays := map[string]bool{}
	for _, p := range all[:min(len(all), max(keep.Last, 1))] {
		stays[p.ID] = true
	}
	if i := slices.IndexFunc(all, func(p RecoveryPoint) bool { return p.Rehearsed }); i >= 0 {
		stays[all[i].ID] = true
	}
	best(all, time.Hour, keep.Hourly, stays)
	best(all, 24*time.Hour, keep.Daily, stays)
	for _, p := range all {
		if !stays[p.ID] {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// best marks the best point of each of the latest n spans that have any; all has the newest first.
func best(all []RecoveryPoint, span time.Duration, n int, stays map[string]bool) {
	for i := 0; i < len(all) && n > 0; n-- {
		of, top := all[i].Time.UTC().Truncate(span), i
		for ; i < len(all) && all[i].Time.UTC().Truncate(span).Equal(of); i++ {
			if all[i].Consistency > all[top].Consistency {
				top = i
			}
		}
		stays[all[top].ID] = true
	}
}
