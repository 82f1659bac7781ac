package config

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// STS gives keys for some time, in place of those that the rest of the credentials has.
type STS struct {
	Action     string   `yaml:"action"`                // assume-role, session-token
	Endpoint   string   `yaml:"endpoint,omitempty"`    // of the service
	Account    string   `yaml:"account,omitempty"`     // Baidu: that has the role
	Role       string   `yaml:"role,omitempty"`        // Baidu: its name; S3: its ARN
	User       string   `yaml:"user,omitempty"`        // Baidu
	ExternalID string   `yaml:"external-id,omitempty"` // S3
	Duration   Duration `yaml:"duration"`              // of a session
	Policy     File     `yaml:"policy,omitempty"`      // file with JSON that takes rights away
	CA         File     `yaml:"ca,omitempty"`
}

// Actions of an STS.
const (
	AssumeRole   = "assume-role"
	SessionToken = "session-token"
)

// Defaults are those of moverd.yaml(5).
func (s *STS) Defaults() { *s = STS{Duration: Duration(time.Hour)} }

// policyMost bounds what is read of a policy.
const policyMost = 64 << 10

// Rights reads the policy; "": there is none.
func (s *STS) Rights() (string, error) {
	if s.Policy == "" {
		return "", nil
	}
	path, err := s.Policy.Path()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	switch {
	case err != nil:
		return "", err
	case len(text) > policyMost:
		return "", fmt.Errorf("%s has more than %d bytes", path, policyMost)
	case !json.Valid(text):
		return "", fmt.Errorf("%s is no JSON", path)
	}
	return string(text), nil
}

// Credentials are those of the end; a folder has none.
func (e End) Credentials() Credentials {
	switch {
	case e.S3 != nil:
		return e.S3.Credentials
	case e.BOS != nil:
		return e.BOS.Credentials
	}
	return Credentials{}
}

// STSEndpoint is where the end's sessions come from; "": where the driver has it.
func (e End) STSEndpoint() string {
	switch s := e.Credentials().STS; {
	case s == nil:
		return ""
	case s.Endpoint != "":
		return s.Endpoint
	case e.S3 != nil && !e.S3.Bound(): // a Ceph RGW gives them itself
		return e.S3.Endpoint
	}
	return ""
}

// stsDefault is Baidu's STS where the config names none, as the driver has it.
const stsDefault = "sts.bj.baidubce.com"

// Longest and shortest sessions, as the services document them.
var (
	stsBaidu = map[string][2]time.Duration{AssumeRole: {time.Second, 2 * time.Hour}, SessionToken: {time.Second, 36 * time.Hour}}
	stsS3    = map[string][2]time.Duration{AssumeRole: {15 * time.Minute, 12 * time.Hour}, SessionToken: {15 * time.Minute, 36 * time.Hour}}
)

// sts looks at the STS of an end.
func (v *validator) sts(r regions, key string, e End) {
	t := e.Credentials().STS
	v.among(key+".action", t.Action, AssumeRole, SessionToken)
	limits := stsBaidu
	if e.S3 != nil {
		limits = stsS3
	}
	if l, ok := limits[t.Action]; ok {
		if d := time.Duration(t.Duration); d < l[0] || d > l[1] || d%time.Second != 0 {
			v.bad(key+".duration", "%v is not whole seconds from %v to %v", d, l[0], l[1])
		}
	}
	v.stsFields(key, t, e.S3 != nil)
	v.stsEndpoint(r, key, e)
	if v.other(key) {
		return
	}
	if t.CA != "" {
		v.readable(key+".ca", t.CA)
	}
	if _, err := t.Rights(); err != nil {
		v.bad(key+".policy", "%v", err)
	}
}

func (v *validator) stsFields(key string, t *STS, s3 bool) {
	type field struct{ name, value string }
	var needs, refuses []field
	account, role, user, external, policy := field{"account", t.Account}, field{"role", t.Role}, field{"user", t.User}, field{"external-id", t.ExternalID}, field{"policy", string(t.Policy)}
	switch {
	case s3 && t.Action == AssumeRole:
		needs, refuses = []field{role}, []field{account, user}
	case s3:
		refuses = []field{account, role, user, external, policy}
	case t.Action == AssumeRole:
		needs, refuses = []field{account, role}, []field{external}
	default:
		refuses = []field{account, role, user, external}
	}
	for _, f := range needs {
		if f.value == "" {
			v.bad(key+"."+f.name, "is missing; %s needs it", t.Action)
		}
	}
	for _, f := range refuses {
		if f.value != "" {
			v.bad(key+"."+f.name, "is not for %s of %s", t.Action, map[bool]string{false: "Baidu", true: "S3"}[s3])
		}
	}
	if s3 && t.Role != "" && !strings.HasPrefix(t.Role, "arn:") {
		v.bad(key+".role", "%q is no ARN of a role, such as arn:aws:iam::123456789012:role/mover", t.Role)
	}
}

// stsEndpoint: the keys are in its answers, so it is TLS; and its region is held against those that are allowed, where it tells one.
func (v *validator) stsEndpoint(r regions, key string, e End) {
	endpoint := e.STSEndpoint()
	if endpoint == "" && e.BOS != nil {
		endpoint = stsDefault
	}
	host := hostName(endpoint)
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.HasPrefix(endpoint, "http://") && !here(host) {
		v.bad(key+".endpoint", "%q is not TLS, and its answers have keys in them: https://", endpoint)
	}
	if region, bound := stsRegion(host); bound && !slices.Contains(r.allowed, region) {
		v.bad(key+".endpoint", "%q is in region %q, which is not among %v", endpoint, region, r)
	}
}

// here tells whether host is this machine.
func here(host string) bool {
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.IsLoopback() || host == "localhost"
}

// stsRegion is the region that the name of an STS tells; bound: it is one of a cloud's, and not of the operator's house.
func stsRegion(host string) (region string, bound bool) {
	host = strings.ToLower(host)
	for _, domain := range []string{".baidubce.com", ".amazonaws.com", ".amazonaws.com.cn"} {
		rest, ok := strings.CutSuffix(host, domain)
		if !ok {
			continue
		}
		if rest == "sts" && domain == ".amazonaws.com" {
			return "us-east-1", true // the global one
		}
		return rest[strings.LastIndexByte(rest, '.')+1:], true
	}
	return "", false
}
