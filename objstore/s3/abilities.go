package s3

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/moverd/mover/objstore"
)

// Tags gives the tags of an object.
func (s *Store) Tags(ctx context.Context, key string) (map[string]string, error) {
	const op = "get tags"
	if err := s.asks(op, key); err != nil {
		return nil, err
	}
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.GetObjectTagging(ctx, &awss3.GetObjectTaggingInput{Bucket: s.bucket, Key: &key})
	err = s.fail(ctx, op, key, err)
	var e *objstore.Error
	switch {
	case errors.As(err, &e) && (e.Code == "NoSuchTagSet" || e.Code == "NoSuchTagSetError"):
		s.tagged.Store(true)
		return map[string]string{}, nil
	case err != nil:
		return nil, err
	}
	s.tagged.Store(true)
	tags := make(map[string]string, len(out.TagSet))
	for _, t := range out.TagSet {
		tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return tags, nil
}

// SetTags replaces the tags of an object.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	const op = "set tags"
	if err := s.asks(op, key); err != nil {
		return err
	}
	ctx, done := s.call(ctx)
	defer done()
	if len(tags) == 0 {
		_, err := s.client.DeleteObjectTagging(ctx, &awss3.DeleteObjectTaggingInput{Bucket: s.bucket, Key: &key})
		return s.fail(ctx, op, key, err)
	}
	names := make([]string, 0, len(tags))
	for name, value := range tags {
		if !written(name) || !written(value) {
			return s.wrong(op, key, objstore.ErrNotSupported, "tag %q: %q cannot stand in XML", name, value)
		}
		names = append(names, name)
	}
	sort.Strings(names)
	set := make([]types.Tag, len(names))
	for i, name := range names {
		set[i] = types.Tag{Key: aws.String(name), Value: aws.String(tags[name])}
	}
	_, err := s.client.PutObjectTagging(ctx, &awss3.PutObjectTaggingInput{Bucket: s.bucket, Key: &key, Tagging: &types.Tagging{TagSet: set}})
	return s.fail(ctx, op, key, err)
}

// The groups that canned names speak of.
const (
	everybody = "http://acs.amazonaws.com/groups/global/AllUsers"
	anyUser   = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
)

// Grants gives who may do what with an object.
func (s *Store) Grants(ctx context.Context, key string) (string, []string, error) {
	const op = "get grants"
	if err := s.asks(op, key); err != nil {
		return "", nil, err
	}
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.GetObjectAcl(ctx, &awss3.GetObjectAclInput{Bucket: s.bucket, Key: &key})
	if err != nil {
		return "", nil, s.fail(ctx, op, key, err)
	}
	if out.Owner == nil || aws.ToString(out.Owner.ID) == "" {
		return "", nil, s.wrong(op, key, nil, "an answer without an owner")
	}
	canned, grants := grantsOf(*out.Owner.ID, out.Grants)
	return canned, grants, nil
}

// grantsOf finds the canned name that gives the same rights, and writes them for people.
func grantsOf(owner string, all []types.Grant) (canned string, grants []string) {
	var owns bool
	to := make(map[string]bool) // what groups may do
	others := false
	for _, g := range all {
		if g.Grantee == nil {
			others = true
			continue
		}
		id, uri := aws.ToString(g.Grantee.ID), aws.ToString(g.Grantee.URI)
		switch {
		case id == owner && g.Permission == types.PermissionFullControl:
			owns = true
		case uri == everybody || uri == anyUser:
			to[uri+" "+string(g.Permission)] = true
		default:
			others = true
		}
		grants = append(grants, fmt.Sprintf("%s: %s", grantee(*g.Grantee), g.Permission))
	}
	read, write, users := to[everybody+" READ"], to[everybody+" WRITE"], to[anyUser+" READ"]
	switch {
	case !owns || others:
	case len(to) == 0:
		canned = "private"
	case read && len(to) == 1:
		canned = "public-read"
	case read && write && len(to) == 2:
		canned = "public-read-write"
	case users && len(to) == 1:
		canned = "authenticated-read"
	}
	return canned, grants
}

func grantee(g types.Grantee) string {
	for _, name := range []*string{g.ID, g.URI, g.EmailAddress, g.DisplayName} {
		if aws.ToString(name) != "" {
			return *name
		}
	}
	return "nobody that is named"
}

// SetGrants sets a canned name.
func (s *Store) SetGrants(ctx context.Context, key, canned string) error {
	const op = "set grants"
	if err := s.asks(op, key); err != nil {
		return err
	}
	ctx, done := s.call(ctx)
	defer done()
	_, err := s.client.PutObjectAcl(ctx, &awss3.PutObjectAclInput{Bucket: s.bucket, Key: &key, ACL: types.ObjectCannedACL(canned)})
	return s.fail(ctx, op, key, err)
}

// Versioned tells whether the bucket keeps older states, or may have kept some before that was suspended.
func (s *Store) Versioned(ctx context.Context) (bool, error) {
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.GetBucketVersioning(ctx, &awss3.GetBucketVersioningInput{Bucket: s.bucket})
	if err != nil {
		return false, s.fail(ctx, "get versioning", "", err)
	}
	return out.Status != "", nil
}

// Older counts a page of ListObjectVersions. A place is a key, a zero byte and a version.
func (s *Store) Older(ctx context.Context, prefix, place string) (n objstore.Older, next string, err error) {
	const op = "list versions"
	in := &awss3.ListObjectVersionsInput{Bucket: s.bucket, EncodingType: types.EncodingTypeUrl, MaxKeys: aws.Int32(pageMost)}
	if prefix != "" {
		in.Prefix = &prefix
	}
	if key, version, ok := strings.Cut(place, "\x00"); ok {
		in.KeyMarker, in.VersionIdMarker = &key, some(version)
	}
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.ListObjectVersions(ctx, in)
	if err != nil {
		return n, "", s.fail(ctx, op, prefix, err)
	}
	if out.IsTruncated == nil || *out.IsTruncated && aws.ToString(out.NextKeyMarker) == "" {
		return n, "", s.wrong(op, prefix, nil, "the answer does not say where it ends")
	}
	for _, v := range out.Versions {
		if !aws.ToBool(v.IsLatest) {
			n.Versions, n.Bytes = n.Versions+1, n.Bytes+aws.ToInt64(v.Size)
		}
	}
	n.Markers = int64(len(out.DeleteMarkers))
	if *out.IsTruncated {
		encoding := out.EncodingType
		if s.ceph.Load() {
			encoding = "" // it encodes keys, and leaves this one as it is
		}
		key, err := decoded(*out.NextKeyMarker, encoding)
		if err != nil {
			return n, "", s.wrong(op, prefix, nil, "%w", err)
		}
		next = key + "\x00" + aws.ToString(out.NextVersionIdMarker)
		if next == place {
			return n, "", s.wrong(op, prefix, nil, "the list does not go on behind %q", key)
		}
	}
	return n, next, nil
}

// Location gives the bucket's region. The oldest one has no name in the answer, and the second another one.
func (s *Store) Location(ctx context.Context) (string, error) {
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.GetBucketLocation(ctx, &awss3.GetBucketLocationInput{Bucket: s.bucket})
	if err != nil {
		return "", s.fail(ctx, "get location", "", err)
	}
	switch region := string(out.LocationConstraint); region {
	case "":
		return "us-east-1", nil
	case "EU":
		return "eu-west-1", nil
	default:
		return region, nil
	}
}
