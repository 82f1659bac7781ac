package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/objtest"
)

func TestConformance(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		return objtest.Subject{Store: open(t, Config{Path: room(t), Page: 60}), Class: "COLD"}
	})
}

func TestConformanceOfSideFiles(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objtest.Subject {
		s := open(t, Config{Path: room(t), Page: 60, SideFiles: true})
		s.share = 1
		return objtest.Subject{Store: s, Class: "COLD"}
	})
}

// TestExt4 has the limits of a real filesystem: little space, and no room for large attributes in an inode.
func TestExt4(t *testing.T) {
	loop := looptest.New(t, 24<<20, looptest.Options{})
	looptest.Mkfs(t, loop.Dev, "ext4", "-m", "0")
	path := looptest.Mount(t, loop.Dev)
	s, ctx := open(t, Config{Path: path}), context.Background()
	if s.side {
		t.Error("ext4 takes attributes")
	}
	a := objstore.Attrs{ContentType: "text/plain", Meta: map[string]string{"large": strings.Repeat("m", 20_000)}}
	for range 2 { // the second time in place of the first
		if _, err := s.Put(ctx, "large", objstore.Bytes([]byte("x")), objstore.PutOptions{Attrs: a}); err != nil {
			t.Fatal(err)
		}
	}
	if h, err := s.Head(ctx, "large"); err != nil || h.Attrs.Meta["large"] != a.Meta["large"] || h.Attrs.ContentType != "text/plain" {
		t.Errorf("%d bytes of attributes, %v", len(h.Attrs.Meta["large"]), err)
	}
	if n := len(sideFiles(t, path)); n != 1 {
		t.Errorf("%d side files, want 1", n)
	}
	put(t, s, "large", "small attributes")
	if left := sideFiles(t, path); len(left) != 0 {
		t.Errorf("side files of nothing: %v", left)
	}
	put(t, s, "before", "is there")
	full(t, s, path, 30<<20)
	remove(t, s, "large", "before")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	looptest.Unmount(t, path)
}

func sideFiles(t *testing.T, path string) (all []string) {
	t.Helper()
	filepath.WalkDir(filepath.Join(path, own, "attrs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	return all
}

// full stores what does not fit, in every way.
func full(t *testing.T, s *Store, path string, n int64) {
	t.Helper()
	ctx := context.Background()
	clear := func(err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOSPC) || objstore.Retryable(err) || !strings.Contains(err.Error(), "no space left for "+path) {
			t.Errorf("a full disk: %v", err)
		}
		if all := temporary(t, path); len(all) != 0 {
			t.Errorf("left on a full disk: %v", all)
		}
	}
	zeros := func(n int64) objstore.Body {
		return objstore.Body{Size: n, Open: func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(nul{}, n)), nil }}
	}
	for range 2 {
		_, err := s.Put(ctx, "new", zeros(n), objstore.PutOptions{})
		clear(err)
		_, err = s.Put(ctx, "before", zeros(n), objstore.PutOptions{})
		clear(err)
	}
	up, err := s.Begin(ctx, "new", objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.PutPart(ctx, "new", up, 1, zeros(n))
	clear(err)
	w, err := s.PutPart(ctx, "new", up, 1, zeros(n/2)) // its copy does not fit
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Complete(ctx, "new", up, []objstore.Part{{No: 1, Size: n / 2, ETag: w.ETag}}, objstore.PutOptions{})
	clear(err)
	if parts, _, err := s.Parts(ctx, "new", up, 0); err != nil || len(parts) != 1 {
		t.Errorf("the upload: %v, %v", parts, err)
	}
	if err := s.Abort(ctx, "new", up); err != nil {
		t.Error(err)
	}
	// Small ones, until not even the file of one fits.
	var last error
	for i := 0; last == nil && i < 5000; i++ {
		_, last = s.Put(ctx, fmt.Sprintf("small/%d", i), zeros(100_000), objstore.PutOptions{})
	}
	clear(last)
	small := list(t, s, objstore.Query{Prefix: "small/"})
	if len(small) < 5 {
		t.Errorf("only %d small ones did fit", len(small))
	}
	for _, key := range small {
		if _, r, err := s.Get(ctx, key, objstore.GetOptions{}); err != nil {
			t.Error(err)
		} else if n, err := io.Copy(io.Discard, r); n != 100_000 || errors.Join(err, r.Close()) != nil {
			t.Errorf("%s: %d bytes, %v", key, n, err)
		}
	}
	remove(t, s, small...)
	if _, r, err := s.Get(ctx, "before", objstore.GetOptions{}); err != nil {
		t.Error(err)
	} else if b, _ := io.ReadAll(r); string(b) != "is there" || r.Close() != nil {
		t.Errorf("what was there before is %q", b)
	}
	if got := list(t, s, objstore.Query{Prefix: "new"}); len(got) != 0 {
		t.Errorf("a full disk has %q", got)
	}
}

