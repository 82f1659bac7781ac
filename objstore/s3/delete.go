package s3

import (
	"context"
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/moverd/mover/objstore"
)

// Delete removes keys. Those that XML cannot carry as they are go one by one: the request would name another object.
func (s *Store) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	const op = "delete"
	if len(keys) > pageMost {
		return nil, s.wrong(op, "", objstore.ErrNotSupported, "%d keys at once, the store takes %d", len(keys), pageMost)
	}
	var many, single []string
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		if err := s.asks(op, key); err != nil {
			return nil, err
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		if len(keys) > 1 && written(key) {
			many = append(many, key)
		} else {
			single = append(single, key)
		}
	}
	ctx, done := s.call(ctx)
	defer done()
	left := make(map[string]error)
	var first error
	for _, key := range single {
		if err := s.deleteOne(ctx, key); err != nil {
			left[key] = err
			if first == nil {
				first = err
			}
		}
	}
	if len(single) == 1 && len(many) == 0 {
		return none(left), first // the one request that there was
	}
	if len(many) > 0 {
		if err := s.deleteMany(ctx, many, left); err != nil {
			return left, err
		}
	}
	return none(left), nil
}

func none(left map[string]error) map[string]error {
	if len(left) == 0 {
		return nil
	}
	return left
}

func (s *Store) deleteOne(ctx context.Context, key string) error {
	_, err := s.client.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: s.bucket, Key: &key})
	err = s.fail(ctx, "delete", key, err)
	var e *objstore.Error
	if errors.As(err, &e) && e.Code == "NoSuchKey" {
		return nil
	}
	return err
}

// deleteMany is one request. It asks for the deleted keys too, so that a key that the answer does not name is not taken for gone.
func (s *Store) deleteMany(ctx context.Context, keys []string, left map[string]error) error {
	op := fmt.Sprintf("delete %d keys", len(keys))
	ids := make([]types.ObjectIdentifier, len(keys))
	open := make(map[string]bool, len(keys))
	for i := range keys {
		ids[i].Key = &keys[i]
		open[keys[i]] = true
	}
	out, err := s.client.DeleteObjects(ctx, &awss3.DeleteObjectsInput{Bucket: s.bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(false)}})
	if err != nil {
		err = s.fail(ctx, op, "", err)
		for _, key := range keys {
			left[key] = err
		}
		return err
	}
	for _, d := range out.Deleted {
		delete(open, aws.ToString(d.Key))
	}
	for _, e := range out.Errors {
		key, code := aws.ToString(e.Key), aws.ToString(e.Code)
		if !open[key] {
			continue
		}
		delete(open, key)
		if code == "NoSuchKey" {
			continue
		}
		left[key] = &objstore.Error{Op: "delete", Store: s.name, Key: key, Code: code, Kind: kindOf(0, code), Err: text(aws.ToString(e.Message), code)}
	}
	for key := range open {
		left[key] = s.wrong("delete", key, nil, "the answer does not say what became of it")
	}
	return nil
}

// text is a message that adds something to the code.
func text(message, code string) error {
	if message == "" || message == code {
		return nil
	}
	return errors.New(message)
}

// written tells whether a key comes out of an XML document as it went in: the SDK writes U+FFFD for what cannot stand there.
func written(key string) bool {
	if !utf8.ValidString(key) {
		return false
	}
	for _, r := range key {
		if r < ' ' || r == utf8.RuneError || r == 0xfffe || r == 0xffff || unicode.IsControl(r) || r == 0x2028 || r == 0x2029 {
			return false
		}
	}
	return key == "" || key[0] != ' ' && key[len(key)-1] != ' '
}
