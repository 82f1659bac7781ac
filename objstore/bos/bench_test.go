package bos_test

import (
	"fmt"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
)

// BenchmarkSmall puts objects of 10 KiB, and heads and reads them, 64 at a time; emulator and driver share the machine.
func BenchmarkSmall(b *testing.B) {
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice"}}})
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(emu)
	defer server.Close()
	s, err := bos.New(bos.Config{Endpoint: server.URL, Bucket: "photos", Credentials: alice})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	data := make([]byte, 10<<10)
	for _, c := range []struct {
		name string
		do   func(key string) error
	}{
		{"put", func(key string) error {
			_, err := s.Put(b.Context(), key, objstore.Bytes(data), objstore.PutOptions{})
			return err
		}},
		{"head", func(string) error { _, err := s.Head(b.Context(), "1"); return err }},
		{"get", func(string) error { _, _, err := get(b.Context(), s, "1"); return err }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var n atomic.Int64
			b.SetParallelism(32)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if err := c.do(fmt.Sprint(n.Add(1))); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
		})
	}
}
