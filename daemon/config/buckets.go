package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BucketFlow is one bucket to move.
type BucketFlow struct {
	Name       string        `yaml:"name"`
	From       End           `yaml:"from"`
	To         End           `yaml:"to"`
	Include    []string      `yaml:"include,omitempty,flow"`
	Exclude    []string      `yaml:"exclude,omitempty,flow"`
	Deletes    string        `yaml:"deletes"`  // keep, follow
	Interval   Duration      `yaml:"interval"` // between passes; 0s back to back
	Class      string        `yaml:"class,omitempty"`
	EscapeKeys bool          `yaml:"escape-keys"`
	Grants     bool          `yaml:"grants"`
	Tags       bool          `yaml:"tags"`
	Modified   bool          `yaml:"keep-modified"` // as user metadata
	Claim      bool          `yaml:"claim"`
	Line       string        `yaml:"line"`           // auto, off: whether the requests to its target go over a line that the gateway shares out
	Link       string        `yaml:"link,omitempty"` // of source.links, by which those requests leave; default as the routes say
	Limits     BucketLimits  `yaml:"limits"`
	Workers    []string      `yaml:"workers,omitempty,flow"` // TENANT/HOST of certificates that may work for it
	Cutover    BucketCutover `yaml:"cutover,omitempty"`
}

// BucketLimits keep a bucket flow polite.
type BucketLimits struct {
	Memory  Size `yaml:"memory"`  // of objects and parts on the way
	Objects int  `yaml:"objects"` // under way, at most
	Rate    Rate `yaml:"rate"`    // 0 none
}

// BucketCutover stops the writers of a source, and lets them go on.
type BucketCutover struct {
	StopHook  []string `yaml:"stop-hook,omitempty,flow"`
	StartHook []string `yaml:"start-hook,omitempty,flow"`
}

// End is one end of a bucket flow: exactly one of these.
type End struct {
	Dir     *DirEnd     `yaml:"dir,omitempty"`
	S3      *S3End      `yaml:"s3,omitempty"`
	BOS     *BOSEnd     `yaml:"bos,omitempty"`
	Gateway *GatewayEnd `yaml:"gateway,omitempty"` // only where to
}

// DirEnd is a folder.
type DirEnd struct {
	Path   File   `yaml:"path"`
	Prefix string `yaml:"prefix,omitempty"`
}

// S3End is a bucket of S3, or of what speaks it.
type S3End struct {
	Endpoint    string      `yaml:"endpoint,omitempty"`
	Region      string      `yaml:"region,omitempty"`
	Bucket      string      `yaml:"bucket"`
	Prefix      string      `yaml:"prefix,omitempty"`
	PathStyle   bool        `yaml:"path-style,omitempty"`
	CA          File        `yaml:"ca,omitempty"`
	Credentials Credentials `yaml:"credentials"`
}

// BOSEnd is a bucket of Baidu's object storage.
type BOSEnd struct {
	Endpoint    string      `yaml:"endpoint"`
	Bucket      string      `yaml:"bucket"`
	Prefix      string      `yaml:"prefix,omitempty"`
	CA          File        `yaml:"ca,omitempty"`
	Credentials Credentials `yaml:"credentials"`
}

// Credentials says where keys come from: exactly one of these. The keys never stand in the config.
type Credentials struct {
	File     File   `yaml:"file,omitempty"`     // with access-key, secret-key and maybe token, which nobody but its owner may read
	Env      string `yaml:"env,omitempty"`      // NAME_ACCESS_KEY, NAME_SECRET_KEY and maybe NAME_TOKEN
	Systemd  string `yaml:"systemd,omitempty"`  // name of a LoadCredential with such a file
	Instance bool   `yaml:"instance,omitempty"` // of BOS: those of the role of the BCC instance that this is
	STS      *STS   `yaml:"sts,omitempty"`      // with these keys, which gives those that are used
}

// MainlandRegions are where buckets may be unless source.regions says otherwise.
var MainlandRegions = []string{"bj", "bd", "su", "gz", "cd", "yq", "fwh"}

// Defaults are those of moverd.yaml(5).
func (f *BucketFlow) Defaults() {
	*f = BucketFlow{Deletes: "keep", Tags: true, Interval: Duration(5 * time.Minute), Line: "auto", Limits: BucketLimits{Memory: 128 << 20, Objects: 256}}
}

// Straight tells whether the requests of a flow to its target go over a line of the gateway, past it.
func (s *Source) Straight(f BucketFlow) bool {
	return s.Gateway.Address != "" && f.Line != "off" && (f.To.S3 != nil || f.To.BOS != nil)
}

// Leased tells whether a flow has a lease of a line of the gateway, where that shares one out: it goes over the line by the gateway, or past it.
func (s *Source) Leased(f BucketFlow) bool { return f.To.Gateway != nil || s.Straight(f) }

// Sharing is how many flows of this host share a line.
func (s *Source) Sharing() int {
	n := len(s.Flows)
	for _, f := range s.Buckets {
		if s.Leased(f) {
			n++
		}
	}
	return n
}

