package bos

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/baidubce/bce-sdk-go/services/bos/api"

	"github.com/moverd/mover/objstore"
)

const keyMost = 1023

// Key tells why BOS, or the functions of its SDK, take no such key.
func Key(key string) error {
	switch {
	case key == "":
		return errors.New("an empty key")
	case len(key) > keyMost:
		return fmt.Errorf("a key of %d bytes: BOS takes %d", len(key), keyMost)
	case key[0] == '/':
		return errors.New("a key that begins with a slash: BOS takes none")
	case !utf8.ValidString(key):
		return errors.New("a key that is no UTF-8: BOS takes none")
	case slices.Contains(strings.Split(key, "/"), ".."):
		return errors.New(`a key with ".." between slashes: the SDK of BOS refuses it`)
	}
	if clean := strings.Trim(path.Clean("/"+strings.Trim(key, "/")), "/"); clean == "" || clean == "v1" {
		return fmt.Errorf("a key that means %q as a path: the SDK of BOS refuses it", clean)
	}
	return nil
}

// Rule is that of "bos".
func Rule() objstore.Rule { return objstore.Rule{Key: Key, Header: goodHeader, Pair: goodPair} }

// goodOptions tells why an object cannot be described so.
func goodOptions(o objstore.PutOptions) error {
	for name, v := range headers(o.Attrs) {
		if err := goodHeader(name, v); err != nil {
			return fmt.Errorf("%s: %q is no value of a header: %w", name, v, err)
		}
	}
	for k, v := range o.Attrs.Meta {
		if err := goodPair(k, v); err != nil {
			return fmt.Errorf("user metadata %q: %q: %w", k, v, err)
		}
	}
	if n := o.Attrs.MetaSize(); n > metaMost {
		return fmt.Errorf("%d bytes of user metadata: BOS takes %d", n, metaMost)
	}
	if _, ok := api.VALID_STORAGE_CLASS_TYPE[o.Class]; o.Class != "" && !ok {
		return fmt.Errorf("the storage class %q: BOS has %s", o.Class, strings.Join(slices.Sorted(maps.Keys(api.VALID_STORAGE_CLASS_TYPE)), ", "))
	}
	return nil
}

const metaMost = 2 << 10

// goodValue: what comes back is what went out. Spaces at the ends would be lost, and lines break headers.
func goodValue(v string) bool {
	return strings.TrimSpace(v) == v && strings.IndexFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}

func goodHeader(_, v string) error {
	if !goodValue(v) {
		return objstore.ErrValue
	}
	return nil
}

// goodPair tells why user metadata cannot be stored.
func goodPair(k, v string) error {
	if !goodName(k) {
		return errors.New("no name that a header can have, in small letters")
	}
	return goodHeader(k, v)
}

func goodName(k string) bool {
	return k != "" && strings.IndexFunc(k, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	}) < 0
}

// headers are those of attributes but the user's metadata.
func headers(a objstore.Attrs) map[string]string {
	all := map[string]string{"Content-Type": a.ContentType, "Cache-Control": a.CacheControl, "Content-Disposition": a.ContentDisposition,
		"Content-Encoding": a.ContentEncoding, "Content-Language": a.ContentLanguage, "Expires": a.Expires}
	maps.DeleteFunc(all, func(_, v string) bool { return v == "" })
	return all
}

// options are what the functions of the SDK are given for o. Their arguments drop a value of "false", and know no language.
func options(o objstore.PutOptions) []api.Option {
	all := []api.Option{api.SetHeader("x-bce-storage-class", o.Class)}
	for name, v := range headers(o.Attrs) {
		all = append(all, api.SetHeader(name, v))
	}
	if o.Attrs.ContentType == "" { // else the SDK guesses by the name
		all = append(all, api.ContentType(api.RAW_CONTENT_TYPE))
	}
	return all
}

// object reads the headers of an answer to HEAD and GET. size is that of all of it.
func (c *call) object(size int64) (objstore.Object, error) {
	h := c.header
	o := objstore.Object{
		Entry: objstore.Entry{Key: c.key, Size: size, ETag: unquote(h.Get("ETag")), Class: class(h.Get("x-bce-storage-class"))},
		Attrs: objstore.Attrs{ContentType: h.Get("Content-Type"), CacheControl: h.Get("Cache-Control"), ContentDisposition: h.Get("Content-Disposition"),
			ContentEncoding: h.Get("Content-Encoding"), ContentLanguage: h.Get("Content-Language"), Expires: h.Get("Expires")},
		Tags: -1,
	}
	var err error
	switch o.Modified, err = http.ParseTime(h.Get("Last-Modified")); {
	case o.ETag == "":
		return o, c.unclear("no ETag")
	case size < 0:
		return o, c.unclear("no length")
	case err != nil:
		return o, c.unclear("Last-Modified is %q", h.Get("Last-Modified"))
	}
	o.Modified = o.Modified.UTC()
	for name, v := range h {
		if key, ok := strings.CutPrefix(strings.ToLower(name), "x-bce-meta-"); ok && key != "" {
			if o.Attrs.Meta == nil {
				o.Attrs.Meta = map[string]string{}
			}
			o.Attrs.Meta[key] = v[0]
		}
	}
	if n := h.Get("x-bce-tagging-count"); n != "" {
		if _, err := fmt.Sscan(n, &o.Tags); err != nil {
			return o, c.unclear("x-bce-tagging-count is %q", n)
		}
	}
	return o, nil
}

// class is "" for what an object has that was given none.
func class(c string) string {
	if c == api.STORAGE_CLASS_STANDARD {
		return ""
	}
	return c
}

func unquote(etag string) string { return strings.Trim(etag, `"`) }

func parseTime(text string) (time.Time, error) { return time.Parse("2006-01-02T15:04:05Z", text) }
