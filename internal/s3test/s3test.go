// Package s3test runs a real S3 server for tests and measurements, a Ceph RGW: on ports of loopback that were free, everything in one folder, as children that
// die with the process that started them.
package s3test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Server is where an S3 server listens, and keys of a user who may make buckets.
type Server struct {
	Endpoint   string
	ID, Secret string
}

// At is s itself, of whatever starts it.
func (s Server) At() Server { return s }

// MakeBucket makes a bucket.
func (s Server) MakeBucket(ctx context.Context, name string) error {
	_, err := s.do(ctx, "s3", http.MethodPut, "/"+name, "")
	return err
}

// KeepVersions makes a bucket keep older versions of its objects.
func (s Server) KeepVersions(ctx context.Context, name string) error {
	_, err := s.do(ctx, "s3", http.MethodPut, "/"+name+"?versioning", `<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>`)
	return err
}

// do sends a signed request, with a form as its body.
func (s Server) do(ctx context.Context, service, method, path, form string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.Endpoint+path, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	if form != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	sum := sha256.Sum256([]byte(form))
	digest := hex.EncodeToString(sum[:])
	r.Header.Set("X-Amz-Content-Sha256", digest)
	keys := aws.Credentials{AccessKeyID: s.ID, SecretAccessKey: s.Secret}
	if err := v4.NewSigner().SignHTTP(ctx, keys, r, digest, service, "us-east-1", time.Now()); err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return text, err
}
