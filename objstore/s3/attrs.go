package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moverd/mover/objstore"
)

// takes tells why no object can have a key.
func (s *Store) takes(key string) error {
	if s.amazon {
		return AmazonKey(key)
	}
	return Key(key)
}

// AmazonKey is Key for AWS, which refuses more.
func AmazonKey(key string) error {
	if err := Key(key); err != nil || !climbs(key) {
		return err
	}
	return errors.New("the key leads out of the bucket, read as a path")
}

// Rule is that of "s3", and AmazonRule that of "s3 of AWS". What Ceph RGW keeps otherwise is not in them.
func Rule() objstore.Rule { return objstore.Rule{Key: Key, Header: goodHeader, Pair: goodPair} }

// AmazonRule see Rule.
func AmazonRule() objstore.Rule {
	return objstore.Rule{Key: AmazonKey, Header: goodHeader, Pair: goodPair}
}

// Key tells why no object of S3 can have a key.
func Key(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case len(key) > keyMost:
		return fmt.Errorf("the key has %d bytes, the store takes %d", len(key), keyMost)
	case !utf8.ValidString(key):
		return errors.New("the key is no UTF-8")
	case strings.ContainsRune(key, 0):
		return errors.New("the key has a zero byte")
	}
	return nil
}

// climbs tells whether a key, read as a path from the left, goes above its beginning.
func climbs(key string) bool {
	depth := 0
	for _, step := range strings.Split(key, "/") {
		switch step {
		case "..":
			if depth--; depth < 0 {
				return true
			}
		case "", ".":
		default:
			depth++
		}
	}
	return false
}

// asks refuses what would be a request for the bucket itself.
func (s *Store) asks(op, key string) error {
	if key == "" {
		return s.wrong(op, key, objstore.ErrNotSupported, "the key is empty")
	}
	return nil
}

// fits refuses what cannot stand in a header as it is.
func (s *Store) fits(op, key string, a objstore.Attrs) error {
	if err := s.takes(key); err != nil {
		return s.wrong(op, key, objstore.ErrNotSupported, "%w", err)
	}
	for _, f := range a.Headers() {
		if err := goodHeader(f.Name, *f.Value); err != nil {
			return s.wrong(op, key, objstore.ErrNotSupported, "%s %q cannot stand in a header: %w", f.Name, *f.Value, err)
		}
	}
	for k, v := range a.Meta {
		if err := goodPair(k, v); err != nil {
			return s.wrong(op, key, objstore.ErrNotSupported, "user metadata %q: %q: %w", k, v, err)
		}
	}
	if n := a.MetaSize(); n > metaMost {
		return s.wrong(op, key, objstore.ErrNotSupported, "user metadata of %d bytes, the store takes %d", n, metaMost)
	}
	return nil
}

func goodHeader(_, v string) error {
	if !sendable(v) {
		return objstore.ErrValue
	}
	return nil
}

func goodPair(k, v string) error {
	if k == "" || strings.Trim(k, tokens) != "" || k != strings.ToLower(k) {
		return errors.New("the name cannot stand in a header, in small letters")
	}
	return goodHeader(k, v)
}

// pair tells why user metadata cannot be stored, as far as answers have told which server it is.
func (s *Store) pair(k, v string) error {
	if strings.Contains(k, "_") && s.ceph.Load() {
		return errUnderscore
	}
	return goodPair(k, v)
}

var errUnderscore = errors.New("each _ in a name would become - in Ceph RGW")

// names refuses what Ceph RGW would keep under another name. Which server it is has to be known first.
func (s *Store) names(ctx context.Context, op, key string, meta map[string]string) error {
	for k := range meta {
		if !strings.Contains(k, "_") {
			continue
		}
		if !s.amazon && !s.met.Load() {
			_, _ = s.Head(ctx, key) // any answer tells
		}
		if s.ceph.Load() {
			return s.wrong(op, key, objstore.ErrNotSupported, "user metadata %q: %w", k, errUnderscore)
		}
	}
	return nil
}

// tokens are the characters that names of headers may have.
const tokens = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"

// sendable tells whether a value comes back from a header unchanged. Servers may encode what is no text.
func sendable(v string) bool {
	if v != strings.TrimSpace(v) || !utf8.ValidString(v) {
		return false
	}
	return strings.IndexFunc(v, unicode.IsControl) < 0
}

// refused is fail for what must not be there yet.
func (s *Store) refused(ctx context.Context, op, key string, err error, absent bool) error {
	err = s.fail(ctx, op, key, err)
	var e *objstore.Error
	if absent && errors.As(err, &e) && e.Kind == objstore.ErrChanged {
		e.Kind = objstore.ErrExists
	}
	return err
}
