package bos_test

import (
	"testing"

	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/objtest"
)

func TestConformance(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		r := newRig(t, func(c *bosemu.Config) { c.Limits.PartLeast = 5 << 20 })
		return objtest.Subject{Store: r.Store, Class: "COLD", PlainTags: true, Secrets: []string{alice.Secret}}
	})
}
