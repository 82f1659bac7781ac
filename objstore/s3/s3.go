// Package s3 is the driver for S3: AWS, Ceph RGW, and what else speaks their language. docs/objects.md tells which calls it uses and what of each answer it
// proves.
package s3

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/moverd/mover/objstore"
)

// Store is one bucket.
type Store struct {
	name      string
	bucket    *string
	amazon    bool // the endpoint is one of AWS
	transport http.RoundTripper
	keys      objstore.Credentials
	client    *awss3.Client
	caller    *caller
	lanes     lanes

	open context.Context // until Close
	shut context.CancelFunc

	// What answers have taught so far.
	met      atomic.Bool            // there was one
	ceph     atomic.Bool            // they come from a Ceph RGW
	counts   atomic.Bool            // x-amz-tagging-count was seen
	tagged   atomic.Bool            // tags may be read, so no count means no tags
	sum      atomic.Pointer[string] // the checksum that answers to a put tell beside an ETag that is none
	declares atomic.Bool            // nothing in an answer proves what was stored: the digest has to be declared before
}

var (
	_ objstore.Store     = (*Store)(nil)
	_ objstore.Tagger    = (*Store)(nil)
	_ objstore.Granter   = (*Store)(nil)
	_ objstore.Versioner = (*Store)(nil)
	_ objstore.Locator   = (*Store)(nil)
)

// errClosed is what calls end with that Close interrupts.
var errClosed = errors.New("the store was closed")

// New gives the store that c describes. It sends nothing.
func New(c Config) (*Store, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	service, err := c.service()
	if err != nil {
		return nil, err
	}
	transport := c.Transport
	if transport == nil {
		transport = NewTransport()
	}
	s := &Store{
		name: "s3://" + c.Bucket + " at " + service.String(), bucket: aws.String(c.Bucket),
		amazon:    ofAmazon(base),
		transport: transport,
		keys:      c.Credentials,
		client:    newClient(c, base, transport),
		caller:    newCaller(c, base, transport),
	}
	s.open, s.shut = context.WithCancel(context.Background())
	return s, nil
}

func ofAmazon(u *url.URL) bool {
	host := u.Hostname()
	return strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
}

func (s *Store) String() string   { return s.name }
func (s *Store) GoString() string { return s.name }

// Close ends the calls under way and lets the connections go.
func (s *Store) Close() error {
	s.shut()
	s.lanes.close()
	if c, ok := s.transport.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	return nil
}

// call gives a context that also ends with the store. done has to be called when nothing of the answer is read any more.
func (s *Store) call(ctx context.Context) (c context.Context, done func()) {
	c, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.open, func() { cancel(errClosed) })
	return c, func() {
		stop()
		cancel(nil)
	}
}

const (
	keyMost  = 1024       // bytes
	metaMost = 2 << 10    // bytes, names and values together
	putMost  = 5 << 30    // bytes of one put, and of a part
	partMin  = 5 << 20    // bytes
	partsAll = 10_000     // of an object
	allBytes = 5 << 40    // of an object
	pageMost = 1000       // keys, uploads or parts of a listing, and keys of one delete
	standard = "STANDARD" // the class that the contract calls ""
)

// Limits are those of AWS, which Ceph RGW has with its defaults too.
func (s *Store) Limits() objstore.Limits {
	rule := "s3"
	if s.amazon {
		rule = "s3 of AWS"
	}
	return objstore.Limits{Put: putMost, Object: allBytes, PartLeast: partMin, PartMost: putMost, Parts: partsAll, List: pageMost, Batch: pageMost, Meta: metaMost,
		Header: goodHeader, Pair: s.pair, Key: s.takes, Rule: rule}
}

// standardIsEmpty calls the standard class as the contract does.
func standardIsEmpty(class string) string {
	if class == standard {
		return ""
	}
	return class
}

// classOf is what a request says: no class means the standard one.
func classOf(class string) types.StorageClass { return types.StorageClass(class) }