// Prefix is that of keys.
func (e End) Prefix() string {
	switch {
	case e.Dir != nil:
		return e.Dir.Prefix
	case e.S3 != nil:
		return e.S3.Prefix
	case e.BOS != nil:
		return e.BOS.Prefix
	case e.Gateway != nil:
		return e.Gateway.Prefix
	}
	return ""
}

// place is equal for two ends that are one bucket, as far as their names tell, and what keys begin with there.
func (e End) place() (bucket, prefix string) {
	switch {
	case e.Dir != nil:
		path, err := filepath.EvalSymlinks(string(e.Dir.Path))
		if err != nil {
			path = string(e.Dir.Path)
		}
		return "dir", strings.TrimSuffix(path, "/") + "/" + e.Dir.Prefix // a folder in another one is a prefix too
	case e.S3 != nil:
		return "s3 " + strings.ToLower(hostName(e.S3.Endpoint)) + " " + e.S3.Bucket, e.S3.Prefix
	case e.BOS != nil:
		return "bos " + e.BOS.Bucket, e.BOS.Prefix // names are unique in all regions
	}
	return "", ""
}

// hostName is the host of an endpoint, which may be a URL.
func hostName(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		return u.Host
	}
	return strings.TrimSuffix(endpoint, "/")
}

// bucketsOf looks at the bucket flows of a section, source or worker.
func (v *validator) bucketsOf(section string, s *Source, flows map[string]int) {
	by := section + ".regions"
	v.named(by, s.Regions)
	names, targets := map[string]int{}, map[string]int{}
	for i, f := range s.Buckets {
		key := fmt.Sprintf("%s.buckets[%d]", section, i)
		v.name(key+".name", f.Name)
		v.once(key+".name", "name", f.Name, i, section+".buckets", names)
		if at, twice := flows[f.Name]; twice && f.Name != "" {
			v.bad(key+".name", "%q is the name of source.flows[%d] too; commands take either, so each name may stand once", f.Name, at)
		}
		for _, g := range s.Groups {
			if g.Name == f.Name && f.Name != "" {
				v.bad(key+".name", "%q is the name of a group too; commands take either, so each name may stand once", f.Name)
			}
		}
		if f.From.Gateway != nil {
			v.bad(key+".from", "a gateway is where objects are moved to")
			f.From.Gateway = nil
		}
		v.end(regions{s.Allowed(), by}, key+".from", f.From)
		v.end(regions{s.Allowed(), by}, key+".to", f.To)
		from, fromPrefix := f.From.place()
		to, toPrefix := f.To.place()
		if from != "" && from == to && (strings.HasPrefix(fromPrefix, toPrefix) || strings.HasPrefix(toPrefix, fromPrefix)) {
			v.bad(key+".to", "overlaps with %s.from: a flow would copy what it has written", key)
		}
		for other, at := range targets {
			b, p, _ := strings.Cut(other, "\x00")
			if b == to && to != "" && (strings.HasPrefix(p, toPrefix) || strings.HasPrefix(toPrefix, p)) {
				v.bad(key+".to", "overlaps with %s.buckets[%d].to: each target has one flow", section, at)
			}
		}
		targets[to+"\x00"+toPrefix] = i
		v.patterns(key+".include", f.Include)
		v.patterns(key+".exclude", f.Exclude)
		v.among(key+".deletes", f.Deletes, "keep", "follow")
		v.among(key+".line", f.Line, "auto", "off")
		switch known := slices.ContainsFunc(s.Links, func(l Link) bool { return l.Name == f.Link }); {
		case f.Link == "":
		case !known:
			v.bad(key+".link", "%q is not the name of one of source.links", f.Link)
		case !s.Leased(f):
			v.bad(key+".link", "is of no use: the requests of this flow go over no line of the gateway")
		}
		v.atLeast(key+".limits.memory", f.Limits.Memory, 32<<20)
		if n := f.Limits.Objects; n < 2 || n > 4096 {
			v.bad(key+".limits.objects", "%d is outside 2 to 4096", n)
		}
		if f.Limits.Rate != 0 && f.Limits.Rate < 64<<10 {
			v.bad(key+".limits.rate", "is under 64KiB/s; such a flow never ends")
		}
		v.workers(key+".workers", s, f.Workers)
		if f.To.Gateway != nil && (section != "source" || len(f.Workers) > 0) {
			v.bad(key+".to.gateway", "is not for workers on other machines: they write to the store themselves")
		}
		v.hook(key+".cutover.stop-hook", f.Cutover.StopHook)
		v.hook(key+".cutover.start-hook", f.Cutover.StartHook)
		if len(f.Cutover.StartHook) > 0 && len(f.Cutover.StopHook) == 0 {
			v.bad(key+".cutover.start-hook", "has no stop-hook that it undoes")
		}
		if f.Class != "" && f.To.Dir != nil {
			v.bad(key+".class", "a folder has no storage classes")
		} else if f.Class != "" && f.To.BOS != nil && !slices.Contains(bosClasses, f.Class) {
			v.bad(key+".class", "%q is none of %s", f.Class, strings.Join(bosClasses, ", "))
		}
		if f.To.BOS != nil && strings.HasPrefix(f.To.BOS.Prefix, "/") {
			v.bad(key+".to.bos.prefix", "%q begins with a slash, and BOS takes no such keys", f.To.BOS.Prefix)
		}
	}
}

