package objstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Header is one of the attributes that are headers of HTTP.
type Header struct {
	Name  string // as people write it
	Value *string
}

// Headers gives a's, in an order that never changes.
func (a *Attrs) Headers() []Header {
	return []Header{{"Content-Type", &a.ContentType}, {"Cache-Control", &a.CacheControl}, {"Content-Disposition", &a.ContentDisposition},
		{"Content-Encoding", &a.ContentEncoding}, {"Content-Language", &a.ContentLanguage}, {"Expires", &a.Expires}}
}

// MetaSize is the bytes of the user's metadata, names and values.
func (a *Attrs) MetaSize() (n int) {
	for k, v := range a.Meta {
		n += len(k) + len(v)
	}
	return n
}

// Rule is what Limits.Rule names: what keys and attributes have to be, for an end that has to know it without the store.
type Rule struct {
	Key          func(key string) error
	Header, Pair func(name, value string) error
}

// Fit gives what of a a store with these limits keeps, and for each attribute that it does not, which and why, for people. User metadata that is too much is left
// out whole: half of it would look like all of it.
func (l Limits) Fit(a Attrs) (fits Attrs, lost []string) {
	for _, h := range a.Headers() {
		if *h.Value == "" || l.Header == nil {
			continue
		}
		if err := l.Header(h.Name, *h.Value); err != nil {
			lost = append(lost, fmt.Sprintf("%s %.60q: %v", h.Name, *h.Value, err))
			*h.Value = ""
		}
	}
	if len(a.Meta) == 0 {
		return a, lost
	}
	all := a.Meta
	a.Meta = make(map[string]string, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		var err error
		if l.Pair != nil {
			err = l.Pair(name, all[name])
		}
		if err != nil {
			lost = append(lost, fmt.Sprintf("user metadata %.60q: %v", name, err))
			continue
		}
		a.Meta[name] = all[name]
	}
	if n := a.MetaSize(); l.Meta > 0 && n > l.Meta {
		lost = append(lost, fmt.Sprintf("user metadata %s: %d bytes, the target takes %d", some(slices.Sorted(maps.Keys(a.Meta))), n, l.Meta))
		a.Meta = nil
	}
	return a, lost
}

// some names a few of many.
func some(names []string) string {
	const most = 8
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d others", strings.Join(names[:most], ", "), len(names)-most)
}

// ErrValue is why a header cannot have a value: what comes back would be another one.
var ErrValue = errors.New("it has a control character, or a space at an end")
