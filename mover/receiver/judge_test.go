package receiver

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// TestJudgeEndsLiveLink: a revoked certificate's connection hears why, in the middle of a pass; the links of others go on, and what it
// left unfinished does no harm to the pass that a new certificate does.
func TestJudgeEndsLiveLink(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Flows = append(c.Flows, FlowConfig{Tenant: "acme", Host: "db2", Name: "root", Target: "/t/b"})
	})
	s, other := randomSrc(64*leafSize, 1), randomSrc(64*leafSize, 2)
	c := r.mustDial("root")
	d, err := r.dialAs("acme", "db2", newID(), "root")
	must(t, err)
	cut, whole := s.newPass(mover.Full, s.whole(16)...), other.newPass(mover.Full, other.whole(16)...)
	_, err = c.open(s, cut)
	must(t, err)
	must(t, c.send(s, cut, 0))
	verdict := func(x *x509.Certificate) error {
		if strings.HasSuffix(x.Subject.CommonName, "/db1") {
			return fmt.Errorf("certificate was revoked: %w", sentinel.ErrDenied)
		}
		return nil
	}
	if n := r.s.Judge(verdict); n != 1 {
		t.Fatalf("%d connections were ended, want 1", n)
	}
	_, err = c.next()
	if !errors.Is(err, sentinel.ErrDenied) || !strings.Contains(err.Error(), "was revoked") {
		t.Fatalf("source hears %v", err)
	}
	if _, err := d.run(other, whole); err != nil {
		t.Fatalf("the other host's pass: %v", err)
	}
	c = r.mustDial("root")
	if _, err := c.run(s, s.newPass(mover.Rescan, s.whole(16)...)); err != nil {
		t.Fatal(err)
	}
	r.settled("acme/db1/root")
	r.settled("acme/db2/root")
	if string(r.content("/t/a", int64(len(s.b)))) != string(s.b) || string(r.content("/t/b", int64(len(other.b)))) != string(other.b) {
		t.Fatal("targets are not the sources")
	}
}
