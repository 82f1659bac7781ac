package bos

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// newTransport is a transport of one store. HTTP/1.1, for many connections carry more than one does; and nothing is unpacked on the way: an object that is
// stored as gzip is those bytes.
func newTransport(cfg Config) http.RoundTripper {
	dialer := cfg.Dialer
	if dialer == nil {
		dialer = &net.Dialer{Timeout: cfg.Timeouts.Dial, KeepAlive: 15 * time.Second}
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			c = &impatient{c, cfg.Timeouts.Stall}
			if cfg.Conn != nil {
				c = cfg.Conn(c)
			}
			return c, nil
		},
		TLSClientConfig:       &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   cfg.Timeouts.Dial,
		ResponseHeaderTimeout: cfg.Timeouts.Answer,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   512,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
	}
	if cfg.Proxy != nil {
		t.Proxy = http.ProxyURL(cfg.Proxy)
	}
	return t
}

// impatient is a connection whose other end has to take what is written. Reads have no limit here: while a body is sent, or its source is slow, nothing comes.
type impatient struct {
	net.Conn
	stall time.Duration
}

func (c *impatient) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
