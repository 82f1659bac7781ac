package bos_test

import (
	"testing"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/objtest"
)

// small says that BOS takes small parts, as its newer pages do: the race detector makes the CRCs of large ones slow.
type small struct{ *bos.Store }

func (s small) Limits() objstore.Limits {
	l := s.Store.Limits()
	l.PartLeast, l.PartAlign = 100<<10, 0
	return l
}

func TestConformance(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		r := newRig(t, func(c *bosemu.Config) {
			if !raceEnabled {
				c.Limits.PartLeast = 5 << 20
			}
		})
		s := objtest.Subject{Store: r.Store, Class: "COLD", PlainTags: true, Secrets: []string{alice.Secret}}
		if raceEnabled {
			s.Store = small{r.Store}
		}
		return s
	})
}
