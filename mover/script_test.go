package mover

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata say now")

// script runs each line of testdata/name that is not blank or a comment, and compares with what stands behind "=>".
func script(t *testing.T, name string, run func(args map[string]string) string) {
	t.Helper()
	path := "testdata/" + name
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for no, line := range strings.Split(strings.TrimRight(string(raw), "\n"), "\n") {
		in, want, _ := strings.Cut(line, "=>")
		in, want = strings.TrimSpace(in), strings.TrimSpace(want)
		if in == "" || strings.HasPrefix(in, "#") {
			fmt.Fprintln(&out, line)
			continue
		}
		args := map[string]string{}
		for _, f := range strings.Fields(in) {
			k, v, _ := strings.Cut(f, "=")
			args[k] = v
		}
		got := run(args)
		if got != want && !*rewrite {
			t.Errorf("%s:%d: %s\n got  %s\n want %s", path, no+1, in, got, want)
		}
		fmt.Fprintf(&out, "%s => %s\n", in, got)
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func num(args map[string]string, key string) int64 {
	if args[key] == "" {
		return 0
	}
	n, err := strconv.ParseInt(args[key], 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func id(n int64) (g ID) {
	g[15] = byte(n)
	return g
}

func TestNextScript(t *testing.T) {
	phases := map[string]Phase{"fresh": Fresh, "incomplete": Incomplete, "point": Point, "released": Released}
	script(t, "next.txt", func(a map[string]string) string {
		f := Facts{Size: 100, State: FlowState{Phase: phases[a["phase"]], Generation: id(num(a, "gen")), Epoch: uint64(num(a, "epoch")), VolumeSize: 100},
			Table: Tag{id(num(a, "table")), uint64(num(a, "filled"))}, Force: a["force"]}
		f.History.Generation, f.History.Taken, f.History.Retired = id(num(a, "tracker")), uint64(num(a, "taken")), uint64(num(a, "retired"))
		if n := num(a, "size"); n > 0 {
			f.Size = n
		}
		_, f.Scan = a["scan"]
		_, f.Reclaim = a["reclaim"]
		if _, lost := a["lost"]; lost {
			f.Lost = sentinel.ErrTrackLost
		}
		c, err := Next(f)
		switch {
		case errors.Is(err, sentinel.ErrRefused):
			return err.Error()
		case err != nil:
			t.Errorf("%v: %v", a, err)
		}
		s := c.Kind.String()
		if c.Restart {
			s += " restart"
		}
		return s + ": " + c.Why
	})
}

func TestConvergeScript(t *testing.T) {
	var c *Converge
	var elapsed time.Duration
	script(t, "converge.txt", func(a map[string]string) string {
		if _, begin := a["begin"]; begin {
			c, elapsed = &Converge{Limit: time.Duration(num(a, "limit")) * time.Millisecond, Timeout: time.Duration(num(a, "timeout")) * time.Second}, 0
			return "limit " + c.Limit.String()
		}
		elapsed += time.Duration(num(a, "took")) * time.Second
		v, err := c.Round(time.Duration(num(a, "estimate"))*time.Millisecond, elapsed, float64(num(a, "written"))*1e6, float64(num(a, "moved"))*1e6)
		if err != nil {
			if !errors.Is(err, sentinel.ErrNotConverged) {
				t.Errorf("%v", err)
			}
			return err.Error()
		}
		return map[Verdict]string{Again: "again", Go: "go"}[v]
	})
}

func TestLevelScript(t *testing.T) {
	script(t, "levels.txt", func(a map[string]string) string {
		var l Levels
		if n := num(a, "ratio"); n > 0 { // what fastest was seen to do
			l.Observe(1, 1000, n*10, 1000/180e6)
		}
		names := []string{"off", "fastest", "default", "better", "best"}
		return names[l.Choose(float64(num(a, "line"))*1e6, float64(num(a, "cores")), int(num(a, "weakest")))]
	})
}

func TestPauseScript(t *testing.T) {
	script(t, "pause.txt", func(a map[string]string) string {
		p := Pace{Line: float64(num(a, "line")) * 1e6, Source: float64(num(a, "source")) * 1e6, Target: float64(num(a, "target")) * 1e6,
			RTT: time.Duration(num(a, "rtt")) * time.Millisecond, LeafSize: 16 << 10, Granule: 4 << 10}
		return p.Pause(num(a, "dirty")*1e6, num(a, "unknown")*1e6).Round(time.Millisecond).String()
	})
}
