// Package bos is the objects of a bucket of Baidu's object storage (BOS), through the functions of bce-sdk-go. Its transport, its causes of errors and its checks
// are its own: each request goes through a bce.Client of one call, which shares nothing with other users of the SDK.
package bos

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/baidubce/bce-sdk-go/bce"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/objstore"
)

// Config is what a Store needs.
type Config struct {
	Endpoint    string // "bj.bcebos.com" and "https://bj.bcebos.com" are the same; plain HTTP only where it says "http://"
	Bucket      string
	Credentials objstore.Credentials

	Transport http.RoundTripper       // nil: one of its own, made of what follows
	RootCAs   *x509.CertPool          // nil: those of the system
	Proxy     *url.URL                // nil: as the environment says
	Dialer    *net.Dialer             // nil: one that leaves the way of connections to the routes
	Conn      func(net.Conn) net.Conn // has each connection, and gives what is used in its place; nil: none
	Timeouts  Timeouts
}

// Timeouts bound how long nothing happens. Zero values are defaults.
type Timeouts struct {
	Dial   time.Duration // until a connection is there, and again for TLS; 0: 10 s
	Answer time.Duration // until an answer begins, after all was sent; 0: 2 min
	Stall  time.Duration // in which no byte moves; 0: 1 min
}

func (t *Timeouts) fill() {
	for _, f := range []struct {
		d   *time.Duration
		def time.Duration
	}{{&t.Dial, 10 * time.Second}, {&t.Answer, 2 * time.Minute}, {&t.Stall, time.Minute}} {
		if *f.d == 0 {
			*f.d = f.def
		}
	}
}

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)

// Store implements objstore.Store, and Tagger, Granter, Versioner and Locator.
type Store struct {
	name     string // for people
	bucket   string // "": what STS and the instance's metadata use of this
	endpoint string // with its scheme
	keys     objstore.Credentials
	client   *http.Client
	timeouts Timeouts
	agent    string                      // User-Agent
	config   *bce.BceClientConfiguration // only the endpoint is asked for

	life   context.Context
	end    context.CancelCauseFunc
	sumMD5 atomic.Bool // the store tells no CRC of what it gets: its ETags are compared
}

var _ interface {
	objstore.Store
	objstore.Tagger
	objstore.Granter
	objstore.Versioner
	objstore.Locator
} = (*Store)(nil)

// New checks cfg, without a request.
func New(cfg Config) (*Store, error) {
	endpoint, err := parseEndpoint(cfg.Endpoint, cfg.Bucket)
	switch {
	case err != nil:
		return nil, wrong("Endpoint", "%v", err)
	case !bucketName.MatchString(cfg.Bucket):
		return nil, wrong("Bucket", "%q is no name of a bucket of BOS: 3 to 63 small letters, digits and hyphens", cfg.Bucket)
	}
	return connect(cfg, "bos://"+cfg.Bucket+" at "+endpoint, endpoint)
}

// connect makes what sends requests to an endpoint.
func connect(cfg Config, name, endpoint string) (*Store, error) {
	switch {
	case cfg.Credentials == nil:
		return nil, wrong("Credentials", "are needed")
	case cfg.Timeouts.Dial < 0 || cfg.Timeouts.Answer < 0 || cfg.Timeouts.Stall < 0:
		return nil, wrong("Timeouts", "are not negative")
	case cfg.Transport != nil && (cfg.RootCAs != nil || cfg.Proxy != nil || cfg.Dialer != nil || cfg.Conn != nil):
		return nil, wrong("Transport", "takes the place of RootCAs, Proxy, Dialer and Conn: give one or the others")
	}
	cfg.Timeouts.fill()
	transport := cfg.Transport
	if transport == nil {
		transport = newTransport(cfg)
	}
	s := &Store{
		name: name, bucket: cfg.Bucket, endpoint: endpoint, keys: cfg.Credentials, timeouts: cfg.Timeouts,
		agent:  "mover/" + version.String(),
		config: &bce.BceClientConfiguration{Endpoint: endpoint, Retry: bce.NewNoRetryPolicy()},
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	return s, nil
}

// wrong is the error of a field of a Config.
func wrong(field, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", sentinel.ErrUsage, field, fmt.Sprintf(format, args...))
}

// parseEndpoint gives SCHEME://HOST[:PORT].
func parseEndpoint(text, bucket string) (string, error) {
	if text == "" {
		return "", errors.New("is needed, like bj.bcebos.com")
	}
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q cannot be read", text)
	case u.Scheme != "https" && u.Scheme != "http":
		return "", fmt.Errorf("%q: http:// or https://", u.Scheme+"://")
	case u.User != nil:
		return "", errors.New("keys do not belong into it")
	case u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q is not just a host and a port", text)
	}
	host := strings.ToLower(u.Host)
	if labels := strings.Split(u.Hostname(), "."); len(labels) == 4 && strings.HasSuffix(host, ".bcebos.com") {
		// The SDK would put the name of the bucket in the place of the first label, whatever that is.
		return "", fmt.Errorf("%q names a bucket: give %s, and %s as the bucket", u.Host, strings.Join(labels[1:], "."), labels[0])
	}
	if net.ParseIP(u.Hostname()) == nil && !regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`).MatchString(strings.ToLower(u.Hostname())) {
		return "", fmt.Errorf("%q is no name of a host", u.Hostname())
	}
	return u.Scheme + "://" + host, nil
}

func (s *Store) String() string { return s.name }

// GoString keeps credentials out of %#v.
func (s *Store) GoString() string { return s.name }

// Limits implements objstore.Store. A part may have as little as 100 KiB by newer pages; older ones ask for 5 MiB, and for multiples of 1 MiB.
func (s *Store) Limits() objstore.Limits {
	return objstore.Limits{
		Put: 5 << 30, PartLeast: 5 << 20, PartAlign: 1 << 20, PartMost: 5 << 30, Parts: 10_000, Object: 10_000 * (5 << 30),
		List: pageMost, Batch: pageMost, Meta: metaMost, Header: goodHeader, Pair: goodPair, Key: Key, Rule: "bos",
	}
}

const pageMost = 1000

var errClosed = errors.New("the store is closed")

// Close ends calls under way.
func (s *Store) Close() error {
	s.end(errClosed)
	s.client.CloseIdleConnections()
	return nil
}