type nul struct{}

func (nul) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// temporary is what is in the folders of temporary files.
func temporary(t *testing.T, path string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(path, own, "tmp", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRamfs has a filesystem without extended attributes.
func TestRamfs(t *testing.T) {
	looptest.NeedRoot(t)
	path := filepath.Join(looptest.Dir(t), "mnt")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	looptest.Run(t, "mount", "-t", "ramfs", "none", path)
	t.Cleanup(func() { looptest.Unmount(t, path) })
	s, ctx := open(t, Config{Path: path}), context.Background()
	if !s.side {
		t.Error("ramfs takes no attributes")
	}
	a := objstore.Attrs{ContentType: "text/plain", Meta: map[string]string{"a": "b"}}
	for _, content := range []string{"one", "two"} {
		if _, err := s.Put(ctx, "a", objstore.Bytes([]byte(content)), objstore.PutOptions{Attrs: a}); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "a/b", "makes way")
	if h, err := s.Head(ctx, "a"); err != nil || h.Attrs.ContentType != "text/plain" || h.Attrs.Meta["a"] != "b" {
		t.Errorf("%+v, %v", h, err)
	}
	if n := len(sideFiles(t, path)); n != 2 {
		t.Errorf("%d side files, want 2", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	ro := open(t, Config{Path: path, ReadOnly: true})
	if h, err := ro.Head(ctx, "a"); err != nil || h.Attrs.Meta["a"] != "b" {
		t.Errorf("%+v, %v", h, err)
	}
	ro.Close()
	s = open(t, Config{Path: path})
	remove(t, s, "a", "a/b")
	if left := sideFiles(t, path); len(left) != 0 {
		t.Errorf("side files of nothing: %v", left)
	}
	s.Close()
}

// TestNames has the format: what docs/objects.md says of names.
func TestNames(t *testing.T) {
	k256 := strings.Repeat("k", 256)
	for key, want := range map[string][2]string{
		"photos/2020/x.jpg": {"photos/2020/x.jpg", "photos/2020/.mover=x.jpg"},
		"a%2Fb":             {"a%2Fb", ".mover=a%252Fb"},
		"photos/":           {"photos/.mover=", ""},
		"/":                 {".mover~/.mover=", ""},
		"a//b":              {"a/.mover~/b", "a/.mover~/.mover=b"},
		"..":                {".mover=..", ""},
		"../x":              {".mover~../x", ".mover~../.mover=x"},
		"./x":               {".mover~./x", ".mover~./.mover=x"},
		".mover":            {".mover=.mover", ""},
		".mover/x":          {".mover~.mover/x", ".mover~.mover/.mover=x"},
		"x/.mover=%":        {"x/.mover=.mover=%25", ""},
		".moverrc":          {".moverrc", ".mover=.moverrc"},
		"a\x00b":            {".mover=a%00b", ""},
		"a\x00b/c":          {".mover~a%00b/c", ".mover~a%00b/.mover=c"},
		k256:                {".mover+" + k256[:240] + "/" + k256[240:], ".mover+" + k256[:240] + "/.mover=" + k256[240:]},
		k256 + "/x":         {".mover+" + k256[:240] + "/" + k256[240:] + "/x", ".mover+" + k256[:240] + "/" + k256[240:] + "/.mover=x"},
		k256[:255]:          {k256[:255], ".mover+" + k256[:240] + "/.mover=" + k256[240:255]},
	} {
		first, second := places(key)
		if want[1] == "" {
			want[1] = want[0]
		}
		if first.path() != want[0] || second.path() != want[1] {
			t.Errorf("%.40q is at %q, %q; want %q", key, first.path(), second.path(), want)
		}
	}
	for _, path := range []string{".mover", ".mover/x", ".mover=a%", ".mover=%41", ".mover~a/b", ".mover+a/b", ".mover=a/b", "a/.mover~", ".mover~../.mover+", ".mover~%2e%2e/x"} {
		if key, ok := keyOf(path); ok {
			t.Errorf("%q is the object %q", path, key)
		}
	}
}

// FuzzNames: a key comes back from its paths, no two keys share one, and no path leaves the folder.
func FuzzNames(f *testing.F) {
	for _, key := range []string{"a", "a/", "//", "../..", ".mover=", ".mover~a/.mover+b", "\x00%", strings.Repeat("%", 1024), strings.Repeat("k/", 500)} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if Key(key) != nil {
			t.Skip()
		}
		first, second := places(key)
		for _, p := range []place{first, second} {
			if got, ok := keyOf(p.path()); !ok || got != key {
				t.Errorf("%q is at %q, which is %q, %v", key, p.path(), got, ok)
			}
			for _, name := range strings.Split(p.path(), "/") {
				if name == "" || name == "." || name == ".." || name == own || len(name) > 255 || strings.ContainsRune(name, 0) {
					t.Errorf("%q has the name %q in its path", key, name)
				}
			}
			if len(p.path()) > deepest {
				t.Errorf("a path of %d bytes", len(p.path()))
			}
		}
	})
}

// TestWays: an object that stands where a folder has to be makes way, and comes back under the same key.
func TestWays(t *testing.T) {
	path := room(t)
	s, ctx := open(t, Config{Path: path}), context.Background()
	is := func(name string) bool {
		st, err := os.Lstat(filepath.Join(path, name))
		return err == nil && st.Mode().IsRegular()
	}
	a := put(t, s, "a", "file first")
	put(t, s, "a/b/c", "x")
	if h, err := s.Head(ctx, "a"); err != nil || h.ETag != a.ETag || !is(".mover=a") || !is("a/b/c") {
		t.Errorf("%+v, %v", h, err)
	}
	put(t, s, "a/b", "folder first")
	if !is("a/.mover=b") {
		t.Error("an object beside a folder of its name is elsewhere")
	}
	put(t, s, "a", "again")
	if is("a") || !is(".mover=a") {
		t.Error("an object that was overwritten is elsewhere")
	}
	if got := list(t, s, objstore.Query{}); !slices.Equal(got, []string{"a", "a/b", "a/b/c"}) {
		t.Errorf("list %q", got)
	}
	remove(t, s, "a/b", "a/b/c")
	if _, err := os.Lstat(filepath.Join(path, "a")); err == nil {
		t.Error("an empty folder stays")
	}
	put(t, s, "a", "third")
	if got := list(t, s, objstore.Query{}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("list %q", got)
	}
	// Somebody puts a file of that name beside it: that is the object now, and there is one.
	if err := os.WriteFile(filepath.Join(path, "a"), []byte("of others"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Head(ctx, "a"); err != nil || h.Size != 9 {
		t.Errorf("%+v, %v", h, err)
	}
	if got := list(t, s, objstore.Query{}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("list %q", got)
	}
	if _, err := s.Put(ctx, "a/x", objstore.Bytes(nil), objstore.PutOptions{}); err == nil || !strings.Contains(err.Error(), "remove one") {
		t.Errorf("two files of one object: %v", err)
	}
	put(t, s, "a", "of ours")
	if !is("a") || is(".mover=a") {
		t.Error("two files of one object")
	}
	remove(t, s, "a")
	if all, _ := os.ReadDir(path); len(all) != 1 {
		t.Errorf("left: %v", all)
	}
}

// TestLinks: what links in the folder lead to is neither read nor written, nor listed.
func TestLinks(t *testing.T) {
	path, outside := room(t), room(t)
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, ctx := open(t, Config{Path: path}), context.Background()
	put(t, s, "in/x", "inside")
	for name, to := range map[string]string{"file": secret, "dir": outside, "up": "..", "rel": "../" + filepath.Base(outside), "self": "in", "loop": "loop", "gone": "nowhere", "in/link": secret, "root": "/"} {
		if err := os.Symlink(to, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(path, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"file", "dir", "dir/secret", "up/" + filepath.Base(outside) + "/secret", "rel/secret", "self/x", "loop", "loop/x", "gone", "in/link", "root" + secret, "pipe", "pipe/x",
		"../" + filepath.Base(outside) + "/secret", "in/../../" + filepath.Base(outside) + "/secret", secret} {
		if _, _, err := s.Get(ctx, key, objstore.GetOptions{}); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("get %q: %v", key, err)
		}
		if _, err := s.Head(ctx, key); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("head %q: %v", key, err)
		}
		remove(t, s, key)
		_, err := s.Put(ctx, key, objstore.Bytes([]byte("overwritten")), objstore.PutOptions{})
		if hostile := strings.HasPrefix(key, "/") || strings.Contains(key, ".."); hostile != (err == nil) {
			t.Errorf("put %q: %v", key, err)
		} else if err != nil && (!strings.Contains(err.Error(), "in the way") || objstore.Retryable(err) || errors.Is(err, objstore.ErrNotFound)) {
			t.Errorf("put %q: %v", key, err)
		} else if err == nil {
			remove(t, s, key)
		}
	}
	if b, err := os.ReadFile(secret); string(b) != "secret" {
		t.Errorf("outside: %q, %v", b, err)
	}
	if all, _ := os.ReadDir(outside); len(all) != 1 {
		t.Errorf("outside: %v", all)
	}
	if got := list(t, s, objstore.Query{}); !slices.Equal(got, []string{"in/x"}) {
		t.Errorf("list %q", got)
	}
	if all := temporary(t, path); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
	s.Close()
	evil := room(t) // the driver's own folder is a link
	if err := os.Symlink(outside, filepath.Join(evil, own)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: evil}); err == nil {
		t.Error("opened a folder whose own folder is elsewhere")
	}
	if all, _ := os.ReadDir(outside); len(all) != 1 {
		t.Errorf("outside: %v", all)
	}
}

// TestOthers: files that others put there, or change, are objects too.
func TestOthers(t *testing.T) {
	path := room(t)
	s, ctx := open(t, Config{Path: path}), context.Background()
	write := func(name, content string) {
		t.Helper()
		file := filepath.Join(path, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	head := func(key string) objstore.Object {
		t.Helper()
		h, err := s.Head(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	write("photos/2020/x.jpg", "one")
	write("100%.txt", "percent")
	write(".mover=x", "looks escaped, and is")
	write(".mover~x/y", "looks escaped, and is not")
	write(".mover=%zz", "looks escaped, and is not")
	if got := list(t, s, objstore.Query{}); !slices.Equal(got, []string{"100%.txt", "photos/2020/x.jpg", "x"}) {
		t.Errorf("list %q", got)
	}
	one := head("photos/2020/x.jpg")
	if one.Size != 3 || one.ETag == "" || one.Tags != 0 {
		t.Errorf("%+v", one)
	}
	if two := head("photos/2020/x.jpg"); two.ETag != one.ETag {
		t.Error("the ETag changes by itself")
	}
	if err := os.Chtimes(filepath.Join(path, "photos/2020/x.jpg"), time.Time{}, time.Now().Add(time.Nanosecond*777)); err != nil {
		t.Fatal(err)
	}
	if two := head("photos/2020/x.jpg"); two.ETag == one.ETag {
		t.Error("another time has the same ETag")
	}
	if err := s.SetTags(ctx, "photos/2020/x.jpg", map[string]string{"a": "b"}); err != nil {
		t.Error(err)
	}
	two := head("photos/2020/x.jpg")
	if err := os.Rename(filepath.Join(path, "photos/2020/x.jpg"), filepath.Join(path, "moved")); err != nil {
		t.Fatal(err)
	}
	if m := head("moved"); m.ETag != two.ETag || m.Tags != 1 {
		t.Errorf("after a rename: %+v, before %+v", m, two)
	}

	// One of ours that others write to keeps its attributes, not its ETag.
	w, err := s.Put(ctx, "ours", objstore.Bytes([]byte("content")), objstore.PutOptions{Attrs: objstore.Attrs{ContentType: "text/plain"}})
	if err != nil {
		t.Fatal(err)
	}
	write("ours", "tnetnoc")
	if h := head("ours"); h.ETag == w.ETag || h.Attrs.ContentType != "text/plain" {
		t.Errorf("%+v", h)
	}

	// While it is read.
	write("long", strings.Repeat("x", 100_000))
	_, r, err := s.Get(ctx, "long", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the clock of files
	write("long", strings.Repeat("y", 100_000))
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("written to while it was read: %d bytes, %v", n, err)
	}
}

// TestRot: bytes that the disk has bent are not given as what was stored.
func TestRot(t *testing.T) {
	path := room(t)
	s, ctx := open(t, Config{Path: path}), context.Background()
	content := strings.Repeat("content", 50_000)
	put(t, s, "a", content)
	file := filepath.Join(path, "a")
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("K"), 123_456)
	if err = errors.Join(err, f.Close(), os.Chtimes(file, time.Time{}, st.ModTime())); err != nil {
		t.Fatal(err)
	}
	_, r, err := s.Get(ctx, "a", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, objstore.ErrCorrupt) || objstore.Retryable(err) {
		t.Errorf("rotten bytes: %v", err)
	}
	if err := unix.Setxattr(file, xattr, []byte("{"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Head(ctx, "a"); !errors.Is(err, objstore.ErrCorrupt) {
		t.Errorf("attributes that are none: %v", err)
	}
	if err := unix.Setxattr(file, xattr, []byte(`{"v":2}`), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(ctx, objstore.Query{}); !errors.Is(err, objstore.ErrNotSupported) {
		t.Errorf("attributes of a newer version: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	path, ctx := room(t), context.Background()
	if err := os.WriteFile(filepath.Join(path, "x"), []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Path: path, ReadOnly: true})
	if got := list(t, s, objstore.Query{}); !slices.Equal(got, []string{"x"}) {
		t.Errorf("list %q", got)
	}
	_, err := s.Put(ctx, "y", objstore.Bytes(nil), objstore.PutOptions{})
	_, err2 := s.Begin(ctx, "y", objstore.PutOptions{})
	_, err3 := s.Delete(ctx, "x")
	for _, err := range []error{err, err2, err3, s.SetTags(ctx, "x", nil), s.Abort(ctx, "x", "y")} {
		if !errors.Is(err, objstore.ErrDenied) {
			t.Error(err)
		}
	}
	if us, next, err := s.Uploads(ctx, "", objstore.UploadPlace{}); err != nil || len(us) != 0 || next != nil {
		t.Error(us, next, err)
	}
	s.Close()
	if all, _ := os.ReadDir(path); len(all) != 1 {
		t.Errorf("reading leaves %v", all)
	}
}

func TestModes(t *testing.T) {
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	for _, c := range []struct{ file, dir, wantFile, wantDir fs.FileMode }{{0, 0, 0o600, 0o700}, {0o664, 0o775, 0o664, 0o775}} {
		path := room(t)
		s := open(t, Config{Path: path, FileMode: c.file, DirMode: c.dir})
		put(t, s, "d/e/x", "x")
		for name, want := range map[string]fs.FileMode{"d": c.wantDir, "d/e": c.wantDir, "d/e/x": c.wantFile, own: 0o700} {
			if st, err := os.Stat(filepath.Join(path, name)); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want %v", name, st.Mode(), err, want)
			}
		}
	}
	for _, c := range []Config{{}, {Path: "x", FileMode: 0o400}, {Path: "x", DirMode: 0o600}, {Path: "x", FileMode: fs.ModeSetuid | 0o600}, {Path: "x", Page: -1}} {
		if s, err := Open(c); err == nil {
			s.Close()
			t.Errorf("%+v is taken", c)
		}
	}
	if _, err := Open(Config{Path: "/nowhere/at/all"}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("a folder that is not there: %v", err)
	}
	file := filepath.Join(room(t), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: file}); err == nil {
		t.Error("a file is taken for a folder")
	}
}
