package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/objstore"
)

// TestLively: reading ends when nothing is carried, but not while something is written.
func TestLively(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			io.Copy(io.Discard, conn)
		}
	}()
	tcp, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	const stall = 200 * time.Millisecond
	conn := newLively(tcp, stall)
	over := make(chan time.Time, 1)
	go func() {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a read that nothing comes for: %v", err)
		}
		over <- time.Now()
	}()
	var last time.Time
	for range 10 {
		time.Sleep(stall / 4)
		last = time.Now()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if quiet := (<-over).Sub(last); quiet < stall/2 {
		t.Errorf("the read ended %v after something was written", quiet)
	}
}

// TestQuickAnswers: the SDK closes a body when the answer is there, which must not look like a failure to the transport, that may still look for its end.
func TestQuickAnswers(t *testing.T) {
	var keys []string
	for i := range pageMost {
		keys = append(keys, fmt.Sprintf("%04d/%s", i, strings.Repeat("k", 100)))
	}
	type object struct{ Key string }
	answer, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"DeleteResult"`
		Deleted []object
	}{Deleted: func() (all []object) {
		for _, k := range keys {
			all = append(all, object{k})
		}
		return all
	}()})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.CopyN(io.Discard, r.Body, r.ContentLength)
		w.Write(answer)
	}))
	defer server.Close()
	s, err := New(Config{Endpoint: server.URL, Bucket: "bucket", PathStyle: true, Credentials: objstore.Fixed{ID: "KEY", Secret: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 12 {
		if left, err := s.Delete(context.Background(), keys...); err != nil || len(left) != 0 {
			t.Fatalf("%d left: %v", len(left), err)
		}
	}
}
