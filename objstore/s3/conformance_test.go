package s3_test

import (
	"strings"
	"testing"

	"github.com/moverd/mover/objstore/objtest"
	"github.com/moverd/mover/objstore/s3"
)

// TestConformance is the suite of the contract.
func TestConformance(t *testing.T) {
	for _, name := range strings.Split(*which, ",") {
		server := servers[name]
		t.Run(name, func(t *testing.T) {
			objtest.Run(t, func(t *testing.T) objtest.Subject {
				server := server(t)
				s, err := s3.New(bucket(t, server))
				if err != nil {
					t.Fatal(err)
				}
				rgw := name == "ceph"
				return objtest.Subject{Store: s, Secrets: []string{server.Secret}, NoAbsentParts: rgw, AllParts: rgw, NoUnderscore: rgw}
			})
		})
	}
}
