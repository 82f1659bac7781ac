package sender

import (
	"context"
	"fmt"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (f *Flow) newReport(kind string) *mover.Report {
	return &mover.Report{Flow: f.cfg.Flow, Kind: kind, Started: time.Now(), Left: "running", Consistency: mover.Fuzzy.String(), Proof: "none"}
}

func (f *Flow) closeReport(r *mover.Report, wireAt int64, err error) {
	r.Ended = time.Now()
	r.Unreadable = f.reader.unreadable()
	r.WireOut = f.link.view().Out - wireAt
	r.OK = err == nil
	if err != nil {
		r.Error = err.Error()
	}
	f.mu.Lock()
	r.Totals = f.view.totals
	f.mu.Unlock()
}

func (f *Flow) compared(r *mover.Report, source, target mover.Root) {
	r.SourceRoot, r.TargetRoot = source.Digest.String(), target.Digest.String()
	r.Free = min(int64(source.Free)*chunker.LeafSize, f.deps.Volume.Size())
	r.Compared = f.deps.Volume.Size() - r.Free
}

// differ walks the trees and names what differs.
func (f *Flow) differ(ctx context.Context, r *mover.Report) error {
	set, err := f.walk(ctx)
	if err != nil {
		return fmt.Errorf("%w; naming the places: %w", sentinel.ErrDiffer, err)
	}
	r.Differ = named(set)
	return fmt.Errorf("%w: %s in %d places, the first at bytes %v", sentinel.ErrDiffer, units.Size(set.Bytes()), len(r.Differ), first(r))
}

func first(r *mover.Report) string {
	if len(r.Differ) == 0 {
		return "none found"
	}
	return r.Differ[0].String()
}
