package bos

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/baidubce/bce-sdk-go/bce"
	"github.com/baidubce/bce-sdk-go/services/bos/api"

	"github.com/moverd/mover/objstore"
)

// List implements objstore.Store by ListObjects, which goes on after a key.
func (s *Store) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	c := s.begin(ctx, "list", q.Prefix)
	defer c.end()
	most := q.Max
	if most <= 0 || most > pageMost {
		most = pageMost
	}
	r, err := api.ListObjects(c, s.bucket, &api.ListObjectsArgs{Prefix: q.Prefix, Marker: q.After, MaxKeys: most}, c.context())
	if err != nil {
		return objstore.Page{}, c.failed(err)
	}
	if r.Name != s.bucket {
		return objstore.Page{}, c.unclear("it is of the bucket %q", r.Name)
	}
	p := objstore.Page{More: r.IsTruncated, Entries: make([]objstore.Entry, 0, len(r.Contents))}
	if now, err := http.ParseTime(c.header.Get("Date")); err == nil {
		p.Now = now.UTC()
	}
	last := q.After
	for _, o := range r.Contents {
		at, err := parseTime(o.LastModified)
		switch {
		case o.Key <= last:
			return objstore.Page{}, c.unclear("the key %q comes after %q", o.Key, last)
		case !strings.HasPrefix(o.Key, q.Prefix):
			return objstore.Page{}, c.unclear("the key %q has not the prefix", o.Key)
		case o.ETag == "" || o.Size < 0 || err != nil:
			return objstore.Page{}, c.unclear("the key %q has the ETag %q, the size %d, and was modified %q", o.Key, o.ETag, o.Size, o.LastModified)
		}
		last = o.Key
		p.Entries = append(p.Entries, objstore.Entry{Key: o.Key, Size: int64(o.Size), ETag: unquote(o.ETag), Modified: at, Class: class(o.StorageClass)})
	}
	if p.More && len(p.Entries) == 0 {
		return objstore.Page{}, c.unclear("a page without keys, and others behind")
	}
	return p, nil
}

// Head implements objstore.Store.
func (s *Store) Head(ctx context.Context, key string) (objstore.Object, error) {
	if err := Key(key); err != nil {
		return objstore.Object{}, s.unfit("head", key, err)
	}
	c := s.begin(ctx, "head", key)
	defer c.end()
	if _, err := api.GetObjectMeta(c, s.bucket, key, c.context()); err != nil {
		return objstore.Object{}, c.failed(err)
	}
	return c.object(c.length)
}

// Get implements objstore.Store. The ETag is compared here, for it is not told whether BOS wants quotation marks in If-Match. The bytes of a whole object are
// compared with the CRC-64 that the store tells.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	err := Key(key)
	if err == nil && (o.Off < 0 || o.Len < 0) {
		err = fmt.Errorf("%d bytes from %d", o.Len, o.Off)
	}
	if err != nil {
		return objstore.Object{}, nil, s.unfit("get", key, err)
	}
	c := s.begin(ctx, "get", key)
	c.bytes = true
	obj, body, err := c.get(o)
	if err != nil {
		c.end()
		return objstore.Object{}, nil, err
	}
	return obj, body, nil
}

func (c *call) get(o objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	args := &api.GetObjectArgs{}
	if ranged(o) {
		args.Ranges = []int64{o.Off}
		if o.Len > 0 {
			args.Ranges = append(args.Ranges, o.Off+o.Len-1)
		}
	}
	r, err := api.GetObjectWithArgs(c, c.s.bucket, c.key, c.context(), args)
	if err != nil {
		return objstore.Object{}, nil, c.failed(err)
	}
	size := c.length
	if ranged(o) {
		size, err = c.part(o)
	}
	var obj objstore.Object
	if err == nil {
		obj, err = c.object(size)
	}
	if err == nil && o.IfTag != "" && obj.ETag != o.IfTag {
		err = &objstore.Error{Op: c.op, Store: c.s.String(), Key: c.key, Kind: objstore.ErrChanged, Err: fmt.Errorf("its ETag is %s, not %s", obj.ETag, o.IfTag)}
	}
	if err != nil {
		_ = r.Body.Close()
		return objstore.Object{}, nil, err
	}
	body := &reading{c: c, in: objstore.Exactly(r.Body, c.length), timer: c.patience()}
	body.timer.Stop()
	if want, err := strconv.ParseUint(c.header.Get(crcHeader), 10, 64); err == nil && c.length == size {
		body.sum, body.want = crc64.New(ecma), want
	}
	return obj, body, nil
}

const crcHeader = "x-bce-content-crc64ecma"

func ranged(o objstore.GetOptions) bool { return o.Off > 0 || o.Len > 0 }

// part checks that an answer has the bytes that were asked for, and gives the size of all.
func (c *call) part(o objstore.GetOptions) (size int64, err error) {
	var first, last int64
	text := c.header.Get("Content-Range")
	if _, err := fmt.Sscanf(text, "bytes %d-%d/%d", &first, &last, &size); err != nil || c.status != 206 {
		return 0, c.unclear("a part was asked for; status %d, Content-Range %q", c.status, text)
	}
	end := size
	if o.Len > 0 {
		end = min(end, o.Off+o.Len)
	}
	if first != o.Off || last != end-1 || c.length != end-o.Off {
		return 0, c.unclear("bytes %d to %d were asked for; Content-Range %q, length %d", o.Off, end-1, text, c.length)
	}
	return size, nil
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	err := Key(key)
	if err == nil {
		err = goodOptions(o)
	}
	if err == nil && b.Size > s.Limits().Put {
		err = fmt.Errorf("%d bytes: BOS takes %d at once", b.Size, s.Limits().Put)
	}
	if err != nil {
		return objstore.Written{}, s.unfit("put", key, err)
	}
	c := s.begin(ctx, "put", key)
	defer c.end()
	c.absent = o.Absent
	return c.send(b, func(body *bce.Body, md5 string) (string, error) {
		args := &api.PutObjectArgs{UserMeta: o.Attrs.Meta, ContentMD5: md5}
		if o.Absent {
			args.IfNoneMatch = "*"
		}
		etag, _, err := api.PutObject(c, s.bucket, key, body, args, c.context(), options(o)...)
		return etag, err
	})
}

