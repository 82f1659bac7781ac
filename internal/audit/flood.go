package audit

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Attempt is something that strangers can bring about as often as they like.
type Attempt struct {
	Kind    string // a few words at most; there are few kinds
	Address string // without the port
	Record  Record // if it is told in full
}

const (
	// toldOfOne attempts of one kind and address, and toldInAll, have a record of their own in a minute.
	toldOfOne, toldInAll = 3, 20
	// floodKeys is how many pairs of kind and address are counted apart.
	floodKeys = 128
	// Elsewhere stands for the addresses beyond.
	Elsewhere = "other addresses"
)

// Flood lets the first attempts of each minute through and counts the others, so that a flood can neither fill the disk nor be forgotten. The
// zero value is ready.
type Flood struct {
	mu     sync.Mutex // guards all below
	minute time.Time  // begin; zero: nothing since the last Due
	seen   map[[2]string]int
	told   int
	more   map[[2]string]int // not told
}

// Add counts a; true: it is to be recorded in full.
func (f *Flood) Add(now time.Time, a Attempt) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.minute.IsZero() {
		f.minute = now
		f.seen, f.more, f.told = map[[2]string]int{}, map[[2]string]int{}, 0
	}
	key := f.key(a)
	f.seen[key]++
	if f.seen[key] <= toldOfOne && f.told < toldInAll {
		f.told++
		return true
	}
	f.more[key]++
	return false
}

// Untell takes back that the record of a was written: it is counted instead.
func (f *Flood) Untell(now time.Time, a Attempt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.minute.IsZero() { // its minute has ended
		f.minute = now
		f.seen, f.more, f.told = map[[2]string]int{}, map[[2]string]int{}, 0
	}
	f.more[f.key(a)]++
}

func (f *Flood) key(a Attempt) [2]string {
	key := [2]string{a.Kind, a.Address}
	if _, ok := f.seen[key]; !ok && len(f.seen) >= floodKeys {
		key[1] = Elsewhere
	}
	return key
}

// More is a count of attempts that have no record of their own.
type More struct {
	Kind     string `json:"kind"`
	Address  string `json:"address"`
	Attempts int    `json:"attempts"`
}

// Due ends a minute, or with last whatever has begun. The record counts all that was not told in full.
func (f *Flood) Due(now time.Time, last bool, event string) (r Record, told bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.minute.IsZero() || !last && now.Sub(f.minute) < time.Minute {
		return r, false
	}
	since := f.minute
	f.minute = time.Time{}
	if len(f.more) == 0 {
		return r, false
	}
	all := 0
	var list []More
	for _, k := range slices.SortedFunc(maps.Keys(f.more), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		list = append(list, More{k[0], k[1], f.more[k]})
		all += f.more[k]
	}
	return Record{Event: event, Details: map[string]any{"attempts": all, "since": since.UTC().Format(time.RFC3339), "of": list}}, true
}
