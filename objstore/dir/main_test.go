package dir

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/moverd/mover/objstore"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("MOVER_TEST_DIR_WRITER"); path != "" {
		write := writeOn
		if os.Getenv("MOVER_TEST_DIR_TELLS") != "" {
			write = tellOf
		}
		if err := write(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// room is an empty one for a test, in memory where there is such a place: fsync costs nothing there.
func room(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dirtest-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func open(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *Store, key, content string) objstore.Written {
	t.Helper()
	w, err := s.Put(context.Background(), key, objstore.Bytes([]byte(content)), objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func remove(t testing.TB, s *Store, keys ...string) {
	t.Helper()
	if left, err := s.Delete(context.Background(), keys...); err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
}

func list(t testing.TB, s *Store, q objstore.Query) (keys []string) {
	t.Helper()
	for {
		p, err := s.List(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			keys, q.After = append(keys, e.Key), e.Key
		}
		if !p.More {
			return keys
		}
	}
}

// whole is the content of an object that writeOn stores.
func whole(key string, n int) string {
	b := make([]byte, 0, 200_000)
	for len(b) < 200_000 {
		b = strconv.AppendInt(append(b, key...), int64(n), 10)
	}
	return string(b)
}

// writeOn puts, deletes and uploads until it is killed.
func writeOn(path string) error {
	s, err := Open(Config{Path: path})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	ctx := context.Background()
	for n := 0; ; n++ {
		key := []string{"a", "a/b", "a/b/c", "d"}[n%4]
		b := objstore.Bytes([]byte(whole(key, n)))
		if n%3 != 0 {
			if _, err := s.Put(ctx, key, b, objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"n": strconv.Itoa(n)}}}); err != nil {
				return err
			}
			continue
		}
		if n%2 == 0 {
			if _, err := s.Delete(ctx, key); err != nil {
				return err
			}
		}
		up, err := s.Begin(ctx, key, objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"n": strconv.Itoa(n)}}})
		if err != nil {
			return err
		}
		w, err := s.PutPart(ctx, key, up, 1, b)
		if err != nil {
			return err
		}
		if _, err := s.Complete(ctx, key, up, []objstore.Part{{No: 1, Size: b.Size, ETag: w.ETag}}, objstore.PutOptions{}); err != nil {
			return err
		}
	}
}

// tellOf puts and deletes until it is killed, and tells of each when it is durable.
func tellOf(path string) error {
	s, err := Open(Config{Path: path})
	if err != nil {
		return err
	}
	ctx := context.Background()
	for n := 0; ; n++ {
		key, gone := told(n)
		if gone {
			if left, err := s.Delete(ctx, key); err != nil || len(left) > 0 {
				return fmt.Errorf("%v, %w", left, err)
			}
		} else {
			b := []byte(whole(key, n)[:1+n%30_000])
			if _, err := s.Put(ctx, key, objstore.Bytes(b), objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"n": strconv.Itoa(n)}}}); err != nil {
				return err
			}
		}
		fmt.Println(n)
	}
}

// told is what tellOf does as number n.
func told(n int) (key string, gone bool) {
	if key = fmt.Sprintf("d%d/e%d/%d", n%7, n%23, n%300); n%5 == 4 {
		key = fmt.Sprintf("d%d", n%7) // beside a folder, or where one comes
	}
	return key, n%3 == 2
}
