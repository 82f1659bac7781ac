package daemon

import (
	"crypto/x509"
	"encoding/pem"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/wire"
)

// Health tells what ends a move from outside: certificates that expire and disks that fill. Files are looked at in each scrape; NaN tells
// that one could not be, which no comparison of an alert is true for.
func Health(role string, c *config.Config) (all []metrics.Total) {
	gauge := func(name, help string, labels map[string]string, f func() float64) {
		all = append(all, metrics.Total{Name: name, Help: help, Gauge: true, Labels: labels, Value: f})
	}
	certificates := func(own, ca config.File) {
		for kind, file := range map[string]config.File{"own": own, "ca": ca} {
			gauge("mover_certificate_expiry_timestamp_seconds", "End of the daemon's certificate or of its CA.",
				map[string]string{"role": role, "kind": kind}, func() float64 { return expiry(string(file)) })
		}
	}
	state := func(dir config.File) {
		labels := map[string]string{"role": role}
		gauge("mover_state_free_bytes", "Free space where the daemon's state is.", labels, func() float64 { free, _ := room(string(dir)); return free })
		gauge("mover_state_size_bytes", "Size of the filesystem where the daemon's state is.", labels, func() float64 { _, size := room(string(dir)); return size })
	}
	switch {
	case role == Source && c.Source != nil:
		if len(c.Source.Flows) > 0 {
			certificates(c.Source.Gateway.Cert, c.Source.Gateway.CA)
		}
		state(c.Source.State)
	case role == Gateway && c.Gateway != nil:
		certificates(c.Gateway.TLS.Cert, c.Gateway.TLS.CA)
		state(c.Gateway.State)
		for _, f := range c.Gateway.Flows {
			if isDevice(string(f.Target)) {
				continue // a device cannot fill up
			}
			labels := map[string]string{"flow": f.Tenant + "/" + f.Host + "/" + f.Name, "role": role}
			dir := filepath.Dir(string(f.Target))
			gauge("mover_target_free_bytes", "Free space where a target's image file is.", labels, func() float64 { free, _ := room(dir); return free })
			gauge("mover_target_filesystem_bytes", "Size of the filesystem where a target's image file is.", labels, func() float64 { _, size := room(dir); return size })
		}
	}
	return all
}

// expiry is the Unix time at which the last certificate of a CA file, or a chain's own certificate, ends: the first one of a chain
// ends first as a rule, and while a CA is replaced the old one may run out. NaN: the file tells none.
func expiry(file string) float64 {
	if name, ok := strings.CutPrefix(file, "credential:"); ok {
		file = filepath.Join(os.Getenv(wire.CredentialsEnv), name)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return math.NaN()
	}
	var end time.Time
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(b.Bytes)
		if b.Type != "CERTIFICATE" || err != nil {
			continue
		}
		if !cert.IsCA {
			return float64(cert.NotAfter.Unix())
		}
		if cert.NotAfter.After(end) {
			end = cert.NotAfter
		}
	}
	if end.IsZero() {
		return math.NaN()
	}
	return float64(end.Unix())
}

// room is what a filesystem has left for root, and its size.
func room(path string) (free, size float64) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return math.NaN(), math.NaN()
	}
	return float64(st.Bfree) * float64(st.Bsize), float64(st.Blocks) * float64(st.Bsize)
}

func isDevice(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK
}
