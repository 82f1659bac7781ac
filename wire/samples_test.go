package wire

import (
	"github.com/moverd/mover/internal/digest"
)

// id and dg make recognisable ids and digests.
func id(b byte) (x [16]byte) {
	for i := range x {
		x[i] = b + byte(i)
	}
	return x
}

func dg(b byte) (d digest.Digest) {
	for i := range d {
		d[i] = b + byte(i)
	}
	return d
}

// field is one row of a golden file: a name and a number of bytes. They are written here by hand, from docs/protocol.md, so that
// a change of the encoding shows.
type field struct {
	name string
	n    int
}

type sample struct {
	file   string
	seq    uint32
	m      Message
	fields []field
}

var (
	countFields = []field{{"offered leaves", 8}, {"same", 8}, {"copied", 8}, {"sent leaves", 8}, {"put bytes", 8}, {"zero bytes", 8},
		{"free bytes", 8}, {"unreadable bytes", 8}}
	stateFields = []field{{"phase", 1}, {"generation", 16}, {"epoch", 8}, {"volume size", 8}, {"target size", 8}, {"open pass", 16},
		{"mode", 1}, {"known leaves", 8}, {"identity, length", 2}, {"identity", 10}}
	counts = Counts{Offered: 1000, Same: 600, Copied: 100, Sent: 300, Put: 8192, Zero: 65536, Free: 1 << 30, Unreadable: 4096}
	state  = FlowState{Phase: 3, Generation: id(0x20), Epoch: 7, VolumeSize: 1 << 40, TargetSize: 1<<40 + 4096, Known: 1 << 26, Identity: "wwn-0x5000"}
)

func join(fs ...[]field) (all []field) {
	for _, f := range fs {
		all = append(all, f...)
	}
	return all
}

