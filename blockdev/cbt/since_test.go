package cbt

import "testing"

// A write to a block that the last Take returned makes Pending no larger; Since has to see it all the same.
func TestSinceSeesRewritesOfWhatWasTaken(t *testing.T) {
	for _, v := range variants() {
		t.Run(v, func(t *testing.T) {
			r := newRig(t, 16<<20, rigOptions{variant: v})
			buf := aligned(t, 4096)
			r.write(1<<20, buf)
			r.take()
			if n, err := r.tr.Since(); n != 0 || err != nil {
				t.Fatalf("right after a take: %d bytes, %v", n, err)
			}
			before := r.tr.Pending()
			r.write(1<<20, buf)
			r.prove()
			if n, err := r.tr.Since(); n != 4096 || err != nil {
				t.Fatalf("after one more write: %d bytes, %v; want 4096", n, err)
			}
			if after := r.tr.Pending(); after != before {
				t.Fatalf("pending went from %d to %d; the test is about a block that was taken", before, after)
			}
		})
	}
}
