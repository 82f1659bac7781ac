package bos_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/session"
)

// stsRig is a rig whose emulator gives sessions too.
func stsRig(t *testing.T) (*rig, string) {
	r := newRig(t, func(c *bosemu.Config) {
		c.Roles = []bosemu.Role{{Account: "alice", Name: "mover", Trusted: []string{"bob"}}, {Account: "alice", Name: "short", Trusted: []string{"bob"}, Longest: time.Minute}}
	})
	server := httptest.NewServer(r.emu.STS())
	t.Cleanup(server.Close)
	return r, server.URL
}

func (r *rig) sts(cfg bos.STSConfig) *bos.STS {
	r.t.Helper()
	s, err := bos.NewSTS(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

var bob = objstore.Fixed{ID: "ak-bob", Secret: "sk-bob"}

// What sessions can do, and for how long; by the real SDK on both sides of the emulator.
func TestSTS(t *testing.T) {
	r, url := stsRig(t)
	r.put("a", "x")
	role := bos.STSConfig{Endpoint: url, Credentials: bob, Account: "alice", Role: "mover", Duration: time.Hour}
	for name, cfg := range map[string]bos.STSConfig{
		"session": {Endpoint: url, Credentials: alice, Duration: time.Hour},
		"usual":   {Endpoint: url, Credentials: alice},
		"role":    role,
	} {
		began := time.Now()
		k, err := r.sts(cfg).Issue(r.ctx)
		if err != nil {
			t.Fatal(name, err)
		}
		want := time.Hour
		if cfg.Duration == 0 {
			want = 12 * time.Hour
		}
		if life := k.Expires.Sub(began); life > want || life < want-3*time.Second {
			t.Errorf("%s: lives for %v", name, life)
		}
		s := r.store(bos.Config{Credentials: objstore.Fixed(k)})
		if _, err := s.Put(r.ctx, "by-"+name, objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
			t.Error(name, err)
		}
		if _, err := s.List(r.ctx, objstore.Query{}); err != nil {
			t.Error(name, err)
		}
		without := k
		without.Token = ""
		_, err = r.store(bos.Config{Credentials: objstore.Fixed(without)}).Head(r.ctx, "a")
		r.want(name+" without its token", err, objstore.ErrDenied, false)
		_, err = r.sts(bos.STSConfig{Endpoint: url, Credentials: objstore.Fixed(k)}).Issue(r.ctx)
		r.want(name+" for a session by a session", err, objstore.ErrDenied, false)
		r.mu.Lock()
		r.shift = want
		r.mu.Unlock()
		_, err = r.sts(cfg).Issue(r.ctx) // the service's clock is ahead by hours: so it is told
		r.want(name+" by a wrong clock", err, objstore.ErrClock, false)
		r.mu.Lock()
		r.shift = 0
		r.mu.Unlock()
	}
	// The service's clock is ahead, by less: the life of a session is what counts.
	r.mu.Lock()
	r.shift = 10 * time.Minute
	r.mu.Unlock()
	k, err := r.sts(role).Issue(r.ctx)
	if life := time.Until(k.Expires); err != nil || life > time.Hour || life < time.Hour-3*time.Second {
		t.Errorf("clocks differ: lives for %v: %v", life, err)
	}
}

// Each wrong configuration, key and role says what is wrong, and tells no secret.
func TestSTSRefused(t *testing.T) {
	r, url := stsRig(t)
	good := bos.STSConfig{Endpoint: url, Credentials: bob, Account: "alice", Role: "mover"}
	for _, c := range []struct {
		what string
		edit func(*bos.STSConfig)
		kind error
		text string
	}{
		{"wrong secret", func(c *bos.STSConfig) { c.Credentials = objstore.Fixed{ID: "ak-bob", Secret: "sk-wrong"} }, objstore.ErrDenied, "SignatureDoesNotMatch"},
		{"unknown key", func(c *bos.STSConfig) { c.Credentials = objstore.Fixed{ID: "nobody", Secret: "sk-bob"} }, objstore.ErrDenied, "InvalidAccessKeyId"},
		{"no keys", func(c *bos.STSConfig) { c.Credentials = objstore.Fixed{} }, objstore.ErrKeys, "empty"},
		{"unknown role", func(c *bos.STSConfig) { c.Role = "king" }, objstore.ErrNotFound, "RoleNotFound"},
		{"role of another", func(c *bos.STSConfig) { c.Credentials = alice }, objstore.ErrDenied, "does not trust"},
		{"longer than the role allows", func(c *bos.STSConfig) { c.Role, c.Duration = "short", time.Hour }, nil, "durationSeconds"},
		{"list without effect", func(c *bos.STSConfig) { c.ACL = `{"accessControlList":[{"service":"bce:bos"}]}` }, nil, "InappropriateJSON"},
		{"list of another kind", func(c *bos.STSConfig) { c.ACL = `{"Statement":[]}` }, nil, "InappropriateJSON"},
	} {
		cfg := good
		c.edit(&cfg)
		k, err := r.sts(cfg).Issue(r.ctx)
		if err == nil || k != (objstore.Keys{}) || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || objstore.Retryable(err) {
			t.Errorf("%s: %v %v", c.what, k, err)
		}
		if strings.Contains(fmt.Sprint(err), "sk-") {
			t.Errorf("%s tells a secret: %v", c.what, err)
		}
	}
	for field, edit := range map[string]func(*bos.STSConfig){
		"Endpoint":    func(c *bos.STSConfig) { c.Endpoint = "ftp://x" },
		"Credentials": func(c *bos.STSConfig) { c.Credentials = nil },
		"Account":     func(c *bos.STSConfig) { c.Account = "" },
		"Role":        func(c *bos.STSConfig) { c.Role = "" },
		"Duration":    func(c *bos.STSConfig) { c.Duration = 2*time.Hour + time.Second },
		"ACL":         func(c *bos.STSConfig) { c.ACL = "{" },
	} {
		cfg := good
		edit(&cfg)
		if _, err := bos.NewSTS(cfg); !errors.Is(err, sentinel.ErrUsage) || !strings.Contains(fmt.Sprint(err), field+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
	r.set(bosemu.Fault{Status: 503, Code: "ServiceUnavailable"})
	_, err := r.sts(good).Issue(r.ctx)
	r.want("busy", err, objstore.ErrSlowDown, true)
	for _, answer := range []string{`{}`, `{"accessKeyId":"a","secretAccessKey":"b","sessionToken":"c"}`, `{"accessKeyId":"a","secretAccessKey":"b","sessionToken":"c","expiration":"2001-01-01T00:00:00Z"}`,
		`{"code":"AccessDenied","message":"no"}`, `{"accessKeyId":"a","secr`} {
		odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
		cfg := good
		cfg.Endpoint = odd.URL
		k, err := r.sts(cfg).Issue(r.ctx)
		if err == nil || k != (objstore.Keys{}) {
			t.Errorf("%s: %v %v", answer, k, err)
		}
		odd.Close()
	}
}

// A list in the request takes rights away from the session, and gives none.
func TestSTSPolicy(t *testing.T) {
	r, url := stsRig(t)
	r.put("mine/a", "x")
	r.put("other/a", "x")
	list := map[string]any{"accessControlList": []any{
		map[string]any{"service": "bce:bos", "region": "gz", "effect": "Allow", "resource": []string{"photos/mine/*"}, "permission": []string{"READ", "WRITE"}},
		map[string]any{"service": "bce:bos", "region": "gz", "effect": "Allow", "resource": []string{"photos"}, "permission": []string{"LIST"}},
		map[string]any{"service": "bce:bos", "region": "gz", "effect": "Deny", "resource": []string{"photos/mine/secret*"}, "permission": []string{"READ", "WRITE"}},
	}}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	k, err := r.sts(bos.STSConfig{Endpoint: url, Credentials: bob, Account: "alice", Role: "mover", ACL: string(text)}).Issue(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := r.store(bos.Config{Credentials: objstore.Fixed(k)})
	put := func(key string) error {
		_, err := s.Put(r.ctx, key, objstore.Bytes([]byte("x")), objstore.PutOptions{})
		return err
	}
	if _, err := s.Head(r.ctx, "mine/a"); err != nil {
		t.Error(err)
	}
	if err := put("mine/b"); err != nil {
		t.Error(err)
	}
	if _, err := s.List(r.ctx, objstore.Query{}); err != nil {
		t.Error(err)
	}
	_, err = s.Head(r.ctx, "other/a")
	r.want("another prefix", err, objstore.ErrDenied, false)
	r.want("put elsewhere", put("other/b"), objstore.ErrDenied, false)
	r.want("what is denied", put("mine/secret"), objstore.ErrDenied, false)
	_, err = r.store(bos.Config{Bucket: "closed", Credentials: objstore.Fixed(k)}).List(r.ctx, objstore.Query{})
	r.want("another bucket", err, objstore.ErrDenied, false)
}

// A store that signs with a session's keys goes on through their end, and through their revocation: what was refused is asked for again, with others.
func TestSTSRenewed(t *testing.T) {
	r, url := stsRig(t)
	keys := session.New(session.Config{Issuer: r.sts(bos.STSConfig{Endpoint: url, Credentials: bob, Account: "alice", Role: "mover", Duration: 2 * time.Second})})
	defer keys.Close()
	s := r.store(bos.Config{Credentials: keys})
	for end := time.Now().Add(2200 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := s.Put(r.ctx, "k", objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.emu.Counts()["AssumeRole"]; n < 2 || n > 9 {
		t.Errorf("%d sessions in 2.2 s", n)
	}

	long := session.New(session.Config{Issuer: r.sts(bos.STSConfig{Endpoint: url, Credentials: alice})})
	defer long.Close()
	s = r.store(bos.Config{Credentials: long})
	if _, err := s.Head(r.ctx, "k"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // keys are believed in before
	r.emu.Revoke()
	_, err := s.Head(r.ctx, "k") // which has no body that could tell
	r.want("revoked", err, objstore.ErrTransient, true)
	for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err = s.Head(r.ctx, "k")
	}
	if st := long.Status(); err != nil || st.Renewed != 2 {
		t.Errorf("%v, %+v", err, st)
	}
	// What a good session may not do is denied at once.
	_, err = r.store(bos.Config{Bucket: "closed", Credentials: long}).Put(r.ctx, "k", objstore.Bytes([]byte("x")), objstore.PutOptions{})
	r.want("not allowed", err, objstore.ErrDenied, false)
}

// The keys of an instance's role.
func TestInstance(t *testing.T) {
	answer, status := `{"accessKeyId":"a","secretAccessKey":"b","sessionToken":"c","expiration":"2999-01-01T00:00:00Z"}`, 200
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/latest/meta-data/sts-credential" {
			t.Error(r.URL)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	}))
	defer server.Close()
	i, err := bos.NewInstance(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := i.Issue(t.Context()); err != nil || k.ID != "a" || k.Secret != "b" || k.Token != "c" || time.Until(k.Expires) < 24*time.Hour {
		t.Errorf("%v %v", k, err)
	}
	answer = `{"accessKeyId":"a","secretAccessKey":"b","sessionToken":"c"}`
	if k, err := i.Issue(t.Context()); err != nil || time.Until(k.Expires) > 5*time.Minute || time.Until(k.Expires) < 4*time.Minute {
		t.Errorf("%v %v", k, err)
	}
	for _, answer = range []string{"", "{}", `{"accessKeyId":"a","secretAccessKey":"b-secret"}`, "<html>", `{"accessKeyId":"a","secretAccessKey":"b","sessionToken":"c","expiration":"2001-01-01T00:00:00Z"}`} {
		if k, err := i.Issue(t.Context()); err == nil || k != (objstore.Keys{}) || strings.Contains(err.Error(), "b-secret") {
			t.Errorf("%s: %v %v", answer, k, err)
		}
	}
	status = 404
	if _, err := i.Issue(t.Context()); !errors.Is(err, objstore.ErrDenied) || objstore.Retryable(err) {
		t.Error(err)
	}
	server.Close()
	if _, err := i.Issue(t.Context()); !objstore.Retryable(err) {
		t.Error(err)
	}
}