// samples has every message once, some twice.
func samples() []sample {
	return append(objectSamples(), []sample{
		{"hello", 0, &Hello{1, 1, CapZstd, id(0x10), 3, "acme/db1/root", "moverd/1.0"}, []field{{"magic", 4}, {"min version", 2},
			{"max version", 2}, {"capabilities", 8}, {"link", 16}, {"connection", 1}, {"flow, length", 2}, {"flow", 13}, {"agent, length", 2}, {"agent", 10}}},
		{"welcome", 0, &Welcome{1, CapZstd, 10000, 64 << 20, state}, join([]field{{"version", 2}, {"capabilities", 8},
			{"keepalive ms", 4}, {"window", 8}}, stateFields)},
		{"error", 0, &Error{CodeFenced, 1500, "a newer link"}, []field{{"code", 2}, {"retry after ms", 4}, {"text, length", 2}, {"text", 12}}},
		{"notice", 9, &Notice{1, 10, 100, "applying epoch 7"}, []field{{"code", 2}, {"done", 8}, {"total", 8}, {"text, length", 2}, {"text", 16}}},
		{"ping", 0, &Ping{0x0102030405060708}, []field{{"cookie", 8}}},
		{"pong", 0, &Pong{0x0102030405060708}, []field{{"cookie", 8}}},
		{"open", 1, &Open{id(0x30), 2, 2, FlagFrozen, id(0x20), 8, 1 << 40, 512, 16384, 5 << 20, "wwn-0x5000"}, []field{{"pass", 16}, {"kind", 1},
			{"consistency", 1}, {"flags", 2}, {"generation", 16}, {"epoch", 8}, {"volume size", 8}, {"block size", 4}, {"leaf size", 4},
			{"estimate", 8}, {"identity, length", 2}, {"identity", 10}}},
		{"opened", 1, &Opened{id(0x30), 1, []Range{{1, 40}, {43, 43}}}, []field{{"pass", 16}, {"mode", 1}, {"n", 4}, {"first seq", 4},
			{"last seq", 4}, {"first seq", 4}, {"last seq", 4}}},
		{"check", 2, &Check{256, []digest.Digest{dg(1), digest.Free}}, []field{{"first group", 8}, {"n", 2}, {"digest", 32}, {"digest: free", 32}}},
		{"differ", 2, &Differ{10, []byte{0x81, 0x02}}, []field{{"n", 2}, {"bitmap: 0, 7 and 9 differ", 2}}},
		{"offer", 5, &Offer{[]Run{{100, 2}, {200, 1}}, []digest.Digest{dg(1), dg(2), dg(3)}}, []field{{"runs", 2}, {"first leaf", 8}, {"n", 2},
			{"first leaf", 8}, {"n", 2}, {"digest of leaf 100", 32}, {"of 101", 32}, {"of 200", 32}}},
		{"need", 5, &Need{3, []byte{0x04}, 1, 1, 0}, []field{{"n", 2}, {"bitmap: send leaf 200", 1}, {"same", 2}, {"copied", 2}}},
		{"need-prints", 5, &Need{3, []byte{0x04}, 1, 1, FlagPrints}, []field{{"n", 2}, {"bitmap: send leaf 200", 1}, {"same", 2}, {"copied", 2}, {"flags: prints", 1}}},
		{"prints", 5, &Prints{[]uint64{1 << 56, 2 << 56, 3 << 56, 4 << 56}}, []field{{"n", 2}, {"print of the first page of leaf 200", 8}, {"of the second", 8},
			{"of the third", 8}, {"of the last", 8}}},
		{"pages", 5, &Pages{4, []byte{0x0a}}, []field{{"n", 2}, {"bitmap: send the second and last", 1}}},
		{"again", 5, &Again{}, nil},
		{"data", 5, &Data{CodecPlain, 5, []byte("bytes")}, []field{{"codec", 1}, {"plain length", 4}, {"payload", 5}}},
		{"put", 6, &Put{[]Item{{ItemData, 4096, 3}, {ItemZero, 16384, 16384}, {ItemFree, 32768, 16384}, {ItemUnreadable, 65536, 512}},
			CodecPlain, 3, digest.Sum([]byte("abc")), []byte("abc")}, []field{{"n", 2}, {"kind: data", 1}, {"offset", 8}, {"length", 8},
			{"kind: zero", 1}, {"offset", 8}, {"length", 8}, {"kind: free", 1}, {"offset", 8}, {"length", 8}, {"kind: unreadable", 1},
			{"offset", 8}, {"length", 8}, {"codec", 1}, {"plain length", 4}, {"BLAKE3 of abc", 32}, {"payload", 3}}},
		{"put-nothing", 7, &Put{[]Item{{ItemFree, 0, 1 << 40}}, CodecPlain, 0, digest.Sum(nil), nil}, []field{{"n", 2}, {"kind: free", 1},
			{"offset", 8}, {"length", 8}, {"codec", 1}, {"plain length", 4}, {"BLAKE3 of nothing", 32}}},
		{"ack", 0, &Ack{[]Range{{5, 6}, {9, 9}}}, []field{{"n", 2}, {"first seq", 4}, {"last seq", 4}, {"first seq", 4}, {"last seq", 4}}},
		{"commit", 3, &Commit{id(0x30), 43, 2, FlagProven, 1700000000123456789, counts}, join([]field{{"pass", 16}, {"batches", 4},
			{"consistency", 1}, {"flags", 2}, {"time, ns", 8}}, countFields)},
		{"committed", 3, &Committed{id(0x30), id(0x20), 8, 1, counts}, join([]field{{"pass", 16}, {"generation", 16}, {"epoch", 8}, {"mode", 1}}, countFields)},
		{"abort", 4, &Abort{id(0x30)}, []field{{"pass", 16}}},
		{"aborted", 4, &Aborted{id(0x30)}, []field{{"pass", 16}}},
		{"readback", 5, &ReadBack{ScopeTouched}, []field{{"scope", 1}}},
		{"root", 5, &Root{dg(0x40), 1 << 26, 1 << 20, 77}, []field{{"root", 32}, {"leaves", 8}, {"free leaves", 8}, {"read back", 8}}},
		{"leaves", 6, &Leaves{512, []digest.Digest{dg(1)}}, []field{{"first leaf", 8}, {"n", 2}, {"digest", 32}}},
		{"release", 7, &Release{dg(0x40), id(0x20), 8, "cut over"}, []field{{"root", 32}, {"generation", 16}, {"epoch", 8}, {"report, length", 2}, {"report", 8}}},
		{"released", 7, &Released{id(0x20), 8}, []field{{"generation", 16}, {"epoch", 8}}},
		{"state", 8, &State{}, nil},
		{"flowstate", 8, &state, stateFields},
		{"keep", 9, &Keep{id(0x50), 2, FlagRehearse, 3, id(0x20), 8, 1700000000123456789, "db1"}, []field{{"moment", 16}, {"members", 2}, {"flags", 2},
			{"consistency", 1}, {"generation", 16}, {"epoch", 8}, {"time, ns", 8}, {"group, length", 2}, {"group", 3}}},
		{"kept", 9, &Kept{3, "20231114T221320Z-50515253", ""}, []field{{"consistency", 1}, {"point, length", 2}, {"point", 25}, {"text, length", 2}}},
		{"demand", 0, &Demand{3, 17, MaxSize, 5 << 30}, []field{{"class", 1}, {"serial", 4}, {"want", 8}, {"backlog", 8}}},
		{"grant", 0, &Grant{18, 25_000_000, 2000, 1_000_000, "idc-bj", "the line's rate"}, []field{{"serial", 4}, {"rate", 8}, {"ttl ms", 4}, {"safe", 8},
			{"line, length", 2}, {"line", 6}, {"why, length", 2}, {"why", 15}}},
		{"spent", 0, &Spent{1_500_000}, []field{{"bytes", 8}}},
		{"kept-not", 9, &Kept{3, "", "no room"}, []field{{"consistency", 1}, {"point, length", 2}, {"text, length", 2}, {"text", 7}}},
	}...)
}
