package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/pki"
)

func (a *app) pkiCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "pki", Short: "Make certificates: a CA of one's own, one for each gateway, one for each host",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; see moverctl pki --help", args[0])
			}
			return c.Help()
		},
	}
	c.PersistentFlags().StringVar(&dir, "dir", "/etc/mover/pki", "folder of ca.pem and ca.key (keep ca.key off the gateway and the hosts), or of a host's own certificate")
	c.AddCommand(a.pkiInitCmd(&dir), a.pkiHostCmd(&dir), a.pkiGatewayCmd(&dir), a.pkiTokenCmd(&dir), a.pkiServeCmd(&dir), a.pkiEnrolCmd(&dir),
		a.pkiRenewCmd(&dir), a.pkiRevokeCmd(&dir), a.pkiCRLCmd(&dir))
	return c
}

func (a *app) pkiInitCmd(dir *string) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "init", Short: "Make the CA", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if err := pki.Init(*dir, name); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s and its key %s are made\n", filepath.Join(*dir, "ca.pem"), filepath.Join(*dir, "ca.key"))
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "Mover CA", "name of the CA")
	return c
}

// issueFlags are those of a certificate.
type issueFlags struct {
	out  string
	days int
}

func (f *issueFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.out, "out", ".", "folder for the certificate and its key")
	c.Flags().IntVar(&f.days, "days", 398, "days that the certificate is good for")
}

func (f *issueFlags) life() (time.Duration, error) {
	if f.days < 1 || f.days > 3650 {
		return 0, usagef("--days %d: is outside 1 to 3650", f.days)
	}
	return time.Duration(f.days) * 24 * time.Hour, nil
}

func (a *app) pkiHostCmd(dir *string) *cobra.Command {
	var f issueFlags
	var tenant, host string
	c := &cobra.Command{
		Use: "host", Short: "Make the certificate of a source host", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			life, err := f.life()
			if err != nil {
				return err
			}
			if tenant == "" || host == "" {
				return usagef("--tenant and --host are needed")
			}
			if err := errors.Join(pki.CheckName("tenant", tenant), pki.CheckName("host", host)); err != nil {
				return usagef("%v", err)
			}
			if err := pki.IssueHost(*dir, f.out, tenant, host, life); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s.pem and %s.key are made in %s, for mover://%s/%s; copy them and ca.pem to the host\n", host, host, f.out, tenant, host)
			return nil
		},
	}
	f.add(c)
	c.Flags().StringVar(&tenant, "tenant", "", "tenant, as in the gateway's config")
	c.Flags().StringVar(&host, "host", "", "host, as in the gateway's config")
	return c
}

func (a *app) pkiGatewayCmd(dir *string) *cobra.Command {
	var f issueFlags
	var name string
	var addresses []string
	c := &cobra.Command{
		Use: "gateway", Short: "Make the certificate of a gateway", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			life, err := f.life()
			if err != nil {
				return err
			}
			if name == "" || len(addresses) == 0 {
				return usagef("--name and at least one --address are needed")
			}
			if err := pki.IssueGateway(*dir, f.out, name, addresses, life); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s.pem and %s.key are made in %s, good for %s; copy them and ca.pem to the gateway\n", name, name, f.out, strings.Join(addresses, ", "))
			return nil
		},
	}
	f.add(c)
	c.Flags().StringVar(&name, "name", "", "name of the gateway")
	c.Flags().StringSliceVar(&addresses, "address", nil, "DNS name or IP address that sources dial; may be given several times")
	return c
}
