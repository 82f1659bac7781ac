package mover

import (
	"context"
	"sync"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
)

// Scan is the tracker that knows nothing: every Take returns the whole volume, every pass is a rescan.
type Scan struct {
	why  string
	size int64

	mu      sync.Mutex // guards all below
	history blockdev.History
}

// NewScan makes a Scan of a volume of size bytes. generation is random; why tells people why nothing better runs here.
func NewScan(size int64, generation ID, why string) *Scan {
	return &Scan{why: why, size: size, history: blockdev.History{Generation: generation}}
}

var _ blockdev.Tracker = (*Scan)(nil)

func (s *Scan) Method() (name, detail string) { return "scan", s.why }

func (s *Scan) History() blockdev.History {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.history
}

// Take returns everything.
func (s *Scan) Take(context.Context) (uint64, *extent.Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.Taken++
	all := extent.NewSet(s.size, scanGranule)
	all.Add(extent.Extent{Off: 0, Len: s.size})
	return s.history.Taken, all, nil
}

// scanGranule only has to keep the set of everything small.
const scanGranule = 1 << 20

func (s *Scan) Retire(epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.Retired = max(s.history.Retired, min(epoch, s.history.Taken))
	return nil
}

// Pending is the whole volume: any of it may have changed.
func (s *Scan) Pending() int64 { return s.size }

// Prove has nothing to compare.
func (s *Scan) Prove(context.Context) (blockdev.Proof, error) { return blockdev.Unproven, nil }

// Restart keeps the generation: a scan relies on no history.
func (s *Scan) Restart() error { return nil }

func (s *Scan) Close() error  { return nil }
func (s *Scan) Remove() error { return nil }
