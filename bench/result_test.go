package bench

import "testing"

// TestMedianInterval: the orders are those of tables of the sign test.
func TestMedianInterval(t *testing.T) {
	for n, want := range map[int]int{1: 0, 5: 0, 6: 0, 8: 0, 9: 1, 12: 2, 15: 3, 20: 5, 25: 7} {
		var v []float64
		for i := range n {
			v = append(v, float64(n-1-i))
		}
		if lo, hi := MedianInterval(v); int(lo) != want || int(hi) != n-1-want {
			t.Errorf("%d values: %v to %v, want %d", n, lo, hi, want)
		}
	}
}
