package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moverd/mover/wire"
)

// certificateUntil is the PEM of a certificate that ends then.
func certificateUntil(t *testing.T, end time.Time, ca bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: end.Add(-time.Hour), NotAfter: end, IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// The own certificate counts before its chain; of several CAs the last one, so that an old one may run out beside its successor.
func TestExpiry(t *testing.T) {
	dir, soon := t.TempDir(), time.Unix(1_800_000_000, 0)
	later := soon.Add(24 * time.Hour)
	t.Setenv(wire.CredentialsEnv, dir)
	for _, c := range []struct {
		name string
		text []byte
		want time.Time
	}{
		{"chain.pem", append(certificateUntil(t, soon, false), certificateUntil(t, later, true)...), soon},
		{"ca.pem", append(certificateUntil(t, later, true), certificateUntil(t, soon, true)...), later},
	} {
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{path, "credential:" + c.name} {
			if got := expiry(file); got != float64(c.want.Unix()) {
				t.Errorf("%s ends at %v, want %v", file, got, c.want.Unix())
			}
		}
	}
}
