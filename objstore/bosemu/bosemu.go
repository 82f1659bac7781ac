// Package bosemu is Baidu's object storage (BOS) as a mover sees it: an http.Handler that speaks its protocol strictly and keeps objects in memory or in a folder.
// It verifies bce-auth-v1 signatures and session tokens, keeps to the documented limits, errors and headers, simulates ARCHIVE with a clock of its own, and fails
// in the ways that a Config asks for. It serves tests and trials: nothing in it is durable, and no bucket of it outlives it.
package bosemu

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// Config is what a Server has at its beginning.
type Config struct {
	Accounts []Account
	Buckets  []Bucket
	Roles    []Role                // for STS
	Domain   string                // of BUCKET.REGION.DOMAIN and REGION.DOMAIN; "": bcebos.com. Any other host is addressed by path
	Clock    func() time.Time      // nil: time.Now
	Dir      string                // a folder for bodies above Limits.Memory; "": all stays in memory
	Limits   Limits                // zero values: what BOS documents
	Fault    func(r Request) Fault // asked once for each request, from many goroutines; nil: no faults
}

// Account is who signs requests.
type Account struct {
	ID        string // as in access control lists
	AccessKey string
	SecretKey string
	Sessions  []Session
}

// Session is keys of an account for some time, as STS gives them.
type Session struct {
	AccessKey, SecretKey, Token string
	Expires                     time.Time // zero: never
}

// Bucket is a bucket. Its objects come over the wire.
type Bucket struct {
	Name      string
	Owner     string // Account.ID
	Region    string // "": bj
	Class     string // of objects that name none; "": STANDARD
	ACL       string // private, public-read or public-read-write; "": private
	Versioned bool   // as ?versioning tells; older states are not kept
	ByPath    bool   // may be addressed by path at REGION.DOMAIN, as buckets made before June 2024 are
	ReadOnly  bool   // nobody may write
}

// Limits are those of BOS, as of the pages UploadPart (2025-04-28) and PutObject (2025-11-28).
type Limits struct {
	Put        int64         // bytes of one PUT or part; 0: 5 GiB
	PartLeast  int64         // bytes of a part that is not the last; 0: 100 KiB
	Parts      int           // 0: 10,000
	Page       int           // entries of a listing; 0: 1,000
	Meta       int           // bytes of user metadata, names and values; 0: 2 KiB
	Key        int           // bytes; 0: 1,023
	Skew       time.Duration // between the clocks of client and server; 0: 15 minutes
	Rate       float64       // requests per second and bucket; 0: no limit
	RateStatus int           // of RequestRateLimitExceeded; 0: 429
	Memory     int64         // larger bodies go to Config.Dir; 0: 64 KiB
}

