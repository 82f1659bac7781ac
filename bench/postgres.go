package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/moverd/mover/mover"
)

// PostgresOptions of a campaign.
type PostgresOptions struct {
	Points int    // with the hook
	Bare   int    // without it
	Work   string // folder for disks and targets
	Hook   string // the hook's program
	Rate   int    // transactions of pgbench a second; 0: as many as it can
	Seed   int    // of pgbench
}

// Postgres shows what recovery points of a database on two disks are worth: PostgreSQL under pgbench, data on one disk and WAL on the other, one
// group of a real source and gateway. Each point is restored, mounted, and a server started on it, which must recover, be clean to
// pg_amcheck, agree with itself, and hold every transaction that a client had seen acknowledged before the moment began.
func Postgres(ctx context.Context, bin string, o PostgresOptions, w io.Writer, results *Results) (err error) {
	b := &pgBench{o: o, w: w, slots: make(chan struct{}, pgLooks)}
	if b.pg.bin, err = findPostgres(); err != nil {
		return err
	}
	if b.r, err = NewRig(ctx, bin, RigOptions{}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fmt.Fprintf(w, "source:\n%s\ngateway:\n%s\n", indent(tailOf(b.r.Log("source"), 3000)), indent(tailOf(b.r.Log("gateway"), 2000)))
		}
		err = errors.Join(err, b.close())
	}()
	if err := b.setup(ctx); err != nil {
		return err
	}
	for i := range o.Points + o.Bare {
		if i == o.Points {
			if err := b.daemons(false); err != nil {
				return err
			}
		}
		if err := b.moment(ctx, i < o.Points); err != nil {
			return err
		}
	}
	b.looks.Wait()
	if err := errors.Join(b.errs...); err != nil {
		return err
	}
	if err := b.wrong(ctx); err != nil {
		return err
	}
	return b.report(ctx, results)
}

func tailOf(s string, n int) string { return s[max(0, len(s)-n):] }

// pgMoment is one moment and what its copy showed.
type pgMoment struct {
	hook            bool
	id              string
	worth           string
	acked           int64 // rows acknowledged before the moment was asked for
	held            int64 // rows on the copy
	pause, recovery float64
	bad             error
}

type pgBench struct {
	o      PostgresOptions
	w      io.Writer
	r      *Rig
	work   string // below o.Work
	store  string // the XFS of targets and copies
	disks  [2]string
	dirs   [2]string // data, WAL
	pg     postgres
	load   *Proc
	ledger *ledger
	copies atomic.Int64
	looks  sync.WaitGroup // at copies, at most pgLooks at a time
	slots  chan struct{}

	mu      sync.Mutex // guards all below, and w while looks are under way
	moments []*pgMoment
	errs    []error
	caught  int // wrong copies that were told
	tried   int
}

var pgFlows = [2]string{"data", "wal"}

const pgLooks = 4

func (b *pgBench) close() error {
	b.looks.Wait()
	if b.load != nil {
		b.load.Kill()
	}
	var errs []error
	for _, d := range b.dirs {
		if d != "" {
			Thaw(d) // a server that the freeze holds could not be stopped
		}
	}
	errs = append(errs, b.pg.stop("QUIT"))
	return errors.Join(append(errs, b.r.Close())...)
}

// setup makes disks, server, daemons and load.
func (b *pgBench) setup(ctx context.Context) (err error) {
	r := b.r
	if err := os.Chmod(r.Dir, 0o711); err != nil { // postgres goes through
		return err
	}
	if b.work, err = os.MkdirTemp(b.o.Work, "mover-postgres-"); err != nil {
		return err
	}
	r.Defer(func() error { return os.RemoveAll(b.work) })
	store, err := r.Loop(ctx, filepath.Join(b.work, "store"), 60<<30, 512, false)
	if err != nil {
		return err
	}
	if err := Mkfs(ctx, store, "xfs"); err != nil {
		return err
	}
	if b.store, err = r.Mount(ctx, store, "store"); err != nil {
		return err
	}
	for i, kind := range []string{"ext4", "xfs"} {
		if b.disks[i], err = r.Loop(ctx, filepath.Join(b.work, pgFlows[i]), 640<<20, 512, true); err != nil {
			return err
		}
		if err := Mkfs(ctx, b.disks[i], kind); err != nil {
			return err
		}
		if b.dirs[i], err = r.Mount(ctx, b.disks[i], pgFlows[i]); err != nil {
			return err
		}
	}
	if err := b.database(ctx); err != nil {
		return err
	}
	if err := b.gateway(); err != nil {
		return err
	}
	if err := b.daemons(true); err != nil {
		return err
	}
	return b.workload(ctx)
}

