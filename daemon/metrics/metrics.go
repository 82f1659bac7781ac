// Package metrics shows every flow's status to Prometheus. Nothing is counted twice: each scrape reads what the flows count anyway.
package metrics

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/moverd/mover/mover"
)

// metric is one number of a flow. docs/operations.md lists each; internal/lint compares.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*mover.Status) (v float64, ok bool)
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// of tells a number that always is there.
func of[T int | int64 | uint64 | float64](f func(*mover.Status) T) func(*mover.Status) (float64, bool) {
	return func(s *mover.Status) (float64, bool) { return float64(f(s)), true }
}

// inPass tells a number that is there while a pass is under way.
func inPass(f func(*mover.Pass) int64) func(*mover.Status) (float64, bool) {
	return func(s *mover.Status) (float64, bool) {
		if s.Pass == nil {
			return 0, false
		}
		return float64(f(s.Pass)), true
	}
}

// links sums up over the ways to the gateway.
func links(f func(mover.LinkStatus) float64) func(*mover.Status) (float64, bool) {
	return func(s *mover.Status) (v float64, ok bool) {
		for _, l := range s.Links {
			v, ok = v+f(l), true
		}
		return v, ok
	}
}

// only tells a number that one of the roles has.
func only(role string, f func(*mover.Status) float64) func(*mover.Status) (float64, bool) {
	return func(s *mover.Status) (float64, bool) { return f(s), s.Role == role }
}