func (l *Limits) fill() {
	def := func(n *int64, v int64) {
		if *n == 0 {
			*n = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&l.Put, 5<<30)
	def(&l.PartLeast, 100<<10)
	def(&l.Memory, 64<<10)
	num(&l.Parts, 10_000)
	num(&l.Page, 1000)
	num(&l.Meta, 2<<10)
	num(&l.Key, 1023)
	num(&l.RateStatus, http.StatusTooManyRequests)
	if l.Skew == 0 {
		l.Skew = 15 * time.Minute
	}
}

// Server is the service. Safe for concurrent use.
type Server struct {
	cfg Config
	dir string // of this server alone, in Config.Dir; "": memory

	mu      sync.Mutex
	buckets map[string]*bucket
	signers map[string]signer // by access key
	counts  map[string]int64  // by operation
}

// signer is what a key that signs belongs to.
type signer struct {
	account, secret, token string
	expires                time.Time
	policy                 []statement // what a session may do at most; nil: anything
	issued                 bool        // by STS
}

func (se Session) signer(account string) signer {
	return signer{account: account, secret: se.SecretKey, token: se.Token, expires: se.Expires}
}

// New makes a server of cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Domain == "" {
		cfg.Domain = "bcebos.com"
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	cfg.Limits.fill()
	s := &Server{cfg: cfg, buckets: map[string]*bucket{}, signers: map[string]signer{}, counts: map[string]int64{}}
	for i, a := range cfg.Accounts {
		if a.ID == "" || a.AccessKey == "" || a.SecretKey == "" {
			return nil, wrong(fmt.Sprintf("Accounts[%d]", i), "ID, AccessKey and SecretKey are needed")
		}
		s.signers[a.AccessKey] = signer{account: a.ID, secret: a.SecretKey}
		for _, se := range a.Sessions {
			s.signers[se.AccessKey] = se.signer(a.ID)
		}
	}
	for i, r := range cfg.Roles {
		if r.Account == "" || r.Name == "" {
			return nil, wrong(fmt.Sprintf("Roles[%d]", i), "Account and Name are needed")
		}
	}
	for i, b := range cfg.Buckets {
		if field, text := s.addBucket(b); text != "" {
			return nil, wrong(fmt.Sprintf("Buckets[%d].%s", i, field), "%s", text)
		}
	}
	if cfg.Dir != "" {
		var err error
		if s.dir, err = os.MkdirTemp(cfg.Dir, "bosemu-"); err != nil {
			return nil, wrong("Dir", "%v", err)
		}
	}
	return s, nil
}

// wrong is the error of a field of a Config.
func wrong(field, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", sentinel.ErrUsage, field, fmt.Sprintf(format, args...))
}

// addBucket makes a bucket, or says which field is wrong, and why. The caller holds s.mu, or is New.
func (s *Server) addBucket(b Bucket) (field, text string) {
	if b.Region == "" {
		b.Region = "bj"
	}
	if b.Class == "" {
		b.Class = "STANDARD"
	}
	if b.ACL == "" {
		b.ACL = "private"
	}
	grants, ok := canned(b.ACL, b.Owner)
	switch {
	case !bucketName.MatchString(b.Name):
		return "Name", fmt.Sprintf("%q is no name of a bucket", b.Name)
	case !slices.Contains(classes, b.Class):
		return "Class", fmt.Sprintf("%q is unknown", b.Class)
	case !ok:
		return "ACL", fmt.Sprintf("%q is unknown", b.ACL)
	case s.buckets[b.Name] != nil:
		return "Name", fmt.Sprintf("%q is there already", b.Name)
	}
	s.buckets[b.Name] = newBucket(b, grants)
	return "", ""
}

// AddSession lets account sign with se from now on.
func (s *Server) AddSession(account string, se Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signers[se.AccessKey] = se.signer(account)
}

// Counts tells how often each operation was asked for, well signed or not: GetObject, UploadPart, ...
func (s *Server) Counts() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]int64, len(s.counts))
	for op, n := range s.counts {
		out[op] = n
	}
	return out
}

// Pending is the number of uploads in parts of a bucket that have not ended.
func (s *Server) Pending(bucket string) int {
	b := s.bucket(bucket)
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.uploads)
}

// Close removes the files.
func (s *Server) Close() error {
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

func (s *Server) bucket(name string) *bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buckets[name]
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// address finds out what a request is about: BUCKET.REGION.DOMAIN/KEY, or /BUCKET/KEY at any other host. region is "" where the host names none.
func (s *Server) address(r *http.Request) (bucket, key, region string, byPath bool, err error) {
	host := r.Host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	byPath = true
	if rest, ok := strings.CutSuffix(strings.ToLower(host), "."+s.cfg.Domain); ok {
		switch labels := strings.Split(rest, "."); len(labels) {
		case 1:
			region = labels[0]
		case 2:
			return labels[0], path, labels[1], false, nil
		default:
			return "", "", "", false, fail("InvalidURI", "the host %s names no bucket and region", host)
		}
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key, region, byPath, nil
}
