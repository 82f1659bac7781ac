package s3_test

import (
	"testing"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/objtest"
)

// TestConformance is the suite of the contract, on a Ceph RGW.
func TestConformance(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		s, c := rgw(t)
		return objtest.Subject{Store: s, Secrets: []string{c.Credentials.(objstore.Fixed).Secret}, NoAbsentParts: true, AllParts: true, NoUnderscore: true}
	})
}
