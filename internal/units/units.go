// Package units writes sizes, rates and times as operators do.
package units

import (
	"fmt"
	"time"
)

// Size writes bytes with a binary unit and three digits: "212 MiB".
func Size(n int64) string {
	if n < 0 {
		return "-" + Size(-n)
	}
	v, names := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for v >= 1000 && i < len(names)-1 {
		v /= 1024
		i++
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%d B", n)
	case v < 10:
		return fmt.Sprintf("%.2f %s", v, names[i])
	case v < 100:
		return fmt.Sprintf("%.1f %s", v, names[i])
	}
	return fmt.Sprintf("%.0f %s", v, names[i])
}

// Rate writes bytes per second: "48.0 MiB/s".
func Rate(perSecond float64) string { return Size(int64(perSecond)) + "/s" }

// Duration writes a time span with the precision that people read: "4 s", "2m10s", "3h5m".
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "unknown"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%.1f days", d.Hours()/24)
}
