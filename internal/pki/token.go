package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/sentinel"
)

// Token lets one host enrol once. As text it is mover1:TENANT/HOST:BASE64URL of 24 bytes of secret, 32 bytes SHA-256 of the authority's
// certificate, and the first 4 bytes of the SHA-256 of all that stands before.
type Token struct {
	Tenant, Host string
	CA           [sha256.Size]byte
	secret       [24]byte
}

const tokenPrefix = "mover1:"

func (t Token) String() string {
	head := tokenPrefix + t.Tenant + "/" + t.Host + ":"
	body := append(bytes.Clone(t.secret[:]), t.CA[:]...)
	return head + base64.RawURLEncoding.EncodeToString(append(body, tokenSum(head, body)...))
}

func tokenSum(head string, body []byte) []byte {
	sum := sha256.Sum256(append([]byte(head), body...))
	return sum[:4]
}

// ParseToken reads a token and checks that it is whole.
func ParseToken(s string) (t Token, err error) {
	bad := func(why string) (Token, error) {
		return Token{}, fmt.Errorf("token %s; copy the whole line that `moverctl pki token` printed: %w", why, sentinel.ErrUsage)
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	name, text, ok2 := strings.Cut(rest, ":")
	tenant, host, ok3 := strings.Cut(name, "/")
	if !ok || !ok2 || !ok3 {
		return bad("does not begin with " + tokenPrefix + "TENANT/HOST")
	}
	if err := errors.Join(CheckName("tenant", tenant), CheckName("host", host)); err != nil {
		return bad("has a wrong name: " + err.Error())
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	n := len(t.secret) + len(t.CA)
	if err != nil || len(raw) != n+4 || !bytes.Equal(raw[n:], tokenSum(tokenPrefix+name+":", raw[:n])) {
		return bad("is not whole or was altered")
	}
	t.Tenant, t.Host = tenant, host
	copy(t.secret[:], raw)
	copy(t.CA[:], raw[len(t.secret):])
	return t, nil
}

// id is what the authority keeps of a token: whoever reads it cannot enrol with it.
func (t Token) id() string {
	sum := sha256.Sum256(append([]byte("mover token id\x00"), t.secret[:]...))
	return hex.EncodeToString(sum[:])
}

// tokenRecord is tokens/ID.json beside ca.key.
type tokenRecord struct {
	Tenant  string    `json:"tenant"`
	Host    string    `json:"host"`
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
	Days    int       `json:"days"` // that the certificate is to be good for
	Used    *tokenUse `json:"used,omitempty"`
}

type tokenUse struct {
	Time    time.Time `json:"time"`
	Address string    `json:"address"`
	Serial  string    `json:"serial,omitempty"`
}

// Bounds of a token's life, and how long its record is kept after its end.
const (
	MinTokenLife = time.Minute
	MaxTokenLife = 30 * 24 * time.Hour
	keepToken    = 30 * 24 * time.Hour
)

func tokenPath(dir, id string) string { return filepath.Join(dir, "tokens", id+".json") }

// NewToken makes a token with which one host can enrol at the authority in dir within ttl, for a certificate of days.
func NewToken(dir, tenant, host string, ttl time.Duration, days int) (Token, error) {
	if err := errors.Join(CheckName("tenant", tenant), CheckName("host", host)); err != nil {
		return Token{}, err
	}
	if ttl < MinTokenLife || ttl > MaxTokenLife {
		return Token{}, fmt.Errorf("a token for %v: is outside %v to %v: %w", ttl, MinTokenLife, MaxTokenLife, sentinel.ErrUsage)
	}
	ca, _, err := load(dir)
	if err != nil {
		return Token{}, err
	}
	t := Token{Tenant: tenant, Host: host, CA: sha256.Sum256(ca.cert.Raw)}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return Token{}, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	r := tokenRecord{Tenant: tenant, Host: host, Made: now, Expires: now.Add(ttl), Days: days}
	err = locked(dir, func() error {
		if err := os.MkdirAll(filepath.Join(dir, "tokens"), 0o700); err != nil {
			return err
		}
		dropTokens(dir, now)
		if err := note(dir, audit.Record{Actor: Self(), Event: "pki.token", Details: map[string]any{
			"name": HostURI(tenant, host), "expires": r.Expires.Format(time.RFC3339), "token": t.id()[:16]}}); err != nil {
			return err
		}
		return putToken(dir, t.id(), r)
	})
	return t, err
}

func putToken(dir, id string, r tokenRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replace(tokenPath(dir, id), 0o600, append(b, '\n'))
}

func getToken(dir, id string) (r tokenRecord, err error) {
	b, err := os.ReadFile(tokenPath(dir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("the token is not known here: it is of another authority, or ended more than 30 days ago: %w", sentinel.ErrDenied)
	} else if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", tokenPath(dir, id), err)
	}
	return r, nil
}

// usable tells why a token cannot be used, or nil.
func (r tokenRecord) usable(now time.Time) error {
	name := r.Tenant + "/" + r.Host
	switch {
	case r.Used != nil && r.Used.Serial != "":
		return fmt.Errorf("the token for %s was used on %s from %s already, and is good once; if that was not you, revoke what it got with "+
			"`moverctl pki revoke --serial %s`: %w", name, r.Used.Time.Format(time.RFC3339), r.Used.Address, r.Used.Serial, sentinel.ErrDenied)
	case r.Used != nil:
		return fmt.Errorf("the token for %s was used on %s from %s already, without getting a certificate; make another one: %w",
			name, r.Used.Time.Format(time.RFC3339), r.Used.Address, sentinel.ErrDenied)
	case !now.Before(r.Expires):
		return fmt.Errorf("the token for %s expired on %s; make another one with `moverctl pki token`: %w", name, r.Expires.Format(time.RFC3339), sentinel.ErrDenied)
	}
	return nil
}

// dropTokens forgets records that ended long ago. What cannot be read stays.
func dropTokens(dir string, now time.Time) {
	all, err := os.ReadDir(filepath.Join(dir, "tokens"))
	if err != nil {
		return
	}
	for _, e := range all {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if r, err := getToken(dir, id); ok && err == nil && now.Sub(r.Expires) > keepToken {
			os.Remove(tokenPath(dir, id))
		}
	}
}

// Enrol spends a token and signs a request for the host that it names; from is the peer's address. The token is spent, durably, before
// anything is signed. What is refused spends nothing.
func Enrol(dir string, t Token, request *x509.CertificateRequest, from string) (cert, ca []byte, serial string, err error) {
	if err := checkRequest(request, HostURI(t.Tenant, t.Host)); err != nil {
		return nil, nil, "", err
	}
	if _, err := getToken(dir, t.id()); err != nil { // strangers need not wait for the lock
		return nil, nil, "", err
	}
	err = locked(dir, func() error {
		r, err := getToken(dir, t.id())
		if err != nil {
			return err
		}
		if r.Tenant != t.Tenant || r.Host != t.Host {
			return fmt.Errorf("the token is for %s/%s, the request is for %s/%s: %w", r.Tenant, r.Host, t.Tenant, t.Host, sentinel.ErrDenied)
		}
		now := time.Now().UTC().Truncate(time.Second)
		if err := r.usable(now); err != nil {
			return err
		}
		signer, text, err := load(dir)
		if err != nil {
			return err
		}
		r.Used = &tokenUse{Time: now, Address: from}
		if err := putToken(dir, t.id(), r); err != nil {
			return err
		}
		tmpl := leaf(t.Tenant+"/"+t.Host, HostURI(t.Tenant, t.Host), x509.ExtKeyUsageClientAuth)
		if cert, serial, err = signer.sign(dir, tmpl, request.PublicKey, days(r.Days), audit.Record{Actor: from, Event: "pki.enrol", Details: map[string]any{"token": t.id()[:16]}}); err != nil {
			return err
		}
		ca, r.Used.Serial = text, serial
		return putToken(dir, t.id(), r)
	})
	return cert, ca, serial, err
}
