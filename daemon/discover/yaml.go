package discover

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// FillIn marks what an operator has to put into the config; moverd check names it.
const FillIn = "FILL-IN"

// Files are what the config says of the gateway. Empty ones become placeholders.
type Files struct {
	Gateway       string // host:port
	CA, Cert, Key string // absolute paths
}

func (f *Files) defaults() {
	for _, v := range []struct {
		at      *string
		instead string
	}{{&f.Gateway, FillIn}, {&f.CA, "/etc/mover/pki/" + FillIn + "-ca.pem"}, {&f.Cert, "/etc/mover/pki/" + FillIn + "-cert.pem"}, {&f.Key, "/etc/mover/pki/" + FillIn + "-key.pem"}} {
		if *v.at == "" {
			*v.at = v.instead
		}
	}
}

// group puts all of the server into one: its disks are cut over, and get their recovery points, at one moment.
func (h *Host) group(p func(string, ...any), limit time.Duration) {
	if len(h.Volumes) == 0 {
		return
	}
	var flows []string
	names := map[string]bool{}
	raw := false
	for _, v := range h.Volumes {
		flows = append(flows, strconv.Quote(v.Name))
		names[v.Name] = true
		raw = raw || len(v.NotFrozen) > 0
	}
	name := "server"
	for n := 2; names[name]; n++ {
		name = fmt.Sprintf("server-%d", n)
	}
	p("  groups:")
	p("    # All disks at one moment: moverctl point %s, moverctl cutover %s --rehearse. moverd.yaml(5) tells of hooks for databases.", name, name)
	p("    - name: %s", name)
	p("      flows: [%s]", strings.Join(flows, ", "))
	p("      # points: {every: 1h}")
	p("      # hooks: {pre: [/path/of/hook, pre], post: [/path/of/hook, post]}")
	p("      cutover:")
	p("        limit: %s", limit)
	p("        freeze-deadline: %s", max(limit, 10*time.Second))
	p("        leave: frozen")
	if raw {
		p("        # stop-hook: [/etc/mover/stop-%s]   # what a freeze does not stop, see above", name)
		p("        # start-hook: [/etc/mover/start-%s]", name)
	}
}

var plain = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9/._:@-]*$`)

// scalar is s as a value of YAML.
func scalar(s string) string {
	if plain.MatchString(s) && !strings.HasSuffix(s, ":") {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// YAML is a config for the whole server, with what was found as comments.
func (h *Host) YAML(f Files) []byte {
	f.defaults()
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line := func(key, value, what string) {
		s := fmt.Sprintf("    %s: %s", key, scalar(value))
		if strings.Contains(value, FillIn) {
			s += "   # " + FillIn + ": " + what
		}
		p("%s", s)
	}
	p("# moverd.yaml for %s, proposed by moverctl discover. Read it, fill in what is marked %s, and run: moverd check", clean(h.Name), FillIn)
	p("# moverd.yaml(5) has every key; what is not here has its default.")
	if !h.Whole {
		p("# Partitions and logical volumes are moved one by one: partition tables and boot loaders are not among them.")
	}
	p("source:")
	p("  gateway:")
	line("address", f.Gateway, "host:port of the gateway, such as gw.example.com:9465")
	line("ca", f.CA, "the CA's certificate")
	line("cert", f.Cert, "this host's certificate; moverctl pki host makes it")
	line("key", f.Key, "its key, readable by root alone")
	p("  limits:")
	p("    memory: 256MiB")
	p("    read-rate: 0          # or 50MiB/s, to be politer to the disks")
	p("  tracking:")
	p("    method: auto          # here: %s", h.Support)
	if e := h.Estimate; e != nil {
		p("  # all flows at once: first pass %s; cutover %s", e.first(), clean(e.String()))
	}
	limit := max(time.Duration(h.Limit*float64(time.Second)), time.Millisecond)
	p("  flows:")
	for _, v := range h.Volumes {
		for _, d := range v.details() {
			p("    # %s", d)
		}
		p("    - name: %s", strconv.Quote(v.Name))
		p("      volume: %s", scalar(v.Path))
		p("      interval: 30s")
	}
	h.group(p, limit)
	for i, r := range h.Refused {
		if i == 0 {
			p("  # not proposed:")
		}
		p("  # %s: %s", clean(r.Device), clean(r.Why))
	}
	return []byte(b.String())
}
