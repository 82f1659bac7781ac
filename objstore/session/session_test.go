package session_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/session"
)

// service gives keys that live for a time, slowly, or does not.
type service struct {
	life, slow time.Duration

	mu    sync.Mutex // guards all below
	err   error
	n     int
	times []time.Time
}

func (s *service) Issue(ctx context.Context) (objstore.Keys, error) {
	began := time.Now()
	select {
	case <-time.After(s.slow):
	case <-ctx.Done():
		return objstore.Keys{}, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	s.times = append(s.times, time.Now())
	if s.err != nil {
		return objstore.Keys{}, s.err
	}
	return objstore.Keys{ID: "id", Secret: "very-secret", Token: fmt.Sprint("token-", s.n), Expires: began.Add(s.life)}, nil
}

func (s *service) String() string { return "a service" }
func (s *service) Close() error   { return nil }

func (s *service) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *service) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

var errAway = fmt.Errorf("nobody answers: %w", objstore.ErrTransient)

// try runs f in a bubble of its own time.
func try(t *testing.T, s *service, f func(t *testing.T, r *session.Renewer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := session.New(session.Config{Issuer: s})
		defer r.Close()
		f(t, r)
	})
}

// Many who use keys without a pause have one session at a time, never one that has ended, and each is asked for once, well before the end of the one before.
func TestRenewed(t *testing.T) {
	for _, life := range []time.Duration{3 * time.Second, 7 * time.Minute, time.Hour, 12 * time.Hour} {
		s := &service{life: life, slow: 20 * time.Millisecond}
		try(t, s, func(t *testing.T, r *session.Renewer) {
			began, end := time.Now(), time.Now().Add(10*life)
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					for time.Now().Before(end) {
						k, err := r.Keys(t.Context())
						if err != nil || !time.Now().Before(k.Expires) {
							t.Errorf("%v: keys that end at %v, at %v: %v", life, k.Expires, time.Now(), err)
							return
						}
						time.Sleep(life / 100)
					}
				})
			}
			all.Wait()
			most := 2 * life / 3
			if life-5*time.Minute > life/3 {
				most = min(most, life-5*time.Minute)
			}
			if n := s.asked(); n < 14 || n > 32 {
				t.Errorf("%v: %d sessions in %v", life, n, time.Since(began))
			}
			for i := 1; i < len(s.times); i++ {
				if d := s.times[i].Sub(s.times[i-1]); d > most+s.slow && life > 8*time.Minute || d < life/3 {
					t.Errorf("%v: renewed after %v", life, d)
				}
			}
		})
	}
}

// While the service is away, the keys are used until they end; then nobody has any, and is told why; and the service is asked less and less often. When it is back, so
// are keys.
func TestAway(t *testing.T) {
	s := &service{life: 15 * time.Minute}
	try(t, s, func(t *testing.T, r *session.Renewer) {
		first, err := r.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.fail(errAway)
		began, n := time.Now(), s.asked()
		for time.Since(began) < 15*time.Minute-time.Second {
			if k, err := r.Keys(t.Context()); err != nil || k != first {
				t.Fatalf("after %v: %v %v", time.Since(began), k, err)
			}
			time.Sleep(time.Second)
		}
		if st := r.Status(); st.Trouble == "" || !st.Used || st.Failed == 0 {
			t.Errorf("%+v", st)
		}
		time.Sleep(2 * time.Second)
		k, err := r.Keys(t.Context())
		if err == nil || k != (objstore.Keys{}) || !objstore.Retryable(err) || !strings.Contains(err.Error(), "nobody answers") || !strings.Contains(err.Error(), "ended") {
			t.Errorf("%v %v", k, err)
		}
		if tries := s.asked() - n; tries < 5 || tries > 20 {
			t.Errorf("asked %d times in 15 minutes", tries)
		}
		s.fail(nil)
		time.Sleep(time.Minute)
		if k, err := r.Keys(t.Context()); err != nil || k.Token == first.Token {
			t.Errorf("%v %v", k, err)
		}
		if st := r.Status(); st.Trouble != "" || st.Renewed != 2 {
			t.Errorf("%+v", st)
		}

		// What is refused for good is no error that may pass.
		s.fail(fmt.Errorf("no such role: %w", objstore.ErrDenied))
		time.Sleep(16 * time.Minute)
		if _, err := r.Keys(t.Context()); !errors.Is(err, objstore.ErrDenied) || objstore.Retryable(err) {
			t.Error(err)
		}

		// A role that is not there is no object that is not there.
		s.fail(&objstore.Error{Op: "assume role", Kind: objstore.ErrNotFound, Code: "RoleNotFound"})
		time.Sleep(time.Hour)
		if _, err := r.Keys(t.Context()); errors.Is(err, objstore.ErrNotFound) || !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "RoleNotFound") {
			t.Error(err)
		}
	})
}

