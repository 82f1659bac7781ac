package bench

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

func TestPicture(t *testing.T) {
	result := func(workload, subject, metric string, v float64, unit string) Result {
		return Result{workload, subject, metric, v, unit, "abc1234", `a "machine" <of> 2 cores`}
	}
	var out bytes.Buffer
	err := Picture(&out, []Result{
		result("full", "mover", "seconds", 4.2, "s"),
		result("full", "mover / nbdcopy", "ratio of medians (at most 0.5)", 0.9, "ratio"),
		result("full", "mover / nbdcopy", "ratio of medians (at most 0.5)", 0.4, "ratio"),
		result("full", "mover / <restic>", "ratio of medians (at most 0.25)", 0.3, "ratio"),
		result("delta", "rsync / mover", "ratio of medians (at least 20)", 123, "ratio"),
		result("pause", "mover", "median pause (under 1)", 0.07, "s"),
		result("twin", "second / first", "ratio of wire bytes", 0.2, "ratio"),
	})
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(bytes.NewReader(out.Bytes()))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("not well formed: %v\n%s", err, out.String())
		}
	}
	s := out.String()
	for want, n := range map[string]int{`class="bar"`: 5, "#2c8a57": 3, "#c0392b": 1, "#9a9a9a": 1, "mover / &lt;restic&gt;: ratio of medians</text>": 1, "0.4 (at most 0.5)": 1,
		"0.07 s (at most 1)": 1, "commit abc1234 on a &#34;machine&#34; &lt;of&gt; 2 cores": 1} {
		if got := strings.Count(s, want); got != n {
			t.Errorf("%q stands there %d times, want %d\n%s", want, got, n, s)
		}
	}
}
