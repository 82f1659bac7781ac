package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/lvmsnap"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// snapshotter makes views of the flow's volume that outlive a freeze. ErrNotSupported says why it has none: no logical volume, a disk that LVM
// lies on, such as one whose root filesystem is on a volume above.
func (p *slot) snapshotter() (blockdev.Snapshotter, error) {
	p.mu.Lock()
	v, flow := p.volume, p.flow
	p.mu.Unlock()
	if v == nil || flow == nil {
		return nil, fmt.Errorf("snapshot of flow %s: its volume is not open: %w", p.f.Name, sentinel.ErrNotFound)
	}
	s, err := lvmsnap.New(lvmsnap.Options{
		Flow: p.f.Name, RunDir: string(p.c.Run), Path: v.Path(), Dev: v.Device(), Size: v.Size(), ID: v.Identity(),
		Expect: func() int64 { return expect(flow.Status()) },
		Open: func(path string) (blockdev.Volume, error) {
			view, err := disk.OpenVolume(path)
			if err != nil {
				return nil, err // no typed nil
			}
			return view, nil
		},
	})
	if err != nil {
		return nil, err // no typed nil
	}
	return s, nil
}

// expect is what writers may change while a view is read, in bytes; 0: not known.
func expect(s mover.Status) int64 {
	if s.Rate <= 0 || s.DirtyRate <= 0 {
		return 0
	}
	read := s.Dirty
	if read == 0 || strings.HasPrefix(s.Tracking, "scan") {
		read = s.Size
	}
	return int64(min(s.DirtyRate*float64(read)/s.Rate, float64(s.Size)))
}

// sweepLimit bounds what a start waits for LVM.
const sweepLimit = 30 * time.Second

// sweepSnapshots removes what killed daemons of this run folder left: nobody drops it any more, and it slows down every first write.
func sweepSnapshots(ctx context.Context, run string, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, sweepLimit)
	defer cancel()
	if err := lvmsnap.Sweep(ctx, run); err != nil {
		log.Error("a snapshot that an earlier daemon left is not removed yet; the volume below it works, and the next start or snapshot tries again", "error", err)
	}
}
