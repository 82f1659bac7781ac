package config

import (
	"time"

	"github.com/moverd/mover/internal/audit"
)

// Audit says how long the trail is kept.
type Audit struct {
	Keep Duration `yaml:"keep"`
}

// keepAudit is the default and the least.
const keepAudit = Duration(audit.MinKeep)

func (v *validator) audit(key string, a Audit) {
	if a.Keep < keepAudit {
		v.bad(key+".keep", "%v is less than 180 days (4320h)", time.Duration(a.Keep))
	}
}
