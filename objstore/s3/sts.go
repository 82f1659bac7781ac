package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	smithyauth "github.com/aws/smithy-go/auth"
	smithyendpoints "github.com/aws/smithy-go/endpoints"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/moverd/mover/objstore"
)

// STSConfig tells which service gives keys for some time, and of what.
type STSConfig struct {
	// Endpoint is the service: "https://sts.eu-central-1.amazonaws.com", or a Ceph RGW. Empty: AWS in Region.
	Endpoint string
	// Region stands in the signature. It may be empty where Endpoint is given: us-east-1.
	Region      string
	Credentials objstore.Credentials
	Role        string // ARN of the role; "": a session of the credentials' own user
	Session     string // name of a role's session, for the service's records; "": mover
	ExternalID  string // that the role may ask for
	Policy      string // JSON that takes rights away from those of the role; "": all of them
	Duration    time.Duration
	// Transport sends requests; nil: NewTransport.
	Transport http.RoundTripper
}

// Longest and shortest sessions, those of AWS; Ceph RGW has the same unless it is told otherwise.
const (
	sessionLeast = 15 * time.Minute
	roleMost     = 12 * time.Hour
	tokenMost    = 36 * time.Hour
	sessionUsual = time.Hour
)

var (
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	roleName    = regexp.MustCompile(`^arn:[\w-]+:iam::[^\s/]*:role/\S+$`)
)

// Validate names the field that is wrong.
func (c STSConfig) Validate() error {
	_, err := c.base()
	return err
}

func (c STSConfig) base() (*url.URL, error) {
	text, most := c.Endpoint, tokenMost
	if text == "" && c.Region != "" {
		text = "sts." + c.Region + ".amazonaws.com"
		if strings.HasPrefix(c.Region, "cn-") {
			text += ".cn"
		}
	}
	if c.Role != "" {
		most = roleMost
	}
	switch {
	case c.Region != "" && !regionName.MatchString(c.Region):
		return nil, fmt.Errorf("region: %q is no name of a region", c.Region)
	case text == "":
		return nil, errors.New("region: it must be given where endpoint is not")
	case c.Credentials == nil:
		return nil, errors.New("credentials: they are missing")
	case c.Role != "" && !roleName.MatchString(c.Role):
		return nil, fmt.Errorf("role: %q is no ARN of a role, such as arn:aws:iam::123456789012:role/mover", c.Role)
	case c.Role == "" && c.Session+c.ExternalID+c.Policy != "":
		return nil, errors.New("role: it is missing; session, external-id and policy are for one")
	case c.Session != "" && !sessionName.MatchString(c.Session):
		return nil, fmt.Errorf("session: %q is not 2 to 64 of letters, digits and _+=,.@-", c.Session)
	case c.Duration != 0 && (c.Duration < sessionLeast || c.Duration > most || c.Duration%time.Second != 0):
		return nil, fmt.Errorf("duration: %v is not whole seconds from %v to %v", c.Duration, sessionLeast, most)
	}
	return Config{Endpoint: text}.service()
}

// STS gives keys of sessions.
type STS struct {
	name      string
	c         STSConfig
	client    *awssts.Client
	transport http.RoundTripper
}

// NewSTS gives the service that c describes. It sends nothing.
func NewSTS(c STSConfig) (*STS, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	if c.Session == "" {
		c.Session = "mover"
	}
	if c.Duration == 0 {
		c.Duration = sessionUsual
	}
	s := &STS{name: "sts at " + base.String(), c: c, transport: c.Transport}
	if s.transport == nil {
		s.transport = NewTransport()
	}
	region := Config{Region: c.Region}.region()
	s.client = awssts.New(awssts.Options{
		Region:                     region,
		Credentials:                provider{c.Credentials},
		HTTPClient:                 sender{s.transport},
		Retryer:                    aws.NopRetryer{},
		DisableClockSkewCorrection: true,
		EndpointResolverV2:         fixedSTS{*base},
		AuthSchemeResolver:         newSTSSignature(region),
		APIOptions:                 []func(*middleware.Stack) error{tune},
	})
	return s, nil
}

// fixedSTS is the one address of all requests.
type fixedSTS struct{ base url.URL }

func (f fixedSTS) ResolveEndpoint(context.Context, awssts.EndpointParameters) (smithyendpoints.Endpoint, error) {
	return smithyendpoints.Endpoint{URI: f.base}, nil
}

// stsSignature is the one way to sign.
type stsSignature []*smithyauth.Option

func newSTSSignature(region string) stsSignature {
	o := &smithyauth.Option{SchemeID: smithyauth.SchemeIDSigV4}
	smithyhttp.SetSigV4SigningName(&o.SignerProperties, "sts")
	smithyhttp.SetSigV4SigningRegion(&o.SignerProperties, region)
	return stsSignature{o}
}

func (s stsSignature) ResolveAuthSchemes(context.Context, *awssts.AuthResolverParameters) ([]*smithyauth.Option, error) {
	return s, nil
}

func (s *STS) String() string   { return s.name }
func (s *STS) GoString() string { return s.name }

// Close lets the connections go.
func (s *STS) Close() error {
	if c, ok := s.transport.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	return nil
}

// Issue asks for the keys of a new session. They end at Keys.Expires by this machine's clock, however that differs from the service's.
func (s *STS) Issue(ctx context.Context) (objstore.Keys, error) {
	began := time.Now()
	op, got, meta, err := s.ask(ctx)
	// The driver knows what failed calls of this SDK mean.
	if err != nil {
		return objstore.Keys{}, (&Store{name: s.name}).fail(ctx, op, "", err)
	}
	wrong := func(format string, a ...any) (objstore.Keys, error) {
		return objstore.Keys{}, &objstore.Error{Op: op, Store: s.name, Kind: objstore.ErrTransient, Err: fmt.Errorf("the answer is no clear success: "+format, a...)}
	}
	if got == nil || aws.ToString(got.AccessKeyId) == "" || aws.ToString(got.SecretAccessKey) == "" || aws.ToString(got.SessionToken) == "" {
		return wrong("keys, or their token, are missing")
	}
	now, known := awsmiddleware.GetServerTime(meta)
	if !known {
		now = began
	}
	if got.Expiration == nil || !got.Expiration.After(now) {
		return wrong("the session has no end, or it lies before %s, which it is there", now.Format(time.RFC3339))
	}
	return objstore.Keys{ID: *got.AccessKeyId, Secret: *got.SecretAccessKey, Token: *got.SessionToken, Expires: began.Add(objstore.SessionLife(now, *got.Expiration))}, nil
}

func (s *STS) ask(ctx context.Context) (op string, got *types.Credentials, meta middleware.Metadata, err error) {
	seconds := aws.Int32(int32(s.c.Duration / time.Second))
	if s.c.Role == "" {
		op = "get session token"
		r, err := s.client.GetSessionToken(ctx, &awssts.GetSessionTokenInput{DurationSeconds: seconds})
		if err != nil {
			return op, nil, meta, err
		}
		return op, r.Credentials, r.ResultMetadata, nil
	}
	op = "assume role " + s.c.Role
	given := func(text string) *string {
		if text == "" {
			return nil
		}
		return &text
	}
	r, err := s.client.AssumeRole(ctx, &awssts.AssumeRoleInput{RoleArn: &s.c.Role, RoleSessionName: &s.c.Session, DurationSeconds: seconds, ExternalId: given(s.c.ExternalID),
		Policy: given(s.c.Policy)})
	if err != nil {
		return op, nil, meta, err
	}
	return op, r.Credentials, r.ResultMetadata, nil
}
