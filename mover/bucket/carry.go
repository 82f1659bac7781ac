package bucket

// What travels beside the bytes of an object, and how keys are spelled. What the target does not take is left out and noted in Record.Lost: the object itself is
// carried all the same.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/objstore"
)

// modifiedName is the user metadata in which CopyConfig.Modified keeps the time of the source.
const modifiedName = "mover-modified"

// options is how an object is stored; what the target does not take of it is noted in r.
func (c *copier) options(o objstore.Object, r *Record) objstore.PutOptions {
	lim := c.to.Limits()
	a, lost := lim.Fit(o.Attrs)
	r.Lost = append(r.Lost, lost...)
	if c.cfg.Modified && a.Meta[modifiedName] == "" { // else it was moved before: that is the time of its origin
		all := maps.Clone(a.Meta)
		if all == nil {
			all = map[string]string{}
		}
		all[modifiedName] = r.Modified.UTC().Format(time.RFC3339Nano)
		with := objstore.Attrs{Meta: all}
		if n := with.MetaSize(); lim.Meta > 0 && n > lim.Meta {
			r.Lost = append(r.Lost, fmt.Sprintf("last modified %s: user metadata would have %d bytes, the target takes %d", all[modifiedName], n, lim.Meta))
		} else {
			a.Meta = all
		}
	}
	r.Marks = marksOf(a)
	return objstore.PutOptions{Attrs: a, Class: c.cfg.Class}
}

// described stores an object by put. A refusal may have taught the driver what the store cannot keep: then it is left out.
func (c *copier) described(o objstore.Object, r *Record, put func(objstore.PutOptions) error) (objstore.PutOptions, error) {
	lost := r.Lost
	opts := c.options(o, r)
	err := put(opts)
	if !errors.Is(err, objstore.ErrNotSupported) {
		return opts, err
	}
	marks := r.Marks
	r.Lost = lost
	if opts = c.options(o, r); r.Marks == marks {
		return opts, err
	}
	return opts, put(opts)
}

// finish carries what does not travel with the bytes, and notes that the object is copied.
func (c *copier) finish(ctx context.Context, obj objstore.Object, key string, w objstore.Written, r *Record) error {
	if err := c.tags(ctx, obj, key, r); err != nil {
		return err
	}
	if err := c.grants(ctx, obj, key, r); err != nil {
		return err
	}
	r.Outcome, r.Target = Copied, w.ETag
	return nil
}

func (c *copier) tags(ctx context.Context, obj objstore.Object, key string, r *Record) error {
	if c.cfg.NoTags {
		return nil
	}
	tags, err := tagsOf(ctx, c.from, obj)
	if err != nil || len(tags) == 0 {
		return unread(err, "tags", "tags: false")
	}
	r.Marks.Tags = tagsSum(tags)
	err = errLacking
	if to, ok := c.to.(objstore.Tagger); ok {
		err = to.SetTags(ctx, key, tags)
	}
	if errors.Is(err, objstore.ErrNotSupported) {
		r.Marks.TagsLost = true
		r.Lost = append(r.Lost, fmt.Sprintf("%d tags (%s): %v", len(tags), strings.Join(slices.Sorted(maps.Keys(tags)), ", "), err))
		return nil
	}
	return atTarget(err)
}

// lostGrants begins what Record.Lost says of grants.
const lostGrants = "grants "

func (c *copier) grants(ctx context.Context, obj objstore.Object, key string, r *Record) error {
	from, ok := c.from.(objstore.Granter)
	if !ok || !c.cfg.Grants {
		return nil
	}
	canned, all, err := from.Grants(ctx, obj.Key)
	if err != nil {
		return unread(unlessLacking(err), "grants", "grants: false")
	}
	to, ok := c.to.(objstore.Granter)
	if canned == "private" && (!ok || !c.opens(ctx, to, key)) {
		r.Marks.Canned = canned
		return nil
	}
	err = errLacking
	if ok && canned != "" {
		err = to.SetGrants(ctx, key, canned)
	}
	if errors.Is(err, objstore.ErrNotSupported) {
		r.Lost = append(r.Lost, fmt.Sprintf(lostGrants+"%s: %v", strings.Join(append(all, canned), ", "), err))
		return nil
	}
	if err == nil {
		r.Marks.Canned = canned
	}
	return atTarget(err)
}

// opens tells whether the target gives others rights on an object that was given none, as a bucket of BOS that all may read does. key has just been stored.
func (c *copier) opens(ctx context.Context, to objstore.Granter, key string) bool {
	c.private.Do(func() {
		canned, _, err := to.Grants(ctx, key)
		c.open = !errors.Is(err, objstore.ErrNotSupported) && (err != nil || canned != "private")
	})
	return c.open
}

// unread says what to do where the credentials may read an object, but not what is beside it.
func unread(err error, what, without string) error {
	if errors.Is(err, objstore.ErrDenied) {
		return fmt.Errorf("%w; let the credentials of the source read %s, or say %s", err, what, without)
	}
	return err
}

// errLacking: the target has no such thing, or nothing that means the same.
var errLacking = fmt.Errorf("the target knows none: %w", objstore.ErrNotSupported)

// unlessLacking is err, but for a store that has no such thing.
func unlessLacking(err error) error {
	if errors.Is(err, objstore.ErrNotSupported) {
		return nil
	}
	return err
}

// escape spells what stores refuse in keys as percent signs with hex: slashes at the front, and the dots of path components that are only dots. Percent signs that
// are there become %25, so that no two keys are spelled alike; a key that is not refused is left alone, unless it looks like one that was spelled so.
func escape(key string) string {
	parts := strings.Split(strings.ReplaceAll(key, "%", "%25"), "/")
	for i, p := range parts {
		if p == "." || p == ".." {
			parts[i] = strings.ReplaceAll(p, ".", "%2E")
		}
	}
	key = strings.Join(parts, "/")
	front := len(key) - len(strings.TrimLeft(key, "/"))
	return strings.Repeat("%2F", front) + key[front:]
}

// looksEscaped: escape could have made it, or has made it of one that looked so itself.
func looksEscaped(key string) bool { return strings.Contains(key, "%") && escaped.MatchString(key) }

var escaped = regexp.MustCompile(`^%(25)*2F|(^|/)(%(25)*2E){1,2}(/|$)`)

// unescape undoes escape.
func unescape(key string) string {
	return strings.NewReplacer("%2F", "/", "%2E", ".", "%25", "%").Replace(key)
}
