package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/enrol"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

// enrolPort is where `moverctl pki serve` listens.
const enrolPort = "9467"

// caAddress adds the port where none is given.
func caAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), enrolPort
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" || strings.ContainsAny(host, " \t\n/@$\"'\\%") {
		return "", usagef("--address %q is not HOST or HOST:PORT of a CA", s)
	}
	return net.JoinHostPort(host, port), nil
}

func (a *app) pkiTokenCmd(dir *string) *cobra.Command {
	var f issueFlags
	var tenant, host string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "token", Short: "Make a token with which one host can enrol, once", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if _, err := f.life(); err != nil {
				return err
			}
			if tenant == "" || host == "" {
				return usagef("--tenant and --host are needed")
			}
			if err := errors.Join(pki.CheckName("tenant", tenant), pki.CheckName("host", host)); err != nil {
				return usagef("%v", err)
			}
			if ttl < pki.MinTokenLife || ttl > pki.MaxTokenLife {
				return usagef("--ttl %v: is outside %v to %v", ttl, pki.MinTokenLife, pki.MaxTokenLife)
			}
			t, err := pki.NewToken(*dir, tenant, host, ttl, f.days)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, t)
			fmt.Fprintf(a.err, "for mover://%s/%s, good once, until %s; it is shown only now. On that host: moverctl pki enrol --address CA --token TOKEN\n",
				tenant, host, a.now().Add(ttl).UTC().Format(time.RFC3339))
			return nil
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "tenant, as in the gateway's config")
	c.Flags().StringVar(&host, "host", "", "host, as in the gateway's config")
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token can be used")
	c.Flags().IntVar(&f.days, "days", 398, "days that the host's certificate is good for")
	return c
}

func (a *app) pkiServeCmd(dir *string) *cobra.Command {
	var f issueFlags
	var listen string
	c := &cobra.Command{
		Use: "serve", Short: "Answer enrolments and renewals, where the CA is", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			life, err := f.life()
			if err != nil {
				return err
			}
			if _, _, err := net.SplitHostPort(listen); err != nil {
				return usagef("--listen %q is not HOST:PORT or :PORT", listen)
			}
			var lc net.ListenConfig
			ln, err := lc.Listen(c.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(a.err, nil))
			s := &enrol.Server{Dir: *dir, Life: life, Log: log}
			if err := s.Ready(); err != nil {
				ln.Close()
				return err
			}
			log.Info("answering enrolments", "address", ln.Addr().String(), "dir", *dir)
			return s.Serve(c.Context(), ln)
		},
	}
	c.Flags().StringVar(&listen, "listen", ":"+enrolPort, "address to listen on")
	c.Flags().IntVar(&f.days, "days", 398, "days that renewed certificates are good for")
	return c
}

func (a *app) pkiEnrolCmd(dir *string) *cobra.Command {
	var address, token string
	c := &cobra.Command{
		Use: "enrol", Short: "Get this host's certificate from the CA by a token; its key never leaves the host", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if address == "" || token == "" {
				return usagef("--address and --token are needed")
			}
			addr, err := caAddress(address)
			if err != nil {
				return err
			}
			if token == "-" {
				line, err := bufio.NewReaderSize(a.in, 4096).ReadString('\n')
				if err != nil && line == "" {
					return usagef("--token -: no token on the standard input")
				}
				token = strings.TrimSpace(line)
			}
			t, err := pki.ParseToken(token)
			if err != nil {
				return usagef("%s", strings.TrimSuffix(err.Error(), ": "+sentinel.ErrUsage.Error()))
			}
			until, err := enrol.Enrol(c.Context(), addr, t, *dir)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "enrolled as mover://%s/%s until %s: %s, %s and %s are made in %s\n", t.Tenant, t.Host, until.Format(time.DateOnly),
				pki.HostCert, pki.HostKey, pki.HostCA, *dir)
			if err := pki.RememberAddress(*dir, addr); err != nil {
				fmt.Fprintf(a.err, "warning: where to renew is not written down: %v\n", err)
				return nil
			}
			fmt.Fprintf(a.out, "%s says where to renew: systemctl enable --now moverd-renew.timer\n", filepath.Join(*dir, pki.RenewEnv))
			return nil
		},
	}
	c.Flags().StringVar(&address, "address", "", "`HOST[:PORT]` of the CA's moverctl pki serve")
	c.Flags().StringVar(&token, "token", "", "the token, or - to read it from the standard input")
	return c
}
