package s3

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/moverd/mover/objstore"
)

// Begin starts an upload. Its attributes are given here and only here.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	const op = "begin upload"
	if err := s.fits(op, key, o.Attrs); err != nil {
		return "", err
	}
	ctx, done := s.call(ctx)
	defer done()
	if err := s.names(ctx, op, key, o.Attrs.Meta); err != nil {
		return "", err
	}
	if o.Absent {
		if err := s.absent(ctx, op, key); err != nil {
			return "", err
		}
	}
	with := ctx
	if o.Attrs.Expires != "" {
		with = context.WithValue(ctx, expiresKey{}, o.Attrs.Expires)
	}
	out, err := s.client.CreateMultipartUpload(with, &awss3.CreateMultipartUploadInput{Bucket: s.bucket, Key: &key, StorageClass: classOf(o.Class),
		Metadata: o.Attrs.Meta, ContentType: some(o.Attrs.ContentType), CacheControl: some(o.Attrs.CacheControl),
		ContentDisposition: some(o.Attrs.ContentDisposition), ContentEncoding: some(o.Attrs.ContentEncoding), ContentLanguage: some(o.Attrs.ContentLanguage)})
	if err != nil {
		return "", s.fail(ctx, op, key, err)
	}
	if aws.ToString(out.UploadId) == "" {
		return "", s.wrong(op, key, nil, "an answer without the upload's name")
	}
	return *out.UploadId, nil
}

// absent looks whether there is no object of this key, and whether the store keeps to that when it puts parts together: Ceph RGW does not look at the condition.
func (s *Store) absent(ctx context.Context, op, key string) error {
	switch _, err := s.Head(ctx, key); {
	case s.ceph.Load():
		return s.wrong(op, key, objstore.ErrNotSupported, "Ceph RGW overwrites with an upload in parts, whatever is there")
	case err == nil:
		return s.wrong(op, key, objstore.ErrExists, "an object of this key is there")
	case errors.Is(err, objstore.ErrNotFound):
		return nil
	default:
		return err
	}
}

// some is a field that is set unless it is empty.
func some(v string) *string {
	if v == "" {
		return nil
	}
	return &v
}

// Parts gives what an upload has.
func (s *Store) Parts(ctx context.Context, key, upload string, after int) ([]objstore.Part, bool, error) {
	const op = "list parts"
	if err := s.asks(op, key); err != nil {
		return nil, false, err
	}
	ctx, done := s.call(ctx)
	defer done()
	in := &awss3.ListPartsInput{Bucket: s.bucket, Key: &key, UploadId: &upload, MaxParts: aws.Int32(pageMost)}
	if after > 0 {
		in.PartNumberMarker = aws.String(strconv.Itoa(after))
	}
	out, err := s.client.ListParts(ctx, in)
	if err != nil {
		return nil, false, s.fail(ctx, op, key, err)
	}
	if out.IsTruncated == nil || *out.IsTruncated && len(out.Parts) == 0 {
		return nil, false, s.wrong(op, key, nil, "the answer is no list of parts, or a truncated one without entries")
	}
	parts := make([]objstore.Part, 0, len(out.Parts))
	for _, p := range out.Parts {
		part := objstore.Part{No: int(aws.ToInt32(p.PartNumber)), Size: aws.ToInt64(p.Size), ETag: unquote(aws.ToString(p.ETag))}
		if part.No <= after || part.ETag == "" || p.Size == nil {
			return nil, false, s.wrong(op, key, nil, "the list has part %d with ETag %q behind part %d", part.No, part.ETag, after)
		}
		after = part.No
		parts = append(parts, part)
	}
	return parts, *out.IsTruncated, nil
}

// Complete makes the object, and compares its ETag with that of the parts' digests. Where it has another form, its size is compared.
func (s *Store) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	const op = "complete upload"
	if err := s.asks(op, key); err != nil {
		return objstore.Written{}, err
	}
	if len(parts) == 0 {
		return objstore.Written{}, s.wrong(op, key, objstore.ErrNotSupported, "an upload without parts: an empty object is put")
	}
	ctx, done := s.call(ctx)
	defer done()
	in := &awss3.CompleteMultipartUploadInput{Bucket: s.bucket, Key: &key, UploadId: &upload}
	if o.Absent {
		if err := s.absent(ctx, op, key); err != nil {
			return objstore.Written{}, err
		}
		in.IfNoneMatch = aws.String("*")
	}
	list := make([]types.CompletedPart, len(parts))
	etags := make([]string, len(parts))
	var size int64
	for i, p := range parts {
		list[i] = types.CompletedPart{PartNumber: aws.Int32(int32(p.No)), ETag: aws.String(quote(p.ETag))}
		etags[i] = p.ETag
		size += p.Size
	}
	in.MultipartUpload = &types.CompletedMultipartUpload{Parts: list}
	out, err := s.client.CompleteMultipartUpload(ctx, in)
	if err != nil {
		return objstore.Written{}, s.ended(ctx, key, upload, s.refused(ctx, op, key, err, o.Absent))
	}
	return s.completed(ctx, key, unquote(aws.ToString(out.ETag)), joined(etags), size, opaque(header(out.ResultMetadata)))
}

