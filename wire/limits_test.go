package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

// TestLimits tries every limit at n-1, n and n+1, in both directions: Write refuses to send what Decode refuses to take.
func TestLimits(t *testing.T) {
	for _, c := range limitCases() {
		t.Run(c.name, func(t *testing.T) {
			ty := TypeOf(c.m)
			frame, err := AppendFrame(nil, uint32(kinds[ty].seq/inBatch), c.m)
			if (err == nil) != c.ok {
				t.Errorf("send: %v", err)
			}
			// Decode has to find it alone, too.
			err = New(ty).Decode(c.m.Append(nil))
			if (err == nil) != c.ok {
				t.Errorf("decode: %v", err)
			}
			if err != nil && !errors.Is(err, sentinel.ErrProtocol) {
				t.Errorf("%v is not ErrProtocol", err)
			}
			if c.ok {
				if _, _, err := DecodeFrame(frame); err != nil {
					t.Errorf("header: %v", err)
				}
			}
		})
	}
}

type limitCase struct {
	name string
	m    Message
	ok   bool
}

func limitCases() (cs []limitCase) {
	// steps tries n-1, n, n+1 of an upper limit, and least-1 and least of a lower one.
	steps := func(name string, least, most int, f func(n int) Message) {
		for _, n := range []int{least - 1, least, most - 1, most, most + 1} {
			if n >= 0 {
				cs = append(cs, limitCase{fmt.Sprintf("%s/%d", name, n), f(n), n >= least && n <= most})
			}
		}
	}
	s := strings.Repeat
	hello := func(f func(*Hello)) Message { m := &Hello{1, 1, 1, id(1), 0, "f", "a"}; f(m); return m }
	steps("hello/flow", 1, MaxName, func(n int) Message { return hello(func(m *Hello) { m.Flow = s("x", n) }) })
	steps("hello/agent", 0, MaxName, func(n int) Message { return hello(func(m *Hello) { m.Agent = s("x", n) }) })
	steps("hello/conn", 0, MaxConns-1, func(n int) Message { return hello(func(m *Hello) { m.Conn = uint8(n) }) })
	steps("flowstate/identity", 0, MaxIdentity, func(n int) Message { m := state; m.Identity = s("x", n); return &m })
	steps("flowstate/phase", 1, 4, func(n int) Message { m := state; m.Phase = uint8(n); return &m })
	steps("flowstate/mode", 0, 2, func(n int) Message { m := state; m.Mode = uint8(n); return &m })
	steps("welcome/window", MaxPlain, MaxSize, func(n int) Message { return &Welcome{1, 1, 1, uint64(n), state} })
	steps("welcome/keepalive", 1, KeepaliveMS, func(n int) Message { return &Welcome{1, 1, uint32(n), MaxPlain, state} })
	steps("release/report", 0, MaxText, func(n int) Message { return &Release{Report: s("x", n)} })
	steps("readback/scope", 1, 2, func(n int) Message { return &ReadBack{uint8(n)} })
	open := func(f func(*Open)) Message { m := *openSample(); f(&m); return &m }
	steps("open/identity", 0, MaxIdentity, func(n int) Message { return open(func(m *Open) { m.Identity = s("x", n) }) })
	steps("open/kind", 1, 3, func(n int) Message { return open(func(m *Open) { m.Kind = uint8(n) }) })
	steps("open/consistency", 1, 2, func(n int) Message { return open(func(m *Open) { m.Consistency = uint8(n) }) })
	steps("open/flags", 0, 3, func(n int) Message { return open(func(m *Open) { m.Flags = uint16(n) }) })
	steps("open/size", 1, MaxSize, func(n int) Message { return open(func(m *Open) { m.VolumeSize = uint64(n) }) })
	keep := func(f func(*Keep)) Message { m := &Keep{id(1), 2, 0, 2, id(2), 1, 0, "g"}; f(m); return m }
	steps("keep/members", 1, 2, func(n int) Message { return keep(func(m *Keep) { m.Members = uint16(n % 3) }) })
	steps("keep/flags", 0, 2, func(n int) Message { return keep(func(m *Keep) { m.Flags = uint16(n) }) })
	steps("keep/consistency", 1, 3, func(n int) Message { return keep(func(m *Keep) { m.Consistency = uint8(n) }) })
	steps("keep/epoch", 1, 9, func(n int) Message { return keep(func(m *Keep) { m.Epoch = uint64(n % 10) }) })
	steps("keep/group", 1, MaxName, func(n int) Message { return keep(func(m *Keep) { m.Group = s("x", n) }) })
	steps("kept/consistency", 0, 3, func(n int) Message { return &Kept{Consistency: uint8(n)} })
	steps("kept/point", 0, MaxName, func(n int) Message { return &Kept{2, s("x", n), ""} })
	steps("demand/class", 0, 4, func(n int) Message { return &Demand{Class: uint8(n)} })
	steps("demand/want", 0, MaxSize, func(n int) Message { return &Demand{1, 0, uint64(n), 0} })
	steps("demand/backlog", 0, MaxSize, func(n int) Message { return &Demand{1, 0, 0, uint64(n)} })
	steps("grant/rate", 0, MaxSize, func(n int) Message { return &Grant{Rate: uint64(n), TTLMS: 1} })
	steps("grant/safe", 0, MaxSize, func(n int) Message { return &Grant{Safe: uint64(n), TTLMS: 1} })
	steps("grant/ttl", 1, MaxTTLMS, func(n int) Message { return &Grant{TTLMS: uint32(n)} })
	steps("spent/bytes", 0, MaxSpent, func(n int) Message { return &Spent{Bytes: uint64(n)} })
	steps("grant/line", 0, MaxName, func(n int) Message { return &Grant{TTLMS: 1, Line: s("x", n)} })
	steps("opened/ranges", 0, MaxOpened, func(n int) Message {
		m := &Opened{Mode: 1}
		for i := range uint32(n) {
			m.Done = append(m.Done, Range{2*i + 1, 2*i + 1})
		}
		return m
	})
	steps("check/groups", 1, MaxGroups, func(n int) Message { return &Check{0, some(n)} })
	steps("leaves/leaves", 1, MaxLeaves, func(n int) Message { return &Leaves{0, some(n)} })
	steps("differ/bits", 1, MaxGroups, func(n int) Message { return &Differ{uint16(n), make([]byte, BitmapSize(n))} })
	steps("need/bits", 1, MaxLeaves, func(n int) Message { return &Need{N: uint16(n), Bitmap: make([]byte, BitmapSize(n))} })
	steps("need/sum", 0, 10, func(n int) Message { return &Need{11, []byte{1, 0}, uint16(n) / 2, uint16(n) - uint16(n)/2, 0} })
	steps("need/flags", 0, 1, func(n int) Message { return &Need{N: 1, Bitmap: []byte{1}, Flags: uint8(n)} })
	steps("prints/pages", 1, MaxPages, func(n int) Message { return &Prints{make([]uint64, n)} })
	steps("pages/bits", 1, MaxPages, func(n int) Message { return &Pages{uint16(n), make([]byte, BitmapSize(n))} })
	steps("offer/leaves in a run", 1, MaxLeaves, func(n int) Message { return &Offer{[]Run{{0, uint16(n)}}, some(n)} })
	steps("offer/runs", 1, MaxLeaves, func(n int) Message {
		m := &Offer{Digests: some(n)}
		for i := range n {
			m.Runs = append(m.Runs, Run{uint64(2 * i), 1})
		}
		return m
	})
	steps("data/plain", 1, MaxPlain, func(n int) Message { return &Data{CodecPlain, uint32(n), make([]byte, n)} })
	steps("data/zstd", 1, 99, func(n int) Message { return &Data{CodecZstd, 100, make([]byte, n)} })
	steps("data/codec", 0, 1, func(n int) Message { return &Data{uint8(n), uint32(9 + n), make([]byte, 9)} })
	steps("put/plain", 1, MaxPlain, func(n int) Message {
		return &Put{Items: []Item{{ItemData, 7, uint64(n)}}, Plain: uint32(n), Payload: make([]byte, n)}
	})
	steps("put/items", 1, MaxItems, func(n int) Message {
		m := &Put{}
		for i := range n {
			m.Items = append(m.Items, Item{ItemZero, uint64(i), 1})
		}
		return m
	})
	steps("put/kind", 2, 4, func(n int) Message { return &Put{Items: []Item{{ItemKind(n), 0, 512}}} })
	steps("put/end", 1, MaxSize, func(n int) Message { return &Put{Items: []Item{{ItemFree, 0, uint64(n)}}} })
	steps("ack/ranges", 1, MaxRanges, func(n int) Message { return &Ack{make1(n)} })
	steps("commit/consistency", 1, 2, func(n int) Message { return &Commit{Consistency: uint8(n)} })
	steps("commit/flags", 0, 1, func(n int) Message { return &Commit{Consistency: 1, Flags: uint16(n)} })
	steps("committed/mode", 1, 2, func(n int) Message { return &Committed{Mode: uint8(n)} })
	steps("root/free", 0, 10, func(n int) Message { return &Root{Leaves: 10, Free: uint64(n)} })

	cs = append(cs, objectCases(steps)...)

	bad := func(name string, m Message) { cs = append(cs, limitCase{name, m, false}) }
	bad("hello/versions", hello(func(m *Hello) { m.MinVersion = 2 }))
	bad("hello/version 0", hello(func(m *Hello) { m.MinVersion = 0 }))
	bad("hello/link", hello(func(m *Hello) { m.Link = [16]byte{} }))
	bad("hello/UTF-8", hello(func(m *Hello) { m.Flow = "\xff" }))
	bad("open/pass", open(func(m *Open) { m.Pass = [16]byte{} }))
	bad("open/block size", open(func(m *Open) { m.BlockSize = 513 }))
	bad("open/leaf size", open(func(m *Open) { m.LeafSize = 0 }))
	bad("opened/order", &Opened{Mode: 1, Done: []Range{{5, 6}, {6, 7}}})
	bad("opened/seq 0", &Opened{Mode: 1, Done: []Range{{0, 6}}})
	bad("check/unknown digest", &Check{0, []digest.Digest{dg(1), digest.Unknown}})
	bad("leaves/unknown digest", &Leaves{0, []digest.Digest{digest.Unknown}})
	bad("offer/unknown digest", &Offer{[]Run{{0, 1}}, []digest.Digest{digest.Unknown}})
	bad("offer/empty run", &Offer{[]Run{{0, 1}, {5, 0}}, some(1)})
	bad("offer/overlap", &Offer{[]Run{{0, 2}, {1, 1}}, some(3)})
	bad("offer/far", &Offer{[]Run{{MaxSize + 1, 1}}, some(1)})
	bad("differ/unused bits", &Differ{9, []byte{0, 2}})
	bad("need/unused bits", &Need{N: 1, Bitmap: []byte{3}})
	bad("need/prints of nothing", &Need{N: 1, Bitmap: []byte{0}, Flags: FlagPrints})
	bad("pages/unused bits", &Pages{N: 1, Bitmap: []byte{3}})
	bad("put/empty item", &Put{Items: []Item{{ItemZero, 0, 0}}})
	bad("put/overlap", &Put{Items: []Item{{ItemZero, 0, 10}, {ItemZero, 9, 1}}})
	bad("put/order", &Put{Items: []Item{{ItemZero, 10, 10}, {ItemZero, 0, 1}}})
	bad("put/wrap", &Put{Items: []Item{{ItemZero, MaxSize, 1<<64 - MaxSize}}})
	bad("put/bytes of zeros", &Put{Items: []Item{{ItemZero, 0, 9}}, Plain: 9, Payload: make([]byte, 9)})
	bad("put/bytes missing", &Put{Items: []Item{{ItemData, 0, 9}}, Plain: 9, Payload: make([]byte, 8)})
	bad("put/zstd of nothing", &Put{Items: []Item{{ItemZero, 0, 9}}, Codec: CodecZstd})
	bad("ack/backwards", &Ack{[]Range{{2, 1}}})
	bad("ack/seq 0", &Ack{[]Range{{0, 1}}})
	bad("error/code 0", &Error{})
	return cs
}

