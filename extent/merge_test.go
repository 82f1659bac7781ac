package extent

import (
	"slices"
	"testing"
)

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		in, want []Extent
		gap      int64
	}{
		{nil, nil, 4},
		{[]Extent{{0, 4}, {8, 4}, {20, 4}}, []Extent{{0, 12}, {20, 4}}, 4},
		{[]Extent{{0, 4}, {4, 4}}, []Extent{{0, 8}}, 0},
		{[]Extent{{0, 4}, {5, 4}}, []Extent{{0, 4}, {5, 4}}, 0},
		{[]Extent{{100, 4}, {0, 4}, {8, 4}}, []Extent{{100, 4}, {0, 12}}, 4}, // a second ascending row begins
	} {
		if got := slices.Collect(Merge(slices.Values(c.in), c.gap)); !slices.Equal(got, c.want) {
			t.Errorf("Merge(%v, %d) = %v, want %v", c.in, c.gap, got, c.want)
		}
	}
}
