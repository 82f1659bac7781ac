package bos

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/baidubce/bce-sdk-go/services/bos/api"

	"github.com/moverd/mover/objstore"
)

// Tags implements objstore.Tagger.
func (s *Store) Tags(ctx context.Context, key string) (map[string]string, error) {
	if err := Key(key); err != nil {
		return nil, s.unfit("tags", key, err)
	}
	c := s.begin(ctx, "tags", key)
	defer c.end()
	r, err := api.GetObjectTag(c, s.bucket, key, c.context())
	if err != nil && c.code != "NoSuchTag" {
		return nil, c.failed(err)
	}
	tags := make(map[string]string, len(r))
	for k, v := range r {
		text, ok := v.(string)
		if !ok {
			return nil, c.unclear("the tag %q has the value %v", k, v)
		}
		tags[k] = text
	}
	return tags, nil
}

// SetTags implements objstore.Tagger. BOS takes 10, and has them in some regions only.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	if err := Key(key); err != nil {
		return s.unfit("set tags", key, err)
	}
	c := s.begin(ctx, "set tags", key)
	defer c.end()
	if len(tags) == 0 {
		if err := api.DeleteObjectTag(c, s.bucket, key, c.context()); err != nil && c.code != "NoSuchTag" {
			return c.failed(err)
		}
		return nil
	}
	var one api.ObjectTags
	for k, v := range tags {
		one.TagInfo = append(one.TagInfo, api.ObjectTag{Key: k, Value: v})
	}
	if err := api.PutObjectTag(c, s.bucket, key, &api.PutObjectTagArgs{ObjectTags: []api.ObjectTags{one}}, c.context()); err != nil {
		return c.refusal(err)
	}
	return nil
}

// refusal is an error of an argument that the store does not take: it cannot be carried.
func (c *call) refusal(err error) error {
	err = c.failed(err)
	if e, ok := err.(*objstore.Error); ok && e.Kind == nil && c.status == 400 {
		e.Kind = objstore.ErrNotSupported
	}
	return err
}

// Grants implements objstore.Granter. An object without a list of its own has that of its bucket.
func (s *Store) Grants(ctx context.Context, key string) (canned string, grants []string, err error) {
	if err := Key(key); err != nil {
		return "", nil, s.unfit("grants", key, err)
	}
	c := s.begin(ctx, "grants", key)
	defer c.end()
	r, err := api.GetObjectAcl(c, s.bucket, key, c.context())
	if err != nil {
		return "", nil, c.failed(err)
	}
	list, owner := r.AccessControlList, ""
	if len(list) == 0 {
		c := s.begin(ctx, "grants", "")
		defer c.end()
		b, err := api.GetBucketAcl(c, s.bucket, c.context())
		if err != nil {
			return "", nil, c.failed(err)
		}
		if len(b.AccessControlList) == 0 {
			return "", nil, c.unclear("the bucket has no access control list")
		}
		list, owner = b.AccessControlList, b.Owner.Id
	}
	canned, grants = meaning(list, owner)
	return canned, grants, nil
}

// meaning finds the canned name of a list: what everybody may, and nobody but the owner more. The owner of an object is not told; whoever has full control
// alone is taken for it.
func meaning(list []api.GrantType, owner string) (canned string, grants []string) {
	var all, others []string
	full := map[string]bool{}
	special := false
	for _, g := range list {
		special = special || g.Effect != "" && g.Effect != "Allow" || len(g.Resource) > 0 || len(g.NotResource) > 0 || len(g.Condition.IpAddress) > 0 ||
			len(g.Condition.VpcId) > 0 || len(g.Condition.Referer.StringLike) > 0 || len(g.Condition.Referer.StringEquals) > 0
		for _, who := range g.Grantee {
			grants = append(grants, fmt.Sprintf("%s: %s", who.Id, strings.Join(g.Permission, ", ")))
			switch {
			case who.Id == "*":
				all = append(all, g.Permission...)
			case who.Id == owner || slices.Contains(g.Permission, "FULL_CONTROL"):
				full[who.Id] = true
			default:
				others = append(others, who.Id)
			}
		}
	}
	slices.Sort(grants)
	slices.Sort(all)
	if len(others) > 0 || len(full) > 1 || special {
		return "", grants
	}
	switch strings.Join(slices.Compact(all), " ") {
	case "":
		return "private", grants
	case "READ":
		return "public-read", grants
	case "READ WRITE":
		return "public-read-write", grants
	}
	return "", grants
}

// SetGrants implements objstore.Granter. An object of BOS is private or public-read; the SDK sends nothing for names that it does not know.
func (s *Store) SetGrants(ctx context.Context, key, canned string) error {
	err := Key(key)
	if err == nil && canned != api.CANNED_ACL_PRIVATE && canned != api.CANNED_ACL_PUBLIC_READ {
		err = fmt.Errorf("the canned list %q: an object of BOS is private or public-read", canned)
	}
	if err != nil {
		return s.unfit("set grants", key, err)
	}
	c := s.begin(ctx, "set grants", key)
	defer c.end()
	if err := api.PutObjectAcl(c, s.bucket, key, canned, nil, nil, nil, c.context()); err != nil {
		return c.refusal(err)
	}
	return nil
}

// Versioned implements objstore.Versioner.
func (s *Store) Versioned(ctx context.Context) (bool, error) {
	c := s.begin(ctx, "versioning", "")
	defer c.end()
	r, err := api.GetBucketVersioning(c, s.bucket, c.context())
	if err != nil {
		return false, c.failed(err)
	}
	return strings.EqualFold(r.Status, "enabled"), nil
}

// Older implements objstore.OlderCounter. A place is a key, a zero byte and a version.
func (s *Store) Older(ctx context.Context, prefix, place string) (n objstore.Older, next string, err error) {
	c := s.begin(ctx, "list versions", prefix)
	defer c.end()
	args := &api.ListObjectsArgs{Prefix: prefix, MaxKeys: pageMost}
	args.Marker, args.VersionIdMarker, _ = strings.Cut(place, "\x00")
	r, err := api.ListObjectsVersions(c, s.bucket, args, c.context())
	if err != nil {
		return n, "", c.failed(err)
	}
	if r.Name != s.bucket {
		return n, "", c.unclear("it is of the bucket %q", r.Name)
	}
	for _, o := range r.Contents {
		switch {
		case o.DeleteMarker:
			n.Markers++
		case !o.IsLatest:
			n.Versions, n.Bytes = n.Versions+1, n.Bytes+int64(o.Size)
		}
	}
	if !r.IsTruncated {
		return n, "", nil
	}
	if next = r.NextMarker + "\x00" + r.NextVersionidMarker; r.NextMarker == "" || next == place {
		return n, "", c.unclear("it goes on behind %q", r.NextMarker)
	}
	return n, next, nil
}

// Location implements objstore.Locator.
func (s *Store) Location(ctx context.Context) (string, error) {
	c := s.begin(ctx, "location", "")
	defer c.end()
	region, err := api.GetBucketLocation(c, s.bucket, c.context())
	if err != nil {
		return "", c.failed(err)
	}
	if region == "" {
		return "", c.unclear("no region")
	}
	return region, nil
}
