package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("error is %v, want %q in it", err, part)
	}
}

func cert(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	must(t, err)
	return pair.Leaf
}

func TestIssue(t *testing.T) {
	dir, out := filepath.Join(t.TempDir(), "pki"), filepath.Join(t.TempDir(), "out")
	must(t, Init(dir, "Mover CA"))
	must(t, IssueHost(dir, out, "acme", "db1", 48*time.Hour))
	must(t, IssueGateway(dir, out, "gw", []string{"gw.example", "192.0.2.1", "2001:db8::1"}, 48*time.Hour))

	ca := cert(t, dir, "ca")
	if !ca.IsCA || !ca.MaxPathLenZero || ca.Subject.CommonName != "Mover CA" || time.Until(ca.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("CA: %+v", ca)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert(t, dir, "ca"))
	for name, use := range map[string]x509.ExtKeyUsage{"db1": x509.ExtKeyUsageClientAuth, "gw": x509.ExtKeyUsageServerAuth} {
		x := cert(t, out, name)
		if _, err := x.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(x.ExtKeyUsage) != 1 || x.IsCA {
			t.Errorf("%s may do more: %v, CA %v", name, x.ExtKeyUsage, x.IsCA)
		}
		if d := time.Until(x.NotAfter); d > 48*time.Hour || d < 47*time.Hour {
			t.Errorf("%s lives %v", name, d)
		}
	}
	if tenant, host, err := HostOf(cert(t, out, "db1")); tenant != "acme" || host != "db1" || err != nil {
		t.Errorf("%q %q %v", tenant, host, err)
	}
	gw := cert(t, out, "gw")
	if name, err := GatewayOf(gw); name != "gw" || err != nil {
		t.Errorf("%q %v", name, err)
	}
	for _, addr := range []string{"gw.example", "192.0.2.1", "2001:db8::1"} {
		if err := gw.VerifyHostname(addr); err != nil {
			t.Error(err)
		}
	}
	for path, mode := range map[string]os.FileMode{
		dir: 0o700, dir + "/ca.key": 0o600, dir + "/ca.pem": 0o644, out + "/db1.key": 0o600, out + "/gw.key": 0o600, out + "/gw.pem": 0o644, out + "/ca.pem": 0o644,
	} {
		fi, err := os.Stat(path)
		must(t, err)
		if fi.Mode().Perm() != mode {
			t.Errorf("%s has mode %04o, want %04o", path, fi.Mode().Perm(), mode)
		}
	}
}

// TestNothingIsOverwritten: whatever is asked, files that are there stay as they are, and half a pair is not left.
func TestNothingIsOverwritten(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, Init(dir, "one"))
	must(t, Init(other, "two"))
	must(t, IssueHost(dir, dir, "acme", "db1", time.Hour)) // beside the authority, too
	before := content(t, dir)
	wantText(t, Init(dir, "again"), "never overwritten")
	wantText(t, IssueHost(dir, dir, "acme", "db1", time.Hour), "never overwritten")
	wantText(t, IssueGateway(dir, dir, "db1", []string{"gw"}, time.Hour), "never overwritten")
	wantText(t, IssueHost(dir, dir, "acme", "ca", time.Hour), "authority's own files")
	wantText(t, IssueHost(other, dir, "acme", "db2", time.Hour), "another authority")
	must(t, os.Symlink("/nowhere", filepath.Join(dir, "db3.pem")))
	wantText(t, IssueHost(dir, dir, "acme", "db3", time.Hour), "never overwritten")
	must(t, os.Remove(filepath.Join(dir, "db3.pem")))
	if after := content(t, dir); after != before {
		t.Error("files have changed")
	}
}

func content(t *testing.T, dir string) (all string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range files {
		if f.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		must(t, err)
		all += f.Name() + string(b)
	}
	return all
}

func TestRefusals(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	wantText(t, IssueHost(dir, out, "acme", "db1", time.Hour), "moverctl pki init")
	must(t, Init(dir, "CA"))
	for _, bad := range []string{"", "Acme", "a/b", "..", ".a", "-a", "a b", "ä", strings.Repeat("a", 64)} {
		wantText(t, IssueHost(dir, out, bad, "db1", time.Hour), "tenant name")
		wantText(t, IssueHost(dir, out, "acme", bad, time.Hour), "host name")
		wantText(t, IssueGateway(dir, out, bad, []string{"gw"}, time.Hour), "gateway name")
	}
	for _, good := range []string{"a", "0", "a.b_c-d", strings.Repeat("a", 63)} {
		must(t, CheckName("host", good))
	}
	for _, bad := range []string{"", "gw:7420", "gw example", "*", ".gw"} {
		wantText(t, IssueGateway(dir, out, "gw", []string{bad}, time.Hour), "neither an IP nor a DNS name")
	}
	wantText(t, IssueGateway(dir, out, "gw", nil, time.Hour), "no address")
	wantText(t, IssueHost(dir, out, "acme", "db1", 0), "too short")
	wantText(t, IssueHost(dir, out, "acme", "db1", 11*365*24*time.Hour), "ends after the authority")
	wantText(t, Init(dir+"/x", ""), "printable")
	wantText(t, Init(dir+"/x", "a\nb"), "printable")
	if content(t, out) != "" {
		t.Error("refused certificates left files")
	}

	broken := t.TempDir()
	must(t, Init(broken, "CA"))
	must(t, IssueHost(broken, broken, "acme", "db1", time.Hour))
	must(t, os.Rename(broken+"/db1.key", broken+"/ca.key"))
	wantText(t, IssueHost(broken, out, "acme", "db2", time.Hour), "is not the key of")
	must(t, os.Rename(broken+"/db1.pem", broken+"/ca.pem"))
	wantText(t, IssueHost(broken, out, "acme", "db2", time.Hour), "not the certificate of an authority")
	must(t, os.WriteFile(broken+"/ca.pem", []byte("rubbish"), 0o600))
	wantText(t, IssueHost(broken, out, "acme", "db2", time.Hour), "holds no PEM block")
}

// TestNames: what a certificate may not be called, whoever signed it.
func TestNames(t *testing.T) {
	named := func(all ...string) *x509.Certificate {
		c := &x509.Certificate{}
		for _, s := range all {
			u, err := url.Parse(s)
			must(t, err)
			c.URIs = append(c.URIs, u)
		}
		return c
	}
	if tenant, host, err := HostOf(named("https://x/", "mover://acme/db1")); tenant != "acme" || host != "db1" || err != nil {
		t.Errorf("%q %q %v", tenant, host, err)
	}
	for _, bad := range []string{
		"mover://acme", "mover://acme/", "mover:///db1", "mover://acme/db1/", "mover://acme/db1/x", "mover://acme/../db1", "mover://ACME/db1",
		"mover://u@acme/db1", "mover://acme:1/db1", "mover://acme/db1?x", "mover://acme/db1#x", "mover://acme/db%31", "mover://acme/%2e%2e", "mover:acme/db1",
		"mover-gateway://acme/db1", "https://acme/db1",
	} {
		if tenant, host, err := HostOf(named(bad)); err == nil {
			t.Errorf("%s is %q/%q", bad, tenant, host)
		}
	}
	for _, bad := range []string{"mover-gateway://gw/", "mover-gateway://gw/x", "mover-gateway://GW", "mover-gateway://u@gw", "mover-gateway://gw:1", "mover-gateway://", "mover://gw"} {
		if name, err := GatewayOf(named(bad)); err == nil {
			t.Errorf("%s is %q", bad, name)
		}
	}
	if _, _, err := HostOf(named("mover://a/b", "mover://a/b")); err == nil {
		t.Error("two names")
	}
}
