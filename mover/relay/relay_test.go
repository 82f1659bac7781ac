package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/objtest"
	"github.com/moverd/mover/objstore/retry"
	"github.com/moverd/mover/wire"
)

// The suite goes by TLS, the gateway's door, and chunks to each of these stores.
func TestConformanceOfFolder(t *testing.T) {
	t.Parallel()
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		r := newRig(t, []relay.FlowConfig{flowTo("photos", openDir(t.TempDir()))})
		return objtest.Subject{Store: r.open("photos"), Class: "COLD"}
	})
}

// kept is not closed with the gateway.
type kept struct{ objstore.Store }

func (kept) Close() error { return nil }

// To BOS, behind a root: what lies beside it is neither seen nor touched.
func TestConformanceOfBOS(t *testing.T) {
	t.Parallel()
	open := openBOS(t, nil)
	st, err := open()
	must(t, err)
	defer st.Close()
	beside := []string{"beside", "other/zzz", "own/"}
	for _, key := range beside {
		put(t, st, key, []byte("x"))
	}
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		f := flowTo("photos", func() (objstore.Store, error) {
			s, err := open()
			if err != nil {
				return nil, err
			}
			return small{s.(*bos.Store)}, nil
		})
		f.Root = "own/"
		r := newRig(t, []relay.FlowConfig{f})
		return objtest.Subject{Store: r.open("photos"), Class: "COLD", PlainTags: true, Secrets: []string{"sk-alice"}}
	})
	p, err := st.List(t.Context(), objstore.Query{})
	must(t, err)
	var left []string
	for _, e := range p.Entries {
		left = append(left, e.Key)
	}
	if !slices.Equal(left, beside) {
		t.Errorf("left are %q, want %q", left, beside)
	}
}

// small says that BOS takes small parts, as its newer pages do: the race detector makes the CRCs of large ones slow.
type small struct{ *bos.Store }

func (s small) Limits() objstore.Limits {
	l := s.Store.Limits()
	l.PartLeast, l.PartAlign = 100<<10, 0
	return l
}

// TestCuts cuts connections again and again; whoever tries again notices nothing, and all bytes are right.
func TestCuts(t *testing.T) {
	st := memory()
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(kept{st}))})
	s := retry.New(r.open("photos", func(c *relay.Config) { c.Conns = 3 }), retry.Config{Tries: 100, First: time.Millisecond, Most: 30 * time.Millisecond})
	stop := make(chan struct{})
	const enough = 12 // a busy machine gets nowhere while it is cut without end
	var cuts atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		rnd := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(20+rnd.IntN(100)) * time.Millisecond):
				if cuts.Load() < enough && r.cut(rnd.IntN(100)) {
					cuts.Add(1)
				}
			}
		}
	}()
	n := 60
	of := func(i int) []byte {
		b := make([]byte, (i*7919)%200_000)
		if i%10 == 0 {
			b = make([]byte, 1_500_000)
		}
		rand.NewChaCha8([32]byte{byte(i)}).Read(b)
		return b
	}
	for cuts.Load() < enough && !t.Failed() {
		each(n, 16, func(i int) {
			key := fmt.Sprint("o", i)
			if _, err := s.Put(t.Context(), key, objstore.Bytes(of(i)), objstore.PutOptions{}); err != nil {
				t.Errorf("put %d: %v", i, err)
				return
			}
			_, body, err := s.Get(t.Context(), key, objstore.GetOptions{})
			if err != nil {
				t.Errorf("get %d: %v", i, err)
				return
			}
			defer body.Close()
			if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, of(i)) {
				t.Errorf("object %d reads as %d bytes, %v", i, len(b), err)
			}
			_, sums, err := s.Sum(t.Context(), key, objstore.GetOptions{})
			if err != nil || objstore.ObjectDigest(sums) != digest.Sum(of(i)) {
				t.Errorf("sum of %d: %v", i, err)
			}
		})
	}
	close(stop)
	<-ended
	for i := range n {
		if b := read(t, st, fmt.Sprint("o", i)); !bytes.Equal(b, of(i)) {
			t.Errorf("object %d has %d bytes that are not its own", i, len(b))
		}
	}
}