// md5Most is up to what size a body that can be read twice is sent with its MD5, so that the store refuses other bytes instead of telling of them.
const md5Most = 1 << 20

// send stores b by what put does, and compares what the store says of it.
func (c *call) send(b objstore.Body, put func(body *bce.Body, md5 string) (etag string, err error)) (objstore.Written, error) {
	before, err := c.before(b)
	if err != nil {
		return objstore.Written{}, err
	}
	src, err := open(b, c.s.sumMD5.Load() && before == nil)
	if err != nil {
		c.cause = err
		return objstore.Written{}, c.failed(err)
	}
	body, _ := bce.NewBodyFromReaderV2(src, b.Size)
	md5 := ""
	if before != nil {
		md5 = base64.StdEncoding.EncodeToString(before)
	}
	etag, err := put(body, md5)
	if broken := src.end(); err != nil {
		if broken != nil {
			c.cause = broken
		}
		if c.done { // the SDK has compared
			return objstore.Written{}, &objstore.Error{Op: c.op, Store: c.s.String(), Key: c.key, Status: c.status, Kind: objstore.ErrCorrupt,
				Request: c.header.Get("x-bce-request-id"), Err: err}
		}
		return objstore.Written{}, c.failed(err)
	}
	if etag == "" {
		return objstore.Written{}, c.unclear("no ETag")
	}
	if c.header.Get(crcHeader) != "" {
		return objstore.Written{ETag: etag}, nil // the SDK has compared
	}
	c.s.sumMD5.Store(true)
	sum := before
	if src.sum != nil {
		sum = src.sum.Sum(nil)
	}
	return objstore.Written{ETag: etag}, c.compare(b, sum, etag)
}

// before is the MD5 of a small body that can be read twice; nil: of any other.
func (c *call) before(b objstore.Body) ([]byte, error) {
	if b.Size == 0 || b.Size > md5Most {
		return nil, nil
	}
	in, err := b.Open()
	if err != nil {
		c.cause = fmt.Errorf("open what is to be stored: %w", err)
		return nil, c.failed(err)
	}
	defer in.Close()
	if _, ok := in.(io.Seeker); !ok {
		return nil, nil
	}
	sum := md5.New()
	if _, err := io.Copy(sum, in); err != nil {
		c.cause = err
		return nil, c.failed(err)
	}
	return sum.Sum(nil), nil
}

// compare holds an ETag, which is the MD5 of bytes that were sent at once, against what was sent; sum nil: it is read again.
func (c *call) compare(b objstore.Body, sum []byte, etag string) error {
	if sum == nil {
		in, err := b.Open()
		if err == nil {
			h := md5.New()
			_, err = io.Copy(h, in)
			err = errors.Join(err, in.Close())
			sum = h.Sum(nil)
		}
		if err != nil {
			c.cause = err
			return c.failed(err)
		}
	}
	if have := hex.EncodeToString(sum); have != strings.ToLower(etag) {
		return &objstore.Error{Op: c.op, Store: c.s.String(), Key: c.key, Status: c.status, Request: c.header.Get("x-bce-request-id"), Kind: objstore.ErrCorrupt,
			Err: fmt.Errorf("the store tells no CRC; its ETag is %s, the MD5 of what was sent %s", etag, have)}
	}
	return nil
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, keys ...string) (left map[string]error, err error) {
	if len(keys) > pageMost {
		return nil, s.unfit("delete", "", fmt.Errorf("%d keys: BOS takes %d at once", len(keys), pageMost))
	}
	var in api.DeleteMultipleObjectsArgs
	asked := map[string]bool{}
	for _, k := range keys {
		// What has no name in JSON would become the name of another object. Names that BOS cannot have are not there.
		if k == "" || len(k) > keyMost || k[0] == '/' || !utf8.ValidString(k) || asked[k] {
			continue
		}
		asked[k] = true
		in.Objects = append(in.Objects, api.DeleteObjectArgs{Key: k})
	}
	if len(in.Objects) == 0 {
		return nil, nil
	}
	c := s.begin(ctx, "delete", "")
	defer c.end()
	if len(in.Objects) == 1 {
		c.key = in.Objects[0].Key
	}
	body, err := jsonBody(in)
	if err != nil {
		return nil, err
	}
	r, err := api.DeleteMultipleObjects(c, s.bucket, body, c.context())
	if err != nil {
		return nil, c.failed(err)
	}
	for _, e := range r.Errors {
		switch {
		case !asked[e.Key]:
			return nil, c.unclear("an error of the key %q, which was not asked for", e.Key)
		case e.Code == "NoSuchKey":
		default:
			if left == nil {
				left = map[string]error{}
			}
			one := &call{code: e.Code}
			left[e.Key] = &objstore.Error{Op: c.op, Store: s.String(), Key: e.Key, Code: e.Code, Kind: one.kind(), Request: c.header.Get("x-bce-request-id"),
				Err: errors.New(e.Message)}
		}
	}
	return left, nil
}

// jsonBody is a body of the SDK that it can read again.
func jsonBody(v any) (*bce.Body, error) {
	b := new(bytes.Buffer)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bce.NewBodyFromBytes(b.Bytes())
}
