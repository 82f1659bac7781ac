package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/moverd/mover/mover"
)

// relays are the numbers of a bucket flow that goes by the gateway, at both ends.
var relays = []struct {
	name, help string
	value      func(*mover.Relay) int64
}{
	{"mover_relay_body_bytes_total", "Bytes of the objects and parts that were put.", func(r *mover.Relay) int64 { return r.Bodies }},
	{"mover_relay_offered_bytes_total", "Bytes of their chunks that the gateway was asked about.", func(r *mover.Relay) int64 { return r.Offered }},
	{"mover_relay_needed_bytes_total", "Of these, bytes that it did not have.", func(r *mover.Relay) int64 { return r.Needed }},
	{"mover_relay_packed_bytes_total", "What those had compressed.", func(r *mover.Relay) int64 { return r.Packed }},
	{"mover_relay_resent_bytes_total", "Bytes of chunks that its cache had forgotten before they were used.", func(r *mover.Relay) int64 { return r.Resent }},
	{"mover_relay_calls_total", "Calls.", func(r *mover.Relay) int64 { return r.Calls }},
	{"mover_relay_failed_calls_total", "Calls that failed; only at the gateway.", func(r *mover.Relay) int64 { return r.Failed }},
}

func relayDescs(labels []string) (all []*prometheus.Desc) {
	for _, m := range relays {
		all = append(all, prometheus.NewDesc(m.name, m.help, labels, nil))
	}
	return all
}

func relayNames() (names []string) {
	for _, m := range relays {
		names = append(names, m.name)
	}
	return names
}

func (c *Collector) collectRelay(ch chan<- prometheus.Metric, s *mover.Status) {
	for i, m := range relays {
		ch <- prometheus.MustNewConstMetric(c.relays[i], counter, float64(m.value(s.Relay)), s.Flow, s.Role)
	}
}
