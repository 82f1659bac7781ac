package wire

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/moverd/mover/internal/digest"
)

// BenchmarkTLS sends DATA of 4 MiB over TLS on loopback, both ends in this process: what the cipher allows.
func BenchmarkTLS(b *testing.B) {
	c := newCerts(b)
	server, client := c.server(b), c.client(b)
	for _, conns := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
			payload := make([]byte, MaxPlain)
			for i := range payload {
				payload[i] = byte(rand.Uint32())
			}
			type pair struct{ s, g *Conn }
			var pairs []pair
			for range conns {
				s, g := tlsPair(b, server, client)
				pairs = append(pairs, pair{s, g})
			}
			b.SetBytes(MaxPlain)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, p := range pairs {
				n := b.N / conns
				if i < b.N%conns {
					n++
				}
				wg.Go(func() {
					m := &Data{Plain: MaxPlain, Payload: payload}
					for range n {
						if err := p.s.Write(TypeData, 1, m); err != nil {
							b.Error(err)
							return
						}
					}
				})
				wg.Go(func() {
					buf := make([]byte, MaxBulk)
					get := func(int) []byte { return buf }
					for range n {
						if _, err := p.g.ReadFrame(get); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkCodec(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	ds := make([]digest.Digest, MaxLeaves)
	for i := range ds {
		for j := range ds[i] {
			ds[i][j] = byte(rng.Uint32())
		}
	}
	offer := &Offer{Digests: ds}
	for i := range 16 {
		offer.Runs = append(offer.Runs, Run{uint64(i * 100), 16})
	}
	put := &Put{Plain: 256 * 4096, Payload: make([]byte, 256*4096)}
	for i := range 256 {
		put.Items = append(put.Items, Item{ItemData, uint64(i) * 8192, 4096})
	}
	ack := &Ack{}
	for i := range 64 {
		ack.Ranges = append(ack.Ranges, Range{uint32(3*i + 1), uint32(3*i + 2)})
	}
	for _, m := range []Message{
		offer, &Need{N: 256, Bitmap: make([]byte, 32)}, put, ack,
		&Data{Plain: MaxPlain, Payload: make([]byte, MaxPlain)},
	} {
		t := TypeOf(m)
		enc := m.Append(nil)
		b.Run("append/"+t.String(), func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, len(enc))
			for b.Loop() {
				if big, ok := m.(bulk); ok {
					buf = big.appendHead(buf[:0]) // bodies are not copied
				} else {
					buf = m.Append(buf[:0])
				}
				if err := m.check(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("decode/"+t.String(), func(b *testing.B) {
			b.ReportAllocs()
			to := New(t)
			must(b, to.Decode(enc))
			for b.Loop() {
				if err := to.Decode(enc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
