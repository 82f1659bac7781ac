package bosemu

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Role is what accounts may act as for some time.
type Role struct {
	Account string // Account.ID that has it, and as which its sessions act
	Name    string
	Trusted []string      // Account.IDs that may assume it
	Longest time.Duration // of a session; 0: 2 hours
}

// Lengths of sessions. Of a role: at most two hours (page of 2026-01-09). What else there is, is the SDK's default, or a guess.
const (
	roleLongest  = 2 * time.Hour
	tokenUsual   = 12 * time.Hour
	tokenLongest = 36 * time.Hour
)

// STS is the service that gives sessions, as sts.bj.baidubce.com does: it belongs behind an address of its own. It verifies signatures as BOS does, and the sessions
// end by Config.Clock.
func (s *Server) STS() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, (*request).serveSTS) })
}

// Revoke ends all sessions that STS has given.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock()
	for key, who := range s.signers {
		if who.issued {
			who.expires = now
			s.signers[key] = who
		}
	}
}

func (q *request) serveSTS() (err error) {
	if q.query, err = parseQuery(q.r.URL.RawQuery); err != nil {
		return fail("InvalidURI", "the query cannot be read: %v", err)
	}
	_, assume := q.query["assumeRole"]
	switch {
	case q.r.Method == http.MethodPost && q.r.URL.Path == "/v1/sessionToken":
		q.op = "GetSessionToken"
	case q.r.Method == http.MethodPost && q.r.URL.Path == "/v1/credential" && assume:
		q.op = "AssumeRole"
	default:
		return fail("NotImplemented", "%s %s is not implemented here", q.r.Method, q.r.URL.Path)
	}
	if q.suffer() {
		return nil
	}
	if err := q.authenticate(); err != nil {
		return err
	}
	if q.account == "" || q.session {
		return fail("AccessDenied", "only the keys of an account are taken here")
	}
	if q.op == "AssumeRole" {
		return q.assumeRole()
	}
	return q.issue(q.account, "", tokenUsual, tokenLongest)
}

func (q *request) assumeRole() error {
	roles := q.s.cfg.Roles
	i := slices.IndexFunc(roles, func(r Role) bool { return r.Account == q.query["accountId"] && r.Name == q.query["roleName"] })
	if i < 0 {
		return fail("RoleNotFound", "the role %q of the account %q does not exist", q.query["roleName"], q.query["accountId"])
	}
	r := roles[i]
	if !slices.Contains(r.Trusted, q.account) {
		return fail("AccessDenied", "the role %s does not trust this account", r.Name)
	}
	longest := roleLongest
	if r.Longest > 0 {
		longest = r.Longest
	}
	return q.issue(r.Account, r.Name, min(roleLongest, longest), longest)
}

// issue answers with the keys of a new session.
func (q *request) issue(account, role string, usual, longest time.Duration) error {
	seconds, err := q.number("durationSeconds", 1, int(longest/time.Second), int(usual/time.Second))
	if err != nil {
		return err
	}
	policy, err := q.statements()
	if err != nil {
		return err
	}
	// What is told is what counts: seconds.
	created := q.now.UTC().Truncate(time.Second)
	who := signer{account: account, secret: newID(), token: token(), expires: created.Add(time.Duration(seconds) * time.Second), policy: policy, issued: true}
	key := newID()
	q.s.mu.Lock()
	for k, old := range q.s.signers { // a client that goes on with one for an hour more learns that it does not exist
		if old.issued && q.now.Sub(old.expires) > time.Hour {
			delete(q.s.signers, k)
		}
	}
	q.s.signers[key] = who
	q.s.mu.Unlock()
	answer := map[string]string{"accessKeyId": key, "secretAccessKey": who.secret, "sessionToken": who.token, "createTime": created.Format(authTime),
		"expiration": who.expires.Format(authTime), "userId": q.account}
	if role != "" {
		answer["roleId"] = role
	}
	return q.answerJSON(http.StatusOK, answer)
}

// token is longer than keys, and not of hex digits only, as real ones.
func token() string {
	b := make([]byte, 160)
	_, _ = rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// statement is one of an access control list that a session is bound to.
type statement struct {
	Eid        string   `json:"eid,omitempty"`
	Service    string   `json:"service"`
	Region     string   `json:"region"`
	Effect     string   `json:"effect"`
	Resource   []string `json:"resource"`
	Permission []string `json:"permission"`
}

// statements reads the list of a request's body; nil: there is none.
func (q *request) statements() ([]statement, error) {
	text, err := io.ReadAll(io.LimitReader(q.r.Body, 64<<10))
	if err != nil || len(strings.TrimSpace(string(text))) == 0 {
		return nil, err
	}
	var l struct {
		ID   string      `json:"id,omitempty"`
		List []statement `json:"accessControlList"`
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, fail("InappropriateJSON", "the access control list cannot be read: %v", err)
	}
	for _, st := range l.List {
		if st.Service == "" || st.Region == "" || st.Effect != "Allow" && st.Effect != "Deny" || len(st.Resource) == 0 || len(st.Permission) == 0 {
			return nil, fail("InappropriateJSON", "a statement needs service, region, effect (Allow or Deny), resource and permission")
		}
	}
	if l.List == nil {
		return nil, fail("InappropriateJSON", "accessControlList is missing")
	}
	return l.List, nil
}

// within tells whether the session's list allows something. What it does not name it forbids.
func (q *request) within(n need) bool {
	region, resource := "", ""
	if q.bucket != nil {
		region, resource = q.bucket.Region, q.name+"/"+q.key
	}
	words := map[need][]string{list: {"READ", "LIST"}, read: {"READ"}, write: {"WRITE"}}[n]
	ok := false
	for _, st := range q.policy {
		if st.Service != "bce:bos" || st.Region != "*" && st.Region != region || !slices.ContainsFunc(st.Resource, func(p string) bool { return fits(p, resource) }) {
			continue
		}
		if !slices.ContainsFunc(st.Permission, func(p string) bool { return p == "FULL_CONTROL" || slices.Contains(words, p) }) {
			continue
		}
		if st.Effect == "Deny" {
			return false
		}
		ok = true
	}
	return ok
}

// fits tells whether a pattern, which may end with a star, names a resource: BUCKET/ or BUCKET/KEY.
func fits(pattern, resource string) bool {
	if begin, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(resource, begin)
	}
	return pattern == resource || pattern+"/" == resource
}
