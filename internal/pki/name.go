// Package pki issues the certificates that both ends of Mover present, and reads the names in them.
package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Schemes of the URIs that name the holder of a certificate.
const (
	HostScheme    = "mover"
	GatewayScheme = "mover-gateway"
)

// MaxName is the bytes of a tenant, host or gateway name.
const MaxName = 63

// CheckName allows a-z, 0-9 and . _ - inside; a name may become part of a path, so it begins with a letter or a digit.
func CheckName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s name is empty", what)
	case len(s) > MaxName:
		return fmt.Errorf("%s name %q has %d bytes, limit %d", what, s, len(s), MaxName)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return fmt.Errorf("%s name %q may only have a-z, 0-9 and, not in front, . _ -", what, s)
		}
	}
	return nil
}

// HostURI and GatewayURI are the URIs in certificates.
func HostURI(tenant, host string) string { return HostScheme + "://" + tenant + "/" + host }
func GatewayURI(name string) string      { return GatewayScheme + "://" + name }

// HostOf returns the tenant and host that a certificate names.
func HostOf(cert *x509.Certificate) (tenant, host string, err error) {
	u, err := only(cert, HostScheme)
	if err != nil {
		return "", "", err
	}
	tenant, host = u.Host, strings.TrimPrefix(u.Path, "/")
	if err := CheckName("tenant", tenant); err != nil {
		return "", "", fmt.Errorf("certificate %s: %w", u, err)
	}
	if err := CheckName("host", host); err != nil {
		return "", "", fmt.Errorf("certificate %s: %w", u, err)
	}
	if u.String() != HostURI(tenant, host) {
		return "", "", fmt.Errorf("certificate %s: more than a tenant and a host", u)
	}
	return tenant, host, nil
}

// GatewayOf returns the gateway that a certificate names.
func GatewayOf(cert *x509.Certificate) (name string, err error) {
	u, err := only(cert, GatewayScheme)
	if err != nil {
		return "", err
	}
	if err := CheckName("gateway", u.Host); err != nil {
		return "", fmt.Errorf("certificate %s: %w", u, err)
	}
	if u.String() != GatewayURI(u.Host) {
		return "", fmt.Errorf("certificate %s: more than a gateway's name", u)
	}
	return u.Host, nil
}

// only returns the one URI of a scheme.
func only(cert *x509.Certificate, scheme string) (found *url.URL, err error) {
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("certificate has more than one %s:// name", scheme)
		}
		found = u
	}
	if found == nil {
		return nil, fmt.Errorf("certificate of %q has no %s:// name", cert.Subject.CommonName, scheme)
	}
	return found, nil
}
