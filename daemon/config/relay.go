package config

import (
	"fmt"
	"strings"
)

// GatewayEnd is the bucket that the gateway has for the flow. The source knows neither its name nor its keys.
type GatewayEnd struct {
	Prefix string `yaml:"prefix,omitempty"` // behind the one that the gateway sets
}

// GatewayBucket is a bucket that a source's bucket flow reaches by this gateway, and nothing of it outside the prefix.
type GatewayBucket struct {
	Tenant string `yaml:"tenant"`
	Host   string `yaml:"host"`
	Name   string `yaml:"name"` // of the flow
	Store  End    `yaml:"store"`
}

// Key is TENANT/HOST/NAME.
func (b GatewayBucket) Key() string { return b.Tenant + "/" + b.Host + "/" + b.Name }

// bucketBuffers is what bucket flows take of a gateway's memory at least.
const bucketBuffers = 192 << 20

// Allowed are the regions in which buckets may be.
func (g *Gateway) Allowed() []string { return allowed(g.Regions) }

// Target is the end as a policy names it: a path, or bos:BUCKET/PREFIX and s3:BUCKET/PREFIX, without a prefix only the bucket.
func (e End) Target() string {
	name := ""
	switch {
	case e.Dir != nil:
		return string(e.Dir.Path)
	case e.S3 != nil:
		name = "s3:" + e.S3.Bucket
	case e.BOS != nil:
		name = "bos:" + e.BOS.Bucket
	}
	if p := strings.TrimSuffix(e.Prefix(), "/"); p != "" {
		name += "/" + p
	}
	return name
}

// gatewayBuckets checks what bucket flows may reach. flows are those of volumes.
func (v *validator) gatewayBuckets(g *Gateway, flows map[string]int) {
	v.named("gateway.regions", g.Regions)
	names := map[string]int{}
	type place struct{ bucket, prefix string }
	var places []place
	for i, b := range g.Buckets {
		key := fmt.Sprintf("gateway.buckets[%d]", i)
		v.name(key+".tenant", b.Tenant)
		v.name(key+".host", b.Host)
		v.name(key+".name", b.Name)
		v.once(key+".name", "flow", b.Key(), i, "gateway.buckets", names)
		if at, twice := flows[b.Key()]; twice {
			v.bad(key+".name", "%s is gateway.flows[%d] too; each flow may stand once", b.Key(), at)
		}
		if b.Store.Gateway != nil {
			v.bad(key+".store", "a gateway cannot be behind a gateway")
			b.Store.Gateway = nil
		}
		v.end(regions{g.Allowed(), "gateway.regions"}, key+".store", b.Store)
		bucket, prefix := b.Store.place()
		for at, o := range places {
			if bucket != "" && o.bucket == bucket && (strings.HasPrefix(o.prefix, prefix) || strings.HasPrefix(prefix, o.prefix)) {
				v.bad(key+".store", "overlaps with gateway.buckets[%d].store: each target has one flow", at)
			}
		}
		places = append(places, place{bucket, prefix})
	}
}
