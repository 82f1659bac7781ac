package wire

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moverd/mover/internal/sentinel"
)

// openSample is the OPEN of samples.
func openSample() *Open {
	for _, s := range samples() {
		if m, ok := s.m.(*Open); ok {
			return m
		}
	}
	return nil
}

// objectCases are the limits of CALL, RESULT and CHUNKS.
func objectCases(steps func(name string, least, most int, f func(n int) Message)) (cs []limitCase) {
	s := strings.Repeat
	steps("call/key", 0, MaxKey, func(n int) Message { return &Call{Op: OpHead, Values: Values{Key: s("k", n)}} })
	steps("call/ETag", 0, MaxETag, func(n int) Message { return &Call{Op: OpGet, Values: Values{ETag: s("e", n)}} })
	steps("call/upload", 0, MaxUpload, func(n int) Message { return &Call{Op: OpAbort, Values: Values{Upload: s("u", n)}} })
	steps("call/canned", 0, MaxName, func(n int) Message { return &Call{Op: OpSetGrants, Values: Values{Name: s("u", n)}} })
	steps("call/offset", 0, MaxSize, func(n int) Message { return &Call{Op: OpGet, Values: Values{Off: uint64(n)}} })
	steps("call/class", 0, MaxName, func(n int) Message { return &Call{Op: OpBegin, Values: Values{Put: PutOptions{Class: s("c", n)}}} })
	steps("call/flags", 0, 1, func(n int) Message { return &Call{Op: OpBegin, Values: Values{Put: PutOptions{Flags: uint8(n)}}} })
	steps("call/keys", 0, MaxPage, func(n int) Message { return &Call{Op: OpDelete, Values: Values{Keys: make([]string, n)}} })
	steps("call/parts", 0, MaxParts, func(n int) Message { return &Call{Op: OpComplete, Values: Values{Parts: make([]Part, n)}} })
	steps("call/body", 0, MaxBody, func(n int) Message { return &Call{Op: OpPut, Values: Values{Body: ones(n)}} })
	steps("call/chunk", 1, MaxChunk, func(n int) Message { return &Call{Op: OpPut, Values: Values{Body: []Chunk{{dg(1), uint32(n)}}}} })
	steps("call/attributes", 0, MaxAttrs, func(n int) Message { // in two values, for a string is shorter
		return &Call{Op: OpBegin, Values: Values{Put: PutOptions{Attrs: Attrs{Headers: [6]string{s("v", n/4), s("v", n/4), s("v", n/4)}, Meta: []Pair{{"", s("v", n-3*(n/4))}}}}}}
	})
	steps("call/tags", 0, MaxPairs, func(n int) Message { return &Call{Op: OpSetTags, Values: Values{Tags: pairs(n)}} })
	steps("result/kind", 2, int(lastResult), func(n int) Message { return &Result{Op: OpHead, Kind: uint8(n)} })
	steps("result/missing", 1, MaxBody, func(n int) Message {
		m := &Result{Op: OpPut, Kind: ResultMissing, Missing: Missing{uint32(n), make([]byte, BitmapSize(n))}}
		if n > 0 {
			SetBit(m.Missing.Bitmap, n-1)
		}
		return m
	})
	steps("result/bytes", 0, MaxPiece, func(n int) Message { return &Result{Op: OpRead, Values: Values{Bytes: make([]byte, n)}} })
	steps("result/entries", 0, MaxPage, func(n int) Message { return &Result{Op: OpList, Values: Values{Entries: make([]Entry, n)}} })
	steps("result/sums", 0, MaxSums, func(n int) Message { return &Result{Op: OpSum, Values: Values{Sums: some(n)}} })
	steps("result/list", 1, MaxPage, func(n int) Message {
		m := someTraits
		m.List = uint32(n)
		return &Result{Op: OpOpen, Values: Values{Store: m}}
	})
	steps("result/batch", 1, MaxPage, func(n int) Message {
		m := someTraits
		m.Batch = uint32(n)
		return &Result{Op: OpOpen, Values: Values{Store: m}}
	})
	steps("result/code", 0, MaxName, func(n int) Message { return &Result{Op: OpHead, Kind: ResultDenied, Failure: Failure{Code: s("c", n)}} })
	steps("chunks/chunks", 1, MaxOffered, func(n int) Message { return &Chunks{ones(n)} })
	steps("chunks/length", 1, MaxChunk, func(n int) Message { return &Chunks{[]Chunk{{dg(1), uint32(n)}}} })

	bad := func(name string, m Message) { cs = append(cs, limitCase{name, m, false}) }
	bad("call/op 0", &Call{})
	bad("call/unknown op", &Call{Op: Op(len(ops))})
	bad("call/order of metadata", &Call{Op: OpBegin, Values: Values{Put: PutOptions{Attrs: Attrs{Meta: []Pair{{"b", ""}, {"a", ""}}}}}})
	bad("call/name twice", &Call{Op: OpSetTags, Values: Values{Tags: []Pair{{"a", ""}, {"a", ""}}}})
	bad("result/unknown op", &Result{Op: Op(len(ops))})
	bad("result/chunks of a head", &Result{Op: OpHead, Kind: ResultMissing, Missing: Missing{1, []byte{1}}})
	bad("result/nothing is missing", &Result{Op: OpPut, Kind: ResultMissing, Missing: Missing{1, []byte{0}}})
	bad("result/left without a reason", &Result{Op: OpDelete, Values: Values{Left: []Left{{"a", ResultDone, ""}}}})
	bad("result/tags", &Result{Op: OpHead, Values: Values{Object: Object{Tags: -2}}})
	bad("chunks/sum", &Chunks{[]Chunk(nil)})
	whole := ones(MaxPlain/MaxChunk + 1)
	for i := range whole {
		whole[i].Len = MaxChunk
	}
	bad("chunks/bytes", &Chunks{whole})
	return cs
}

