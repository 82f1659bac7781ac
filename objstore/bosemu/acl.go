package bosemu

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// need is what an account has to be allowed.
type need int

const (
	anAccount need = iota
	list
	read
	write
	control
)

type grantee struct {
	ID string `json:"id"`
}

// grant is a row of an access control list. "*" is everybody.
type grant struct {
	Grantee    []grantee `json:"grantee"`
	Permission []string  `json:"permission"`
}

// canned is the list that a name stands for.
func canned(name, owner string) ([]grant, bool) {
	all := []grant{{[]grantee{{owner}}, []string{"FULL_CONTROL"}}}
	switch name {
	case "private":
		return all, true
	case "public-read":
		return append(all, grant{[]grantee{{"*"}}, []string{"READ"}}), true
	case "public-read-write":
		return append(all, grant{[]grantee{{"*"}}, []string{"READ", "WRITE"}}), true
	}
	return nil, false
}

// permits tells whether a list allows something.
func permits(grants []grant, account string, n need) bool {
	words := map[need][]string{list: {"READ", "LIST"}, read: {"READ"}, write: {"WRITE"}}[n]
	for _, g := range grants {
		if !slices.ContainsFunc(g.Grantee, func(w grantee) bool { return w.ID == "*" || w.ID == account && account != "" }) {
			continue
		}
		if slices.Contains(g.Permission, "FULL_CONTROL") || slices.ContainsFunc(g.Permission, func(p string) bool { return slices.Contains(words, p) }) {
			return true
		}
	}
	return false
}

// mayRead asks the list of an object, and that of its bucket where the object has none. The caller holds b.mu.
func (b *bucket) mayRead(account string, o *object) bool {
	if o != nil && o.grants != nil {
		return account == b.Owner || permits(o.grants, account, read)
	}
	return account == b.Owner || permits(b.grants, account, read)
}

func (q *request) allowed(n need) error {
	denied := fail("AccessDenied", "access denied")
	if q.policy != nil && !q.within(n) {
		return denied
	}
	if n == anAccount || q.bucket == nil {
		if q.account == "" {
			return denied
		}
		return nil
	}
	b := q.bucket
	b.mu.RLock()
	defer b.mu.RUnlock()
	ok := b.Owner == q.account || permits(b.grants, q.account, n)
	if n == read {
		ok = b.mayRead(q.account, b.objects[q.key])
	}
	if !ok || n == write && b.ReadOnly {
		return denied
	}
	return nil
}

type accessList struct {
	AccessControlList []grant `json:"accessControlList"`
	Owner             *struct {
		ID string `json:"id"`
	} `json:"owner,omitempty"`
}

// asked is the list that a request sets: by name, by ids in headers, or by its body. ok: it sets one.
func (q *request) asked(inBody bool) (grants []grant, ok bool, err error) {
	h := q.r.Header
	if name := h.Get("x-bce-acl"); name != "" {
		grants, ok = canned(name, q.bucket.Owner)
		if !ok || q.key != "" && name == "public-read-write" {
			return nil, false, fail("InvalidArgument", "x-bce-acl: %q is no list that this can have", name)
		}
		return grants, true, nil
	}
	for header, perm := range map[string]string{"x-bce-grant-read": "READ", "x-bce-grant-full-control": "FULL_CONTROL"} {
		for _, id := range strings.Split(h.Get(header), ",") {
			if id = strings.Trim(strings.TrimPrefix(strings.TrimSpace(id), "id="), `"`); id != "" {
				grants = append(grants, grant{[]grantee{{id}}, []string{perm}})
			}
		}
	}
	if len(grants) > 0 || !inBody {
		return grants, len(grants) > 0, nil
	}
	var l accessList
	if err := q.decode(&l); err != nil {
		return nil, false, err
	}
	for _, g := range l.AccessControlList {
		if len(g.Grantee) == 0 || len(g.Permission) == 0 {
			return nil, false, fail("InappropriateJSON", "a grant needs a grantee and a permission")
		}
	}
	return l.AccessControlList, l.AccessControlList != nil, nil
}

func (q *request) getBucketACL() error {
	q.bucket.mu.RLock()
	l := accessList{AccessControlList: slices.Clone(q.bucket.grants)}
	q.bucket.mu.RUnlock()
	l.Owner = &struct {
		ID string `json:"id"`
	}{q.bucket.Owner}
	return q.answerJSON(http.StatusOK, l)
}

