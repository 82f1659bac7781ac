package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// Client talks to the daemon behind a socket.
type Client struct {
	Socket string
	http   http.Client
}

// NewClient makes a client of the socket at path; nothing is dialled yet.
func NewClient(path string) *Client {
	c := &Client{Socket: path}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	return c
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// explain says what a socket that cannot be reached means.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: only root may talk to the daemon: %w", c.Socket, sentinel.ErrDenied)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, net.ErrClosed), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%s: no daemon answers here; is it running? (systemctl status moverd-source moverd-gateway)", c.Socket)
	}
	return fmt.Errorf("%s: %w", c.Socket, err)
}

func (c *Client) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://moverd"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", c.Socket, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("%s: answer: %w", c.Socket, err)
	}
	return nil
}

// Daemon asks who answers.
func (c *Client) Daemon(ctx context.Context) (d Daemon, err error) {
	return d, c.get(ctx, "/v1/daemon", &d)
}

// Status asks for every flow.
func (c *Client) Status(ctx context.Context) (all []mover.Status, err error) {
	return all, c.get(ctx, "/v1/status", &all)
}

// Do runs a verb to its end. A report may come together with an error, which has the sentinel that it had at the daemon.
func (c *Client) Do(ctx context.Context, verb string, r Request, progress func(mover.Progress)) (Result, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return Result{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://moverd/v1/"+verb, bytes.NewReader(body))
	if err != nil {
		return Result{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Result{}, c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return Result{}, fmt.Errorf("%s: the daemon does not know %q; is it older than this moverctl?", c.Socket, verb)
	}
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		raw, err := lines.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil {
				return Result{}, ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Result{}, fmt.Errorf("%s: the daemon went away during %s (%w); see moverctl status and its log", c.Socket, verb, err)
		}
		var l Line
		if err := json.Unmarshal(raw, &l); err != nil {
			return Result{}, fmt.Errorf("%s: answer to %s: %w", c.Socket, verb, err)
		}
		switch {
		case l.Progress != nil:
			if progress != nil {
				progress(*l.Progress)
			}
		case l.Failure != nil:
			return Result{Report: l.Failure.Report}, l.Failure
		case l.Result != nil:
			return *l.Result, nil
		}
	}
}
