package s3_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/s3"
	"github.com/moverd/mover/objstore/session"
)

// Sessions of a real Ceph RGW: of the user, and of a role; what is wrong is told, without a secret.
func TestSTS(t *testing.T) {
	_, c := rgw(t)
	server, err := ceph()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.AllowSessions(t.Context()); err != nil {
		t.Fatal(err)
	}
	arn, err := server.Role(t.Context(), "mover-test")
	if err != nil {
		t.Fatal(err)
	}
	good := s3.STSConfig{Endpoint: server.Endpoint, Credentials: c.Credentials, Duration: 15 * time.Minute}
	for name, role := range map[string]string{"user": "", "role": arn} {
		cfg := good
		cfg.Role = role
		sts, err := s3.NewSTS(cfg)
		if err != nil {
			t.Fatal(err)
		}
		keys := session.New(session.Config{Issuer: sts})
		defer keys.Close()
		k, err := keys.Keys(t.Context())
		if err != nil {
			t.Fatal(name, err)
		}
		if life := time.Until(k.Expires); life > 15*time.Minute || life < 14*time.Minute || k.Token == "" {
			t.Errorf("%s: lives for %v", name, life)
		}
		at := c
		at.Credentials = keys
		s, err := s3.New(at)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Put(t.Context(), "by-"+name, objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
			t.Error(name, err)
		}
		if _, err := s.Head(t.Context(), "by-"+name); err != nil {
			t.Error(name, err)
		}
	}
	for what, edit := range map[string]func(*s3.STSConfig){
		"wrong secret": func(c *s3.STSConfig) { c.Credentials = objstore.Fixed{ID: server.ID, Secret: "very-secret"} },
		"unknown key":  func(c *s3.STSConfig) { c.Credentials = objstore.Fixed{ID: "NOBODY", Secret: "very-secret"} },
		"unknown role": func(c *s3.STSConfig) { c.Role = "arn:aws:iam:::role/king" },
		"no keys":      func(c *s3.STSConfig) { c.Credentials = objstore.Fixed{} },
	} {
		cfg := good
		edit(&cfg)
		sts, err := s3.NewSTS(cfg)
		if err != nil {
			t.Fatal(err)
		}
		k, err := sts.Issue(t.Context())
		if err == nil || k != (objstore.Keys{}) || objstore.Retryable(err) || strings.Contains(err.Error(), "very-secret") {
			t.Errorf("%s: %v %v", what, k, err)
		}
		if what != "unknown role" && !errors.Is(err, objstore.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	gone := good
	gone.Endpoint = "http://127.0.0.1:1"
	if sts, err := s3.NewSTS(gone); err != nil {
		t.Error(err)
	} else if _, err := sts.Issue(t.Context()); !objstore.Retryable(err) {
		t.Error(err)
	}
	for field, edit := range map[string]func(*s3.STSConfig){
		"endpoint":    func(c *s3.STSConfig) { c.Endpoint = "ftp://x" },
		"region":      func(c *s3.STSConfig) { c.Endpoint = "" },
		"credentials": func(c *s3.STSConfig) { c.Credentials = nil },
		"role":        func(c *s3.STSConfig) { c.Role = "mover" },
		"session":     func(c *s3.STSConfig) { c.Role, c.Session = arn, "a b" },
		"duration":    func(c *s3.STSConfig) { c.Duration = time.Minute },
	} {
		cfg := good
		edit(&cfg)
		if _, err := s3.NewSTS(cfg); err == nil || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
