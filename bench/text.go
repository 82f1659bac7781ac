package bench

import (
	"bytes"
	"io"
	"strings"
)

func indent(s string) string {
	return "   " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n   ")
}

// indenter passes text on with every line indented.
type indenter struct {
	w     io.Writer
	start bool // at the start of a line
}

func (i *indenter) Write(p []byte) (int, error) {
	var out bytes.Buffer
	for _, b := range p {
		if i.start {
			out.WriteString("   ")
		}
		out.WriteByte(b)
		i.start = b == '\n'
	}
	_, err := i.w.Write(out.Bytes())
	return len(p), err
}

// tail keeps the last bytes of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 4000 {
		t.b = t.b[len(t.b)-4000:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }
