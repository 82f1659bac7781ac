package strict

import (
	"fmt"
	"time"
	_ "time/tzdata" // a static binary has to know zones on hosts that have none
)

// Zone is the name of a time zone, such as Asia/Shanghai or UTC.
type Zone string

// ProviderZone is where the days and months of bills begin, unless a file says otherwise.
const ProviderZone Zone = "Asia/Shanghai"

// Parse reads the name of a zone.
func (v *Zone) Parse(s string) error {
	if _, err := time.LoadLocation(s); err != nil || s == "" || s == "Local" {
		return fmt.Errorf("%q is not a time zone; write it as in Asia/Shanghai or UTC", s)
	}
	*v = Zone(s)
	return nil
}

// Location is the zone of a name that was parsed.
func (v Zone) Location() *time.Location {
	l, err := time.LoadLocation(string(v))
	if err != nil {
		return time.UTC
	}
	return l
}
