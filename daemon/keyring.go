package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/s3"
	"github.com/moverd/mover/objstore/session"
)

// keyring has the sessions of all ends, for the life of the daemon: stores are opened and closed again, sessions go on. Ends whose credentials are the same share
// one.
type keyring struct {
	log *slog.Logger

	mu  sync.Mutex // guards all
	all map[string]*session.Renewer
}

func newKeyring(log *slog.Logger) *keyring {
	return &keyring{log: log, all: map[string]*session.Renewer{}}
}

// of gives the credentials of an end. Those without a session are read anew each time that a store is opened.
func (k *keyring) of(e config.End) (objstore.Credentials, error) {
	c := e.Credentials()
	if !c.Instance && c.STS == nil {
		return c.Keys(), nil
	}
	r, err := k.session(e, c)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	return r, nil
}

func (k *keyring) session(e config.End, c config.Credentials) (*session.Renewer, error) {
	region := ""
	if e.S3 != nil {
		region = e.S3.Region
	}
	name, err := json.Marshal(struct {
		S3               bool
		Endpoint, Region string
		C                config.Credentials
	}{e.S3 != nil, e.STSEndpoint(), region, c})
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if have := k.all[string(name)]; have != nil {
		return have, nil
	}
	var issuer session.Issuer
	if c.Instance {
		issuer, err = bos.NewInstance("")
	} else {
		issuer, err = stsOf(e, c)
	}
	if err != nil {
		return nil, err
	}
	r := session.New(session.Config{Issuer: issuer, Log: k.log})
	k.all[string(name)] = r
	return r, nil
}

// stsOf is the STS of an end.
func stsOf(e config.End, c config.Credentials) (session.Issuer, error) {
	t := c.STS
	rights, err := t.Rights()
	if err != nil {
		return nil, err
	}
	pool, err := authorities(t.CA)
	if err != nil {
		return nil, err
	}
	if e.S3 != nil {
		return s3.NewSTS(s3.STSConfig{Endpoint: e.STSEndpoint(), Region: e.S3.Region, Credentials: c.Keys(), Role: t.Role, ExternalID: t.ExternalID, Policy: rights,
			Duration: time.Duration(t.Duration), Transport: reach{}.transport(pool)})
	}
	return bos.NewSTS(bos.STSConfig{Endpoint: e.STSEndpoint(), Credentials: c.Keys(), Account: t.Account, Role: t.Role, User: t.User, ACL: rights,
		Duration: time.Duration(t.Duration), RootCAs: pool})
}

// close ends the sessions' renewal.
func (k *keyring) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, r := range k.all {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// state tells how the session of an end stands; ok: it has one, and it is used.
func (k *keyring) state(e config.End) (out mover.BucketKeys, ok bool) {
	c := e.Credentials()
	if !c.Instance && c.STS == nil {
		return out, false
	}
	r, err := k.session(e, c)
	if err != nil { // told when the store is opened
		return out, false
	}
	st := r.Status()
	out = mover.BucketKeys{Issuer: st.Issuer, Ends: st.Ends, Renewed: st.Renewed, Failed: st.Failed, Trouble: st.Trouble}
	if !st.Ends.IsZero() {
		out.Left = max(0, time.Until(st.Ends).Seconds())
	}
	return out, st.Used
}
