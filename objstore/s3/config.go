package s3

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/moverd/mover/objstore"
)

// Config tells which bucket, and how it is reached.
type Config struct {
	// Endpoint is the service: "https://rgw.example", "http://10.0.0.7:7480", or a host alone, which means https. Empty: AWS in Region.
	Endpoint string
	// Region stands in the signature. It may be empty where Endpoint is given: us-east-1, which Ceph RGW takes.
	Region string
	Bucket string
	// PathStyle asks for https://host/bucket/key instead of https://bucket.host/key. Ceph RGW needs it where rgw_dns_name is not set.
	PathStyle   bool
	Credentials objstore.Credentials
	// Transport sends requests; nil: NewTransport. What it does about redirects is its own affair: they are errors here.
	Transport http.RoundTripper
}

var (
	regionName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	// Ceph takes more names than AWS does.
	bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$`)
	hostLabels = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
)

// Validate names the field that is wrong.
func (c Config) Validate() error {
	_, err := c.base()
	return err
}

// base is the address that keys are appended to, after all fields were looked at.
func (c Config) base() (*url.URL, error) {
	if c.Region != "" && !regionName.MatchString(c.Region) {
		return nil, fmt.Errorf("region: %q is no name of a region", c.Region)
	}
	if c.Endpoint == "" && c.Region == "" {
		return nil, errors.New("region: it must be given where endpoint is not")
	}
	u, err := c.service()
	if err != nil {
		return nil, err
	}
	switch {
	case c.Bucket == "":
		return nil, errors.New("bucket: it is missing")
	case !bucketName.MatchString(c.Bucket):
		return nil, fmt.Errorf("bucket: %q is no name of a bucket", c.Bucket)
	case c.Credentials == nil:
		return nil, errors.New("credentials: they are missing")
	case c.PathStyle:
		u.Path = "/" + c.Bucket
		return u, nil
	case !hostLabels.MatchString(c.Bucket) || strings.Contains(c.Bucket, ".."):
		return nil, fmt.Errorf("bucket: %q cannot stand in the name of a host: set path-style", c.Bucket)
	case u.Scheme == "https" && strings.Contains(c.Bucket, "."):
		return nil, fmt.Errorf("bucket: %q has a dot, which no certificate covers: set path-style", c.Bucket)
	case !named(u.Hostname()):
		return nil, fmt.Errorf("endpoint: %q is an address, and takes no bucket in front: set path-style", u.Hostname())
	}
	u.Host = c.Bucket + "." + u.Host
	return u, nil
}

// service is the address of the service.
func (c Config) service() (*url.URL, error) {
	text := c.Endpoint
	if text == "" {
		text = "s3." + c.Region + ".amazonaws.com"
		if strings.HasPrefix(c.Region, "cn-") {
			text += ".cn"
		}
	}
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		// None of these repeats the address: it may have a password in it.
		return nil, errors.New("endpoint: it is no address; https://host or http://host:port is one")
	case u.User != nil:
		return nil, errors.New("endpoint: it has a user or password in it; keys belong into credentials")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("endpoint: %q is neither http nor https", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("endpoint: it has no host")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("endpoint: it has something behind the host")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// named tells whether host is a name rather than an IP address.
func named(host string) bool {
	return !strings.Contains(host, ":") && strings.Trim(host, "0123456789.") != ""
}

func (c Config) region() string {
	if c.Region == "" {
		return "us-east-1"
	}
	return c.Region
}
