package sender

import (
	"errors"
	"strings"
	"testing"

	"github.com/moverd/mover/internal/sentinel"
)

// What a hand-over that ended early is told as (C15).
func TestBrokenOff(t *testing.T) {
	lost := errors.New("line cut")
	for _, c := range []struct {
		name             string
		members          int
		handed           bool
		refused, doubted []string
		partly           bool
		want             string // "": nothing was handed over, so all thaw; or all was
	}{
		{"all", 2, true, nil, nil, false, ""},
		{"none", 2, false, []string{"a", "b"}, nil, false, ""},
		{"one flow", 1, false, nil, []string{"a"}, false, "RELEASE was sent and nobody knows whether the target of a (line cut) was handed over"},
		{"some", 3, true, []string{"b"}, nil, true, "2 of 3 targets of the group were handed over, but not that of b (line cut)"},
		{"one of two in doubt", 2, false, []string{"a"}, []string{"b"}, true, "0 of 2 targets of the group were handed over, but not that of a (line cut); RELEASE was sent and nobody knows of that of b (line cut)"},
		{"all in doubt", 2, false, nil, []string{"a", "b"}, false, "0 of 2 targets of the group were handed over; RELEASE was sent and nobody knows of that of a (line cut), b (line cut)"},
	} {
		g := NewGroup("", nil, c.members)
		g.handed.Store(c.handed)
		for _, f := range c.refused {
			g.refuse(f, lost)
		}
		for _, f := range c.doubted {
			g.doubtful(f, lost)
		}
		err := g.brokenOff()
		if (err != nil) != (c.want != "") || err != nil && (!errors.Is(err, sentinel.ErrBrokenOff) || !strings.HasPrefix(err.Error(), c.want+":")) || g.partly() != c.partly {
			t.Errorf("%s: %v, partly %v", c.name, err, g.partly())
		}
	}
}
