package s3test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Versity is a versitygw: an S3 server that keeps objects as files. It needs little of the processor, so it shows clients better than Ceph does; tests do not use it,
// for it stores bodies that were cut.
type Versity struct {
	Server
	child *child
}

// StartVersity starts the program versitygw on the empty folder dir, and returns when it answers.
func StartVersity(ctx context.Context, dir string) (*Versity, error) {
	exe, err := exec.LookPath("versitygw")
	if err != nil {
		return nil, errors.New("versitygw is not installed: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0 makes it")
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	v := &Versity{Server: Server{Endpoint: "http://" + address, ID: "MOVERTESTKEY", Secret: "mover/test+secret"}}
	v.child, err = startChild("versitygw", dir, filepath.Join(dir, "out"), exec.Command(exe, "--port", address, "--access", v.ID, "--secret", v.Secret, "--quiet", "posix", data))
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if r, err := client.Get(v.Endpoint); err == nil { // with whatever: it is not signed
			return v, r.Body.Close()
		}
		select {
		case <-v.child.over:
			text, _ := os.ReadFile(filepath.Join(dir, "out"))
			return nil, fmt.Errorf("versitygw has ended: %w: %.1000s", v.child.err, text)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), v.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Reclaim has nothing to do.
func (v *Versity) Reclaim(context.Context) error { return nil }

// CPU is the time of processors that it has taken so far.
func (v *Versity) CPU() (time.Duration, error) { return v.child.cpu() }

// Close kills it.
func (v *Versity) Close() error { return v.child.kill() }
