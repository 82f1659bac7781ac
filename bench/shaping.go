package bench

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
)

// Shaping is the workload of many sources on one line that the gateway shares out.
type Shaping struct {
	Perf

	Hosts   int
	Rate    int64         // bytes/s that the gateway may let over the line
	Circuit int64         // bytes/s that the line could carry; 0: any
	Minute  time.Duration // over which the allowance is measured; 0: it is not
	Month   time.Duration // of 60 samples, billed by the 95th percentile; 0: none
	Peak    int64         // bytes/s that may be billed in it
}

// hosts are sources of one gateway, each with one image that nothing else uses.
type hosts struct {
	s       *Shaping
	line    *Line
	gw      *Rig
	sources []*Rig
}

// start makes a line, a gateway whose config says lines about it, and sources whose volumes hold bytes of noise each, but the last, which has little. Every
// source is at the begin of its first pass when it returns.
func (s *Shaping) start(ctx context.Context, lines string, bytes int64) (_ *hosts, err error) {
	h := &hosts{s: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if h.line, err = NewLine(ctx, s.Circuit); err != nil {
		return nil, err
	}
	if h.gw, err = NewRig(ctx, s.Bin, RigOptions{Line: h.line}); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("gateway:\n  listen: %s:%d\n  state: %s\n  run: %s\n  socket: %s\n  metrics: {listen: \"off\"}\n  tls: {ca: %s, cert: %s, key: %s}\n  lines:\n%s  flows:\n",
		farAddr, gatewayPort, h.gw.path("gw-state"), h.gw.path("gw-run"), h.gw.path("gateway.sock"), h.gw.path("pki/ca.pem"), h.gw.path("pki/gw.pem"), h.gw.path("pki/gw.key"), lines)
	for i := range s.Hosts {
		text += fmt.Sprintf("    - {tenant: demo, host: h%02d, name: disk, target: %s, create: true}\n", i, filepath.Join(s.Work, fmt.Sprintf("shaping-%02d-copy.img", i)))
	}
	if err := os.WriteFile(h.gw.path("gateway.yaml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	if h.gw.gateway, err = h.gw.start("gateway", "gateway", "-c", h.gw.path("gateway.yaml")); err != nil {
		return nil, err
	}
	if err := awaitListener(ctx, h.gw.gateway, gatewayPort); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, h.gw.Log("gateway"))
	}
	for i := range s.Hosts {
		n := bytes
		if i == s.Hosts-1 {
			n = 8 << 20
		}
		if err := h.host(ctx, i, n); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// host starts the ith source.
func (h *hosts) host(ctx context.Context, i int, bytes int64) error {
	dir, err := os.MkdirTemp("", "mover-rig-")
	if err != nil {
		return err
	}
	r := &Rig{Dir: dir, Bin: h.s.Bin, o: RigOptions{Line: h.line}}
	r.Defer(func() error { return os.RemoveAll(dir) })
	h.sources = append(h.sources, r)
	name, img := fmt.Sprintf("h%02d", i), filepath.Join(h.s.Work, fmt.Sprintf("shaping-%02d.img", i))
	r.Defer(func() error {
		return errors.Join(ignoreGone(os.Remove(img)), ignoreGone(os.Remove(strings.TrimSuffix(img, ".img")+"-copy.img")))
	})
	if err := noise(img, bytes); err != nil {
		return err
	}
	if _, err := Run(ctx, filepath.Join(r.Bin, "moverctl"), "pki", "host", "--dir", h.gw.path("pki"), "--out", r.path("pki"), "--tenant", "demo", "--host", name); err != nil {
		return err
	}
	if err := copyFile(h.gw.path("pki/ca.pem"), r.path("pki/ca.pem")); err != nil {
		return err
	}
	text := fmt.Sprintf(`source:
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "off"}
  gateway: {address: "%s:%d", ca: %s, cert: %s, key: %s, connections: 2}
  links:
    - {name: dedicated, source-address: %s}
  limits: {memory: 64MiB}
  tracking: {pin-dir: %s}
  flows:
    - {name: disk, volume: %s, interval: 1h}
`, r.path("src-state"), r.path("src-run"), r.path("source.sock"), farAddr, gatewayPort, r.path("pki/ca.pem"), r.path("pki/"+name+".pem"), r.path("pki/"+name+".key"), nearAddr, r.pinDir(), img)
	if err := os.WriteFile(r.path("source.yaml"), []byte(text), 0o600); err != nil {
		return err
	}
	r.source, err = r.start("source", "source", "-c", r.path("source.yaml"))
	return err
}

func (h *hosts) close() error {
	var errs []error
	for _, r := range h.sources {
		errs = append(errs, r.Close())
	}
	if h.gw != nil {
		errs = append(errs, h.gw.Close())
	}
	if h.line != nil {
		errs = append(errs, h.line.Close())
	}
	return errors.Join(errs...)
}

// noise writes a file that nothing compresses.
func noise(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, n)
	return errors.Join(err, f.Close())
}

// ip is the bytes of IP packets in what a queue has let through: without the headers of Ethernet, which no provider bills.
func (t Traffic) ip() int64 { return t.Bytes - t.Packets*14 }

// meterEvery is how often the line's counters are read; what crosses a border within that is divided by time.
const meterEvery = 5 * time.Millisecond

// meter returns the bytes of IP packets that went over the line in each of n samples, which begin at multiples of every. began is when the first did.
func (h *hosts) meter(ctx context.Context, every time.Duration, n int) (began time.Time, samples []int64, err error) {
	m, err := h.line.Meter()
	if err != nil {
		return began, nil, err
	}
	defer m.Close()
	began = time.Now().Truncate(every).Add(every)
	if err := pause(ctx, time.Until(began)-2*meterEvery); err != nil {
		return began, nil, err
	}
	last, at, err := m.Read()
	if err != nil {
		return began, nil, err
	}
	from, border := 0.0, began
	for len(samples) < n {
		if err := pause(ctx, meterEvery); err != nil {
			return began, nil, err
		}
		now, then, err := m.Read()
		if err != nil {
			return began, nil, err
		}
		for ; !then.Before(border) && len(samples) < n; border = border.Add(every) {
			there := float64(last.ip()) + float64(now.less(last).ip())*border.Sub(at).Seconds()/then.Sub(at).Seconds()
			if border.After(began) {
				samples = append(samples, int64(there-from))
			}
			from = there
		}
		last, at = now, then
	}
	return began, samples, nil
}

// Run is figure 6.
func (s *Shaping) Run(ctx context.Context) error {
	var errs []error
	if s.Minute > 0 {
		errs = append(errs, s.minute(ctx))
	}
	if s.Month > 0 {
		errs = append(errs, s.month(ctx))
	}
	return errors.Join(errs...)
}

// minute is the allowance over a minute, and how fast a cutover gets its share.
func (s *Shaping) minute(ctx context.Context) (err error) {
	lines := fmt.Sprintf("    - {name: circuit, rate: %dbit/s}\n", s.Rate*8)
	bytes := int64(float64(s.Rate) * (s.Minute.Seconds() + 45) / float64(s.Hosts-1))
	h, err := s.start(ctx, lines, bytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	last := h.sources[s.Hosts-1]
	if _, err := last.Await(ctx, "source", "at a recovery point", 2*time.Minute, func(st mover.Status) bool { return st.PointEpoch > 0 }); err != nil {
		return err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	_, samples, err := h.meter(ctx, time.Second, int(s.Minute.Seconds()))
	if err != nil {
		return err
	}
	sum, most, least := int64(0), int64(0), int64(1)<<62
	for _, n := range samples {
		sum, most, least = sum+n, max(most, n), min(least, n)
	}
	allowance := float64(s.Rate)
	subject := fmt.Sprintf("%d sources, %s", s.Hosts, rateName(s.Rate))
	err = errors.Join(
		s.add("shaping", subject, "of the allowance in a minute (0.98 to 1.01)", float64(sum)/float64(len(samples))/allowance, "ratio"),
		s.add("shaping", subject, "fullest second (at most 1.05)", float64(most)/allowance, "ratio"),
		s.add("shaping", subject, "emptiest second", float64(least)/allowance, "ratio"))
	if err != nil {
		return err
	}
	return s.cutover(ctx, h, last, subject)
}

// cutover asks for one while all others fill the line, and measures when most of the line is its.
func (s *Shaping) cutover(ctx context.Context, h *hosts, r *Rig, subject string) error {
	if err := noise(filepath.Join(s.Work, fmt.Sprintf("shaping-%02d.img", s.Hosts-1)), 8<<20); err != nil {
		return err
	}
	before, err := r.Status(ctx, "source")
	if err != nil {
		return err
	}
	began := time.Now()
	type outcome struct {
		out []byte
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		out, err := r.Ctl(ctx, "source", "cutover", "disk", "--rehearse", "--yes", "--limit", "30s", "--deadline", "60s", "-o", "json")
		done <- outcome{out, err}
	}()
	var lease, first time.Duration
	for {
		select {
		case o := <-done:
			if o.err != nil {
				return o.err
			}
			var rep mover.Report
			if err := json.Unmarshal(o.out, &rep); err != nil || !rep.OK {
				return fmt.Errorf("rehearsal: %v %s", err, o.out)
			}
			if lease == 0 || first == 0 {
				return fmt.Errorf("the cutover ended after %v without most of the line (lease %v, bytes %v)", time.Since(began), lease, first)
			}
			return errors.Join(
				s.add("shaping", subject, "a cutover has most of the line after (at most 1)", lease.Seconds(), "s"),
				s.add("shaping", subject, "its first bytes of data are sent after (at most 1)", first.Seconds(), "s"),
				s.add("shaping", subject, "the rehearsal of 8 MiB of changes", time.Since(began).Seconds(), "s"))
		case <-time.After(10 * time.Millisecond):
		}
		st, err := r.Status(ctx, "source")
		if err != nil {
			continue
		}
		if lease == 0 && len(st.Links) > 0 && st.Links[0].Rate > s.Rate*8/10 {
			lease = time.Since(began)
		}
		if first == 0 && st.WireOut > before.WireOut+256<<10 {
			first = time.Since(began)
		}
	}
}

// monthAhead is how long before a month begins sources are started at most, so that they have enough left for it.
const monthAhead = time.Minute

// month is a shortened one, of 60 samples: three of them cost nothing.
func (s *Shaping) month(ctx context.Context) (err error) {
	const count = 60
	sample := s.Month / count
	lines := fmt.Sprintf("    - {name: circuit, rate: %dbit/s, billing: {model: \"95\", peak: %dbit/s, sample: %v, period: %v}}\n", s.Rate*8, s.Peak*8, sample, s.Month)
	b := shape.Billing{Model: shape.Plain95, Peak: s.Peak, Sample: sample, Period: s.Month}
	best := float64(count/20)*float64(s.Rate)*sample.Seconds() + float64(count-count/20)*float64(s.Peak)*sample.Seconds()
	// The sources have to be there before the period begins, and to have enough for all of it and for what goes before.
	if err := pause(ctx, time.Until(time.Now().Truncate(s.Month).Add(s.Month))-monthAhead); err != nil {
		return err
	}
	bytes := int64(best * 1.8 / float64(s.Hosts-1))
	h, err := s.start(ctx, lines, bytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	begin := time.Now().Truncate(s.Month).Add(s.Month)
	s.say("           the shortened month begins in %.0f s", time.Until(begin).Seconds())
	if err := pause(ctx, time.Until(begin)-sample/2); err != nil {
		return err
	}
	counted := make(chan []int64, 1)
	go func() { counted <- h.counted(ctx, begin.Add(s.Month-sample/4)) }()
	at, samples, err := h.meter(ctx, sample, count)
	told := <-counted
	if err != nil {
		return err
	}
	if !at.Equal(begin) {
		return fmt.Errorf("the meter began at %v, the month at %v", at, begin)
	}
	moved := int64(0)
	for _, n := range samples {
		moved += n
	}
	billed := b.Billed(samples, count, 0)
	subject := fmt.Sprintf("month of %v, peak %s", s.Month, rateName(s.Peak))
	sorted := slices.Sorted(slices.Values(samples))
	s.say("           samples, Mbit/s: %s", rates(samples, sample))
	s.say("           by the gateway:  %s", rates(told, sample))
	return errors.Join(
		s.add("shaping", subject, "billed / peak (at most 1)", float64(billed)/float64(s.Peak), "ratio"),
		s.add("shaping", subject, "moved / best plan (at least 0.9)", float64(moved)/best, "ratio"),
		s.add("shaping", subject, "fullest sample / rate of the line", float64(sorted[count-1])/sample.Seconds()/float64(s.Rate), "ratio"))
}

// counted is what the gateway has counted of each sample, as far as it has kept that at the given time.
func (h *hosts) counted(ctx context.Context, at time.Time) []int64 {
	var r struct {
		Used shape.Used `json:"used"`
	}
	if pause(ctx, time.Until(at)) != nil {
		return nil
	}
	b, err := os.ReadFile(h.gw.path("gw-state/lines/circuit.json"))
	if err != nil || json.Unmarshal(b, &r) != nil {
		return nil
	}
	return r.Used.Samples
}

func rates(samples []int64, each time.Duration) string {
	var out []string
	for _, n := range samples {
		out = append(out, fmt.Sprintf("%.1f", float64(n)*8/1e6/each.Seconds()))
	}
	return strings.Join(out, " ")
}