// database makes the cluster: data on one disk, WAL on the other.
func (b *pgBench) database(ctx context.Context) error {
	port, err := freePort() // no TCP: it names the socket
	if err != nil {
		return err
	}
	b.pg.data, b.pg.sock, b.pg.port = filepath.Join(b.dirs[0], "pg"), b.r.path("pgsock"), port
	for _, d := range []string{b.dirs[0], b.dirs[1], b.pg.sock, b.store} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755)); err != nil {
			return err
		}
		if err := give(d); err != nil {
			return err
		}
	}
	argv := asPostgres(filepath.Join(b.pg.bin, "initdb"), "-D", b.pg.data, "-X", filepath.Join(b.dirs[1], "pg_wal"), "-A", "trust", "-k")
	if _, err := Run(ctx, argv[0], argv[1:]...); err != nil {
		return err
	}
	if _, err := b.pg.start(ctx, b.r, b.r.path("postgres.log"), "shared_buffers=64MB", "max_wal_size=128MB", "max_connections=40"); err != nil {
		return err
	}
	if _, err := b.pg.run(ctx, "createdb", pgDatabase); err != nil {
		return err
	}
	if _, err := b.pg.run(ctx, "pgbench", "-i", "-q", "-s", "5", pgDatabase); err != nil {
		return err
	}
	_, err = b.pg.sql(ctx, "CREATE EXTENSION amcheck; CREATE TABLE ledger (n bigint PRIMARY KEY, at timestamptz DEFAULT now())")
	return err
}

func (b *pgBench) gateway() error {
	r := b.r
	port, err := freePort()
	if err != nil {
		return err
	}
	if r.Proxy, err = NewProxy(fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		return err
	}
	text := fmt.Sprintf(`gateway:
  listen: 127.0.0.1:%d
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "off"}
  tls: {ca: %s, cert: %s, key: %s}
  flows:
`, port, r.path("gw-state"), r.path("gw-run"), r.path("gateway.sock"), r.path("pki/ca.pem"), r.path("pki/gw.pem"), r.path("pki/gw.key"))
	for _, f := range pgFlows {
		text += fmt.Sprintf("    - {tenant: demo, host: web1, name: %s, target: %s, create: true, points: {method: reflink, keep: {last: 8, hourly: 0, daily: 0}}}\n",
			f, filepath.Join(b.store, f+".img"))
	}
	if err := os.WriteFile(r.path("gateway.yaml"), []byte(text), 0o600); err != nil {
		return err
	}
	r.gateway, err = r.start("gateway", "gateway", "-c", r.path("gateway.yaml"))
	return err
}

// daemons starts the source, anew when it runs, with or without the hook.
func (b *pgBench) daemons(hook bool) error {
	r := b.r
	if r.source != nil {
		if err := r.source.Stop(); err != nil {
			return err
		}
	}
	text := fmt.Sprintf(`source:
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "off"}
  gateway: {address: %s, name: 127.0.0.1, ca: %s, cert: %s, key: %s}
  tracking: {pin-dir: %s}
  flows:
    - {name: data, volume: %s, interval: 1s}
    - {name: wal, volume: %s, interval: 1s}
  groups:
    - name: db
      flows: [data, wal]
      cutover: {limit: 10s, freeze-deadline: 60s}
`, r.path("src-state"), r.path("src-run"), r.path("source.sock"), r.Proxy.target, r.path("pki/ca.pem"), r.path("pki/web1.pem"), r.path("pki/web1.key"),
		r.pinDir(), b.disks[0], b.disks[1])
	if hook {
		conf := fmt.Sprintf("PGHOST=%s\nPGPORT=%d\n", b.pg.sock, b.pg.port)
		if err := os.WriteFile(r.path("hook.conf"), []byte(conf), 0o600); err != nil {
			return err
		}
		argv := fmt.Sprintf("[/usr/bin/env, MOVER_HOOK_CONF=%s, %s]", r.path("hook.conf"), b.o.Hook)
		text += fmt.Sprintf("      hooks: {pre: %s, post: %s, timeout: 60s}\n", argv, argv)
	}
	if err := os.WriteFile(r.path("source.yaml"), []byte(text), 0o600); err != nil {
		return err
	}
	if r.source == nil {
		r.Defer(func() error { return os.RemoveAll(r.pinDir()) })
	}
	var err error
	r.source, err = r.start("source", "source", "-c", r.path("source.yaml"))
	return err
}

