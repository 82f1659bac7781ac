package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/wire"
)

// validator looks at the values of a file.
type validator struct {
	*strict.Faults
	role string // "": both
}

func (v *validator) bad(key, format string, a ...any) { v.Add(key, format, a...) }

func (v *validator) config(c *Config) {
	if c.Source == nil && c.Gateway == nil && c.Worker == nil {
		v.bad("", "needs a section source:, gateway: or worker:")
	}
	if c.Source != nil {
		v.source(c.Source)
	}
	if c.Gateway != nil {
		v.gateway(c.Gateway)
	}
	if c.Worker != nil {
		v.worker(c.Worker)
	}
	if s, g := c.Source, c.Gateway; s != nil && g != nil {
		if s.State == g.State {
			v.bad("gateway.state", "%s is the source's too; two roles on one host need two folders", g.State)
		}
		if s.Socket == g.Socket {
			v.bad("gateway.socket", "%s is the source's too", g.Socket)
		}
	}
}

func (v *validator) source(s *Source) {
	v.metrics("source.metrics", s.Metrics)
	v.audit("source.audit", s.Audit)
	v.among("source.log-level", s.LogLevel, "debug", "info", "warn", "error")
	if s.Sharing() > 0 { // a host that moves only buckets, straight, needs no gateway
		v.dial("source.gateway", s.Gateway)
	}
	v.links("source", s)
	v.limits("source.limits", s.Limits)
	v.among("source.compression", s.Compression, "auto", "off", "fastest", "default", "better", "best")
	v.among("source.tracking.method", s.Tracking.Method, "auto", "ebpf", "scan")
	v.atLeast("source.tracking.memory", s.Tracking.Memory, 1<<20)
	if len(s.Flows)+len(s.Buckets) == 0 {
		v.bad("source.flows", "needs at least one flow, or source.buckets one")
	}
	flows, volumes := map[string]int{}, map[string]int{}
	for i, f := range s.Flows {
		key := fmt.Sprintf("source.flows[%d]", i)
		v.name(key+".name", f.Name)
		v.once(key+".name", "name", f.Name, i, "source.flows", flows)
		if f.Volume == "" {
			v.bad(key+".volume", "is missing; name the disk, partition, volume or image file to move")
		} else {
			v.once(key+".volume", "volume", deviceKey(string(f.Volume)), i, "source.flows", volumes)
		}
		v.among(key+".on-read-error", f.OnReadError, "stop", "skip")
		if s.GroupOf(f.Name) == nil {
			v.cutover(key+".cutover", f.Cutover)
		}
	}
	v.groups(s, flows)
	v.bucketsOf("source", s, flows)
	if s.Queue.On() {
		v.queue("source.queue", s.Queue)
	}
}

func (v *validator) dial(key string, d Dial) {
	v.address(key+".address", d.Address, "10.0.0.7:9465")
	if d.Address != "" && d.Name == "" {
		v.bad(key+".address", "%q names no host", d.Address)
	}
	if d.Connections < 1 || d.Connections > 16 {
		v.bad(key+".connections", "%d is outside 1 to 16", d.Connections)
	}
	if d.Name == "" {
		return // told above; a certificate cannot be checked against no name
	}
	v.certs(key, d.Files(), func(f wire.Files) error { _, err := wire.ClientTLS(f, d.Name); return err })
}

func (v *validator) limits(key string, l Limits) {
	v.atLeast(key+".memory", l.Memory, 64<<20)
	if l.QueueDepth < 1 || l.QueueDepth > 256 {
		v.bad(key+".queue-depth", "%d is outside 1 to 256", l.QueueDepth)
	}
	if l.CPU < 0 {
		v.bad(key+".cpu", "%d is negative; 0 is all cores", l.CPU)
	}
	if l.ReadRate != 0 && l.ReadRate < 64<<10 {
		v.bad(key+".read-rate", "is under 64KiB/s; such a flow never ends")
	}
	v.among(key+".io-priority", l.IOPriority, "idle", "best-effort", "none")
}

