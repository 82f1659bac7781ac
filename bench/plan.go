package bench

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// plan is all that is random about a soak run; it follows from the seed.
type plan struct {
	seed         uint64
	fs           string // ext4, xfs, raw
	size         int64
	sector       int
	early        bool // the writer begins before tracking does
	threads      int
	rate         string
	conns        int
	interval     string
	logLimit     string
	sourceErrors bool // the source's disk fails writes at times
	targetErrors bool
	stateErrors  bool // the gateway's state folder is full at times
	faults       []fault
	rest         time.Duration

	limit, deadline string // of the cutover; empty: 20 s and 30 s
}

const (
	killSource  = "kill source"
	killGateway = "kill gateway"
	killBoth    = "kill both"
	cutLine     = "cut line"
	fillSource  = "source disk fails"
	fillTarget  = "target disk fails"
	fillState   = "state folder full"
)

type fault struct {
	kind   string
	wait   time.Duration // before it
	length time.Duration // until it is mended
}

func newPlan(seed uint64) plan {
	rng := rand.New(rand.NewPCG(seed, 0x736f616b))
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	p := plan{seed: seed, fs: pick("ext4", "ext4", "xfs", "xfs", "raw", "raw"), sector: 512, threads: 1 + rng.IntN(3), conns: 2 + rng.IntN(3),
		rate: pick("4MiB", "16MiB", "40MiB"), interval: pick("0s", "0s", "200ms"), logLimit: pick("16MiB", "64MiB", "64MiB"),
		early: rng.IntN(3) == 0}
	p.size = map[string]int64{"ext4": 160 << 20, "xfs": 320 << 20, "btrfs": 200 << 20, "raw": 96<<20 + 512*rng.Int64N(64)}[p.fs]
	if rng.IntN(4) == 0 {
		p.sector = 4096
		p.size = p.size / 4096 * 4096
	}
	kinds := []string{killSource, killGateway, killBoth, cutLine, cutLine}
	if p.fs == "raw" && rng.IntN(3) == 0 {
		p.sourceErrors = true
		kinds = append(kinds, fillSource, fillSource)
	}
	if rng.IntN(3) == 0 {
		p.targetErrors = true
		kinds = append(kinds, fillTarget, fillTarget)
	}
	if rng.IntN(4) == 0 {
		p.stateErrors = true
		kinds = append(kinds, fillState, fillState)
	}
	for range 2 + rng.IntN(4) {
		p.faults = append(p.faults, fault{pick(kinds...), ms(rng, 900), ms(rng, 400)})
	}
	p.rest = ms(rng, 400)
	return p
}

func ms(rng *rand.Rand, n int) time.Duration { return time.Duration(rng.IntN(n)) * time.Millisecond }

func (p plan) String() string {
	s := fmt.Sprintf("%s, %d-byte sectors, %s/s by %d threads, log %s, %d faults", p.fs, p.sector, p.rate, p.threads, p.logLimit, len(p.faults))
	if p.early {
		s += ", writer first"
	}
	return s
}
