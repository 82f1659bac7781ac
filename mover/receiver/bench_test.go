package receiver

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// null is a target that takes everything.
type null struct{ size int64 }

func (n null) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (n null) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (n null) Zero(extent.Extent) error               { return nil }
func (n null) Sync() error                            { return nil }
func (n null) Size() int64                            { return n.size }
func (n null) Identity() string                       { return "null" }
func (n null) Close() error                           { return nil }

// BenchmarkDirect is the gateway's handlers alone, without TLS and target: decode, digest, table, index, rounds; four connections.
func BenchmarkDirect(b *testing.B) {
	for _, packed := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "zstd"}[packed], func(b *testing.B) { benchDirect(b, packed) })
	}
}

func benchDirect(b *testing.B, packed bool) {
	const size = 64 << 30
	state, err := os.MkdirTemp("", "receiver-bench")
	must(b, err)
	defer os.RemoveAll(state)
	s, err := New(Config{StateDir: state, Flows: []FlowConfig{{Tenant: "acme", Host: "db1", Name: "root", Target: filepath.Join(state, "none")}},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), LogLimit: 1 << 30, Inspect: inspectDisk,
		OpenTarget: func(_ string, size int64, _ bool) (blockdev.Target, error) { return null{size}, nil }})
	must(b, err)
	defer s.Close()
	f := s.flows["acme/db1/root"]
	m := &wire.Open{Pass: newID(), Kind: uint8(mover.Full), Consistency: 1, Generation: newID(), Epoch: 1, VolumeSize: size, BlockSize: 512, LeafSize: leafSize, Identity: "v"}
	must(b, f.prepare(m))
	p, err := f.begin(m)
	must(b, err)
	const conns = 4
	l := &link{slots: make(chan struct{}, 64)}
	l.ctx, l.cancel = s.ctx, func(error) {}
	b.SetBytes(wire.MaxPlain)
	b.ResetTimer()
	var wg sync.WaitGroup
	for k := range conns {
		wg.Go(func() {
			c := &conn{s: s, f: f, link: l, ctx: s.ctx, offers: map[uint32]*offer{}}
			buf, err := s.in.Get(s.ctx)
			must(b, err)
			defer s.in.Put(buf)
			plain := buf[4096 : 4096+wire.MaxPlain]
			text := make([]byte, 8192)
			fill(text, uint64(k))
			for i := 0; i < len(plain); i += 8192 {
				copy(plain[i:], text)
			}
			payload, code := plain, uint8(wire.CodecPlain)
			for i := k; i < b.N; i += conns {
				for l := 0; l < len(plain); l += leafSize { // each leaf is its own
					plain[l], plain[l+1], plain[l+2], plain[l+3], plain[l+4] = byte(i), byte(i>>8), byte(i>>16), byte(l>>14), byte(l>>22)
				}
				ds := chunker.Digests(plain, make([]digest.Digest, 0, 256))
				if packed {
					code = wire.CodecZstd
					payload, _ = codec.Compress(nil, plain, chunker.Fastest)
				}
				group := i % (size / groupSize)
				seq := uint32(i + 1)
				attempt, _, release, err := p.begin(s.ctx, seq)
				must(b, err)
				release()
				c.offers[seq] = &offer{pass: p, attempt: attempt, items: []wire.Item{{Kind: wire.ItemData, Off: uint64(group) * groupSize, Len: groupSize}},
					leaves: ds, plain: len(plain)}
				must(b, c.handleData(seq, &wire.Data{Codec: code, Plain: uint32(len(plain)), Payload: payload}))
			}
		})
	}
	wg.Wait()
	must(b, p.round())
	b.StopTimer()
}
