package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const pgDatabase = "bench"

// postgres is a PostgreSQL server on a data folder of its own, reached through a socket below sock.
type postgres struct {
	bin, data, sock string
	port            int
	server          *Proc
}

// findPostgres gives the folder of the newest server's programs.
func findPostgres() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_amcheck")
	if len(found) == 0 {
		return "", errors.New("postgresql 14 or later is not installed: .ci/deps postgresql")
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// give makes path belong to the user postgres.
func give(path string) error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return os.Chown(path, uid, gid)
}

// asPostgres is a command of the user postgres.
func asPostgres(name string, args ...string) []string {
	return append([]string{"runuser", "-u", "postgres", "--", name}, args...)
}

func (p *postgres) tool(name string, args ...string) []string {
	return append([]string{filepath.Join(p.bin, name), "-h", p.sock, "-p", strconv.Itoa(p.port), "-U", "postgres"}, args...)
}

func (p *postgres) run(ctx context.Context, name string, args ...string) (string, error) {
	argv := p.tool(name, args...)
	return Run(ctx, argv[0], argv[1:]...)
}

func (p *postgres) sql(ctx context.Context, text string) (string, error) {
	return p.run(ctx, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", pgDatabase, "-c", text)
}

// start starts the server and waits for its first answer, whose delay it returns: recovery included.
func (p *postgres) start(ctx context.Context, r *Rig, log string, settings ...string) (time.Duration, error) {
	args := []string{"-D", p.data, "-k", p.sock, "-p", strconv.Itoa(p.port), "-h", ""}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	argv := asPostgres(filepath.Join(p.bin, "postgres"), args...)
	begin := time.Now()
	var err error
	if p.server, err = r.commandTo(log, argv[0], argv[1:]...); err != nil {
		return 0, err
	}
	for {
		_, err := p.run(ctx, "psql", "-XqAt", "-d", "postgres", "-c", "SELECT 1")
		if err == nil {
			return time.Since(begin), nil
		}
		select {
		case <-p.server.done:
			return 0, fmt.Errorf("the server ended: %w", p.server.err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(begin) > 2*time.Minute || ctx.Err() != nil {
			return 0, errors.Join(fmt.Errorf("the server does not answer: %w", err), ctx.Err(), p.stop("INT"))
		}
	}
}

// stop ends the server: QUIT at once, as a crash would; INT with its clients.
func (p *postgres) stop(signal string) error {
	if p.server == nil {
		return nil
	}
	s := p.server
	p.server = nil
	b, err := os.ReadFile(filepath.Join(p.data, "postmaster.pid"))
	if err == nil {
		line, _, _ := strings.Cut(string(b), "\n")
		if pid, err := strconv.Atoi(line); err == nil && alive(s) {
			unix.Kill(pid, map[string]unix.Signal{"QUIT": unix.SIGQUIT, "INT": unix.SIGINT}[signal])
		}
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(30 * time.Second):
	}
	return s.Stop() // runuser passes it on
}

func alive(s *Proc) bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// commandTo starts a program of the rig with its output in a file.
func (r *Rig) commandTo(log, name string, args ...string) (*Proc, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &Proc{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = f, f, "/"
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ledger is a client that appends numbered rows, each a transaction of its own, and knows the last one that was acknowledged.
type ledger struct {
	acked atomic.Int64
	stop  chan struct{}
	once  sync.Once
	done  chan error
}

// newLedger begins at row 1.
func newLedger(p *postgres) (*ledger, error) {
	argv := p.tool("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", pgDatabase)
	cmd := exec.Command(argv[0], argv[1:]...)
	var said tail
	cmd.Stderr = &said
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, err
	}
	l := &ledger{stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		err := l.append(in, out)
		err = errors.Join(err, in.Close(), cmd.Wait())
		if err != nil {
			err = fmt.Errorf("ledger: %w: %s", err, said.b)
		}
		l.done <- err
	}()
	return l, nil
}

func (l *ledger) append(in io.Writer, out io.Reader) error {
	lines := bufio.NewScanner(out)
	for n := int64(1); ; n++ {
		select {
		case <-l.stop:
			return nil
		default:
		}
		if _, err := fmt.Fprintf(in, "INSERT INTO ledger VALUES (%d) RETURNING n;\n", n); err != nil {
			return err
		}
		if !lines.Scan() {
			return errors.Join(errors.New("the server closed"), lines.Err())
		}
		if got := lines.Text(); got != strconv.FormatInt(n, 10) {
			return fmt.Errorf("row %d was answered by %q", n, got)
		}
		l.acked.Store(n) // the commit is durable before psql tells of it
		time.Sleep(2 * time.Millisecond)
	}
}

// end stops it; an error tells that it had ended before.
func (l *ledger) end() error {
	l.once.Do(func() { close(l.stop) })
	err := <-l.done
	l.done <- err
	return err
}
