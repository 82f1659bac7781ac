package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/report"
	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore/retry"
)

// Plan tells what a pass of a bucket flow would do, without a daemon. Nothing is written, neither to the stores nor on this machine.
func Plan(ctx context.Context, conf *config.Config, name string, progress func(mover.Progress)) (control.Result, error) {
	s := conf.Source
	if s == nil {
		return control.Result{}, usagef("the config has no section source")
	}
	log := &Log{Logger: slog.New(slog.DiscardHandler)}
	var names []string
	for _, c := range s.Buckets {
		if names = append(names, c.Name); c.Name != name {
			continue
		}
		keys := newKeyring(log.Logger)
		f := &bucketFlow{o: Options{Role: Source, Config: conf, Log: log}, c: c, c0: s, keys: keys}
		cfg, err := f.config(filepath.Join(string(s.State), "buckets", name))
		if err == nil {
			cfg.Open = f.openToRead
			var plan *mover.BucketPlan
			plan, err = bucket.Plan(ctx, cfg, progress)
			if err == nil {
				r, err := f.priced(plan, nil)
				return r, errors.Join(err, keys.close())
			}
		}
		return control.Result{}, errors.Join(err, keys.close())
	}
	return control.Result{}, usagef("there is no bucket flow %q; there are %v", name, names)
}

// openToRead opens both ends, and nothing is ever written to either.
func (f *bucketFlow) openToRead(ctx context.Context) (from, to bucket.End, err error) {
	for _, x := range []struct {
		e   config.End
		end *bucket.End
	}{{f.c.From, &from}, {f.c.To, &to}} {
		s, regions, err := f.store(ctx, x.e, reach{}, true)
		if err != nil {
			if from.Store != nil {
				err = errors.Join(err, from.Store.Close())
			}
			return from, to, err
		}
		*x.end = bucket.End{Store: retry.New(s, retry.Config{}), Regions: regions}
	}
	return from, to, nil
}

// priced adds to a plan what the config knows: how long its bytes take, and what it costs.
func (f *bucketFlow) priced(plan *mover.BucketPlan, err error) (control.Result, error) {
	if err != nil {
		return control.Result{}, err
	}
	if plan.Rate = int64(f.c.Limits.Rate); plan.Rate > 0 {
		plan.Transfer = float64(plan.Copy.Bytes) / float64(plan.Rate)
	}
	r := control.Result{Plan: plan}
	if f.c0.Prices == "" {
		return r, nil
	}
	p, err := config.LoadPrices(f.c0.Prices)
	if err != nil {
		r.Cost = cost.Unpriced(string(f.c0.Prices), err)
		return r, nil
	}
	r.Cost = billed(*p, f.c, plan)
	return r, nil
}

// billed is what the pass costs, and for a month what would lie at the target then.
func billed(p cost.Prices, c config.BucketFlow, plan *mover.BucketPlan) *cost.Answer {
	now := plan.Made
	bytes := plan.Same.Bytes + plan.Copy.Bytes + plan.Stay.Bytes
	objects := plan.Same.Objects + plan.Copy.Objects + plan.Stay.Objects
	use := cost.FlowUse{Flow: plan.Flow, Points: cost.None}
	for _, u := range p.Use.Flows { // what the file says of this flow counts
		if ok, _ := filepath.Match(u.Flow, plan.Flow); ok {
			use.Target = u.Target
			break
		}
	}
	if use.Target == "" && c.To.BOS != nil {
		class := c.Class
		if class == "" {
			class = "STANDARD"
		}
		use.Target = cost.Objects + "/" + class
	}
	p.Use.Flows = append([]cost.FlowUse{use}, p.Use.Flows...)
	if objects > 0 {
		p.Use.Object = strict.Size(max(1, bytes/objects))
	}
	writes, day := plan.Requests.Target(), int64(0)
	return p.Bill(cost.Ask{Now: now, Until: cost.AddMonths(now.In(p.Location()), report.CostMonths),
		Flows: []cost.Flow{{Name: plan.Flow, Size: bytes, InUse: bytes, Writes: &writes}},
		Line:  cost.LineUse{Billed: p.Use.Billed, Left: plan.Copy.Bytes, Day: &day},
		Notes: []string{"what a provider takes for requests to the source, and for what leaves it, is not in it"}})
}
