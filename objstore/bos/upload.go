package bos

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/baidubce/bce-sdk-go/bce"
	"github.com/baidubce/bce-sdk-go/services/bos/api"

	"github.com/moverd/mover/objstore"
)

// Begin implements objstore.Store. BOS takes the user's metadata with Complete.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (upload string, err error) {
	if err = Key(key); err == nil {
		err = goodOptions(o)
	}
	if err != nil {
		return "", s.unfit("begin", key, err)
	}
	c := s.begin(ctx, "begin", key)
	defer c.end()
	r, err := api.InitiateMultipartUpload(c, s.bucket, key, o.Attrs.ContentType, nil, c.context(), options(o)...)
	if err != nil {
		return "", c.failed(err)
	}
	if r.UploadId == "" || r.Key != key {
		return "", c.unclear("the upload %q of the key %q", r.UploadId, r.Key)
	}
	return r.UploadId, nil
}

// PutPart implements objstore.Store.
func (s *Store) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (objstore.Written, error) {
	l := s.Limits()
	err := Key(key)
	switch {
	case err != nil:
	case no < 1 || no > l.Parts:
		err = fmt.Errorf("part %d: BOS has parts 1 to %d", no, l.Parts)
	case b.Size > l.PartMost:
		err = fmt.Errorf("part %d of %d bytes: BOS takes %d", no, b.Size, l.PartMost)
	}
	if err != nil {
		return objstore.Written{}, s.unfit("put part", key, err)
	}
	c := s.begin(ctx, "put part", key)
	defer c.end()
	return c.send(b, func(body *bce.Body, md5 string) (string, error) {
		return api.UploadPart(c, s.bucket, key, upload, no, body, &api.UploadPartArgs{ContentMD5: md5}, c.context())
	})
}

// Parts implements objstore.Store.
func (s *Store) Parts(ctx context.Context, key, upload string, after int) (parts []objstore.Part, more bool, err error) {
	if err := Key(key); err != nil {
		return nil, false, s.unfit("parts", key, err)
	}
	c := s.begin(ctx, "parts", key)
	defer c.end()
	args := &api.ListPartsArgs{MaxParts: pageMost}
	if after > 0 {
		args.PartNumberMarker = strconv.Itoa(after)
	}
	r, err := api.ListParts(c, s.bucket, key, upload, args, c.context())
	if err != nil {
		return nil, false, c.failed(err)
	}
	if r.UploadId != upload || r.IsTruncated && len(r.Parts) == 0 {
		return nil, false, c.unclear("%d parts of the upload %q, and others behind: %v", len(r.Parts), r.UploadId, r.IsTruncated)
	}
	for _, p := range r.Parts {
		if p.PartNumber <= after || p.ETag == "" || p.Size < 0 {
			return nil, false, c.unclear("part %d comes after part %d, with the ETag %q and %d bytes", p.PartNumber, after, p.ETag, p.Size)
		}
		after = p.PartNumber
		parts = append(parts, objstore.Part{No: p.PartNumber, Size: int64(p.Size), ETag: unquote(p.ETag)})
	}
	return parts, r.IsTruncated, nil
}

// Complete implements objstore.Store.
func (s *Store) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	err := Key(key)
	if err == nil {
		err = goodOptions(o)
	}
	if err != nil {
		return objstore.Written{}, s.unfit("complete", key, err)
	}
	c := s.begin(ctx, "complete", key)
	defer c.end()
	c.absent = o.Absent
	args := &api.CompleteMultipartUploadArgs{UserMeta: o.Attrs.Meta}
	if o.Absent {
		args.IfNoneMatch = "*"
	}
	for _, p := range parts {
		args.Parts = append(args.Parts, api.UploadInfoType{PartNumber: p.No, ETag: p.ETag})
	}
	body, err := jsonBody(args)
	if err != nil {
		return objstore.Written{}, err
	}
	r, err := api.CompleteMultipartUpload(c, s.bucket, key, upload, body, args, c.context())
	if err != nil {
		return objstore.Written{}, c.failed(err)
	}
	if r.ETag == "" || r.Key != key {
		return objstore.Written{}, c.unclear("the ETag %q of the key %q", r.ETag, r.Key)
	}
	return objstore.Written{ETag: unquote(r.ETag)}, nil
}

// Abort implements objstore.Store.
func (s *Store) Abort(ctx context.Context, key, upload string) error {
	if err := Key(key); err != nil {
		return s.unfit("abort", key, err)
	}
	c := s.begin(ctx, "abort", key)
	defer c.end()
	if err := api.AbortMultipartUpload(c, s.bucket, key, upload, c.context()); err != nil && c.code != "NoSuchUpload" {
		return c.failed(err)
	}
	return nil
}

// Uploads implements objstore.Store. BOS goes on after a key, not after one of its uploads: a page ends at the last key that is whole.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) (uploads []objstore.Upload, next *objstore.UploadPlace, err error) {
	c := s.begin(ctx, "uploads", prefix)
	defer c.end()
	r, err := api.ListMultipartUploads(c, s.bucket, &api.ListMultipartUploadsArgs{Prefix: prefix, KeyMarker: after.Key, MaxUploads: pageMost}, c.context())
	if err != nil {
		return nil, nil, c.failed(err)
	}
	if r.Bucket != s.bucket || r.IsTruncated && len(r.Uploads) == 0 {
		return nil, nil, c.unclear("%d uploads of the bucket %q, and others behind: %v", len(r.Uploads), r.Bucket, r.IsTruncated)
	}
	last := after.Key
	for i, u := range r.Uploads {
		if u.UploadId == "" || u.Key < last || u.Key == last && i == 0 && last != "" || !strings.HasPrefix(u.Key, prefix) {
			return nil, nil, c.unclear("the upload %q of the key %q comes after the key %q", u.UploadId, u.Key, last)
		}
		last = u.Key
		at, _ := time.Parse("2006-01-02T15:04:05Z", u.Initiated)
		uploads = append(uploads, objstore.Upload{Key: u.Key, ID: u.UploadId, Begun: at})
	}
	if !r.IsTruncated {
		return uploads, nil, nil
	}
	whole := len(uploads)
	for whole > 0 && uploads[whole-1].Key == last {
		whole--
	}
	if whole == 0 {
		return nil, nil, s.unfit("uploads", last, fmt.Errorf("more than %d uploads of this key have not ended, and BOS lists no more: abort some of them first", len(uploads)))
	}
	return uploads[:whole], &objstore.UploadPlace{Key: uploads[whole-1].Key}, nil
}
