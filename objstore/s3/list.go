package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/objstore"
)

// List asks for one page. Where the answer is not one that a listing can be, it is an error: an empty page would look like a bucket whose objects are gone.
func (s *Store) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	const op = "list"
	most := q.Max
	if most <= 0 || most > pageMost {
		most = pageMost
	}
	in := &awss3.ListObjectsV2Input{Bucket: s.bucket, EncodingType: types.EncodingTypeUrl, MaxKeys: aws.Int32(int32(most))}
	if q.Prefix != "" {
		in.Prefix = &q.Prefix
	}
	if q.After != "" {
		in.StartAfter = &q.After
	}
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.ListObjectsV2(ctx, in)
	if err != nil {
		return objstore.Page{}, s.fail(ctx, op, q.Prefix, err)
	}
	page, err := s.page(q, most, out)
	if err != nil {
		return objstore.Page{}, s.wrong(op, q.Prefix, nil, "%w", err)
	}
	last := q.After
	if n := len(page.Entries); n > 0 {
		last = page.Entries[n-1].Key
	}
	if page.Entries, err = s.marked(ctx, page.Entries); err != nil {
		return objstore.Page{}, err
	}
	if page.More && len(page.Entries) == 0 {
		q.After = last
		return s.List(ctx, q)
	}
	return page, nil
}

// heads is how many objects are asked for at once while a list waits for them.
const heads = 16

// marked asks for the objects that a list has no ETag of: Ceph RGW (16.2) loses it there when tags or grants are set. One that is gone by now is left out.
func (s *Store) marked(ctx context.Context, all []objstore.Entry) ([]objstore.Entry, error) {
	if !slices.ContainsFunc(all, unmarked) {
		return all, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(heads)
	for i := range all {
		if !unmarked(all[i]) {
			continue
		}
		g.Go(func() error {
			o, err := s.Head(ctx, all[i].Key)
			if errors.Is(err, objstore.ErrNotFound) {
				return nil
			}
			all[i] = o.Entry
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, unmarked), nil
}

func unmarked(e objstore.Entry) bool { return e.ETag == "" }

// page turns an answer into a page.
func (s *Store) page(q objstore.Query, most int, out *awss3.ListObjectsV2Output) (objstore.Page, error) {
	n := len(out.Contents)
	switch {
	case out.IsTruncated == nil:
		return objstore.Page{}, fmt.Errorf("the answer is no list: it does not say whether it is truncated")
	case *out.IsTruncated && n == 0:
		return objstore.Page{}, fmt.Errorf("the list is truncated and has no entries")
	case n > most:
		return objstore.Page{}, fmt.Errorf("the list has %d keys, %d were asked for", n, most)
	case out.KeyCount != nil && int(*out.KeyCount) != n+len(out.CommonPrefixes):
		return objstore.Page{}, fmt.Errorf("the list counts %d keys and has %d", *out.KeyCount, n)
	}
	page := objstore.Page{Entries: make([]objstore.Entry, 0, n), More: *out.IsTruncated}
	if t, err := http.ParseTime(header(out.ResultMetadata).Get("Date")); err == nil {
		page.Now = t.UTC()
	}
	s.learn(header(out.ResultMetadata))
	last := q.After
	for i := range out.Contents {
		e, err := entry(&out.Contents[i], out.EncodingType)
		if err != nil {
			return objstore.Page{}, err
		}
		switch {
		case unmarked(e) && !s.ceph.Load():
			return objstore.Page{}, fmt.Errorf("the list has %q without an ETag", e.Key)
		case !strings.HasPrefix(e.Key, q.Prefix):
			return objstore.Page{}, fmt.Errorf("the list has %q, which does not begin with %q", e.Key, q.Prefix)
		case e.Key <= last:
			return objstore.Page{}, fmt.Errorf("the list has %q behind %q, which is not the order of the keys", e.Key, last)
		}
		last = e.Key
		page.Entries = append(page.Entries, e)
	}
	return page, nil
}

func entry(o *types.Object, encoding types.EncodingType) (objstore.Entry, error) {
	key, err := decoded(aws.ToString(o.Key), encoding)
	if err != nil {
		return objstore.Entry{}, err
	}
	e := objstore.Entry{Key: key, ETag: unquote(aws.ToString(o.ETag)), Class: standardIsEmpty(string(o.StorageClass))}
	switch {
	case key == "":
		return e, fmt.Errorf("the list has an entry without a key")
	case o.Size == nil || *o.Size < 0:
		return e, fmt.Errorf("the list has %q without a size", key)
	case o.LastModified == nil:
		return e, fmt.Errorf("the list has %q without the time when it was modified", key)
	}
	e.Size, e.Modified = *o.Size, o.LastModified.UTC()
	return e, nil
}

// decoded is a key as it is, from the form that the answer says it has. As forms of HTML do, AWS writes a space as "+", and a "+" as %2B.
func decoded(key string, encoding types.EncodingType) (string, error) {
	if encoding != types.EncodingTypeUrl {
		return key, nil
	}
	if !strings.ContainsAny(key, "%+") {
		return key, nil
	}
	out := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		switch c := key[i]; c {
		case '+':
			out = append(out, ' ')
		case '%':
			if i+2 >= len(key) || !isHex(key[i+1]) || !isHex(key[i+2]) {
				return "", fmt.Errorf("the list has the key %q, which is not encoded as it says", key)
			}
			out = append(out, unhex(key[i+1])<<4|unhex(key[i+2]))
			i += 2
		default:
			out = append(out, c)
		}
	}
	return string(out), nil
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