func some(n int) []digest.Digest {
	ds := make([]digest.Digest, n)
	for i := range ds {
		ds[i] = dg(byte(i) | 1)
	}
	return ds
}

func make1(n int) []Range {
	rs := make([]Range, n)
	for i := range rs {
		rs[i] = Range{uint32(i + 1), uint32(i + 1)}
	}
	return rs
}

// TestExactLength: a payload that is a byte too short or too long is refused, for every type.
func TestExactLength(t *testing.T) {
	for _, s := range samples() {
		p := s.m.Append(nil)
		for _, bad := range [][]byte{p[:max(0, len(p)-1)], append(p[:len(p):len(p)], 0)} {
			if len(bad) == len(p) {
				continue // STATE has nothing to lose
			}
			if s.file == "need-prints" && len(bad) < len(p) {
				continue // a NEED without flags
			}
			if err := New(TypeOf(s.m)).Decode(bad); !errors.Is(err, sentinel.ErrProtocol) {
				t.Errorf("%s with %d of %d bytes: %v", s.file, len(bad), len(p), err)
			}
		}
	}
}

func TestHeader(t *testing.T) {
	good := func() []byte { b := make([]byte, HeaderSize); putHeader(b, TypePing, 0, 8); return b }
	if _, _, _, err := DecodeHeader(good()); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(b []byte){
		"type 0":      func(b []byte) { b[4] = 0 },
		"type 27":     func(b []byte) { b[4] = byte(TypeFlowState) + 1 },
		"type 255":    func(b []byte) { b[4] = 255 },
		"flags":       func(b []byte) { b[5] = 1 },
		"reserved":    func(b []byte) { b[6] = 0x80 },
		"reserved 2":  func(b []byte) { b[7] = 1 },
		"seq of PING": func(b []byte) { b[11] = 1 },
		"short":       func(b []byte) { b[3] = 7 },
		"long":        func(b []byte) { b[3] = 9 },
		"over all":    func(b []byte) { binary.BigEndian.PutUint32(b, MaxPayload+1) },
		"4 GiB":       func(b []byte) { binary.BigEndian.PutUint32(b, 1<<32-1) },
		"batch 0":     func(b []byte) { putHeader(b, TypeData, 0, 100) },
	} {
		b := good()
		f(b)
		if _, _, _, err := DecodeHeader(b); !errors.Is(err, sentinel.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i, k := range kinds {
		ty := Type(i)
		if !ty.Known() {
			continue
		}
		for _, n := range []int{k.least - 1, k.least, k.most - 1, k.most, k.most + 1} {
			if n < 0 {
				continue
			}
			b := good()
			putHeader(b, ty, uint32(k.seq/inBatch), n)
			_, _, _, err := DecodeHeader(b)
			if ok := n >= k.least && n <= k.most; ok != (err == nil) {
				t.Errorf("%v with %d bytes: %v", ty, n, err)
			}
		}
		if k.most > MaxPayload || ty.Bulk() && k.most > MaxBulk {
			t.Errorf("%v may have %d bytes", ty, k.most)
		}
		if m := New(ty); TypeOf(m) != ty {
			t.Errorf("New(%v) is a %T", ty, m)
		}
	}
	if New(0) != nil || New(200) != nil {
		t.Error("New knows types that are not")
	}
}

// TestWords: what is for people is cut to fit and mended; it never costs the connection.
func TestWords(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"as it is", "as it is"},
		{"bad \xff byte", "bad ? byte"},
		{strings.Repeat("x", MaxText+1), strings.Repeat("x", MaxText)},
		{strings.Repeat("x", MaxText-1) + "é", strings.Repeat("x", MaxText-1)},
		{strings.Repeat("x", MaxText-2) + "é", strings.Repeat("x", MaxText-2) + "é"},
	} {
		var e Error
		must(t, e.Decode((&Error{Code: 1, Text: c.in}).Append(nil)))
		var n Notice
		must(t, n.Decode((&Notice{Text: c.in}).Append(nil)))
		if e.Text != c.out || n.Text != c.out {
			t.Errorf("%.20q of %d bytes became %.20q of %d", c.in, len(c.in), e.Text, len(e.Text))
		}
	}
	var e Error
	if err := e.Decode(str(u32(u16(nil, 1), 0), strings.Repeat("x", MaxText+1))); !errors.Is(err, sentinel.ErrProtocol) {
		t.Errorf("a text that is too long: %v", err)
	}
}

