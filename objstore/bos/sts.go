package bos

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/baidubce/bce-sdk-go/services/sts/api"

	"github.com/moverd/mover/objstore"
)

// STSConfig is what an STS needs: Baidu's service that gives keys for some time.
type STSConfig struct {
	Endpoint    string // "": sts.bj.baidubce.com
	Credentials objstore.Credentials
	Account     string        // that has the role
	Role        string        // its name; "": a session of the credentials' own account or user
	User        string        // "": as the service means it
	Duration    time.Duration // of a session; 0: the SDK's default, 2 hours of a role and 12 hours else
	ACL         string        // JSON that takes rights away; "": all that the role, or the account, has

	Transport http.RoundTripper // as in Config
	RootCAs   *x509.CertPool
	Timeouts  Timeouts
}

// defaultSTS is the one that the SDK and Baidu's pages name.
const defaultSTS = "sts.bj.baidubce.com"

// Longest sessions: of a role [D 2026-01-09]; else a guess.
const (
	roleMost  = 2 * time.Hour
	tokenMost = 36 * time.Hour // [G]
)

// STS gives keys of sessions. The SDK's client of it is not used, for the same reasons as that of BOS: it would also speak plain HTTP, with keys in the answers.
type STS struct {
	s   *Store
	cfg STSConfig
}

// NewSTS checks cfg, without a request.
func NewSTS(cfg STSConfig) (*STS, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = defaultSTS
	}
	endpoint, err := parseEndpoint(cfg.Endpoint, "")
	most := tokenMost
	if cfg.Role != "" {
		most = roleMost
	}
	switch {
	case err != nil:
		return nil, wrong("Endpoint", "%v", err)
	case cfg.Role != "" && cfg.Account == "":
		return nil, wrong("Account", "is needed with Role")
	case cfg.Role == "" && cfg.Account+cfg.User != "":
		return nil, wrong("Role", "is needed with Account and User")
	case cfg.Duration < 0 || cfg.Duration > most || cfg.Duration%time.Second != 0:
		return nil, wrong("Duration", "%v is not whole seconds up to %v", cfg.Duration, most)
	case cfg.ACL != "" && !json.Valid([]byte(cfg.ACL)):
		return nil, wrong("ACL", "is no JSON")
	}
	s, err := connect(Config{Credentials: cfg.Credentials, Transport: cfg.Transport, RootCAs: cfg.RootCAs, Timeouts: cfg.Timeouts}, "sts at "+endpoint, endpoint)
	if err != nil {
		return nil, err
	}
	return &STS{s, cfg}, nil
}

func (t *STS) String() string   { return t.s.name }
func (t *STS) GoString() string { return t.s.name }

// Close ends calls under way.
func (t *STS) Close() error { return t.s.Close() }

