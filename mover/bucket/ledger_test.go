package bucket

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
)

func ledger(t testing.TB) *Ledger {
	t.Helper()
	l, err := OpenLedger(t.TempDir(), "a to b", silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// An object whose parts are not all recorded does not count as copied (C17): nobody could tell later whether it is right.
func TestPartsAreMissing(t *testing.T) {
	const part = 2 * objstore.BlockSize
	blocks := func(n int) (out []digest.Digest) {
		for i := range n {
			out = append(out, digest.Sum([]byte{byte(i)}))
		}
		return out
	}
	for _, c := range []struct {
		parts []Done
		want  Outcome
	}{
		{[]Done{{No: 1, Blocks: blocks(2)}, {No: 2, Blocks: blocks(2)}, {No: 3, Blocks: blocks(1)}}, Copied},
		{[]Done{{No: 1, Blocks: blocks(2)}, {No: 3, Blocks: blocks(1)}}, Failed},
		{[]Done{{No: 1, Blocks: blocks(2)}, {No: 2, Blocks: blocks(2)}}, Failed},
		{[]Done{{No: 1, Blocks: blocks(2)}, {No: 2, Blocks: blocks(1)}, {No: 3, Blocks: blocks(1)}}, Failed},
		{nil, Failed},
	} {
		l := ledger(t)
		told := PartResult{Key: "k", Upload: "u", ETag: "x", Size: part}
		for _, d := range append([]Done{{}}, c.parts...) {
			told.Part = d
			if err := l.part(told); err != nil {
				t.Fatal(err)
			}
		}
		err := l.results([]ItemResult{{Key: "k", Record: Record{Outcome: Copied, Size: 2*part + 5, ETag: "x", Target: "y"}}}, 0)
		r, found, rerr := l.record("k")
		if err != nil || rerr != nil || !found || r.Outcome != c.want || (r.Why != "") != (c.want == Failed) {
			t.Errorf("%d parts: %v %v %v, %+v", len(c.parts), err, rerr, found, r)
		}
		if s := l.State(); (s.Copied == 1) != (c.want == Copied) || (s.Failed == 1) != (c.want == Failed) {
			t.Errorf("%d parts: %+v", len(c.parts), s)
		}
	}
}

// A ledger on a disk that is nearly full takes nothing, says so, and goes on when there is room.
func TestLedgerRoom(t *testing.T) {
	l := ledger(t)
	l.least = 1 << 60
	put := func() error {
		l.looked = time.Time{}
		return l.results([]ItemResult{{Key: "k", Record: Record{Outcome: Copied, ETag: "x", Target: "y", Digest: digest.Sum(nil)}}}, 0)
	}
	if err := put(); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("no room: %v", err)
	}
	if _, found, err := l.record("k"); found || err != nil || l.State().Copied != 0 {
		t.Errorf("half of it is there: %v %v", found, err)
	}
	l.least = 1
	if err := put(); err != nil || l.State().Copied != 1 {
		t.Errorf("with room: %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	r := Record{Outcome: Copied, Sure: true, Size: 7, Modified: time.Unix(1, 2).UTC(), ETag: "e", Class: "COLD", Target: "t", Digest: digest.Sum(nil), Lost: []string{"a", ""}, Why: "w"}
	f.Add(r.append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, sentinel.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeRecord(r.append(nil))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
			t.Fatalf("%v: %+v, %+v", err, r, again)
		}
		_ = r.is(objstore.Entry{})
	})
}
