package pki

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Issued is one line of issued.jsonl, the authority's record of what it signed.
type Issued struct {
	Serial   string    `json:"serial"` // hexadecimal
	Name     string    `json:"name"`   // URI in the certificate
	Issued   time.Time `json:"issued"`
	NotAfter time.Time `json:"not_after"`
}

const issuedFile = "issued.jsonl"

// remember appends a certificate to the record, durably. It is called before the certificate is handed out: what is not recorded
// could not be revoked by its name.
func remember(dir string, cert *x509.Certificate) error {
	line, err := json.Marshal(Issued{serialText(cert.SerialNumber), cert.URIs[0].String(), time.Now().UTC().Truncate(time.Second), cert.NotAfter.UTC()})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, issuedFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Sync(), f.Close(), syncDir(dir))
}

// IssuedBy reads the record of the authority in dir; none is an empty record.
func IssuedBy(dir string) ([]Issued, error) {
	path := filepath.Join(dir, issuedFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []Issued
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		var i Issued
		if err := json.Unmarshal(lines.Bytes(), &i); err != nil {
			return nil, fmt.Errorf("%s line %d: %w", path, n, err)
		}
		all = append(all, i)
	}
	return all, lines.Err()
}

func serialText(n *big.Int) string { return fmt.Sprintf("%032x", n) }

// ParseSerial reads a serial as issued.jsonl or openssl print it: hexadecimal, with or without colons.
func ParseSerial(s string) (*big.Int, error) {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(s, ":", ""), 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 160 {
		return nil, fmt.Errorf("serial %q is not a hexadecimal number of up to 20 bytes", s)
	}
	return n, nil
}