// Issue asks for the keys of a new session. They end at Keys.Expires by this machine's clock, however that differs from the service's.
func (t *STS) Issue(ctx context.Context) (objstore.Keys, error) {
	op, ask := "get session token", t.token
	if t.cfg.Role != "" {
		op, ask = "assume role "+t.cfg.Role, t.role
	}
	c := t.s.begin(ctx, op, "")
	defer c.end()
	began := time.Now()
	keys, created, err := ask(c)
	if err != nil {
		return objstore.Keys{}, c.failed(err)
	}
	now, err := http.ParseTime(c.header.Get("Date"))
	if err != nil {
		now = created
	}
	switch {
	case keys.ID == "" || keys.Secret == "" || keys.Token == "":
		return objstore.Keys{}, c.unclear("keys, or their token, are missing")
	case keys.Expires.IsZero() || now.IsZero():
		return objstore.Keys{}, c.unclear("it does not tell when the session ends")
	case !keys.Expires.After(now):
		return objstore.Keys{}, c.unclear("the session ended at %s, and there it is %s", keys.Expires.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	keys.Expires = began.Add(objstore.SessionLife(now, keys.Expires))
	return keys, nil
}

// role is AssumeRole.
func (t *STS) role(c *call) (keys objstore.Keys, created time.Time, err error) {
	r, err := api.AssumeRole(c, &api.AssumeRoleArgs{DurationSeconds: int(t.cfg.Duration / time.Second), AccountId: t.cfg.Account, UserId: t.cfg.User, RoleName: t.cfg.Role, Acl: t.cfg.ACL})
	if err != nil {
		return keys, created, err
	}
	return objstore.Keys{ID: r.AccessKeyId, Secret: r.SecretAccessKey, Token: r.SessionToken, Expires: r.Expiration}, r.CreateTime, nil
}

// token is GetSessionToken.
func (t *STS) token(c *call) (keys objstore.Keys, created time.Time, err error) {
	r, err := api.GetSessionToken(c, int(t.cfg.Duration/time.Second), t.cfg.ACL)
	if err != nil {
		return keys, created, err
	}
	keys = objstore.Keys{ID: r.AccessKeyId, Secret: r.SecretAccessKey, Token: r.SessionToken}
	created, _ = time.Parse(time.RFC3339, r.CreateTime)
	keys.Expires, _ = time.Parse(time.RFC3339, r.Expiration)
	return keys, created, nil
}

// Instance gives the keys of the role that a BCC instance was given: no key is kept anywhere. The instance's metadata service has them, and renews them every
// five minutes [D 2026]; the form of its answer is told nowhere, and taken to be that of STS [G].
type Instance struct {
	url    string
	client *http.Client
}

// metadata is where an instance asks about itself.
const metadata = "http://169.254.169.254"

// instanceLife is how long keys are used whose answer does not tell when they end.
const instanceLife = 5 * time.Minute

// NewInstance asks at endpoint; "": where Baidu has it.
func NewInstance(endpoint string) (*Instance, error) {
	if endpoint == "" {
		endpoint = metadata
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, wrong("Endpoint", "%q is not like %s", endpoint, metadata)
	}
	// No proxy: what answers is on this host.
	transport := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: 10 * time.Second}
	return &Instance{u.Scheme + "://" + u.Host + "/latest/meta-data/sts-credential", &http.Client{Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

func (i *Instance) String() string { return "instance role at " + i.url }

// Close does nothing.
func (i *Instance) Close() error { return nil }

// Issue asks for the keys of now.
func (i *Instance) Issue(ctx context.Context) (objstore.Keys, error) {
	fail := func(status int, kind, err error) (objstore.Keys, error) {
		return objstore.Keys{}, &objstore.Error{Op: "get keys", Store: i.String(), Status: status, Kind: kind, Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, i.url, nil)
	if err != nil {
		return fail(0, nil, err)
	}
	began := time.Now()
	resp, err := i.client.Do(req)
	if err != nil {
		return fail(0, objstore.ErrTransient, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return fail(resp.StatusCode, objstore.ErrDenied, errors.New("this instance has no role, or is none of BCC"))
	} else if resp.StatusCode != http.StatusOK {
		return fail(resp.StatusCode, objstore.KindOf(resp.StatusCode, "", nil), nil)
	}
	var r api.Credential
	err = json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 64<<10)).Decode(&r)
	if err != nil || r.AccessKeyId == "" || r.SecretAccessKey == "" || r.SessionToken == "" {
		return fail(resp.StatusCode, objstore.ErrTransient, errors.New("the answer has no keys with a token")) // err may have some of it
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = began
	}
	life := instanceLife
	if !r.Expiration.IsZero() {
		if life = objstore.SessionLife(now, r.Expiration); life <= 0 {
			return fail(resp.StatusCode, objstore.ErrTransient, fmt.Errorf("the keys ended at %s", r.Expiration.Format(time.RFC3339)))
		}
	}
	return objstore.Keys{ID: r.AccessKeyId, Secret: r.SecretAccessKey, Token: r.SessionToken, Expires: began.Add(life)}, nil
}
