// Package shape keeps what senders put on a line within what its owner pays for. A line is the circuit that the links of many sources share.
//
// At the gateway a Line knows what may go over the circuit now: by its rate and timetable, by the bytes of the month, and by how the provider
// bills (95th percentile). A Ledger shares that among flows as leases. At a source a Pacer keeps a flow within its lease. All but the Pacer's
// waiting is arithmetic on times that the caller gives.
//
// Rates are bytes per second and count whole IP packets, as providers do.
package shape

import "math"

// Class is what a flow sends for; a higher one goes first.
type Class uint8

const (
	Bulk    Class = iota + 1 // full passes and rescans
	Delta                    // what has changed since
	Cutover                  // a cutover or a point is under way, writers wait or soon will
	Final                    // a cutover's writers stand still until the last bytes have come
	classes = iota
)

func (c Class) String() string {
	switch c {
	case Bulk:
		return "bulk"
	case Delta:
		return "delta"
	case Cutover:
		return "cutover"
	case Final:
		return "final"
	}
	return "idle"
}

// Unlimited is a rate that nothing bounds, or a want that nothing would satisfy.
const Unlimited = math.MaxInt64

// What IP and TCP with timestamps add to each segment.
const (
	headersIPv4 = 52
	headersIPv6 = 72
)

// Headers is what IP and TCP add to each segment.
func Headers(ipv6 bool) int64 {
	if ipv6 {
		return headersIPv6
	}
	return headersIPv4
}

// OnLine is the bytes of the IP packets that carry n bytes of a TCP stream in segments of mss, each with its headers.
func OnLine(n int64, mss int, headers int64) int64 {
	if n <= 0 {
		return 0
	}
	if mss <= 0 {
		mss = 1448
	}
	return n + (n+int64(mss)-1)/int64(mss)*headers
}
