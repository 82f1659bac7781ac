package strict

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is bytes, spelled 256MiB or 1GB.
type Size int64

// Rate is bytes per second, spelled 200Mbit/s or 50MiB/s; 0 is no limit.
type Rate int64

// Duration is a time.Duration, spelled 10s.
type Duration time.Duration

type unit struct {
	name string
	size float64
}

var sizes = []unit{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

var rates = []unit{
	{"PiB/s", 1 << 50}, {"TiB/s", 1 << 40}, {"GiB/s", 1 << 30}, {"MiB/s", 1 << 20}, {"KiB/s", 1 << 10},
	{"GB/s", 1e9}, {"MB/s", 1e6}, {"kB/s", 1e3}, {"KB/s", 1e3}, {"B/s", 1},
	{"Gbit/s", 1e9 / 8}, {"Mbit/s", 1e6 / 8}, {"kbit/s", 1e3 / 8}, {"bit/s", 1.0 / 8},
}

// quantity reads a number and one of units.
func quantity(s string, units []unit, example string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 1 {
		return 0, fmt.Errorf("%q needs a number and a unit, such as %s", s, example)
	}
	n, err := strconv.ParseFloat(s[:end], 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s[:end])
	}
	name := strings.TrimSpace(s[end:])
	for _, u := range units {
		if u.name == name {
			if v := n * u.size; v < math.MaxInt64 {
				return int64(v), nil
			}
			return 0, fmt.Errorf("%q is too large", s)
		}
	}
	return 0, fmt.Errorf("%q: unknown unit %q; write it as in %s", s, name, example)
}

func format(v int64, units []unit) string {
	if v == 0 {
		return "0"
	}
	for _, u := range units {
		if u.size >= 1 && v%int64(u.size) == 0 {
			return strconv.FormatInt(v/int64(u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(v, 10)
}

// ParseSize reads a size.
func ParseSize(s string) (Size, error) {
	n, err := quantity(s, sizes, "256MiB")
	return Size(n), err
}

// Parse reads a size.
func (v *Size) Parse(s string) (err error) { *v, err = ParseSize(s); return err }

func (v Size) String() string { return format(int64(v), sizes[:5:5]) }

// MarshalYAML writes a size as Parse reads it.
func (v Size) MarshalYAML() (any, error) { return format(int64(v), sizes), nil }

// ParseRate reads a rate.
func ParseRate(s string) (Rate, error) {
	n, err := quantity(s, rates, "200Mbit/s or 50MiB/s, or 0 for no limit")
	return Rate(n), err
}

// Parse reads a rate.
func (v *Rate) Parse(s string) (err error) { *v, err = ParseRate(s); return err }

// MarshalYAML writes a rate as Parse reads it.
func (v Rate) MarshalYAML() (any, error) { return format(int64(v), rates), nil }

// Parse reads a duration.
func (v *Duration) Parse(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration; write it as in 10s, 5m or 1h30m", s)
	}
	if d < 0 {
		return fmt.Errorf("%q is negative", s)
	}
	*v = Duration(d)
	return nil
}

// MarshalYAML writes a duration as Parse reads it.
func (v Duration) MarshalYAML() (any, error) { return time.Duration(v).String(), nil }
