package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) flushCmd() *cobra.Command {
	var limit time.Duration
	var least string
	c := &cobra.Command{
		Use:   "flush",
		Short: "At a source: send what has changed until little is left, for a limited time",
		Long: `flush runs passes of all flows until less than --left of each is dirty, or the time is over. systemd runs it at a shutdown, beside the end of the
other services, so that the comparison after the boot finds little. Flows that are paused, stopped or cut over are left alone.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			left, err := strict.ParseSize(least)
			if err != nil {
				return usagef("--left: %v", err)
			}
			if limit <= 0 {
				return usagef("--limit %v: must be longer than 0s", limit)
			}
			return a.flush(c.Context(), limit, int64(left))
		},
	}
	c.Flags().DurationVar(&limit, "limit", time.Minute, "longest time")
	c.Flags().StringVar(&least, "left", "1MiB", "so little of a flow may be left unsent")
	return c
}

// flushPause lies between passes, and between the two looks that must both find little left: services that end write once more.
const flushPause = time.Second

func (a *app) flush(ctx context.Context, limit time.Duration, least int64) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client := a.client(sourceSocket)
	flows, err := client.Status(ctx)
	if err != nil {
		return err
	}
	var g sync.WaitGroup
	var mu sync.Mutex // guards left
	left := map[string]string{}
	for _, s := range flows {
		if s.Bucket != nil {
			continue // its changes lie in the source's store, and outlive this host
		}
		switch s.State {
		case mover.Paused, mover.Stopped, mover.Done, mover.Frozen:
			fmt.Fprintf(a.out, "%s is %s and left alone\n", s.Flow, s.State)
			continue
		}
		g.Go(func() {
			n, err := a.flushOne(ctx, client, s.Flow, least)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				fmt.Fprintf(a.out, "%s: %s left\n", s.Flow, units.Size(n))
			case ctx.Err() != nil:
				left[s.Flow] = fmt.Sprintf("%s: not in time, %s left", s.Flow, units.Size(n))
			default:
				left[s.Flow] = fmt.Sprintf("%s: %v", s.Flow, err)
			}
		})
	}
	g.Wait()
	var texts []string
	for _, s := range flows {
		if t := left[s.Flow]; t != "" {
			texts = append(texts, t)
		}
	}
	if len(texts) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(texts, "; "), sentinel.ErrNotConverged)
	}
	return nil
}

// flushOne syncs a flow until two looks find little left, and returns what is left. A flow in scan mode knows no changes: one pass does.
func (a *app) flushOne(ctx context.Context, client *control.Client, flow string, least int64) (left int64, err error) {
	for few, synced := 0, false; ; {
		all, err := client.Status(ctx)
		if err != nil {
			return left, err
		}
		scan := false
		for _, s := range all {
			if s.Flow == flow {
				left, scan = s.Dirty, strings.HasPrefix(s.Tracking, "scan")
			}
		}
		if scan && synced {
			return 0, nil
		}
		if few++; scan || left > least {
			few = 0
			if _, err := client.Do(ctx, control.Sync, control.Request{Flow: flow}, nil); err != nil {
				return left, err
			}
			if synced = true; scan {
				continue
			}
		}
		if few == 2 {
			return left, nil
		}
		select {
		case <-time.After(flushPause):
		case <-ctx.Done():
			if few > 0 {
				return left, nil
			}
			return left, ctx.Err()
		}
	}
}