func TestErrorCodes(t *testing.T) {
	for code, is := range map[uint16]error{
		CodeProtocol: sentinel.ErrProtocol, CodeVersion: sentinel.ErrNotSupported, CodeDenied: sentinel.ErrDenied, CodeFenced: sentinel.ErrFenced,
		CodeRefused: sentinel.ErrRefused, CodeCorrupt: sentinel.ErrCorrupt,
	} {
		e := &Error{Code: code, Text: "text"}
		if !errors.Is(fmt.Errorf("wrapped: %w", e), is) {
			t.Errorf("%v is not %v", e, is)
		}
		if got := ErrorOf(fmt.Errorf("wrapped: %w", is)); got.Code != code {
			t.Errorf("%v is sent as %v", is, got)
		}
		if got := ErrorOf(fmt.Errorf("wrapped: %w", e)); got != e {
			t.Errorf("%v is sent as %v", e, got)
		}
	}
	for _, code := range []uint16{CodeTargetIO, CodeBusy, CodeInternal, CodeStopping, 999} {
		for _, is := range []error{sentinel.ErrProtocol, sentinel.ErrDenied, sentinel.ErrRefused, sentinel.ErrFenced} {
			if errors.Is(&Error{Code: code}, is) {
				t.Errorf("code %d is %v", code, is)
			}
		}
	}
	if got := ErrorOf(errors.New("boom")); got.Code != CodeInternal || got.Text != "boom" {
		t.Errorf("%+v", got)
	}
	if got := (&Error{CodeBusy, 1500, "later"}).Error(); got != "busy: later (again after 1.5s)" {
		t.Error(got)
	}
}

func TestPick(t *testing.T) {
	for _, c := range []struct {
		least, most uint16
		caps        uint64
		ok          bool
	}{{1, 1, 1, true}, {1, 9, 3, true}, {2, 9, 1, false}, {1, 1, 0, false}} {
		v, err := (&Hello{MinVersion: c.least, MaxVersion: c.most, Capabilities: c.caps}).Pick()
		if ok := err == nil; ok != c.ok || ok && v != 1 || !ok && ErrorOf(err).Code != CodeVersion {
			t.Errorf("%+v: %d, %v", c, v, err)
		}
	}
}
