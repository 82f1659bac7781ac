package bucket

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"mime"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// Marks is what was stored beside the bytes of an object, short enough to be kept for each: it can be compared with what either end has.
type Marks struct {
	Known    bool   // no: it was copied before marks were kept, or not at all
	Set      uint8  // headers that were given, bit i for that of objstore.Attrs.Headers; a store may give the others any value
	Attrs    uint64 // of these headers and the user's metadata
	Tags     uint64 // of the source's tags; 0: it has none, or they are not carried
	TagsLost bool   // the target does not have them
	Canned   string // who may read it, as it was set; "": not carried
}

// marksOf gives those of attributes as they are stored.
func marksOf(a objstore.Attrs) Marks {
	m := Marks{Known: true}
	for i, h := range a.Headers() {
		if *h.Value != "" {
			m.Set |= 1 << i
		}
	}
	m.Attrs = attrsSum(a, m.Set)
	return m
}

// attrsSum is of the headers in set, and of all metadata.
func attrsSum(a objstore.Attrs, set uint8) uint64 {
	h := blake3.New()
	for i, x := range a.Headers() {
		if set&(1<<i) != 0 {
			_, _ = h.Write(appendText(nil, plainText(*x.Value)))
		}
	}
	return pairsSum(h, a.Meta)
}

func tagsSum(tags map[string]string) uint64 {
	if len(tags) == 0 {
		return 0
	}
	return pairsSum(blake3.New(), tags)
}

func pairsSum(h *blake3.Hasher, m map[string]string) uint64 {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		_, _ = h.Write(appendText(appendText(nil, k), plainText(m[k])))
	}
	var d digest.Digest
	h.Sum(d[:0])
	return max(1, binary.BigEndian.Uint64(d[:]))
}

// plainText is a value as it was sent: AWS tells what is not ASCII in an encoding of its own.
func plainText(v string) string {
	if !strings.HasPrefix(v, "=?") {
		return v
	}
	var d mime.WordDecoder
	if text, err := d.DecodeHeader(v); err == nil {
		return text
	}
	return v
}

// differ tells what of an object of the target is not as it was stored; "": nothing. How many calls it takes depends on what the object has.
func (m Marks) differ(ctx context.Context, s objstore.Store, o objstore.Object) (string, error) {
	if !m.Known {
		return "", nil
	}
	if attrsSum(o.Attrs, m.Set) != m.Attrs {
		return "its headers or user metadata are not those that were stored", nil
	}
	if m.Tags != 0 && !m.TagsLost {
		tags, err := tagsOf(ctx, s, o)
		if err != nil {
			return "", err
		}
		if tagsSum(tags) != m.Tags {
			return "its tags are not those that were stored", nil
		}
	}
	if g, ok := s.(objstore.Granter); ok && m.Canned != "" {
		canned, _, err := g.Grants(ctx, o.Key)
		if err != nil {
			return "", unlessLacking(err)
		}
		if canned != m.Canned {
			return fmt.Sprintf("who may read it is %q, not %q", canned, m.Canned), nil
		}
	}
	return "", nil
}

// tagsOf gives the tags of an object, none where the store has no such thing.
func tagsOf(ctx context.Context, s objstore.Store, o objstore.Object) (map[string]string, error) {
	t, ok := s.(objstore.Tagger)
	if !ok || o.Tags == 0 {
		return nil, nil
	}
	tags, err := t.Tags(ctx, o.Key)
	return tags, unlessLacking(err)
}

// changed tells what of an object of the source is not as it was copied, although its listing shows nothing of that; "": nothing.
func (c *copier) changed(ctx context.Context, key string, r Record) (string, error) {
	o, err := c.from.Head(ctx, key)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return "", nil // the next listing tells
	case err != nil:
		return "", err
	case !r.Marks.Known || o.ETag != r.ETag:
		return "", nil // the next listing tells. The times are no help: RGW tells of other ones than it lists where tags were set
	}
	now := Record{Modified: r.Modified}
	c.options(o, &now)
	if now.Marks.Set != r.Marks.Set || now.Marks.Attrs != r.Marks.Attrs {
		return "its headers or user metadata were changed at the source", nil
	}
	if !c.cfg.NoTags {
		tags, err := tagsOf(ctx, c.from, o)
		if err != nil {
			return "", err
		}
		if tagsSum(tags) != r.Marks.Tags {
			return "its tags were changed at the source", nil
		}
	}
	if g, ok := c.from.(objstore.Granter); ok && c.cfg.Grants {
		canned, _, err := g.Grants(ctx, key)
		if err != nil {
			return "", unlessLacking(err)
		}
		if canned != r.Marks.Canned && (canned != "" || r.Marks.Canned != "") && !grantsLost(r) {
			return fmt.Sprintf("who may read it was changed at the source to %q", canned), nil
		}
	}
	return "", nil
}

// grantsLost tells whether they could not be carried; what they were is in the record only for people.
func grantsLost(r Record) bool {
	return slices.ContainsFunc(r.Lost, func(s string) bool { return strings.HasPrefix(s, lostGrants) })
}

// append encodes m.
func (m Marks) append(b []byte) []byte {
	flags := byte(0)
	if m.Known {
		flags |= 1
	}
	if m.TagsLost {
		flags |= 2
	}
	b = append(b, flags, m.Set)
	b = binary.BigEndian.AppendUint64(b, m.Attrs)
	b = binary.BigEndian.AppendUint64(b, m.Tags)
	return appendText(b, m.Canned)
}

func (d *decoder) marks() (m Marks) {
	flags := d.byte()
	m.Known, m.TagsLost, m.Set = flags&1 != 0, flags&2 != 0, d.byte()
	for _, at := range []*uint64{&m.Attrs, &m.Tags} {
		if b := d.take(8); b != nil {
			*at = binary.BigEndian.Uint64(b)
		}
	}
	m.Canned = d.text()
	return m
}