// A service that hangs keeps nobody from using what there is.
func TestHangs(t *testing.T) {
	s := &service{life: time.Hour}
	try(t, s, func(t *testing.T, r *session.Renewer) {
		if _, err := r.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.slow = time.Hour
		time.Sleep(45 * time.Minute)
		began := time.Now()
		if _, err := r.Keys(t.Context()); err != nil || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		time.Sleep(16 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := r.Keys(ctx); err == nil || time.Since(began) > 17*time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		synctest.Wait()
	})
}

// Keys that nobody uses are left to end.
func TestUnused(t *testing.T) {
	s := &service{life: time.Hour}
	try(t, s, func(t *testing.T, r *session.Renewer) {
		if _, err := r.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		if st := r.Status(); s.asked() != 1 || st.Used {
			t.Errorf("asked %d times: %+v", s.asked(), st)
		}
		if k, err := r.Keys(t.Context()); err != nil || k.Token != "token-2" {
			t.Errorf("%v %v", k, err)
		}
	})
}

// A session that a store refuses is renewed, once; what it refuses of the next one too, it refuses for another reason.
func TestDoubt(t *testing.T) {
	s := &service{life: time.Hour, slow: time.Second}
	try(t, s, func(t *testing.T, r *session.Renewer) {
		first, err := r.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for range 10 {
			if !r.Doubt(first.Token) {
				t.Error("a session that was refused is not renewed")
			}
		}
		if k, err := r.Keys(t.Context()); err != nil || k != first {
			t.Errorf("the old keys are gone: %v %v", k, err)
		}
		time.Sleep(2 * time.Second)
		next, err := r.Keys(t.Context())
		if err != nil || next.Token == first.Token || s.asked() != 2 {
			t.Fatalf("%v %v, asked %d times", next, err, s.asked())
		}
		if !r.Doubt(first.Token) || r.Doubt(next.Token) {
			t.Error("the old session is believed in, or the new one is not")
		}
		time.Sleep(time.Minute)
		s.fail(errAway)
		if !r.Doubt(next.Token) {
			t.Error("not renewed a minute later")
		}
		time.Sleep(2 * time.Second)
		if r.Doubt(next.Token) {
			t.Error("hopes for another one, right after it could not be had")
		}
	})
}

// Close ends what is under way, and nothing is left.
func TestClose(t *testing.T) {
	s := &service{life: time.Hour, slow: time.Hour}
	try(t, s, func(t *testing.T, r *session.Renewer) {
		ended := make(chan error, 1)
		go func() { _, err := r.Keys(t.Context()); ended <- err }()
		time.Sleep(time.Second)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("keys of a service that did not answer")
		}
		if _, err := r.Keys(t.Context()); err == nil {
			t.Error("keys after Close")
		}
	})
}

// Nothing prints a secret.
func TestPrints(t *testing.T) {
	s := &service{life: time.Hour}
	try(t, s, func(t *testing.T, r *session.Renewer) {
		k, err := r.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []any{k, &k, r, r.Status(), session.Config{Issuer: s}} {
			if text := fmt.Sprintf("%v %+v %#v %s", v, v, v, v); strings.Contains(text, "very-secret") || strings.Contains(text, "token-1") {
				t.Errorf("%T prints %s", v, text)
			}
		}
	})
}
