package mover

import "time"

// LineStatus is what a gateway tells about one line.
type LineStatus struct {
	Name    string    `json:"name"`
	Rate    int64     `json:"rate_bytes_per_second"`                // by the config, the timetable or the operator; 0: not bounded
	Allowed int64     `json:"allowed_bytes_per_second"`             // now; 0: nothing; -1: not bounded
	Why     string    `json:"why"`                                  // what bounds it now
	Used    float64   `json:"used_bytes_per_second"`                // over the last seconds, IP packets
	Changes time.Time `json:"rate_changes,omitzero"`                // when the timetable says otherwise
	Next    int64     `json:"next_rate_bytes_per_second,omitempty"` // what it says then
	Set     *LineSet  `json:"set,omitempty"`                        // what the operator has set beside the config

	Billing    string    `json:"billing"` // flat, 95, enhanced-95
	Peak       int64     `json:"peak_bytes_per_second,omitempty"`
	Billed     int64     `json:"billed_bytes_per_second,omitempty"` // what the month is billed by so far
	Spare      int       `json:"spare_samples,omitempty"`           // that cost nothing and are left
	Burst      bool      `json:"burst,omitempty"`                   // one of them is used now
	Month      time.Time `json:"month"`
	MonthBytes int64     `json:"month_bytes"`
	MonthLimit int64     `json:"month_limit_bytes,omitempty"`

	Leases []Lease `json:"leases"`
}

// Lease is what one flow may use of a line.
type Lease struct {
	Flow  string `json:"flow"`
	Class string `json:"class"`
	Want  int64  `json:"want_bytes_per_second"` // -1: as much as there is
	Rate  int64  `json:"rate_bytes_per_second"` // -1: not bounded
	Past  bool   `json:"past,omitempty"`        // used past the gateway, which counts what it is told
}

// LineSet is what an operator changes of a line without its config: until a time, or until he takes it back. Nil fields stay as configured.
type LineSet struct {
	Rate  *int64    `json:"rate_bytes_per_second,omitempty"` // at all times, whatever the timetable says
	Peak  *int64    `json:"peak_bytes_per_second,omitempty"`
	Month *int64    `json:"month_limit_bytes,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// LinkStatus is what a source tells about one way to the gateway.
type LinkStatus struct {
	Name   string  `json:"name"`
	Up     bool    `json:"up"`
	Conns  int     `json:"connections"`
	RTT    float64 `json:"rtt_seconds"`
	Line   string  `json:"line,omitempty"`        // that the gateway shares out
	Rate   int64   `json:"rate_bytes_per_second"` // that the flow may use; -1: not bounded
	Leased bool    `json:"leased"`                // false: the safe rate, for the gateway does not say
	Why    string  `json:"why,omitempty"`         // what bounds the line
}