var flows = []metric{
	{"mover_flow_size_bytes", "Size of the volume or target.", gauge, of(func(s *mover.Status) int64 { return s.Size })},
	{"mover_flow_dirty_bytes", "Changed bytes that the target lacks.", gauge, only("source", func(s *mover.Status) float64 { return float64(s.Dirty) })},
	{"mover_flow_dirty_bytes_per_second", "Rate at which bytes become dirty.", gauge, only("source", func(s *mover.Status) float64 { return s.DirtyRate })},
	{"mover_flow_lag_seconds", "Age of the oldest change that the target lacks; 0 if none.", gauge, only("source", func(s *mover.Status) float64 { return s.Lag })},
	{"mover_flow_cutover_estimate_seconds", "Estimated pause of the writers if a cutover began now.", gauge, only("source", func(s *mover.Status) float64 { return s.Estimate })},
	{"mover_flow_rate_bytes_per_second", "Logical bytes acked per second, over the last seconds.", gauge, only("source", func(s *mover.Status) float64 { return s.Rate })},
	{"mover_flow_wire_bytes_per_second", "Bytes per second on the wire, over the last seconds.", gauge, only("source", func(s *mover.Status) float64 { return s.WireRate })},
	{"mover_flow_connections", "Connections of the flow's link.", gauge, of(func(s *mover.Status) int { return s.Conns })},
	{"mover_flow_links", "Ways to the gateway that the config names; absent without any.", gauge, links(func(mover.LinkStatus) float64 { return 1 })},
	{"mover_flow_links_up", "Of these, those that are up.", gauge, links(func(l mover.LinkStatus) float64 {
		if l.Up {
			return 1
		}
		return 0
	})},
	{"mover_flow_lease_bytes_per_second", "What the flow may use of shared lines; absent while nothing bounds it.", gauge, func(s *mover.Status) (v float64, ok bool) {
		for _, l := range s.Links {
			if l.Conns > 0 && l.Rate >= 0 {
				v, ok = v+float64(l.Rate), true
			}
		}
		return v, ok
	}},
	{"mover_flow_rtt_seconds", "Round trip to the other end.", gauge, of(func(s *mover.Status) float64 { return s.RTT })},
	{"mover_flow_unreadable_extents", "Extents of the volume that were skipped on the operator's word.", gauge, only("source", func(s *mover.Status) float64 { return float64(len(s.Unreadable)) })},
	{"mover_flow_point_timestamp_seconds", "Time of the last recovery point; absent before the first.", gauge, func(s *mover.Status) (float64, bool) {
		return float64(s.PointTime.UnixNano()) / 1e9, !s.PointTime.IsZero()
	}},
	{"mover_flow_point_epoch", "Epoch of the last recovery point.", gauge, of(func(s *mover.Status) uint64 { return s.PointEpoch })},

	{"mover_pass_total_bytes", "Bytes that the pass under way looks at.", gauge, inPass(func(p *mover.Pass) int64 { return p.Total })},
	{"mover_pass_read_bytes", "Bytes of them that were read.", gauge, inPass(func(p *mover.Pass) int64 { return p.Read })},
	{"mover_pass_acked_bytes", "Bytes of them that are durable at the gateway.", gauge, inPass(func(p *mover.Pass) int64 { return p.Acked })},

	{"mover_passes_total", "Passes committed.", counter, of(func(s *mover.Status) int64 { return s.Passes })},
	{"mover_rescans_total", "Passes that had to compare everything because history was lost.", counter, of(func(s *mover.Status) int64 { return s.Rescans })},
	{"mover_reconnects_total", "Connections that were lost and dialled again.", counter, of(func(s *mover.Status) int64 { return s.Reconnects })},
	{"mover_resent_bytes_total", "Logical bytes sent again after a cut; none of them had been acked.", counter, of(func(s *mover.Status) int64 { return s.Resent })},
	{"mover_wire_sent_bytes_total", "Bytes sent on the wire.", counter, of(func(s *mover.Status) int64 { return s.WireOut })},
	{"mover_wire_received_bytes_total", "Bytes received on the wire.", counter, of(func(s *mover.Status) int64 { return s.WireIn })},
	{"mover_leaves_offered_total", "Leaves offered by digest.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Offered })},
	{"mover_leaves_same_total", "Offered leaves that the target had at that place.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Same })},
	{"mover_leaves_copied_total", "Offered leaves that were found on another place of the tenant.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Copied })},
	{"mover_leaves_sent_total", "Offered leaves that were sent.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Sent })},
	{"mover_put_bytes_total", "Bytes of parts of leaves that were sent.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Put })},
	{"mover_zero_bytes_total", "Bytes told as zeros, without data.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Zero })},
	{"mover_free_bytes_total", "Bytes told as free space, without data.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Free })},
	{"mover_unreadable_bytes_total", "Bytes that could not be read and were skipped on the operator's word.", counter, of(func(s *mover.Status) uint64 { return s.Totals.Unreadable })},

	{"mover_buffer_bytes", "Buffer memory handed out.", gauge, of(func(s *mover.Status) int64 { return s.Memory })},
	{"mover_buffer_limit_bytes", "Buffer memory that may be handed out.", gauge, of(func(s *mover.Status) int64 { return s.MemoryLimit })},
	{"mover_log_bytes", "Redo log in use.", gauge, only("gateway", func(s *mover.Status) float64 { return float64(s.Log) })},
	{"mover_log_limit_bytes", "Largest redo log; a larger pass is applied directly.", gauge, only("gateway", func(s *mover.Status) float64 { return float64(s.LogLimit) })},
}

// Total is one number of a gateway over all flows.
type Total struct {
	Name, Help string
	Gauge      bool
	Labels     map[string]string // fixed ones; several of one name tell different values of the same labels
	Value      func() float64
}

// ofBuckets are those of flows that bucket flows have as well.
var ofBuckets = map[string]bool{"mover_flow_rate_bytes_per_second": true, "mover_pass_total_bytes": true, "mover_pass_read_bytes": true, "mover_pass_acked_bytes": true}

// ofRelays are those that bucket flows by a gateway have beside.
var ofRelays = map[string]bool{"mover_flow_connections": true, "mover_wire_sent_bytes_total": true, "mover_wire_received_bytes_total": true}

// states are all that mover_flow_state tells apart.
var states = []mover.State{mover.Connecting, mover.Idle, mover.Passing, mover.Settling, mover.Frozen, mover.Done, mover.Paused,
	mover.Stopped, mover.Applying, mover.Waiting}

// Collector reads status at each scrape.
type Collector struct {
	status  func() []mover.Status
	descs   []*prometheus.Desc // of flows, in order
	groups  []*prometheus.Desc
	buckets []*prometheus.Desc
	relays  []*prometheus.Desc
	state   *prometheus.Desc
	track   *prometheus.Desc
}

// New makes a collector of what status tells.
func New(status func() []mover.Status) *Collector {
	labels := []string{"flow", "role"}
	c := &Collector{
		status: status, buckets: bucketDescs(), relays: relayDescs(labels),
		state: prometheus.NewDesc("mover_flow_state", "1 for the state that the flow is in.", append(labels, "state"), nil),
		track: prometheus.NewDesc("mover_flow_tracking", "1 for the method by which changes are found.", append(labels, "method"), nil),
	}
	for _, m := range flows {
		c.descs = append(c.descs, prometheus.NewDesc(m.name, m.help, labels, nil))
	}
	for _, m := range groups {
		c.groups = append(c.groups, prometheus.NewDesc(m.name, m.help, []string{"group"}, nil))
	}
	return c
}

// Names lists every metric that a Collector may show, and mover_info. Those of a Total are its own.
func Names() []string {
	names := []string{"mover_info", "mover_flow_state", "mover_flow_tracking"}
	for _, m := range flows {
		names = append(names, m.name)
	}
	for _, m := range groups {
		names = append(names, m.name)
	}
	return append(append(names, bucketNames()...), relayNames()...)
}

func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.state
	ch <- c.track
	for _, all := range [][]*prometheus.Desc{c.descs, c.groups, c.buckets, c.relays, {bucketCalls, bucketErrors, keysLeft, keysRenewed, keysFailed}} {
		for _, d := range all {
			ch <- d
		}
	}
}

func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	all := c.status()
	c.collectGroups(ch, all)
	for _, s := range all {
		if s.Bucket != nil {
			c.collectBucket(ch, s.Flow, s.Bucket)
		}
		if s.Relay != nil {
			c.collectRelay(ch, &s)
		}
		for i, m := range flows {
			if (s.Bucket != nil || s.Relay != nil) && !ofBuckets[m.name] && (s.Relay == nil || !ofRelays[m.name]) {
				continue
			}
			if v, ok := m.value(&s); ok {
				ch <- prometheus.MustNewConstMetric(c.descs[i], m.kind, v, s.Flow, s.Role)
			}
		}
		for _, st := range states {
			v := 0.0
			if s.State == st {
				v = 1
			}
			ch <- prometheus.MustNewConstMetric(c.state, gauge, v, s.Flow, s.Role, string(st))
		}
		if method, _, _ := strings.Cut(s.Tracking, " "); method != "" {
			ch <- prometheus.MustNewConstMetric(c.track, gauge, 1, s.Flow, s.Role, strings.Trim(method, ":,;"))
		}
	}
}

// Handler serves /metrics: the flows, the totals, the process and Go.
func Handler(role, version string, status func() []mover.Status, totals []Total) http.Handler {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mover_info", Help: "Always 1; labels tell the role and version.",
		ConstLabels: prometheus.Labels{"role": role, "version": version},
	})
	info.Set(1)
	reg.MustRegister(info, New(status), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, t := range totals {
		if t.Gauge {
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: t.Name, Help: t.Help, ConstLabels: t.Labels}, t.Value))
		} else {
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: t.Name, Help: t.Help, ConstLabels: t.Labels}, t.Value))
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 20 * time.Second}))
	return mux
}