func (q *request) putBucketACL() error {
	grants, ok, err := q.asked(true)
	if err == nil && !ok {
		err = fail("InvalidArgument", "no access control list was given")
	}
	if err != nil {
		return err
	}
	q.bucket.mu.Lock()
	q.bucket.grants = grants
	q.bucket.mu.Unlock()
	return q.answerEmpty(http.StatusOK)
}

// change alters the object of the request.
func (q *request) change(f func(o *object) error) error {
	q.bucket.mu.Lock()
	defer q.bucket.mu.Unlock()
	o := q.bucket.objects[q.key]
	if o == nil {
		return fail("NoSuchKey", "the object does not exist")
	}
	return f(o)
}

// An object without a list of its own has an empty one.
func (q *request) getObjectACL() error {
	l := accessList{AccessControlList: []grant{}}
	if err := q.change(func(o *object) error { l.AccessControlList = append(l.AccessControlList, o.grants...); return nil }); err != nil {
		return err
	}
	return q.answerJSON(http.StatusOK, l)
}

func (q *request) putObjectACL() error {
	grants, ok, err := q.asked(true)
	if err == nil && !ok {
		err = fail("InvalidArgument", "no access control list was given")
	}
	if err == nil {
		err = q.change(func(o *object) error {
			if o.frozen(q.now) {
				return fail("InvalidObjectState", "the object is archived")
			}
			o.grants = grants
			return nil
		})
	}
	if err != nil {
		return err
	}
	return q.answerEmpty(http.StatusOK)
}

func (q *request) deleteObjectACL() error {
	if err := q.change(func(o *object) error { o.grants = nil; return nil }); err != nil {
		return err
	}
	return q.answerEmpty(http.StatusNoContent)
}

// Tags: at most 10; names up to 128 characters, values up to 256, of letters, digits, spaces and +-=._:/ (page of 2024-04-24).
func goodTags(tags map[string]string) error {
	good := func(s string) bool {
		return strings.IndexFunc(s, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" +-=._:/", r))
		}) < 0
	}
	if len(tags) > 10 {
		return fail("InvalidArgument", "%d tags; at most 10", len(tags))
	}
	for k, v := range tags {
		if k == "" || len(k) > 128 || len(v) > 256 || !good(k) || !good(v) {
			return fail("InvalidArgument", "the tag %q=%q is too long, or has other characters than letters, digits, spaces and +-=._:/", k, v)
		}
	}
	return nil
}

// tagging reads x-bce-tagging: NAME=VALUE&..., both percent-encoded.
func tagging(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	v, err := url.ParseQuery(text)
	if err != nil {
		return nil, fail("InvalidArgument", "x-bce-tagging cannot be read: %v", err)
	}
	tags := map[string]string{}
	for k := range v {
		tags[k] = v.Get(k)
	}
	return tags, goodTags(tags)
}

func (q *request) getTags() error {
	type set struct {
		TagInfo map[string]string `json:"tagInfo"`
	}
	answer := map[string][]set{"tagSet": {}}
	if err := q.change(func(o *object) error {
		if len(o.tags) > 0 {
			answer["tagSet"] = []set{{maps.Clone(o.tags)}}
		}
		return nil
	}); err != nil {
		return err
	}
	return q.answerJSON(http.StatusOK, answer)
}

func (q *request) putTags() error {
	tags, err := tagging(q.r.Header.Get("x-bce-tagging"))
	if err == nil && tags == nil {
		var in struct {
			TagSet []struct {
				TagInfo []struct{ Key, Value string } `json:"tagInfo"`
			} `json:"tagSet"`
		}
		if err = q.decode(&in); err == nil {
			tags = map[string]string{}
			for _, s := range in.TagSet {
				for _, t := range s.TagInfo {
					tags[t.Key] = t.Value
				}
			}
			err = goodTags(tags)
		}
	}
	if err == nil {
		err = q.change(func(o *object) error { o.tags = tags; return nil })
	}
	if err != nil {
		return err
	}
	return q.answerEmpty(http.StatusOK)
}

func (q *request) deleteTags() error {
	if err := q.change(func(o *object) error { o.tags = nil; return nil }); err != nil {
		return err
	}
	return q.answerEmpty(http.StatusNoContent)
}
