package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/enrol"
	"github.com/moverd/mover/internal/pki"
)

func (a *app) pkiRenewCmd(dir *string) *cobra.Command {
	var days int
	var address, ca string
	var due bool
	c := &cobra.Command{
		Use: "renew [CERT.pem]", Short: "Replace a certificate and its key by new ones for the same name", Args: atMost("CERT.pem"),
		Long: "Where the CA is: renew CERT.pem --dir ca. From a host or a gateway, with its present certificate: renew --address CA [CERT.pem].",
		RunE: func(c *cobra.Command, args []string) error {
			if address != "" {
				if c.Flags().Changed("days") {
					return usagef("--days is for the CA's own folder; from afar the CA decides")
				}
				path := filepath.Join(*dir, pki.HostCert)
				if len(args) > 0 {
					path = args[0]
				}
				return a.renewFrom(c.Context(), address, path, ca, due)
			}
			if len(args) == 0 {
				return usagef("name the certificate to renew with the CA in --dir, or the CA's --address")
			}
			if ca != "" || due {
				return usagef("--ca and --due are for --address")
			}
			return a.renewHere(*dir, args[0], days)
		},
	}
	c.Flags().IntVar(&days, "days", 398, "days that the certificate is good for")
	c.Flags().StringVar(&address, "address", "", "`HOST[:PORT]` of the CA's moverctl pki serve")
	c.Flags().StringVar(&ca, "ca", "", "authorities that are trusted (default: ca.pem beside the certificate)")
	c.Flags().BoolVar(&due, "due", false, "only if less than a third of the certificate's life is left")
	return c
}

func (a *app) renewHere(dir, path string, days int) error {
	life, err := (&issueFlags{days: days}).life()
	if err != nil {
		return err
	}
	until, cut, err := pki.Renew(dir, path, life)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s and its key are renewed, good until %s; the old ones are kept as .old\n", path, until.Format(time.DateOnly))
	if cut {
		fmt.Fprintf(a.err, "warning: the CA ends on %s, before the %d days that were asked for; make another CA in time\n", until.Format(time.DateOnly), days)
	}
	return nil
}

func (a *app) renewFrom(ctx context.Context, address, path, ca string, due bool) error {
	addr, err := caAddress(address)
	if err != nil {
		return err
	}
	if ca == "" {
		ca = filepath.Join(filepath.Dir(path), pki.HostCA)
	}
	pair, err := pki.LoadPair(path)
	if err != nil {
		return err
	}
	if left, life := time.Until(pair.Leaf.NotAfter), pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore); due && left > life/3 {
		fmt.Fprintf(a.out, "%s is good until %s; nothing is due\n", path, pair.Leaf.NotAfter.Format(time.DateOnly))
		return nil
	}
	until, err := enrol.Renew(ctx, addr, path, ca)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s and its key are renewed, good until %s; the old ones are kept as .old, a running moverd takes the new ones over\n", path, until.Format(time.DateOnly))
	return nil
}