// bosClasses are the storage classes of BOS.
var bosClasses = []string{"STANDARD", "STANDARD_IA", "COLD", "ARCHIVE", "MAZ_STANDARD", "MAZ_STANDARD_IA", "MAZ_COLD"}

func (v *validator) patterns(key string, all []string) {
	for i, p := range all {
		if p == "" {
			v.bad(fmt.Sprintf("%s[%d]", key, i), "an empty pattern fits nothing; ** fits all")
		}
	}
}

// regions are those where buckets may be, and the key that says so.
type regions struct {
	allowed []string
	key     string
}

func (r regions) String() string { return r.key + ": " + strings.Join(r.allowed, ", ") }

func (v *validator) end(r regions, key string, e End) {
	n := 0
	for _, there := range []bool{e.Dir != nil, e.S3 != nil, e.BOS != nil, e.Gateway != nil} {
		if there {
			n++
		}
	}
	if n != 1 {
		v.bad(key, "needs exactly one of dir, s3, bos, gateway; it has %d", n)
		return
	}
	switch {
	case e.Dir != nil:
		var st unix.Stat_t
		if e.Dir.Path == "" {
			v.bad(key+".dir.path", "is missing; name the folder")
		} else if strings.HasPrefix(string(e.Dir.Path), credential) {
			v.bad(key+".dir.path", "%q is not an absolute path", e.Dir.Path)
		} else if err := unix.Stat(string(e.Dir.Path), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			v.bad(key+".dir.path", "%s is no folder", e.Dir.Path)
		}
	case e.S3 != nil:
		v.bucket(r, key+".s3", e.S3.Bucket, e.S3.CA, e)
		if e.S3.Endpoint == "" && e.S3.Region == "" {
			v.bad(key+".s3.endpoint", "is missing; write it as in https://rgw.example, or name the region of AWS")
		}
		if e.S3.Bound() {
			if !slices.Contains(r.allowed, e.S3.Region) {
				v.bad(key+".s3.region", "%q is not among %v", e.S3.Region, r)
			}
		}
	case e.BOS != nil:
		v.bucket(r, key+".bos", e.BOS.Bucket, e.BOS.CA, e)
		if e.BOS.Endpoint == "" {
			v.bad(key+".bos.endpoint", "is missing; write it as in bj.bcebos.com")
		}
		if region, ok := strings.CutSuffix(strings.ToLower(hostName(e.BOS.Endpoint)), ".bcebos.com"); ok {
			if region, _ = strings.CutPrefix(region, "s3."); !slices.Contains(r.allowed, region) {
				v.bad(key+".bos.endpoint", "%q is in region %q, which is not among %v", e.BOS.Endpoint, region, r)
			}
		}
	}
}

// Bound tells whether its region is held against source.regions: it is AWS. Another service has names of its own for what stands in the operator's house.
func (e *S3End) Bound() bool {
	host := strings.ToLower(hostName(e.Endpoint))
	return e.Endpoint == "" || strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
}

// Allowed are the regions in which buckets may be.
func (s *Source) Allowed() []string { return allowed(s.Regions) }

func allowed(regions []string) []string {
	if len(regions) == 0 {
		return MainlandRegions
	}
	return regions
}

func (v *validator) named(key string, all []string) {
	for i, r := range all {
		if r == "" || strings.ToLower(r) != r {
			v.bad(fmt.Sprintf("%s[%d]", key, i), "%q is no name of a region, such as bj", r)
		}
	}
}

func (v *validator) bucket(r regions, key, name string, ca File, e End) {
	if name == "" {
		v.bad(key+".bucket", "is missing")
	}
	if ca != "" && !v.other(key) {
		v.readable(key+".ca", ca)
	}
	c, given := e.Credentials(), 0
	for _, there := range []bool{c.File != "", c.Env != "", c.Systemd != "", c.Instance} {
		if there {
			given++
		}
	}
	if given != 1 {
		v.bad(key+".credentials", "needs exactly one of file, env, systemd, instance; it has %d", given)
		return
	}
	switch {
	case c.Instance && e.BOS == nil:
		v.bad(key+".credentials.instance", "is for bos: only Baidu's instances are asked")
	case c.Instance && c.STS != nil:
		v.bad(key+".credentials.sts", "an instance's keys are those of a session already")
	case c.STS != nil:
		v.sts(r, key+".credentials.sts", e)
	}
	if v.other(key) || c.Instance {
		return
	}
	if _, err := c.Read(); err != nil {
		at := key + ".credentials."
		switch {
		case c.File != "":
			at += "file"
		case c.Env != "":
			at += "env"
		default:
			at += "systemd"
		}
		v.bad(at, "%v", err)
	}
}
