package receiver

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// gate is a read-write lock whose waiting ends with a context. Waiting for the whole keeps new shares out.
type gate struct{ sem *semaphore.Weighted }

const wholeGate = 1 << 20

func newGate() gate { return gate{semaphore.NewWeighted(wholeGate)} }

func (g gate) share(ctx context.Context) error { return g.sem.Acquire(ctx, 1) }
func (g gate) unshare()                        { g.sem.Release(1) }
func (g gate) whole(ctx context.Context) error { return g.sem.Acquire(ctx, wholeGate) }
func (g gate) unwhole()                        { g.sem.Release(wholeGate) }
