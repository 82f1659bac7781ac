package pki

import (
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRevokeKeepsAndCounts(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, Init(dir, "test CA"))
	must(t, Init(other, "other CA"))
	must(t, IssueHost(dir, dir, "acme", "db1", time.Hour))
	must(t, IssueHost(dir, dir, "acme", "db2", time.Hour))
	serials, err := SerialsOf(dir, HostURI("acme", "db1"))
	must(t, err)
	c1 := cert(t, dir, "db1")
	if len(serials) != 1 || serials[0].Cmp(c1.SerialNumber) != 0 {
		t.Fatalf("serials %v, certificate has %v", serials, c1.SerialNumber)
	}
	n, err := Revoke(dir, serials, time.Hour)
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if n, err = Revoke(dir, serials, time.Hour); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	if _, err := Revoke(dir, []*big.Int{cert(t, dir, "db2").SerialNumber}, time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"db1", "db2"} {
		_, _, err := Renew(dir, filepath.Join(dir, name+".pem"), time.Hour)
		wantText(t, err, "is revoked")
	}
	_, err = SerialsOf(dir, HostURI("acme", "nobody"))
	wantText(t, err, "has no certificate for")
	_, err = SerialOf(other, c1)
	wantText(t, err, "was not signed by")

	// A list that cannot be trusted is never replaced by one that forgets.
	must(t, os.WriteFile(filepath.Join(dir, CRLFile), []byte("torn"), 0o644))
	_, err = Revoke(dir, serials, time.Hour)
	wantText(t, err, "holds no PEM block")
}

func TestRenew(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, Init(dir, "test CA"))
	must(t, Init(other, "other CA"))
	must(t, IssueGateway(dir, dir, "gw", []string{"gw.example.com", "10.0.0.7"}, time.Hour))
	path := filepath.Join(dir, "gw.pem")
	old := cert(t, dir, "gw")
	_, _, err := Renew(other, path, time.Hour)
	wantText(t, err, "was not signed by")
	until, cut, err := Renew(dir, path, 20*365*24*time.Hour)
	must(t, err)
	now := cert(t, dir, "gw")
	if !cut || !now.NotAfter.Equal(cert(t, dir, "ca").NotAfter) || until.IsZero() {
		t.Errorf("until %v, cut %v", until, cut)
	}
	if now.SerialNumber.Cmp(old.SerialNumber) == 0 || now.URIs[0].String() != old.URIs[0].String() || now.VerifyHostname("10.0.0.7") != nil ||
		now.VerifyHostname("gw.example.com") != nil {
		t.Errorf("renewed certificate %v of %v", now.SerialNumber, now.URIs)
	}
	if all, err := IssuedBy(dir); err != nil || len(all) != 2 {
		t.Errorf("record %v, %v", all, err)
	}
	for _, name := range []string{"gw.pem.old", "gw.key.old"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "gw.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
}
