package report

import (
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/mover"
)

const bucketRoot = "77aa81a4c2a1f0f6e7a99b4e5b0c7ad3f4f1f6a2b8d7c6e5f4a3b2c1d0e9f8a7"

// bucketMoves is a source that moves a bucket: passes, one in vain, a verification that found a difference, a cutover.
func bucketMoves() (*Document, history.Past) {
	begin := now.Add(-24 * time.Hour)
	pass := func(at time.Time, kind string, copied, bytes int64) mover.Event {
		return mover.Event{Time: at.Add(time.Minute), Began: at, Kind: mover.PassEvent, Flow: "photos", Pass: &mover.EndedPass{Kind: kind, Passes: 1, Epoch: 1, Consistency: "fuzzy",
			Moved: mover.Moved{Looked: bytes, Sent: bytes, Payload: bytes, Wire: bytes}, Bucket: &mover.BucketPass{Listed: 1_000_000, Copied: copied, Deleted: 3, Objects: 1_000_000, Bytes: 5 << 30, Refused: 2, Partly: 1}}}
	}
	doc := &Document{Made: now, Role: "source", Host: "db1", Software: "v1.4.0", Flows: []Flow{{Status: mover.Status{Flow: "photos", Role: "source", Device: "s3 photos", Peer: "bos photos-bj",
		State: mover.Done, Reason: "cut over", Size: 5 << 30, Bucket: &mover.Bucket{Pass: 9, Objects: 1_000_000, Bytes: 5 << 30, Refused: 2, Partly: 1}}}}}
	failed := pass(begin.Add(2*time.Hour), "delta", 5, 500)
	failed.Error = "the target: tried in vain"
	verify := &mover.Report{Flow: "photos", Kind: "verify", Started: begin, Ended: begin.Add(time.Hour), Error: "1 objects are not what was written there",
		Bucket: &mover.BucketReport{Pass: 3, Objects: 999_999, Bytes: 4 << 30, Differ: 1, Examples: []string{`"a": it is missing`}}}
	cut := &mover.Report{Flow: "photos", Kind: "cutover", OK: true, Started: now.Add(-time.Hour), Ended: now.Add(-50 * time.Minute), Pause: 42, Rounds: 2, FinalDelta: 1 << 20, Left: "stopped", Released: true,
		TargetRoot: bucketRoot, Steps: []mover.Step{{Name: "rounds", Seconds: 100}, {Name: "stop", Seconds: 1}, {Name: "settle", Seconds: 3}, {Name: "final", Seconds: 30}, {Name: "verify", Seconds: 7}, {Name: "manifest", Seconds: 1}},
		Bucket: &mover.BucketReport{Pass: 9, Objects: 1_000_000, Bytes: 5 << 30, Read: true, Refused: 2, Partly: 1, Manifest: "/var/lib/mover/buckets/photos/manifest-000009.jsonl", Root: bucketRoot}}
	past := history.Past{Samples: map[string][]history.Sample{}, Events: []mover.Event{pass(begin, "first", 999_000, 5<<30), pass(begin.Add(time.Hour), "delta", 900, 1<<20), failed,
		{Time: verify.Ended, Kind: "verify", Flow: "photos", Report: verify, Error: verify.Error},
		{Time: now.Add(-2 * time.Hour), Kind: "flow.keys", Flow: "photos", Details: map[string]any{"end": "target", "why": "nobody answers"}},
		pass(now.Add(-55*time.Minute), "final", 100, 1<<20), {Time: cut.Ended, Kind: "cutover", Flow: "photos", Report: cut, Pause: 42, Actor: "uid:0/pid:1"}}}
	return doc, past
}

// A bucket flow's past is told as text and as a page: passes, objects, bytes, what was refused, the comparison, the pause, the root of the manifest.
func TestBucketPages(t *testing.T) {
	doc, past := bucketMoves()
	doc.Fill(past)
	if f := doc.Flows[0]; f.Passes.Full != 1 || f.Passes.Delta != 2 || f.Passes.Failed != 1 || f.copied() != 1_000_005 || f.Moved.Sent != 5<<30+2<<20 {
		t.Errorf("%+v %d %+v", f.Passes, f.copied(), f.Moved)
	}
	out := render(t, "bucket", doc)
	for _, want := range []string{"first pass", "1000000 objects listed, 999000 copied", "final pass", "2 refused", "1 partly", "NOT done, 1 objects are not what", bucketRoot, "by digest", "manifest-000009.jsonl",
		"writers stood    42 s: stop 1.0 s, settle 3.0 s, final 30 s, verify 7.0 s, manifest 1.0 s", "the target has what was written there", "both ends were compared and are equal", "nobody answers", "uid:0/pid:1"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out[strings.Index(out, "</html>"):])
		}
	}
	for _, no := range []string{"recovery point of", "tracker", "source root"} {
		if text := out[strings.Index(out, "</html>"):]; strings.Contains(text, no) {
			t.Errorf("the text tells of a %s", no)
		}
	}
}

// What lies at the target, and the requests that wrote it, are counted and not guessed.
func TestBucketCost(t *testing.T) {
	p, err := cost.Parse("p.yaml", []byte(`prices:
  - {kind: bos, name: STANDARD, price: 0.1, unit: GiB-month, currency: CNY, from: 2020-01-01, source: test}
  - {kind: request, name: STANDARD, price: 0.01, unit: 10k, currency: CNY, from: 2020-01-01, source: test}
use: {line: none, target: bos/STANDARD, points: none}
`))
	if err != nil {
		t.Fatal(err)
	}
	doc, past := bucketMoves()
	doc.Fill(past)
	a := doc.Price(p, now)
	for _, it := range a.Items {
		if it.What == "requests" && it.SoFar.Count != 1_000_005 || it.What == "target" && it.SoFar.Bytes != 5<<30 {
			t.Errorf("%+v", it)
		}
	}
	if len(a.Items) != 2 || !a.Whole {
		t.Errorf("%+v", a)
	}
}
