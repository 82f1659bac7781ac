// Moverctl tells a moverd what to do and shows how it stands (moverctl(1)).
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/cmd/internal/exit"
	"github.com/moverd/mover/internal/sentinel"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], &terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now}))
}

// terminal is where a command reads and writes.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
}

// width is the columns of w when it is a terminal, else 0.
func width(w any) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if ws.Col == 0 {
		return 80 // a serial line does not know
	}
	return max(int(ws.Col), 40)
}

// run is the whole command; it returns the exit code.
func run(ctx context.Context, args []string, t *terminal) int {
	root := newRoot(t)
	root.SetArgs(args)
	root.SetIn(t.in)
	root.SetOut(t.out)
	root.SetErr(t.err)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(t.err, "moverctl:", err)
	}
	return exit.Code(err)
}

// usageError is a wrong command line.
type usageError struct{ text string }

func (e *usageError) Error() string        { return e.text }
func (e *usageError) Is(target error) bool { return target == sentinel.ErrUsage }

func usagef(format string, a ...any) error { return &usageError{fmt.Sprintf(format, a...)} }

// app is what the commands share.
type app struct {
	*terminal
	socket string
	output string
}

func newRoot(t *terminal) *cobra.Command {
	a := &app{terminal: t}
	root := &cobra.Command{
		Use:           "moverctl",
		Short:         "Control a Mover daemon",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; see moverctl --help", args[0])
			}
			return c.Help()
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return usagef("-o %s: is neither table nor json", a.output)
			}
			return nil
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usagef("%v; see %s --help", err, c.CommandPath()) })
	root.PersistentFlags().StringVarP(&a.socket, "socket", "s", "", "control socket (default: the one that exists of "+sourceSocket+" and "+gatewaySocket+")")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "table or json")
	root.AddCommand(a.statusCmd(), a.watchCmd(), a.cutoverCmd(), a.pointCmd(), a.verifyCmd(), a.syncCmd(), a.flushCmd(), a.pauseCmd(), a.resumeCmd(),
		a.rollbackCmd(), a.thawCmd(), a.claimCmd(), a.pointsCmd(), a.restoreCmd(), a.exportCmd(), a.serveCmd(), a.finishCmd(), a.checkCmd(), a.discoverCmd(), a.pkiCmd(), a.auditCmd(), a.reportCmd(), a.costCmd(), a.lineCmd(), a.manifestCmd(), a.objectsCmd(), a.planCmd(), a.versionCmd())
	a.completeFlows(root)
	return root
}

// exactly is cobra.ExactArgs as an error of usage.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s: %s is missing", c.CommandPath(), names[len(args)])
		}
		if len(args) > len(names) {
			return usagef("%s: %q is one argument too many", c.CommandPath(), args[len(names)])
		}
		return nil
	}
}

func atMost(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usagef("%s: %q is one argument too many", c.CommandPath(), args[len(names)])
		}
		return nil
	}
}