// workload starts pgbench and the ledger, and waits until the first passes are through.
func (b *pgBench) workload(ctx context.Context) (err error) {
	args := []string{"-c", "4", "-j", "2", "-T", "86400", "--random-seed", strconv.Itoa(b.o.Seed)}
	if b.o.Rate > 0 {
		args = append(args, "-R", strconv.Itoa(b.o.Rate))
	}
	argv := b.pg.tool("pgbench", append(args, pgDatabase)...)
	if b.load, err = b.r.command(argv[0], argv[1:]...); err != nil {
		return err
	}
	if b.ledger, err = newLedger(&b.pg); err != nil {
		return err
	}
	return b.synced(ctx)
}

// synced waits until every flow has a recovery point to build on.
func (b *pgBench) synced(ctx context.Context) error {
	for end := time.Now().Add(3 * time.Minute); ; {
		out, err := b.r.Ctl(ctx, "source", "status", "-o", "json")
		var all []mover.Status
		if err == nil {
			err = json.Unmarshal(out, &all)
		}
		if err == nil && len(all) == len(pgFlows) && !slices.ContainsFunc(all, func(s mover.Status) bool { return s.PointEpoch == 0 }) {
			return nil
		}
		if time.Now().After(end) {
			out = out[max(0, len(out)-1500):]
			return fmt.Errorf("the first passes did not end: %w: %s", err, out)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// moment takes one and looks at what it is worth.
func (b *pgBench) moment(ctx context.Context, hook bool) error {
	if err := b.synced(ctx); err != nil {
		return err
	}
	if !alive(b.load) {
		return fmt.Errorf("pgbench ended: %w", b.load.err)
	}
	b.slots <- struct{}{} // as many moments as copies can be looked at: the gateway keeps only the last ones
	m := &pgMoment{hook: hook, acked: b.ledger.acked.Load()}
	out, err := b.r.Ctl(ctx, "source", "point", "db", "-o", "json")
	if err != nil {
		<-b.slots
		return err
	}
	var report mover.Report
	if err := json.Unmarshal(out, &report); err != nil {
		<-b.slots
		return fmt.Errorf("report of a point: %w: %s", err, out)
	}
	m.id, m.worth, m.pause = mover.PointID(report.MomentTime, report.Moment), report.Consistency, report.Pause
	last := b.ledger.acked.Load() + 1 // one may be under way
	b.mu.Lock()
	b.moments = append(b.moments, m)
	n := len(b.moments)
	b.mu.Unlock()
	b.looks.Go(func() {
		defer func() { <-b.slots }()
		err := b.look(ctx, m, last, report.Worse)
		b.mu.Lock()
		defer b.mu.Unlock()
		if err != nil {
			b.errs = append(b.errs, fmt.Errorf("moment %d: %w", n, err))
		}
		verdict := "ok"
		if m.bad != nil {
			verdict = "BAD: " + m.bad.Error()
		}
		fmt.Fprintf(b.w, "%3d  %s  %-5s  pause %4.0f ms  %6d acknowledged before, %6d there  recovery %.2f s  %s\n",
			n, m.id, m.worth, m.pause*1000, m.acked, m.held, m.recovery, verdict)
	})
	return nil
}

// look judges the copy of a moment, which can hold the rows up to last. An error is not the copy's.
func (b *pgBench) look(ctx context.Context, m *pgMoment, last int64, worse []string) error {
	c, err := b.restore(ctx, m.id, m.id)
	if err != nil {
		m.bad = err
		return err
	}
	m.held, m.recovery, m.bad = c.check(ctx, m.acked)
	if m.bad == nil && m.held > last {
		m.bad = fmt.Errorf("it holds %d rows, of which only %d can have been written", m.held, last)
	}
	if want := map[bool]string{true: "app", false: "crash"}[m.hook]; m.bad == nil && m.worth != want {
		m.bad = fmt.Errorf("it is called %s consistent, not %s: %v", m.worth, want, worse)
	}
	return c.close()
}

// wrong sees that the checks can fail: more rows than the moment can have, and data and WAL of two moments.
func (b *pgBench) wrong(ctx context.Context) error {
	if len(b.moments) < 2 {
		return nil
	}
	first, last := b.moments[len(b.moments)-2], b.moments[len(b.moments)-1]
	for _, try := range []struct {
		what      string
		data, wal string
	}{
		{"a point, against the ledger of a later moment", first.id, first.id},
		{"the data of one moment with the WAL of an earlier one", last.id, first.id},
	} {
		b.tried++
		c, err := b.restore(ctx, try.data, try.wal)
		if err != nil {
			return err
		}
		_, _, bad := c.check(ctx, last.acked)
		if err := c.close(); err != nil {
			return err
		}
		if bad != nil {
			b.caught++
		}
		fmt.Fprintf(b.w, "     %s: told %v: %v\n", try.what, bad != nil, bad)
	}
	return nil
}

func (b *pgBench) report(ctx context.Context, results *Results) error {
	rows, err := b.pg.sql(ctx, "SELECT count(*) FROM pgbench_history")
	if err != nil {
		return err
	}
	if err := b.ledger.end(); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(b.w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\npoints\tkept\tstarted, clean, whole\tlacking a row\tpause, median\tlongest\trecovery, median\tlongest\n")
	bad := 0
	add := func(subject, metric string, v float64, unit string) error {
		if results == nil {
			return nil
		}
		return results.Add("postgres", subject, metric, v, unit)
	}
	var errs []error
	for _, hook := range []bool{true, false} {
		subject := map[bool]string{true: "with the hook", false: "without"}[hook]
		var pauses, recoveries []float64
		n, ok, lacking := 0, 0, 0
		for _, m := range b.moments {
			if m.hook != hook {
				continue
			}
			n++
			pauses, recoveries = append(pauses, m.pause), append(recoveries, m.recovery)
			if m.bad == nil {
				ok++
			}
			if m.held < m.acked {
				lacking++
			}
		}
		if n == 0 {
			continue
		}
		bad += n - ok
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%.2f s\t%.2f s\t%.2f s\t%.2f s\n", subject, n, ok, lacking, Median(pauses), slices.Max(pauses), Median(recoveries), slices.Max(recoveries))
		errs = append(errs, add(subject, "recovery points", float64(n), "points"), add(subject, "started, clean to pg_amcheck, whole (all)", float64(ok), "points"),
			add(subject, "lacking an acknowledged transaction (none)", float64(lacking), "points"), add(subject, "median pause", Median(pauses), "s"),
			add(subject, "longest pause", slices.Max(pauses), "s"), add(subject, "median time until the copy answers", Median(recoveries), "s"))
	}
	tw.Flush()
	history, _ := strconv.ParseFloat(strings.TrimSpace(rows), 64)
	fmt.Fprintf(b.w, "%d acknowledged rows of the ledger, %s transactions of pgbench; %d of %d wrong copies were told\n", b.ledger.acked.Load(), rows, b.caught, b.tried)
	errs = append(errs, add("ledger", "acknowledged transactions", float64(b.ledger.acked.Load()), "transactions"), add("pgbench", "transactions", history, "transactions"),
		add("wrong copies", "told (all)", float64(b.caught), "copies"))
	if bad > 0 || b.caught != b.tried {
		errs = append(errs, fmt.Errorf("%d points are bad; %d of %d wrong copies were told", bad, b.caught, b.tried))
	}
	return errors.Join(errs...)
}
