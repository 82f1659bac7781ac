// Package s3test runs a real S3 server for tests and measurements, a Ceph RGW: on ports of loopback that were free, everything in one folder, as children that
// die with the process that started them.
package s3test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Server is where an S3 server listens, and keys of a user who may make buckets.
type Server struct {
	Endpoint   string
	ID, Secret string
}

// nothing is the SHA-256 of no bytes.
const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// MakeBucket makes a bucket.
func (s Server) MakeBucket(ctx context.Context, name string) error {
	return s.do(ctx, http.MethodPut, "/"+name, nil)
}

// do sends a signed request without a body.
func (s Server) do(ctx context.Context, method, path string, header http.Header) error {
	r, err := http.NewRequestWithContext(ctx, method, s.Endpoint+path, nil)
	if err != nil {
		return err
	}
	for k, v := range header {
		r.Header[k] = v
	}
	r.Header.Set("X-Amz-Content-Sha256", nothing)
	keys := aws.Credentials{AccessKeyID: s.ID, SecretAccessKey: s.Secret}
	if err := v4.NewSigner().SignHTTP(ctx, keys, r, nothing, "s3", "us-east-1", time.Now()); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return nil
}
