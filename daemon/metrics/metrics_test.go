package metrics

import (
	"flag"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/mover"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files")

func flowsForTest() []mover.Status {
	at := time.Date(2026, 3, 1, 12, 0, 0, 500_000_000, time.UTC)
	return []mover.Status{
		{Flow: "root", Role: "source", Size: 12 << 30, State: mover.Passing, Tracking: "ebpf: tp_btf, 3 copies", Dirty: 212 << 20, DirtyRate: 5e6, Rate: 4e7, WireRate: 2e7, Lag: 3.5,
			Estimate: 1.25, Conns: 4, Links: []mover.LinkStatus{{Name: "dedicated", Up: true, Conns: 4, Rate: 1e6}, {Name: "vpn", Rate: -1}}, RTT: 0.02, Passes: 7, Rescans: 1, Reconnects: 2, Resent: 4096, WireOut: 1 << 30, WireIn: 1 << 20,
			Pass:   &mover.Pass{Kind: "delta", Total: 1000, Read: 800, Acked: 600},
			Totals: mover.Counts{Offered: 10, Same: 4, Copied: 1, Sent: 5, Put: 512, Zero: 1024, Free: 2048, Unreadable: 512}, Unreadable: []string{"[0,512)"},
			Memory: 8 << 20, MemoryLimit: 128 << 20, PointTime: at, PointEpoch: 6,
			Group: &mover.Group{Name: "server", Members: []string{"root", "data"}, Every: 900, Taken: 5, Failed: 1, Skipped: 2,
				Moment: &mover.LastMoment{Time: at, Consistency: "app", Pause: 0.25}}},
		{Flow: "acme/db1/root", Role: "gateway", Size: 12 << 30, State: mover.Waiting, Log: 5, LogLimit: 10},
		{Flow: "photos", Role: "source", Size: 1 << 30, State: mover.Passing, Rate: 4e6, Pass: &mover.Pass{Kind: "first", Total: 1000, Read: 800, Acked: 600},
			Bucket: &mover.Bucket{Pass: 1, Listing: true, Listed: 20, ListedBytes: 2000, Left: 1, Planned: 15, PlannedBytes: 1000, Copied: 9, CopiedBytes: 600, Objects: 9, Bytes: 600,
				Refused: 2, Failed: 1, Partly: 3, Sent: 700, Passes: 4, Stores: map[string]mover.BucketCounts{"source": {Calls: 30},
					"target": {Calls: 12, Errors: map[string]uint64{"slow down": 2}}},
				Keys: map[string]mover.BucketKeys{"target": {Left: 1200, Renewed: 3, Failed: 1}}}},
		{Flow: "acme/db1/photos", Role: "gateway", State: mover.Passing, Conns: 2, WireIn: 900, WireOut: 80,
			Relay: &mover.Relay{Bodies: 4000, Offered: 3500, Needed: 2000, Packed: 800, Resent: 10, Calls: 40, Failed: 1, Objects: 30}},
	}
}

// The scrape is golden: a name, a label or a unit that changes breaks somebody's alert.
func TestScrape(t *testing.T) {
	w := httptest.NewRecorder()
	Handler("source", "v1.2.3", flowsForTest, nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var ours []string
	for l := range strings.Lines(w.Body.String()) {
		if strings.Contains(l, "mover_") {
			ours = append(ours, l)
		}
	}
	got := strings.Join(ours, "")
	const golden = "testdata/scrape.txt"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("scrape changed; look at the difference, then go test -rewrite. got:\n%s", got)
	}
	for _, name := range Names() {
		if !strings.Contains(got, "# TYPE "+name+" ") {
			t.Errorf("%s is not in the scrape", name)
		}
	}
	if w := httptest.NewRecorder(); true {
		Handler("source", "v1.2.3", flowsForTest, nil).ServeHTTP(w, httptest.NewRequest("POST", "/metrics", nil))
		if w.Code != 405 {
			t.Errorf("POST answered %d", w.Code)
		}
	}
	promtool(t, w.Body.String())
}

// promtool judges names and help texts where it is installed; it is not needed for the golden scrape.
func promtool(t *testing.T, scrape string) {
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed (package prometheus); names were not judged by it")
		return
	}
	cmd := exec.Command(path, "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
