package daemon

import (
	"time"

	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/relay"
)

// LineTotals are the metrics of lines. lines is asked at each scrape.
func LineTotals(names []string, lines func() []mover.LineStatus) (all []metrics.Total) {
	of := func(name, help, line string, f func(mover.LineStatus) float64) metrics.Total {
		return metrics.Total{Name: name, Help: help, Gauge: true, Labels: map[string]string{"line": line}, Value: func() float64 {
			for _, l := range lines() {
				if l.Name == line {
					return f(l)
				}
			}
			return 0
		}}
	}
	for _, n := range names {
		all = append(all,
			of("mover_line_allowed_bytes_per_second", "What the line may carry now; -1: not bounded.", n, func(l mover.LineStatus) float64 { return float64(l.Allowed) }),
			of("mover_line_used_bytes_per_second", "What it carries.", n, func(l mover.LineStatus) float64 { return l.Used }),
			of("mover_line_month_bytes", "What it has carried in the calendar month.", n, func(l mover.LineStatus) float64 { return float64(l.MonthBytes) }),
			of("mover_line_month_limit_bytes", "What it may carry in a month; 0: any.", n, func(l mover.LineStatus) float64 { return float64(l.MonthLimit) }),
			of("mover_line_spare_samples", "Samples above the peak that cost nothing and are left.", n, func(l mover.LineStatus) float64 { return float64(l.Spare) }))
	}
	return all
}

// RelayTotals are what a gateway counts over all bucket flows. server is asked at each scrape.
func RelayTotals(server func() relay.Metrics) []metrics.Total {
	of := func(name, help string, gauge bool, f func(relay.Metrics) int64) metrics.Total {
		return metrics.Total{Name: name, Help: help, Gauge: gauge, Value: func() float64 { return float64(f(server())) }}
	}
	return []metrics.Total{
		of("mover_relay_cache_bytes", "Bytes of the chunk cache on disk.", true, func(m relay.Metrics) int64 { return m.CacheBytes }),
		of("mover_relay_cache_limit_bytes", "Bytes that it may have.", true, func(m relay.Metrics) int64 { return m.CacheLimit }),
		of("mover_relay_cache_chunks", "Chunks in it.", true, func(m relay.Metrics) int64 { return m.CacheChunks }),
		of("mover_relay_cache_dropped_total", "Segments of 64 MiB that made room for others.", false, func(m relay.Metrics) int64 { return m.CacheDropped }),
		of("mover_relay_memory_bytes", "Memory of batches, bodies and calls under way.", true, func(m relay.Metrics) int64 { return m.Memory }),
		of("mover_relay_memory_limit_bytes", "Memory that they may have.", true, func(m relay.Metrics) int64 { return m.MemoryLimit }),
	}
}

// Totals are what a gateway counts over all flows. server is asked at each scrape.
func Totals(server func() receiver.Metrics) []metrics.Total {
	of := func(name, help string, f func(receiver.Metrics) int64) metrics.Total {
		return metrics.Total{Name: name, Help: help, Value: func() float64 { return float64(f(server())) }}
	}
	seconds := func(name, help string, f func(receiver.Metrics) time.Duration) metrics.Total {
		return metrics.Total{Name: name, Help: help, Value: func() float64 { return f(server()).Seconds() }}
	}
	conns := of("mover_gateway_connections", "Connections of sources.", func(m receiver.Metrics) int64 { return int64(m.Conns) })
	conns.Gauge = true
	return []metrics.Total{
		conns,
		of("mover_dedup_hits_total", "Leaves that were found elsewhere and proved right.", func(m receiver.Metrics) int64 { return m.DedupHits }),
		of("mover_dedup_misses_total", "Leaves that the dedup index does not have.", func(m receiver.Metrics) int64 { return m.DedupMisses }),
		of("mover_dedup_mismatches_total", "Candidates whose content was no longer what the index says.", func(m receiver.Metrics) int64 { return m.DedupMismatches }),
		of("mover_dedup_pages_asked_total", "Pages of 4 KiB, of leaves found nowhere, whose prints were asked for.", func(m receiver.Metrics) int64 { return m.PagesAsked }),
		of("mover_dedup_pages_found_total", "Of these, pages that were found, those of zeros not counted.", func(m receiver.Metrics) int64 { return m.PagesFound }),
		of("mover_dedup_page_mismatches_total", "Leaves made of found pages that were not what was offered, and were sent whole.", func(m receiver.Metrics) int64 { return m.PageMismatches }),
		of("mover_target_written_bytes_total", "Bytes written to targets, without zeros.", func(m receiver.Metrics) int64 { return m.WrittenBytes }),
		of("mover_target_zeroed_bytes_total", "Bytes zeroed on targets.", func(m receiver.Metrics) int64 { return m.ZeroedBytes }),
		of("mover_target_read_bytes_total", "Bytes read from targets.", func(m receiver.Metrics) int64 { return m.ReadBytes }),
		of("mover_target_syncs_total", "Syncs of targets.", func(m receiver.Metrics) int64 { return m.TargetSyncs }),
		seconds("mover_target_sync_seconds_total", "Time that they took.", func(m receiver.Metrics) time.Duration { return m.TargetSyncTime }),
		of("mover_log_syncs_total", "Syncs of redo logs.", func(m receiver.Metrics) int64 { return m.LogSyncs }),
		seconds("mover_log_sync_seconds_total", "Time that they took.", func(m receiver.Metrics) time.Duration { return m.LogSyncTime }),
		of("mover_applies_total", "Committed logs that were applied.", func(m receiver.Metrics) int64 { return m.Applies }),
		seconds("mover_apply_seconds_total", "Time that this took.", func(m receiver.Metrics) time.Duration { return m.ApplyTime }),
		of("mover_points_taken_total", "Recovery points that were kept.", func(m receiver.Metrics) int64 { return m.PointsTaken }),
		of("mover_points_missed_total", "Commits that were to have a recovery point and have none.", func(m receiver.Metrics) int64 { return m.PointsMissed }),
		of("mover_readback_differs_total", "Leaves that did not read as they were written.", func(m receiver.Metrics) int64 { return m.ReadBackDiffers }),
	}
}
