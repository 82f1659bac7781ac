package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/strict"
)

// Policy is the gateway's policy file: the first rule whose tenant and host match decides; without one, the host may touch nothing.
type Policy struct {
	Rules []Rule `yaml:"rules"`
}

// Rule says what a host may touch, and how much. Of limits, 0 is none.
type Rule struct {
	Tenant      string   `yaml:"tenant"`                // exact, or with * at the end
	Host        string   `yaml:"host"`                  // exact, or with * at the end
	Targets     []string `yaml:"targets,flow"`          // absolute paths, bos:BUCKET/PREFIX, s3:BUCKET/PREFIX; *, ? and [ab] stand for what has no slash
	Volume      Size     `yaml:"volume,omitempty"`      // largest volume of a flow
	Total       Size     `yaml:"total,omitempty"`       // volumes of all flows of a host
	Flows       int      `yaml:"flows,omitempty"`       // of a host
	Connections int      `yaml:"connections,omitempty"` // of a host, at once
}

// LoadPolicy reads and checks a policy file. Every error is an *Error.
func LoadPolicy(file string) (*Policy, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: file, Text: "no such file; moverd.yaml(5) has the form of a policy"}
	} else if err != nil {
		return nil, &Error{File: file, Text: err.Error()}
	}
	if st, err := os.Stat(file); err == nil && st.Mode().Perm()&0o022 != 0 {
		return nil, &Error{File: file, Text: fmt.Sprintf("may be written by others than its owner (mode %04o); chmod go-w", st.Mode().Perm())}
	}
	return parsePolicy(file, raw)
}

func parsePolicy(file string, raw []byte) (*Policy, error) {
	p := &Policy{}
	faults, err := strict.Decode(file, raw, p, "is empty; a policy needs rules:")
	if err != nil {
		return nil, err
	}
	v := &validator{Faults: faults}
	if len(p.Rules) == 0 {
		v.bad("rules", "needs at least one rule; without any nobody may do anything")
	}
	for i, r := range p.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		v.pattern(key+".tenant", r.Tenant)
		v.pattern(key+".host", r.Host)
		if len(r.Targets) == 0 {
			v.bad(key+".targets", "is missing; name the targets as in [/srv/acme/*]")
		}
		for j, t := range r.Targets {
			at := fmt.Sprintf("%s.targets[%d]", key, j)
			if _, err := path.Match(t, ""); err != nil {
				v.bad(at, "%q is not a pattern", t)
			} else if strings.HasPrefix(t, "bos:") || strings.HasPrefix(t, "s3:") { // a bucket, as End.Target names it
			} else if !filepath.IsAbs(t) || filepath.Clean(t) != t {
				v.bad(at, "%q is not an absolute path without .. and the like", t)
			}
		}
		for name, n := range map[string]int{"flows": r.Flows, "connections": r.Connections} {
			if n < 0 {
				v.bad(key+"."+name, "%d is negative; 0 is no limit", n)
			}
		}
		for k, o := range p.Rules[:i] {
			if covers(o.Tenant, r.Tenant) && covers(o.Host, r.Host) {
				v.bad(key, "is never used: rules[%d] stands before it and matches all that it does", k)
				break
			}
		}
	}
	return p, v.First()
}

// pattern checks a name that may end in *.
func (v *validator) pattern(key, s string) {
	if s == "" {
		v.bad(key, "is missing")
		return
	}
	name, star := strings.CutSuffix(s, "*")
	if star && name == "" {
		return
	}
	if err := pki.CheckName("", name); err != nil {
		v.bad(key, "%q is neither a name nor one with * at its end", s)
	}
}

func match(pattern, name string) bool {
	if head, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, head)
	}
	return pattern == name
}

// covers tells whether a matches all that b matches.
func covers(a, b string) bool {
	if head, ok := strings.CutSuffix(b, "*"); ok {
		ahead, astar := strings.CutSuffix(a, "*")
		return astar && strings.HasPrefix(head, ahead)
	}
	return match(a, b)
}

// Rule is the first that matches a host, or nil.
func (p *Policy) Rule(tenant, host string) *Rule {
	for i, r := range p.Rules {
		if match(r.Tenant, tenant) && match(r.Host, host) {
			return &p.Rules[i]
		}
	}
	return nil
}

// Allows tells whether the rule lets a target be written.
func (r *Rule) Allows(target string) bool {
	for _, t := range r.Targets {
		if ok, err := path.Match(t, target); ok && err == nil {
			return true
		}
	}
	return false
}
