// Package enrol gives hosts their certificates from afar: the authority's server, and the host's end.
//
// One connection is one question. TLS 1.3 with ALPN mover-enrol/1; the server shows a certificate of the authority's and the authority's
// own behind it, whose digest stands in the token. The host sends one message and gets one: 4 bytes of length, big endian, then JSON.
package enrol

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

const (
	alpn = "mover-enrol/1"
	// maxQuestion and maxAnswer are bytes of a message.
	maxQuestion, maxAnswer = 16 << 10, 256 << 10
	// limit is for a whole exchange, so that nobody holds a connection.
	limit = 10 * time.Second
)

// question of a host. Renewals prove who asks by the certificate of the connection.
type question struct {
	Do      string `json:"do"` // enrol, renew
	Token   string `json:"token,omitempty"`
	Request []byte `json:"request"` // PKCS #10, DER
}

type answer struct {
	Error string `json:"error,omitempty"`
	Cert  []byte `json:"cert,omitempty"` // PEM
	CA    []byte `json:"ca,omitempty"`   // PEM, all authorities that are trusted
}

func config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, SessionTicketsDisabled: true}
}

func write(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func read(r io.Reader, most uint32, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > most {
		return fmt.Errorf("a message of %d bytes, limit %d: %w", n, most, sentinel.ErrProtocol)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("a message that is not understood: %w: %w", err, sentinel.ErrProtocol)
	}
	return nil
}