// completed proves what an upload has become: want is the ETag that AWS makes of its parts, "" where they do not tell.
func (s *Store) completed(ctx context.Context, key, etag, want string, size int64, hidden bool) (objstore.Written, error) {
	const op = "complete upload"
	if etag == "" {
		// As Ceph RGW answers. The object tells, if it can only be this one.
		o, err := s.Head(ctx, key)
		if err != nil {
			return objstore.Written{}, err
		}
		if etag = o.ETag; etag != want {
			return objstore.Written{}, s.wrong(op, key, nil, "an answer without an ETag, and the object has %q, not %q", etag, want)
		}
		return objstore.Written{ETag: etag}, s.sameSize(op, key, o.Size, size)
	}
	if want == "" || hidden || !likeJoined(etag) {
		return objstore.Written{ETag: etag}, s.sized(ctx, op, key, etag, size)
	}
	if etag != want {
		return objstore.Written{}, s.wrong(op, key, objstore.ErrCorrupt, "the ETag of what is stored is %s, that of the parts that were sent %s", etag, want)
	}
	return objstore.Written{ETag: etag}, nil
}

// ended looks whether an upload is there, where completing it met an error of the server: Ceph RGW calls one that has ended "already in progress".
func (s *Store) ended(ctx context.Context, key, upload string, err error) error {
	var e *objstore.Error
	if errors.As(err, &e) && e.Status >= 500 {
		if _, _, gone := s.Parts(ctx, key, upload, 0); errors.Is(gone, objstore.ErrNotFound) {
			e.Kind = objstore.ErrNotFound
		}
	}
	return err
}

// Abort forgets an upload.
func (s *Store) Abort(ctx context.Context, key, upload string) error {
	const op = "abort upload"
	if err := s.asks(op, key); err != nil {
		return err
	}
	ctx, done := s.call(ctx)
	defer done()
	_, err := s.client.AbortMultipartUpload(ctx, &awss3.AbortMultipartUploadInput{Bucket: s.bucket, Key: &key, UploadId: &upload})
	err = s.fail(ctx, op, key, err)
	var e *objstore.Error
	if errors.As(err, &e) && e.Code == "NoSuchUpload" {
		return nil
	}
	return err
}

// Uploads gives a page of the uploads that have not ended.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) ([]objstore.Upload, *objstore.UploadPlace, error) {
	const op = "list uploads"
	ctx, done := s.call(ctx)
	defer done()
	in := &awss3.ListMultipartUploadsInput{Bucket: s.bucket, EncodingType: types.EncodingTypeUrl, MaxUploads: aws.Int32(pageMost), Prefix: some(prefix)}
	if after.Key != "" {
		in.KeyMarker, in.UploadIdMarker = &after.Key, some(after.ID)
	}
	out, err := s.client.ListMultipartUploads(ctx, in)
	if err != nil {
		return nil, nil, s.fail(ctx, op, prefix, err)
	}
	s.learn(header(out.ResultMetadata))
	if out.EncodingType == "" && s.ceph.Load() {
		out.EncodingType = types.EncodingTypeUrl // it encodes, and does not say so
	}
	uploads, next, err := uploadsOf(out, prefix, after)
	if err != nil {
		return nil, nil, s.wrong(op, prefix, nil, "%w", err)
	}
	return uploads, next, nil
}

func uploadsOf(out *awss3.ListMultipartUploadsOutput, prefix string, after objstore.UploadPlace) ([]objstore.Upload, *objstore.UploadPlace, error) {
	if out.IsTruncated == nil {
		return nil, nil, errors.New("the answer is no list: it does not say whether it is truncated")
	}
	uploads := make([]objstore.Upload, 0, len(out.Uploads))
	last := after.Key
	for _, u := range out.Uploads {
		key, err := decoded(aws.ToString(u.Key), out.EncodingType)
		if err != nil {
			return nil, nil, err
		}
		if key < last || !strings.HasPrefix(key, prefix) || aws.ToString(u.UploadId) == "" {
			return nil, nil, fmt.Errorf("the list has %q (upload %q) behind %q", key, aws.ToString(u.UploadId), last)
		}
		last = key
		uploads = append(uploads, objstore.Upload{Key: key, ID: *u.UploadId, Begun: aws.ToTime(u.Initiated).UTC()})
	}
	if !*out.IsTruncated {
		return uploads, nil, nil
	}
	if len(uploads) == 0 {
		return nil, nil, errors.New("the list is truncated and has no entries")
	}
	end := uploads[len(uploads)-1]
	return uploads, &objstore.UploadPlace{Key: end.Key, ID: end.ID}, nil
}
