package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the golden frames anew")

// TestGolden holds encoder, decoder and specification together.
func TestGolden(t *testing.T) {
	seen := map[Type]bool{}
	want := map[string]bool{}
	for _, s := range samples() {
		t.Run(s.file, func(t *testing.T) {
			frame, err := AppendFrame(nil, s.seq, s.m)
			must(t, err)
			path := filepath.Join("testdata", s.file+".hex")
			if *rewrite {
				must(t, os.WriteFile(path, []byte(dump(t, s, frame)), 0o644))
			}
			golden := load(t, path)
			if !bytes.Equal(frame, golden) {
				t.Errorf("encodes as\n%x, golden is\n%x", frame, golden)
			}
			f, rest, err := DecodeFrame(golden)
			must(t, err)
			if len(rest) > 0 || f.Seq != s.seq || f.Type != TypeOf(s.m) {
				t.Fatalf("frame %v seq %d, %d bytes behind it", f.Type, f.Seq, len(rest))
			}
			m := New(f.Type)
			must(t, m.Decode(f.Payload))
			if !equal(m, s.m) {
				t.Errorf("decodes as %+v, want %+v", m, s.m)
			}
			n := 0
			for _, f := range s.fields {
				n += f.n
			}
			if n != len(golden)-HeaderSize {
				t.Errorf("fields of the specification have %d bytes, the payload %d", n, len(golden)-HeaderSize)
			}
		})
		seen[TypeOf(s.m)], want[s.file+".hex"] = true, true
	}
	for i := range kinds {
		if ty := Type(i); ty.Known() && !seen[ty] {
			t.Errorf("%v has no golden frame", ty)
		}
	}
	files, err := os.ReadDir("testdata")
	must(t, err)
	for _, f := range files {
		if !f.IsDir() && !want[f.Name()] {
			t.Errorf("testdata/%s belongs to no message", f.Name())
		}
	}
}

// equal compares messages; nil and empty slices are the same on the wire.
func equal(a, b Message) bool {
	return reflect.DeepEqual(a, b) || TypeOf(a) == TypeOf(b) && bytes.Equal(a.Append(nil), b.Append(nil))
}

func dump(t *testing.T, s sample, frame []byte) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "# %v, one frame, byte for byte. Written by `go test ./wire -run Golden -rewrite`.\n", TypeOf(s.m))
	all := append([]field{{"length of the payload", 4}, {"type " + TypeOf(s.m).String(), 1}, {"flags", 1}, {"reserved", 2}, {"seq", 4}}, s.fields...)
	for _, f := range all {
		if len(frame) < f.n {
			t.Fatalf("field %q is beyond the frame", f.name)
		}
		row := hex.EncodeToString(frame[:f.n])
		fmt.Fprintf(&b, "%-32s # %s\n", row[:min(len(row), 32)], f.name)
		for row = row[min(len(row), 32):]; row != ""; row = row[min(len(row), 32):] {
			fmt.Fprintf(&b, "%s\n", row[:min(len(row), 32)])
		}
		frame = frame[f.n:]
	}
	return b.String()
}

func load(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	var hexes strings.Builder
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		hexes.WriteString(strings.TrimSpace(line))
	}
	b, err := hex.DecodeString(hexes.String())
	must(t, err)
	return b
}
