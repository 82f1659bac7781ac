package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/report"
)

func (a *app) costCmd() *cobra.Command {
	var file, until string
	var months int
	c := &cobra.Command{
		Use:   "cost [GROUP|FLOW]",
		Short: "Tell what a move has cost and will cost, and what was saved",
		Long: `Tells what the move of a flow, of a group's flows, or of all has cost till now and will cost: the line, what targets and recovery points lie on,
requests; and what was saved by skipping, by what was equal, by dedup and by compression. The prices are those of the file that the config names with
prices, or of --prices. What is estimated is marked; a price that is missing is named, and its sum is not told.`,
		Args: atMost("GROUP|FLOW"),
		RunE: func(c *cobra.Command, args []string) error {
			ahead, err := horizon(c, until, months)
			if err != nil {
				return err
			}
			var prices *cost.Prices
			if c.Flags().Changed("prices") { // a wrong file is told before any daemon is asked
				if prices, err = loadPrices(file); err != nil {
					return err
				}
			}
			return a.cost(c, args, prices, ahead)
		},
	}
	c.Flags().StringVar(&file, "prices", "", "price file (default: as configured)")
	c.Flags().StringVar(&until, "until", "", "look ahead to the end of this day, as in 2026-12-31")
	c.Flags().IntVar(&months, "months", report.CostMonths, "look ahead so many months")
	return c
}

const maxMonths = 120

// horizon is how far ahead is looked, from a moment in the zone of the prices.
func horizon(c *cobra.Command, until string, months int) (func(now time.Time, zone *time.Location) (time.Time, error), error) {
	if until == "" {
		if months < 0 || months > maxMonths {
			return nil, usagef("--months %d: is outside 0 to %d", months, maxMonths)
		}
		return func(now time.Time, zone *time.Location) (time.Time, error) {
			return cost.AddMonths(now.In(zone), months), nil
		}, nil
	}
	if c.Flags().Changed("months") {
		return nil, usagef("--until and --months exclude each other")
	}
	day, err := cost.ParseDate(until)
	if err != nil {
		return nil, usagef("--until: %v", err)
	}
	return func(now time.Time, zone *time.Location) (time.Time, error) {
		end := day.Next().In(zone)
		if end.Before(now) || end.After(cost.AddMonths(now, maxMonths)) {
			return end, usagef("--until %v: is not within the next %d months", day, maxMonths)
		}
		return end, nil
	}, nil
}

func loadPrices(file string) (*cost.Prices, error) {
	return config.LoadPrices(config.File(file))
}

func (a *app) cost(c *cobra.Command, args []string, prices *cost.Prices, ahead func(time.Time, *time.Location) (time.Time, error)) error {
	var req control.Request
	if len(args) > 0 {
		req.Flow = args[0]
	}
	d, err := a.past(c, req)
	if err != nil {
		return err
	}
	if prices == nil {
		if d.Prices == "" {
			return usagef("there are no prices: name a file with --prices, or with prices in the config of moverd; moverd.yaml(5) has its form")
		}
		if prices, err = loadPrices(d.Prices); err != nil {
			return err
		}
	}
	until, err := ahead(d.Made, prices.Location())
	if err != nil {
		return err
	}
	answer := d.Price(prices, until)
	if a.output == "json" {
		return a.json(answer)
	}
	fmt.Fprintf(a.out, "%s, told by %s %s at %s\n", d.Title(), d.Role, d.Host, d.Made.UTC().Format(time.DateTime+" MST"))
	answer.Text(a.out)
	return nil
}
