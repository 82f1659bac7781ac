package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	flowName  = "disk"
	groupName = "server"
	twinHost  = "web2"
)

// or is the first string that is not empty.
func or(s ...string) string {
	for _, x := range s {
		if x != "" {
			return x
		}
	}
	return ""
}

func (r *Rig) pinDir() string { return filepath.Join("/sys/fs/bpf", filepath.Base(r.Dir)) }

// StartGateway writes the gateway's config at the first call and starts it. Later calls start it again on the same state.
func (r *Rig) StartGateway() error {
	conf := r.path("gateway.yaml")
	if r.address == "" {
		addr, err := r.listenAt()
		if err != nil {
			return err
		}
		text := fmt.Sprintf(`gateway:
  listen: %s
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "%s"}
  tls: {ca: %s, cert: %s, key: %s}
  memory: %s
  log-limit: %s
  dedup: {scope: %s}
  flows:
`, addr, or(r.o.RedoDir, r.path("gw-state")), r.path("gw-run"), r.path("gateway.sock"), or(r.o.GatewayMetrics, "off"), r.path("pki/ca.pem"), r.path("pki/gw.pem"), r.path("pki/gw.key"),
			or(r.o.GatewayMem, "1GiB"), or(r.o.LogLimit, "1GiB"), or(r.o.Scope, "host"))
		for _, d := range r.o.disks() {
			text += fmt.Sprintf("    - {tenant: demo, host: web1, name: %s, target: %s, create: %v", d.Name, d.Target, r.o.Create)
			if r.o.Points != "" {
				text += ", points: " + r.o.Points
			}
			text += "}\n"
		}
		if r.o.Twin != "" {
			text += fmt.Sprintf("    - {tenant: demo, host: %s, name: %s, target: %s, create: %v}\n", twinHost, flowName, r.o.Twin, r.o.Create)
		}
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		r.address = addr
	}
	var err error
	r.gateway, err = r.start("gateway", "gateway", "-c", conf)
	return err
}

// listenAt is where the gateway will listen; on loopback with a proxy before it, which can cut.
func (r *Rig) listenAt() (addr string, err error) {
	if r.o.Line != nil {
		return fmt.Sprintf("%s:%d", farAddr, gatewayPort), nil
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	r.Proxy, err = NewProxy(addr)
	return addr, err
}

// StartSource writes the source's config at the first call and starts it. Later calls start it again; what is tracked in the kernel goes on.
func (r *Rig) StartSource() error {
	conf := r.path("source.yaml")
	if r.source == nil {
		addr, host := or(r.o.Through, r.address), or(r.o.Host, "web1")
		if r.Proxy != nil && !r.o.NoProxy {
			addr = r.Proxy.Addr()
		}
		text := fmt.Sprintf(`source:
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "%s"}
  gateway: {address: %s, name: 127.0.0.1, ca: %s, cert: %s, key: %s, connections: %d}
  limits: {memory: %s}
  compression: %s
  tracking: {pin-dir: %s}
%s`, r.path("src-state"), r.path("src-run"), r.path("source.sock"), or(r.o.SourceMetrics, "off"), addr, r.path("pki/ca.pem"), r.path("pki/"+host+".pem"), r.path("pki/"+host+".key"),
			max(r.o.Conns, 2), or(r.o.Memory, "384MiB"), or(r.o.Compression, "auto"), r.pinDir(), sourceFlows(r.o))
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		r.Defer(func() error { return os.RemoveAll(r.pinDir()) })
	}
	var err error
	r.source, err = r.start("source", "source", "-c", conf)
	return err
}

// sourceFlows are the flows and the group of the source's config.
func sourceFlows(o RigOptions) string {
	cutover := fmt.Sprintf("cutover: {limit: %s, freeze-deadline: %s, leave: %s%s}\n", or(o.Limit, "1s"), or(o.Deadline, "10s"), or(o.Leave, "frozen"), hooks(o))
	text, names := "  flows:\n", ""
	for _, d := range o.disks() {
		text += fmt.Sprintf("    - name: %s\n      volume: %s\n      interval: %s\n", d.Name, d.Volume, or(o.Interval, "1s"))
		if !o.grouped() {
			text += "      " + cutover
		}
		names += d.Name + ", "
	}
	if !o.grouped() {
		return text
	}
	text += fmt.Sprintf("  groups:\n    - name: %s\n      flows: [%s]\n      %s", groupName, strings.TrimSuffix(names, ", "), cutover)
	if o.Group != "" {
		text += "      snapshot: " + o.Group + "\n"
	}
	if o.Hooks != "" {
		text += "      hooks: " + o.Hooks + "\n"
	}
	return text
}

func hooks(o RigOptions) string {
	quote := func(key string, argv []string) string {
		if argv == nil {
			return ""
		}
		return fmt.Sprintf(`, %s: ["%s"]`, key, strings.Join(argv, `", "`))
	}
	return quote("stop-hook", o.StopHook) + quote("start-hook", o.StartHook)
}

// KillSource and KillGateway send SIGKILL.
func (r *Rig) KillSource()  { r.source.Kill() }
func (r *Rig) KillGateway() { r.gateway.Kill() }

// SourcePid and GatewayPid tell the process ids, for measuring memory.
func (r *Rig) SourcePid() int  { return r.source.Pid() }
func (r *Rig) GatewayPid() int { return r.gateway.Pid() }
