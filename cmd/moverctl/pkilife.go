package main

import (
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/pki"
)

// listFlags are those of a list of revoked certificates.
type listFlags struct{ days int }

func (f *listFlags) add(c *cobra.Command) {
	c.Flags().IntVar(&f.days, "list-days", 90, "days after which the list has to be signed anew")
}

func (f *listFlags) life() (time.Duration, error) {
	if f.days < 1 || f.days > 3650 {
		return 0, usagef("--list-days %d: is outside 1 to 3650", f.days)
	}
	return time.Duration(f.days) * 24 * time.Hour, nil
}

func (a *app) pkiCRLCmd(dir *string) *cobra.Command {
	var f listFlags
	c := &cobra.Command{
		Use: "crl", Short: "Sign the list of revoked certificates anew, or make an empty one", Args: exactly(),
		RunE: func(*cobra.Command, []string) error { return a.sign(*dir, nil, f) },
	}
	f.add(c)
	return c
}

func (a *app) pkiRevokeCmd(dir *string) *cobra.Command {
	var f listFlags
	var serial, host string
	c := &cobra.Command{
		Use: "revoke [CERT.pem | --serial N | --host TENANT/HOST]", Short: "Put certificates on the list of revoked ones",
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			serials, err := serialsOf(*dir, args, serial, host)
			if err != nil {
				return err
			}
			return a.sign(*dir, serials, f)
		},
	}
	f.add(c)
	c.Flags().StringVar(&serial, "serial", "", "serial of the certificate, hexadecimal, as in issued.jsonl")
	c.Flags().StringVar(&host, "host", "", "TENANT/HOST: all certificates of this host that are still good")
	return c
}

func serialsOf(dir string, args []string, serial, host string) ([]*big.Int, error) {
	n := len(args)
	for _, s := range []string{serial, host} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		return nil, usagef("name one of: a certificate file, --serial N, --host TENANT/HOST")
	}
	switch {
	case serial != "":
		one, err := pki.ParseSerial(serial)
		if err != nil {
			return nil, usagef("--serial: %v", err)
		}
		return []*big.Int{one}, nil
	case host != "":
		t, h, ok := strings.Cut(host, "/")
		if !ok || pki.CheckName("tenant", t) != nil || pki.CheckName("host", h) != nil {
			return nil, usagef("--host %q is not TENANT/HOST", host)
		}
		return pki.SerialsOf(dir, pki.HostURI(t, h))
	}
	cert, err := pki.LoadCert(args[0])
	if err != nil {
		return nil, err
	}
	one, err := pki.SerialOf(dir, cert)
	if err != nil {
		return nil, err
	}
	return []*big.Int{one}, nil
}

func (a *app) sign(dir string, serials []*big.Int, f listFlags) error {
	life, err := f.life()
	if err != nil {
		return err
	}
	added, err := pki.Revoke(dir, serials, life)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s is signed anew, with %d more revoked; copy it to the gateway as tls.crl, which takes it over within seconds\n",
		filepath.Join(dir, pki.CRLFile), added)
	return nil
}