func ones(n int) []Chunk {
	all := make([]Chunk, n)
	for i := range all {
		all[i].Len = 1
	}
	return all
}

func pairs(n int) (all []Pair) {
	for i := range n {
		all = append(all, Pair{fmt.Sprintf("%05d", i), ""})
	}
	return all
}

// TestOps: each op carries its own members of Values, and no others, both ways.
func TestOps(t *testing.T) {
	full := Values{Key: "k", Upload: "u", Prefix: "p", After: "a", ETag: "e", Name: "n", No: 1, Most: 2, Of: 3, Off: 4, Len: 5, Put: PutOptions{someAttrs, "c", FlagAbsent}, Body: ones(2),
		Keys: []string{"x"}, Grants: []string{"g"}, Parts: []Part{{1, 2, "e"}}, Tags: pairs(2), Flag: true, Now: 6, Store: someTraits, Entries: []Entry{someEntry},
		Object: Object{someEntry, someAttrs, 2}, Bytes: []byte("b"), Left: []Left{{"l", ResultFinal, "t"}}, Uploads: []Upload{{"k", "u", 1}}, Sums: some(2)}
	for op := OpOpen; op.Known(); op++ {
		for _, m := range []Message{&Call{Op: op, Values: full}, &Result{Op: op, Values: full}} {
			p := m.Append(nil)
			again := New(TypeOf(m))
			if err := again.Decode(p); err != nil {
				t.Errorf("%v: %v", op, err)
				continue
			}
			if !bytes.Equal(again.Append(nil), p) {
				t.Errorf("%v becomes another %v", op, TypeOf(m))
			}
			for n := range p { // whatever is cut off
				if err := New(TypeOf(m)).Decode(p[:n]); !errors.Is(err, sentinel.ErrProtocol) {
					t.Fatalf("%v %v with %d of %d bytes: %v", TypeOf(m), op, n, len(p), err)
				}
			}
		}
	}
	if Op(0).Known() || Op(200).Known() || OpSum.String() != "sum" || Op(200).String() != "op 200" {
		t.Error("ops that are not")
	}
}
