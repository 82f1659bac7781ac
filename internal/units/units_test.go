package units

import (
	"testing"
	"time"
)

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "0.98 KiB", 1024: "1.00 KiB", 212 << 20: "212 MiB", 6<<30 + 1<<29: "6.50 GiB", -4096: "-4.00 KiB", 64 << 40: "64.0 TiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "unknown", 4 * time.Millisecond: "4 ms", 4 * time.Second: "4.0 s",
		130 * time.Second: "2m10s", 3*time.Hour + 5*time.Minute: "3h05m", 72 * time.Hour: "3.0 days"} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
}
