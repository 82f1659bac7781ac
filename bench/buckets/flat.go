package buckets

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/objstore/s3"
)

// FlatOptions of a listing of very many keys in one flat prefix.
type FlatOptions struct {
	Work    string
	Keys    int
	Latency time.Duration // of a page
	Listers int
	Out     io.Writer
	Results *bench.Results
}

// flat is an S3 server of a bucket that exists only as a rule: keys photos/img-000000000.jpg and so on, of one byte each.
type flat struct {
	keys    int
	latency time.Duration
	pages   atomic.Int64
	gets    atomic.Int64
	first   atomic.Int64 // unix nanoseconds of the first GET
}

const flatPrefix, flatEnd = "photos/img-", ".jpg"

func flatKey(i int) string { return fmt.Sprintf("%s%09d%s", flatPrefix, i, flatEnd) }

// after is the number of the first key behind a place.
func (f *flat) after(place string) int {
	lo, hi := 0, f.keys
	for lo < hi {
		mid := (lo + hi) / 2
		if flatKey(mid) <= place {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

type flatPage struct {
	XMLName     xml.Name `xml:"ListBucketResult"`
	Name        string
	MaxKeys     int
	KeyCount    int
	IsTruncated bool
	Encoding    string `xml:"EncodingType,omitempty"`
	Next        string `xml:"NextContinuationToken,omitempty"`
	Contents    []flatEntry
}

type flatEntry struct {
	Key, LastModified, ETag string
	Size                    int
	StorageClass            string
}

const flatTag = "c4ca4238a0b923820dcc509a6f75849b" // MD5 of "1"

func (f *flat) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("list-type") != "2" {
		f.gets.Add(1)
		f.first.CompareAndSwap(0, time.Now().UnixNano())
		w.Header().Set("ETag", `"`+flatTag+`"`)
		w.Header().Set("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
		_, _ = io.WriteString(w, "1")
		return
	}
	time.Sleep(f.latency)
	f.pages.Add(1)
	most := 1000
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		most = min(n, most)
	}
	i := f.after(max(q.Get("start-after"), q.Get("continuation-token")))
	p := flatPage{Name: "flat", MaxKeys: most, Encoding: q.Get("encoding-type")}
	for ; i < f.keys && len(p.Contents) < most; i++ {
		p.Contents = append(p.Contents, flatEntry{flatKey(i), "2026-01-02T03:04:05.000Z", `"` + flatTag + `"`, 1, "STANDARD"})
	}
	p.KeyCount, p.IsTruncated = len(p.Contents), i < f.keys
	if p.IsTruncated {
		p.Next = p.Contents[len(p.Contents)-1].Key
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(p)
}

// Flat lists, plans and begins to copy very many keys in one prefix.
func Flat(ctx context.Context, o FlatOptions) (err error) {
	dir, err := os.MkdirTemp(o.Work, "mover-flat-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f := &flat{keys: o.Keys, latency: o.Latency}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: f}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	src, err := s3.New(s3.Config{Endpoint: "http://" + ln.Addr().String(), Bucket: "flat", PathStyle: true, Credentials: objstore.Fixed{ID: "k", Secret: "s"}})
	if err != nil {
		return err
	}
	defer src.Close()
	serial, err := serialRate(ctx, src)
	if err != nil {
		return err
	}
	add := func(subject, metric string, v float64, unit string) error {
		fmt.Fprintf(o.Out, "bucket flat  %-28s %-44s %10.4g %s\n", subject, metric, v, unit)
		if o.Results == nil {
			return nil
		}
		return o.Results.Add("bucket flat", subject, metric, v, unit)
	}
	if err := add("one lister", "keys a second", serial, "1/s"); err != nil {
		return err
	}
	e, err := startEngine(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	dst := mem.New(mem.Config{Name: "target"})
	slow := func(ctx context.Context, _ int) error { // copying is not what is measured
		select {
		case <-time.After(20 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	began := time.Now()
	f.first.Store(0)
	g.Go(func() error {
		defer stop()
		_, err := e.pass(working, src, dst, o.Listers, bucket.WorkerConfig{Copy: bucket.CopyConfig{Pace: slow}, Most: 4})
		return err
	})
	peak := uint64(0)
	for e.ledger.State().Listing || e.ledger.State().Listed == 0 {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		peak = max(peak, resident())
		if working.Err() != nil {
			return g.Wait()
		}
	}
	took := time.Since(began)
	st := e.ledger.State()
	stop()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if st.Listed != int64(o.Keys) || st.Planned != int64(o.Keys) {
		return fmt.Errorf("%d keys: %+v", o.Keys, st)
	}
	rate := float64(o.Keys) / took.Seconds()
	many := fmt.Sprintf("%d listers, %d keys", o.Listers, o.Keys)
	return errors.Join(add(many, "keys a second", rate, "1/s"), add(many, "of one lister's rate (at least 8)", rate/serial, "ratio"),
		add(many, "seconds until the first copy (at most 5)", time.Unix(0, f.first.Load()).Sub(began).Seconds(), "s"),
		add(many, "resident memory, server included (under 512)", float64(peak)/(1<<20), "MiB"),
		add(many, "pages asked for", float64(f.pages.Load()), "pages"))
}

// serialRate is how many keys a second one listing gives.
func serialRate(ctx context.Context, s objstore.Store) (float64, error) {
	const pages = 40
	n, after := 0, ""
	began := time.Now()
	for range pages {
		p, err := s.List(ctx, objstore.Query{After: after})
		if err != nil {
			return 0, err
		}
		n += len(p.Entries)
		if !p.More {
			break
		}
		after = p.Entries[len(p.Entries)-1].Key
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// resident is the bytes of this process in memory.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(fields[1], 10, 64)
	runtime.KeepAlive(b)
	return n * uint64(os.Getpagesize())
}