// TestLine counts what crosses the line: what compresses shrinks, also over many small objects; what is there already does not cross again, nor does what another host
// of the tenant has, if that is the scope; but what another tenant has does.
func TestLine(t *testing.T) {
	st := memory()
	flows := []relay.FlowConfig{flowTo("photos", inMemory(kept{st})), flowTo("again", inMemory(kept{st}))}
	flows[1].Host = "db2"
	other := flowTo("photos", inMemory(kept{st}))
	other.Tenant, other.Scope = "evil", "evil/db1"
	flows = append(flows, other)
	for i := range flows[:2] {
		flows[i].Scope = "acme"
	}
	r := newRig(t, flows)
	s := r.open("photos")
	out := func(s *relay.Store, f func()) int64 {
		before := s.Counts()
		f()
		after := s.Counts()
		return after.WireOut - before.WireOut
	}
	noise := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	if n := out(s, func() { put(t, s, "noise", noise) }); n < int64(len(noise)) || n > int64(len(noise))*102/100 {
		t.Errorf("%d bytes that do not shrink took %d", len(noise), n)
	}
	if n := out(s, func() { put(t, s, "the same", noise) }); n > 20_000 {
		t.Errorf("what is there took %d bytes", n)
	}
	shifted := append([]byte("in front"), noise...)
	if n := out(s, func() { put(t, s, "shifted", shifted) }); n > 1<<20 {
		t.Errorf("what is there, moved by some bytes, took %d bytes", n)
	}
	text := func(i int) []byte {
		return []byte(strings.Repeat(fmt.Sprintf("line %d of a document like many others, with words that come again\n", i), 40))
	}
	n := out(s, func() { each(400, 64, func(i int) { put(t, s, fmt.Sprint("doc", i), text(i)) }) })
	plain := int64(0)
	for i := range 400 {
		plain += int64(len(text(i)))
	}
	if n > plain/5 {
		t.Errorf("%d bytes of text in small objects took %d", plain, n)
	}
	t.Logf("400 small texts: %d plain bytes took %d", plain, n)
	two := r.open("again", func(c *relay.Config) { c.Dial = r.dialAs("acme", "db2") })
	if n := out(two, func() { put(t, two, "noise", noise) }); n > 20_000 {
		t.Errorf("what another host of the tenant has took %d bytes", n)
	}
	foreign := r.open("photos", func(c *relay.Config) { c.Dial = r.dialAs("evil", "db1") })
	if n := out(foreign, func() { put(t, foreign, "noise", noise) }); n < int64(len(noise)) {
		t.Errorf("what another tenant has took %d bytes only", n)
	}
	for key, want := range map[string][]byte{"noise": noise, "the same": noise, "shifted": shifted, "doc7": text(7)} {
		if !bytes.Equal(read(t, st, key), want) {
			t.Errorf("%s has other bytes", key)
		}
	}
}

// TestSmallCache: with a cache that forgets all the time everything is stored all the same, and the cache keeps its bound.
func TestSmallCache(t *testing.T) {
	st := memory()
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(kept{st}))}, func(c *relay.ServerConfig, _ *receiver.Config) {
		c.CacheSize, c.Index = 256<<20, 1<<10 // a thousand chunks, which is much less than 256 MiB
	})
	s := r.open("photos")
	of := func(i int) []byte {
		b := make([]byte, 6_000_000)
		rand.NewChaCha8([32]byte{byte(i)}).Read(b[:(i%3+1)*500_000])
		for at := 1_500_000; at < len(b); at += 10_000 { // cheap, and different
			b[at] = byte(at >> 8)
			b[at+1] = byte(i)
		}
		return b
	}
	n := 10 // of some forty chunks each
	each(n, 6, func(i int) { put(t, s, fmt.Sprint(i), of(i)) })
	for i := range n {
		if !bytes.Equal(read(t, st, fmt.Sprint(i)), of(i)) {
			t.Errorf("object %d has other bytes", i)
		}
	}
	size := int64(0)
	files, err := os.ReadDir(filepath.Join(r.dir, "chunks"))
	must(t, err)
	for _, f := range files {
		if fi, err := f.Info(); err == nil {
			size += fi.Size()
		}
	}
	if size > 256<<20 {
		t.Errorf("the cache has %d bytes", size)
	}
}

// gone loses the cache's files under way.
func TestCacheIsDamaged(t *testing.T) {
	st := memory()
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(kept{st}))})
	s := retry.New(r.open("photos"), retry.Config{First: time.Millisecond})
	b := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(b)
	put(t, s, "a", b)
	small := b[:10_000]
	put(t, s, "small", small)
	files, err := filepath.Glob(filepath.Join(r.dir, "chunks", "*"))
	must(t, err)
	for _, name := range files { // C7: what the disk has bent is not stored
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, err)
		for at := int64(0); at < 4<<20; at += 1000 {
			_, err = f.WriteAt([]byte{0x55}, at)
			must(t, err)
		}
		must(t, f.Close())
	}
	put(t, s, "b", b)
	put(t, s, "small again", small)
	if !bytes.Equal(read(t, st, "b"), b) || !bytes.Equal(read(t, st, "small again"), small) {
		t.Error("bent bytes were stored")
	}
}

