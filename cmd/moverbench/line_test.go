package main

import (
	"slices"
	"testing"

	"github.com/moverd/mover/bench"
)

func TestParsePauses(t *testing.T) {
	got, err := parsePauses([]string{"1Gbit/s:50MB/s", "200Mbit/s:10MB/s"})
	if want := []bench.PauseLoad{{Line: 125e6, Writes: 50e6}, {Line: 25e6, Writes: 10e6}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"1Gbit/s", "1Gbit/s:0", "x:1MB/s", "1Gbit/s:50"} {
		if _, err := parsePauses([]string{bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
