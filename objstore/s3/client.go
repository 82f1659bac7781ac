package s3

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	smithyauth "github.com/aws/smithy-go/auth"
	smithyendpoints "github.com/aws/smithy-go/endpoints"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/moverd/mover/objstore"
)

// newClient is the SDK's client for all calls that carry no object's bytes (see caller). It does nothing by itself: no retries, no correction of clocks, no trailers, no rules about endpoints.
func newClient(c Config, base *url.URL, transport http.RoundTripper) *awss3.Client {
	return awss3.New(awss3.Options{
		Region:                     c.region(),
		Credentials:                provider{c.Credentials},
		HTTPClient:                 sender{transport},
		Retryer:                    aws.NopRetryer{},
		DisableClockSkewCorrection: true, // or a wrong clock is hidden after its first error
		// The trailers that the SDK adds otherwise are refused or stored as data by older Ceph RGW.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		EndpointResolverV2:         fixed{*base},
		AuthSchemeResolver:         newSignature(c.region()),
		APIOptions:                 []func(*middleware.Stack) error{tune},
	})
}

// provider gives the SDK its keys, anew for each request.
type provider struct{ objstore.Credentials }

// errKeys wraps what happened when keys were asked for.
type errKeys struct{ error }

func (e errKeys) Unwrap() error        { return e.error }
func (e errKeys) Is(target error) bool { return target == objstore.ErrKeys }

func (p provider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	k, err := p.Keys(ctx)
	if err != nil {
		return aws.Credentials{}, errKeys{fmt.Errorf("keys: %w", err)}
	}
	if k.ID == "" || k.Secret == "" {
		return aws.Credentials{}, errKeys{fmt.Errorf("keys: there are none: %w", objstore.ErrDenied)}
	}
	return aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret, SessionToken: k.Token, CanExpire: !k.Expires.IsZero(), Expires: k.Expires}, nil
}

// fixed is the one address of all requests. The SDK's own rules would read meaning into names of buckets.
type fixed struct{ base url.URL }

func (f fixed) ResolveEndpoint(context.Context, awss3.EndpointParameters) (smithyendpoints.Endpoint, error) {
	return smithyendpoints.Endpoint{URI: f.base}, nil
}

// signature is the one way to sign: version 4, where the path is encoded once. It is shared by all requests and only read.
type signature []*smithyauth.Option

func newSignature(region string) signature {
	o := &smithyauth.Option{SchemeID: smithyauth.SchemeIDSigV4}
	smithyhttp.SetSigV4SigningName(&o.SignerProperties, "s3")
	smithyhttp.SetSigV4SigningRegion(&o.SignerProperties, region)
	smithyhttp.SetDisableDoubleEncoding(&o.SignerProperties, true)
	return signature{o}
}

func (s signature) ResolveAuthSchemes(context.Context, *awss3.AuthResolverParameters) ([]*smithyauth.Option, error) {
	return s, nil
}

// unused are steps of the SDK that do nothing here, or tell the server what it does not need to know.
var unused = []string{"RecursionDetection", "ClientRequestID", "UserAgent"}

// tune changes the steps of each operation.
func tune(stack *middleware.Stack) error {
	for _, id := range unused {
		_, _ = stack.Build.Remove(id) // not every operation has each
	}
	switch stack.ID() {
	case "DeleteObjects", "PutObjectTagging":
		// Some servers insist on it and do not know what the SDK sends instead.
		if err := smithyhttp.AddContentChecksumMiddleware(stack); err != nil {
			return err
		}
	}
	return stack.Build.Add(headers{}, middleware.After)
}

// expiresKey is the place of a header in a context that the SDK knows as a time only: a string, as it is.
type expiresKey struct{}

// headers sets what a request needs beside its fields.
type headers struct{}

func (headers) ID() string { return "mover" }

func (headers) HandleBuild(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (middleware.BuildOutput, middleware.Metadata, error) {
	r, ok := in.Request.(*smithyhttp.Request)
	if !ok {
		return middleware.BuildOutput{}, middleware.Metadata{}, fmt.Errorf("a request of type %T", in.Request)
	}
	r.Header["User-Agent"] = agent
	if smithyhttp.GetIsContentTypeDefaultValue(ctx) && r.Header.Get("Content-Type") == "application/octet-stream" {
		r.Header.Del("Content-Type") // nobody has given it
	}
	if expires, ok := ctx.Value(expiresKey{}).(string); ok {
		r.Header.Set("Expires", expires)
	}
	return next.HandleBuild(ctx, in)
}
