package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	sourceSocket  = "/run/mover/source.sock"
	gatewaySocket = "/run/mover/gateway.sock"
)

// clients are the daemons that a command without a flow asks.
func (a *app) clients() ([]*control.Client, error) {
	if a.socket != "" {
		return []*control.Client{control.NewClient(a.socket)}, nil
	}
	var found []*control.Client
	for _, path := range []string{sourceSocket, gatewaySocket} {
		if _, err := os.Stat(path); err == nil {
			found = append(found, control.NewClient(path))
		} else if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("%s: only root may talk to the daemon: %w", path, sentinel.ErrDenied)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("neither %s nor %s exists; is moverd running? (-s names another socket)", sourceSocket, gatewaySocket)
	}
	return found, nil
}

// client is the daemon that a verb of the role at path asks.
func (a *app) client(path string) *control.Client {
	if a.socket != "" {
		path = a.socket
	}
	return control.NewClient(path)
}

// confirm asks on the terminal. Without one, yes has to be given.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if width(a.in) == 0 {
		return usagef("%s There is no terminal to ask on: add --yes", question)
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(a.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not confirmed; nothing was done")
}

func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// jsonLine writes v on one line, as one of many.
func (a *app) jsonLine(v any) error { return json.NewEncoder(a.out).Encode(v) }
