package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

type found struct {
	rec Rec
	ref Ref
}

func reopen(t testing.TB, path string) (*Log, []found) {
	t.Helper()
	var out []found
	l, err := OpenLog(path, LogOptions{Limit: 1 << 30}, func(r Rec, ref Ref) error {
		out = append(out, found{r, ref})
		return nil
	})
	must(t, err)
	return l, out
}

func head(n byte) Head {
	return Head{Flow: "acme/db1/root", Pass: [16]byte{n}, Kind: mover.Delta, Consistency: mover.Crash, Mode: mover.Staged, Generation: [16]byte{7},
		Epoch: 5, BaseEpoch: 4, VolumeSize: 1 << 40, Began: time.Unix(3, 0).UTC()}
}

func appendN(t testing.TB, l *Log, n int, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range n {
		b := make([]byte, r.IntN(30_000))
		for k := 0; k < len(b); k += 31 {
			b[k] = byte(r.Uint32())
		}
		_, err := l.Append(Rec{Kind: RecBatch, Final: true, Seq: uint32(i + 1), Attempt: uint16(seed), Meta: []byte(fmt.Sprint("meta", i))}, b[:len(b)/2], b[len(b)/2:])
		must(t, err)
	}
}

func TestLogReadsBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "redo.log")
	if l, _ := reopen(t, path); l != nil {
		t.Fatal("a log out of nothing")
	}
	for round := byte(1); round < 4; round++ { // the file is used again: nothing of before may show
		l, err := CreateLog(path, head(round), LogOptions{Limit: 1 << 30})
		must(t, err)
		appendN(t, l, 60/int(round), uint64(round))
		must(t, l.Sync())
		must(t, l.Close())
		l, recs := reopen(t, path)
		h := head(round)
		h.nonce = l.Head.nonce
		if l.Head != h || len(recs) != 60/int(round) {
			t.Fatalf("round %d: %+v, %d records", round, l.Head, len(recs))
		}
		buf := make([]byte, 1<<20)
		for i, f := range recs {
			meta, payload, err := l.Read(f.ref, buf)
			must(t, err)
			if string(meta) != fmt.Sprint("meta", i) || f.rec.Seq != uint32(i+1) || len(payload) != int(f.ref.Payload) {
				t.Fatalf("record %d: %q", i, meta)
			}
		}
		// Going on behind what was found.
		_, err = l.Append(Rec{Kind: RecCommit, Meta: []byte("end")})
		must(t, err)
		must(t, l.Close())
		l, recs = reopen(t, path)
		if recs[len(recs)-1].rec.Kind != RecCommit {
			t.Fatal("the commit record is lost")
		}
		if round == 2 {
			must(t, l.Discard())
			if l, _ := reopen(t, path); l != nil {
				t.Fatal("a discarded log is there")
			}
		} else {
			must(t, l.Close())
		}
	}
}

// TestLogTorn flips or cuts anything: what is read is a prefix of what was written, nothing else.
func TestLogTorn(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "redo-test")
	must(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "redo.log")
	l, err := CreateLog(path, head(1), LogOptions{Limit: 1 << 30})
	must(t, err)
	appendN(t, l, 40, 1)
	end := l.end
	must(t, l.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	_, want := reopen(t, path)
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		b := bytes.Clone(whole)
		at := logHeader + r.Int64N(end-logHeader)
		switch r.IntN(3) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b = b[:at]
		case 2:
			clear(b[at:min(int64(len(b)), at+4096)])
		}
		torn := filepath.Join(dir, "torn.log")
		must(t, os.WriteFile(torn, b, 0o600))
		l, got := reopen(t, torn)
		n := len(got)
		if n > len(want) || n > 0 && !reflect.DeepEqual(got, want[:n]) || l.end > at && !bytes.Equal(b[:min(int64(len(b)), l.end)], whole[:l.end]) {
			t.Fatalf("damage at %d: %d records", at, n)
		}
		// A record that is appended in the place of the torn one ends the log there.
		_, err := l.Append(Rec{Kind: RecIntent, Meta: AppendIntent(nil, 3, 4)})
		must(t, err)
		must(t, l.Close())
		l, got = reopen(t, torn)
		if len(got) != n+1 {
			t.Fatalf("%d records after appending to %d", len(got), n)
		}
		must(t, l.Close())
	}
}

func TestLogFull(t *testing.T) {
	l, err := CreateLog(filepath.Join(t.TempDir(), "redo.log"), head(1), LogOptions{Limit: 1 << 20})
	must(t, err)
	defer l.Close()
	for range 100 {
		if _, err = l.Append(Rec{Kind: RecBatch, Seq: 1}, make([]byte, 50_000)); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrLogFull) || l.Bytes() > 1<<20 || l.Bytes() < 900_000 {
		t.Fatalf("%d bytes, %v", l.Bytes(), err)
	}
	for range 100 {
		_, err := l.Append(Rec{Kind: RecCommit, Meta: make([]byte, 100)})
		must(t, err)
	}
}

func TestMetas(t *testing.T) {
	b := Batch{Counts: mover.Counts{Offered: 1, Same: 2, Copied: 3, Sent: 4, Put: 1 << 40, Zero: 6, Free: 7, Unreadable: 8},
		Items:  []wire.Item{{Kind: wire.ItemData, Off: 1 << 50, Len: 5}, {Kind: wire.ItemFree, Off: 0, Len: 1 << 60}},
		Leaves: []digest.Digest{digest.Sum(nil), digest.Free}, Digest: digest.Sum([]byte("x")), Parts: []Part{{1, 2, 3}}}
	enc := b.Append(nil)
	var got Batch
	must(t, got.Decode(enc))
	if !reflect.DeepEqual(b, got) {
		t.Fatalf("%+v", got)
	}
	for n := range enc {
		if got.Decode(enc[:n]) == nil {
			t.Fatalf("%d of %d bytes decode", n, len(enc))
		}
	}
	c := Commit{Batches: 7, Consistency: mover.Crash, Proven: true, Time: time.Unix(0, 123456789).UTC(), Counts: b.Counts}
	var gc Commit
	must(t, gc.Decode(c.Append(nil)))
	if gc != c {
		t.Fatalf("%+v", gc)
	}
}

func FuzzBatch(f *testing.F) {
	b := Batch{Items: []wire.Item{{Kind: 1, Off: 2, Len: 3}}}
	f.Add(b.Append(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		var x, y Batch
		if x.Decode(in) != nil {
			return
		}
		must(t, y.Decode(x.Append(nil)))
		if len(x.Items) != len(y.Items) || x.Counts != y.Counts {
			t.Fatalf("%+v %+v", x, y)
		}
	})
}