func (v *validator) cutover(key string, c Cutover) {
	if c.Limit <= 0 {
		v.bad(key+".limit", "must be longer than 0s")
	}
	if d := time.Duration(c.FreezeDeadline); d < 100*time.Millisecond || d > 10*time.Minute {
		v.bad(key+".freeze-deadline", "%v is outside 100ms to 10m", d)
	} else if c.Limit > c.FreezeDeadline {
		v.bad(key+".limit", "%v is longer than freeze-deadline %v", time.Duration(c.Limit), d)
	}
	v.among(key+".leave", c.Leave, "frozen", "read-only", "stopped")
	v.hook(key+".stop-hook", c.StopHook)
	v.hook(key+".start-hook", c.StartHook)
	if len(c.StartHook) > 0 && len(c.StopHook) == 0 {
		v.bad(key+".start-hook", "has no stop-hook that it undoes")
	}
	if c.Leave == "stopped" && len(c.StopHook) == 0 {
		v.bad(key+".leave", "stopped needs a stop-hook")
	}
}

func (v *validator) gateway(g *Gateway) {
	v.address("gateway.listen", g.Listen, ":9465")
	v.metrics("gateway.metrics", g.Metrics)
	v.audit("gateway.audit", g.Audit)
	v.among("gateway.log-level", g.LogLevel, "debug", "info", "warn", "error")
	v.atLeast("gateway.log-limit", g.LogLimit, 16<<20)
	v.among("gateway.dedup.scope", g.Dedup.Scope, "host", "tenant")
	v.atLeast("gateway.dedup.memory", g.Dedup.Memory, 8<<20)
	least := g.Dedup.Memory + 192<<20 // half of what dedup leaves is for buffers
	if len(g.Buckets) > 0 {
		least += bucketBuffers
		v.atLeast("gateway.dedup.cache", g.Dedup.Cache, 256<<20)
	}
	v.atLeast("gateway.memory", g.Memory, least)
	v.certs("gateway.tls", g.TLS.Files(), func(f wire.Files) error { _, err := wire.ServerTLS(f); return err })
	if g.Policy != "" && !v.other("gateway.policy") {
		if _, err := LoadPolicy(string(g.Policy)); err != nil {
			v.bad("gateway.policy", "%v", err)
		}
	}
	v.linesOf(g)
	if len(g.Flows)+len(g.Straight)+len(g.Buckets) == 0 {
		v.bad("gateway.flows", "needs at least one flow, or gateway.buckets one")
	}
	flows, targets, straight := map[string]int{}, map[string]int{}, map[string]int{}
	for i, f := range g.Flows {
		key := fmt.Sprintf("gateway.flows[%d]", i)
		v.name(key+".tenant", f.Tenant)
		v.name(key+".host", f.Host)
		v.name(key+".name", f.Name)
		v.once(key+".name", "flow", f.Tenant+"/"+f.Host+"/"+f.Name, i, "gateway.flows", flows)
		if f.Target == "" {
			v.bad(key+".target", "is missing; name the disk or image file to write")
		} else {
			v.once(key+".target", "target", deviceKey(string(f.Target)), i, "gateway.flows", targets)
		}
		v.among(key+".points.method", f.Points.Method, "auto", "reflink", "lvm-thin", "none")
		for name, n := range map[string]int{"last": f.Points.Keep.Last, "hourly": f.Points.Keep.Hourly, "daily": f.Points.Keep.Daily} {
			if n < 0 || n > 1000 || n == 0 && name == "last" {
				v.bad(key+".points.keep."+name, "%d is outside 0 to 1000, or of last 1 to 1000", n)
			}
		}
		if f.Size != 0 && !f.Create {
			v.bad(key+".size", "is only for create: true")
		}
		if f.Size%512 != 0 {
			v.bad(key+".size", "is not a multiple of 512 bytes")
		}
	}
	for i, f := range g.Straight {
		key := fmt.Sprintf("gateway.straight[%d]", i)
		v.name(key+".tenant", f.Tenant)
		v.name(key+".host", f.Host)
		v.name(key+".name", f.Name)
		v.once(key+".name", "flow", f.Tenant+"/"+f.Host+"/"+f.Name, i, "gateway.straight", straight)
		if at, twice := flows[f.Tenant+"/"+f.Host+"/"+f.Name]; twice {
			v.bad(key+".name", "is the flow of gateway.flows[%d] too, which has its lease as that", at)
		}
	}
	v.gatewayBuckets(g, flows)
}

