package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/moverd/mover/mover"
)

// bucketMetric is one number of a bucket flow.
type bucketMetric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*mover.Bucket) int64
}

var buckets = []bucketMetric{
	{"mover_bucket_objects", "Objects of the flow at the target.", gauge, func(b *mover.Bucket) int64 { return b.Objects }},
	{"mover_bucket_bytes", "Their bytes.", gauge, func(b *mover.Bucket) int64 { return b.Bytes }},
	{"mover_bucket_refused_objects", "Objects that cannot be carried.", gauge, func(b *mover.Bucket) int64 { return b.Refused }},
	{"mover_bucket_failed_objects", "Objects that were tried in vain and are tried again by each pass.", gauge, func(b *mover.Bucket) int64 { return b.Failed }},
	{"mover_bucket_partly_objects", "Objects at the target without some attribute.", gauge, func(b *mover.Bucket) int64 { return b.Partly }},
	{"mover_bucket_pass_listed_objects", "Objects that the pass under way, or the last one, has listed.", gauge, func(b *mover.Bucket) int64 { return b.Listed }},
	{"mover_bucket_pass_left_out_objects", "Objects that filters left out of it.", gauge, func(b *mover.Bucket) int64 { return b.Left }},
	{"mover_bucket_pass_planned_objects", "Objects that it has to copy.", gauge, func(b *mover.Bucket) int64 { return b.Planned }},
	{"mover_bucket_pass_copied_objects", "Objects that it has copied.", gauge, func(b *mover.Bucket) int64 { return b.Copied }},
	{"mover_bucket_pass_planned_bytes", "Bytes that it has to copy.", gauge, func(b *mover.Bucket) int64 { return b.PlannedBytes }},
	{"mover_bucket_pass_copied_bytes", "Bytes that it has copied.", gauge, func(b *mover.Bucket) int64 { return b.CopiedBytes }},
	{"mover_bucket_passes_total", "Passes that have ended.", counter, func(b *mover.Bucket) int64 { return b.Passes }},
	{"mover_bucket_sent_bytes_total", "Bytes of objects given to the target.", counter, func(b *mover.Bucket) int64 { return b.Sent }},
}

var (
	bucketCalls  = prometheus.NewDesc("mover_bucket_store_calls_total", "Calls of an end's store, tries again included.", []string{"flow", "end"}, nil)
	bucketErrors = prometheus.NewDesc("mover_bucket_store_errors_total", "Calls that failed, by kind.", []string{"flow", "end", "kind"}, nil)
	keysLeft     = prometheus.NewDesc("mover_bucket_keys_left_seconds", "Until the session ends whose keys an end uses; absent without one.", []string{"flow", "end"}, nil)
	keysRenewed  = prometheus.NewDesc("mover_bucket_keys_renewed_total", "Sessions that were given to an end.", []string{"flow", "end"}, nil)
	keysFailed   = prometheus.NewDesc("mover_bucket_keys_failed_total", "Times that one was asked for in vain.", []string{"flow", "end"}, nil)
)

func bucketDescs() (all []*prometheus.Desc) {
	for _, m := range buckets {
		all = append(all, prometheus.NewDesc(m.name, m.help, []string{"flow"}, nil))
	}
	return all
}

// bucketNames are those of collectBucket.
func bucketNames() []string {
	names := []string{"mover_bucket_store_calls_total", "mover_bucket_store_errors_total", "mover_bucket_keys_left_seconds", "mover_bucket_keys_renewed_total",
		"mover_bucket_keys_failed_total"}
	for _, m := range buckets {
		names = append(names, m.name)
	}
	return names
}

func (c *Collector) collectBucket(ch chan<- prometheus.Metric, flow string, b *mover.Bucket) {
	for i, m := range buckets {
		ch <- prometheus.MustNewConstMetric(c.buckets[i], m.kind, float64(m.value(b)), flow)
	}
	for end, n := range b.Stores {
		ch <- prometheus.MustNewConstMetric(bucketCalls, counter, float64(n.Calls), flow, end)
		for kind, k := range n.Errors {
			ch <- prometheus.MustNewConstMetric(bucketErrors, counter, float64(k), flow, end, kind)
		}
	}
	for end, k := range b.Keys {
		ch <- prometheus.MustNewConstMetric(keysLeft, gauge, k.Left, flow, end)
		ch <- prometheus.MustNewConstMetric(keysRenewed, counter, float64(k.Renewed), flow, end)
		ch <- prometheus.MustNewConstMetric(keysFailed, counter, float64(k.Failed), flow, end)
	}
}