// TestDoor: who is not the flow's host, or what is no bucket flow, is turned away with a clear word.
func TestDoor(t *testing.T) {
	denied := flowTo("denied", inMemory(memory()))
	elsewhere := flowTo("elsewhere", nil)
	gz := openBOS(t, nil)
	elsewhere.Open = func(context.Context) (objstore.Store, []string, error) { s, err := gz(); return s, []string{"bj"}, err }
	broken := flowTo("broken", func() (objstore.Store, error) { return nil, errors.New("no such folder") })
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(memory())), denied, elsewhere, broken}, func(_ *relay.ServerConfig, c *receiver.Config) {
		c.Policy = func(a receiver.Ask) error {
			if a.Target == "mem:denied" && a.Tenant == "acme" && a.Host == "db1" {
				return fmt.Errorf("the policy does not let you: %w", sentinel.ErrDenied)
			}
			return nil
		}
	})
	for _, c := range []struct {
		name, flow, tenant, host string
		kind                     error
		text                     string
	}{
		{"another host", "photos", "acme", "db2", objstore.ErrDenied, `bucket flow "photos" is not configured for acme/db2`},
		{"another tenant", "photos", "evil", "db1", objstore.ErrDenied, "is not configured for evil/db1"},
		{"no such flow", "none", "acme", "db1", objstore.ErrDenied, `bucket flow "none"`},
		{"policy", "denied", "acme", "db1", objstore.ErrDenied, "the policy does not let you"},
		{"region", "elsewhere", "acme", "db1", objstore.ErrRefused, `is in region "gz"; gateway.regions allows bj`},
		{"store", "broken", "acme", "db1", nil, "the gateway cannot open the store of flow broken: no such folder"},
	} {
		cfg := r.config(c.flow)
		cfg.Dial = r.dialAs(c.tenant, c.host)
		s, err := relay.Open(t.Context(), cfg)
		if err == nil {
			s.Close()
			t.Errorf("%s: it is let in", c.name)
			continue
		}
		if c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || objstore.Retryable(err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	cfg := r.config("photos")
	cfg.Dial = func(context.Context) (net.Conn, error) { return nil, errors.New("no way") }
	if _, err := relay.Open(t.Context(), cfg); !objstore.Retryable(err) {
		t.Errorf("a gateway that is not there: %v", err)
	}
	cfg = r.config("photos")
	cfg.Rules = nil
	if _, err := relay.Open(t.Context(), cfg); !errors.Is(err, objstore.ErrNotSupported) {
		t.Errorf("a rule that nobody knows: %v", err)
	}
}

// peer is a source that speaks frames by hand.
func (r *rig) peer(flow string) *wire.Conn {
	r.t.Helper()
	nc, err := r.dialAs("acme", "db1")(r.t.Context())
	must(r.t, err)
	c := wire.NewConn(nc)
	r.t.Cleanup(func() { c.Close() })
	must(r.t, c.Write(wire.TypeHello, 0, &wire.Hello{MinVersion: 1, MaxVersion: 1, Capabilities: wire.CapZstd | wire.CapObjects, Link: [16]byte{1}, Flow: flow}))
	f, err := c.ReadFrame(nil)
	must(r.t, err)
	if f.Type != wire.TypeWelcome {
		r.t.Fatalf("%v", f.Type)
	}
	return c
}

// TestPeerDoesWrong: each of these ends the connection with the word for it.
func TestPeerDoesWrong(t *testing.T) {
	st := memory()
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(kept{st}))})
	text := []byte("some bytes")
	ch := wire.Chunk{Digest: digest.Sum(text), Len: uint32(len(text))}
	offer := func(c *wire.Conn) {
		must(t, c.Write(wire.TypeChunks, 1, &wire.Chunks{Chunks: []wire.Chunk{ch}}))
		f, err := c.ReadFrame(nil)
		must(t, err)
		if f.Type != wire.TypeNeed {
			t.Fatalf("%v", f.Type)
		}
	}
	for name, does := range map[string]struct {
		code uint16
		f    func(c *wire.Conn)
	}{
		"other bytes": {wire.CodeCorrupt, func(c *wire.Conn) { // C7
			offer(c)
			must(t, c.Write(wire.TypeData, 1, &wire.Data{Plain: 10, Payload: []byte("other byte")}))
		}},
		"too few bytes": {wire.CodeProtocol, func(c *wire.Conn) {
			offer(c)
			must(t, c.Write(wire.TypeData, 1, &wire.Data{Plain: 9, Payload: text[:9]}))
		}},
		"no zstd": {wire.CodeCorrupt, func(c *wire.Conn) {
			offer(c)
			must(t, c.Write(wire.TypeData, 1, &wire.Data{Codec: wire.CodecZstd, Plain: 10, Payload: text[:9]}))
		}},
		"bytes that nobody needs": {wire.CodeProtocol, func(c *wire.Conn) { must(t, c.Write(wire.TypeData, 7, &wire.Data{Plain: 10, Payload: text})) }},
		"a frame of volumes":      {wire.CodeProtocol, func(c *wire.Conn) { must(t, c.Write(wire.TypeState, 7, &wire.State{})) }},
		"offers without end": {wire.CodeProtocol, func(c *wire.Conn) {
			for i := range uint32(20) {
				d := digest.Sum([]byte{byte(i)})
				if c.Write(wire.TypeChunks, 1+i, &wire.Chunks{Chunks: []wire.Chunk{{Digest: d, Len: 1}}}) != nil {
					return
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.peer("photos")
			does.f(c)
			for {
				_, err := c.ReadFrame(nil)
				if err == nil {
					continue
				}
				if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != does.code {
					t.Errorf("ended with %v", err)
				}
				return
			}
		})
	}
	// A call of an op that does not exist, by hand: Conn would not send it.
	frame, err := wire.AppendFrame(nil, 3, &wire.Call{Op: wire.OpVersioned})
	must(t, err)
	frame[wire.HeaderSize] = 200
	nc, err := r.dialAs("acme", "db1")(t.Context())
	must(t, err)
	c := wire.NewConn(nc)
	defer c.Close()
	must(t, c.Write(wire.TypeHello, 0, &wire.Hello{MinVersion: 1, MaxVersion: 1, Capabilities: wire.CapZstd | wire.CapObjects, Link: [16]byte{1}, Flow: "photos"}))
	_, err = nc.Write(frame)
	must(t, err)
	for err = nil; err == nil; _, err = c.ReadFrame(nil) {
	}
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.CodeProtocol {
		t.Errorf("an op that does not exist: %v", err)
	}
	if p, err := st.List(t.Context(), objstore.Query{}); err != nil || len(p.Entries) != 0 {
		t.Errorf("something was stored: %v, %v", p, err)
	}
}

// TestSlowReader: an object that is read slowly does not hold up others on the same connection.
func TestSlowReader(t *testing.T) {
	st := memory()
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(kept{st}))})
	s := r.open("photos", func(c *relay.Config) { c.Conns = 1 })
	b := make([]byte, 20<<20)
	put(t, st, "large", b)
	var slow []io.ReadCloser
	for range 8 {
		_, body, err := s.Get(t.Context(), "large", objstore.GetOptions{})
		must(t, err)
		_, err = io.ReadFull(body, make([]byte, 1000))
		must(t, err)
		slow = append(slow, body)
	}
	began := time.Now()
	for i := range 20 {
		put(t, s, fmt.Sprint(i), []byte("x"))
		if got := read(t, s, fmt.Sprint(i)); string(got) != "x" {
			t.Errorf("%q", got)
		}
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	for _, body := range slow[1:] {
		must(t, body.Close())
	}
	n, err := io.Copy(io.Discard, slow[0])
	if err != nil || n != int64(len(b))-1000 {
		t.Errorf("the rest is %d bytes, %v", n, err)
	}
	must(t, slow[0].Close())
}

// TestJudge: a certificate that is revoked ends connections that are live.
func TestJudgeAndEnforce(t *testing.T) {
	var deny atomic.Bool
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(memory()))}, func(_ *relay.ServerConfig, c *receiver.Config) {
		c.Policy = func(receiver.Ask) error {
			if deny.Load() {
				return fmt.Errorf("not any more: %w", sentinel.ErrDenied)
			}
			return nil
		}
	})
	s := r.open("photos")
	put(t, s, "a", []byte("x"))
	deny.Store(true)
	if n := r.door.Enforce(); n != 1 {
		t.Errorf("%d links were ended", n)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := s.Put(t.Context(), "b", objstore.Bytes([]byte("x")), objstore.PutOptions{})
		if errors.Is(err, objstore.ErrDenied) && strings.Contains(err.Error(), "not any more") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("put says %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