func (v *validator) name(key, s string) {
	_, what, _ := strings.Cut(key, "].")
	if what == "name" {
		what = "flow"
		if strings.HasPrefix(key, "source.groups[") {
			what = "group"
		} else if strings.Contains(key, ".links[") {
			what = "link"
		} else if strings.HasPrefix(key, "gateway.lines[") {
			what = "line"
		}
	}
	if s == "" {
		v.bad(key, "is missing")
	} else if err := pki.CheckName(what, s); err != nil {
		v.bad(key, "%v", err)
	}
}

func (v *validator) once(key, what, s string, i int, list string, seen map[string]int) {
	if s == "" {
		return
	}
	if first, twice := seen[s]; twice {
		v.bad(key, "is the %s of %s[%d] too; each %s may stand once", what, list, first, what)
		return
	}
	seen[s] = i
}

func (v *validator) among(key, s string, allowed ...string) { v.Among(key, s, allowed...) }

func (v *validator) atLeast(key string, s, least Size) {
	if s < least {
		v.bad(key, "%v is less than %v", s, least)
	}
}

func (v *validator) address(key, s, example string) {
	if s == "" {
		v.bad(key, "is missing; write it as in %s", example)
		return
	}
	_, port, err := net.SplitHostPort(s)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		v.bad(key, "%q is not host:port; write it as in %s", s, example)
	}
}

func (v *validator) metrics(key string, m Metrics) {
	if m.Listen == "off" {
		return
	}
	host, port, err := net.SplitHostPort(m.Listen)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		v.bad(key+".listen", "%q is neither host:port nor off", m.Listen)
		return
	}
	ip, err := netip.ParseAddr(host)
	if loopback := host == "localhost" || err == nil && ip.IsLoopback(); !loopback && !m.Remote {
		v.bad(key+".listen", "%q is not a loopback address; metrics.remote: true allows that", m.Listen)
	}
}

func (v *validator) readable(key string, f File) bool {
	if f == "" {
		v.bad(key, "is missing")
		return false
	}
	path, err := f.path()
	if err != nil {
		v.bad(key, "%v", err)
		return false
	}
	h, err := os.Open(path)
	if err != nil {
		v.bad(key, "%v; moverctl pki makes certificates", err)
		return false
	}
	h.Close()
	return true
}

// certs checks that the files are there, belong together, are good now, and that nobody else reads the key.
func (v *validator) certs(key string, f wire.Files, load func(wire.Files) error) {
	if v.other(key) {
		return
	}
	ok := v.readable(key+".ca", File(f.CA))
	ok = v.readable(key+".cert", File(f.Cert)) && ok
	ok = v.readable(key+".key", File(f.Key)) && ok
	if f.CRL != "" {
		ok = v.readable(key+".crl", File(f.CRL)) && ok
	} else if f.CRLStrict {
		v.bad(key+".crl-strict", "is only for a crl")
	}
	if !ok {
		return
	}
	if err := load(f); err != nil {
		if strings.HasPrefix(err.Error(), "crl: ") {
			v.bad(key+".crl", "%s", strings.TrimPrefix(err.Error(), "crl: "))
			return
		}
		v.bad(key+".cert", "%v", err)
	}
}

// other tells whether key belongs to the role that is not looked at.
func (v *validator) other(key string) bool {
	section, _, _ := strings.Cut(key, ".")
	return v.role != "" && v.role != section
}

func (v *validator) hook(key string, argv []string) {
	if len(argv) == 0 || v.other(key) {
		return
	}
	if !filepath.IsAbs(argv[0]) {
		v.bad(key, "%q is not an absolute path", argv[0])
	} else if err := unix.Access(argv[0], unix.X_OK); err != nil {
		v.bad(key, "%s cannot be run: %v", argv[0], err)
	}
}

// deviceKey is equal for two names of one device or file.
func deviceKey(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return fmt.Sprintf("b%d", st.Rdev)
		}
		return fmt.Sprintf("f%d:%d", st.Dev, st.Ino)
	}
	return filepath.Clean(path)
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return host
}
