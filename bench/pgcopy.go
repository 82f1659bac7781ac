package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pgCopy is both disks of a moment, restored, attached and mounted.
type pgCopy struct {
	b    *pgBench
	dir  string
	pg   postgres
	undo []func() error
}

// restore restores the two disks of one moment, or, to do it wrong, of two.
func (b *pgBench) restore(ctx context.Context, data, wal string) (_ *pgCopy, err error) {
	c := &pgCopy{b: b, dir: filepath.Join(b.store, fmt.Sprintf("copy-%d", b.copies.Add(1)))}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	c.undo = append(c.undo, func() error { return os.RemoveAll(c.dir) })
	from := [2]string{c.dir, c.dir}
	for i, id := range []string{data, wal} {
		if i == 1 && wal == data {
			break
		}
		to := filepath.Join(c.dir, "moment-"+strconv.Itoa(i))
		if err := os.Mkdir(to, 0o755); err != nil {
			return nil, err
		}
		if _, err := b.r.Ctl(ctx, "gateway", "restore", "demo/web1/db", id, "--to-dir", to); err != nil {
			return nil, err
		}
		for j := i; j < 2; j++ {
			from[j] = to
		}
	}
	for i, opts := range [][]string{{}, {"-o", "nouuid"}} { // the disk itself is mounted too
		dev, err := Run(ctx, "losetup", "--find", "--show", filepath.Join(from[i], pgFlows[i]+".img"))
		if err != nil {
			return nil, err
		}
		c.undo = append(c.undo, func() error { return detach(dev) })
		dir := filepath.Join(c.dir, pgFlows[i])
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		if _, err := Run(ctx, "mount", append(opts, dev, dir)...); err != nil {
			return nil, err
		}
		c.undo = append(c.undo, func() error { return Unmount(dir) })
	}
	return c, c.point()
}

// point makes the copy a server of its own, as on another machine: its WAL is beside it, and nobody runs on it.
func (c *pgCopy) point() error {
	port, err := freePort()
	if err != nil {
		return err
	}
	c.pg = postgres{bin: c.b.pg.bin, data: filepath.Join(c.dir, "data", "pg"), sock: filepath.Join(c.dir, "sock"), port: port}
	link := filepath.Join(c.pg.data, "pg_wal")
	err = errors.Join(os.Mkdir(c.pg.sock, 0o755), give(c.pg.sock), os.Remove(link), os.Symlink(filepath.Join(c.dir, "wal", "pg_wal"), link))
	if rerr := os.Remove(filepath.Join(c.pg.data, "postmaster.pid")); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// close ends the server and takes the copy down.
func (c *pgCopy) close() error {
	errs := []error{c.pg.stop("QUIT")}
	for i := len(c.undo) - 1; i >= 0; i-- {
		errs = append(errs, c.undo[i]())
	}
	c.undo = nil
	return errors.Join(errs...)
}

// check starts the server and judges: it recovers, pg_amcheck finds nothing, pgbench's sums agree, and the ledger is 1, 2, 3, ... at least to
// acked. It returns the number of rows and the seconds until the server answered.
func (c *pgCopy) check(ctx context.Context, acked int64) (rows int64, recovery float64, err error) {
	log := filepath.Join(c.dir, "log")
	defer func() {
		if err != nil {
			b, _ := os.ReadFile(log)
			err = fmt.Errorf("%w; the server's log ends: %s", err, tailOf(strings.TrimSpace(string(b)), 400))
		}
	}()
	took, err := c.pg.start(ctx, c.b.r, log, "shared_buffers=64MB", "max_connections=40")
	if err != nil {
		return 0, 0, err
	}
	if _, err := c.pg.run(ctx, "pg_amcheck", "--jobs", "2", "--heapallindexed", "--parent-check", pgDatabase); err != nil {
		return 0, took.Seconds(), err
	}
	out, err := c.pg.sql(ctx, `SELECT count(*), coalesce(min(n), 1), coalesce(max(n), 0) FROM ledger`)
	if err != nil {
		return 0, took.Seconds(), err
	}
	var least, most int64
	if _, err := fmt.Sscanf(strings.ReplaceAll(out, "|", " "), "%d %d %d", &rows, &least, &most); err != nil {
		return 0, took.Seconds(), fmt.Errorf("ledger: %w: %q", err, out)
	}
	if rows != most || least != 1 {
		return rows, took.Seconds(), fmt.Errorf("the ledger has %d rows from %d to %d: some are missing", rows, least, most)
	}
	if rows < acked {
		return rows, took.Seconds(), fmt.Errorf("the ledger ends at %d, but %d had been acknowledged", rows, acked)
	}
	out, err = c.pg.sql(ctx, `SELECT (SELECT sum(abalance) FROM pgbench_accounts) = h AND (SELECT sum(bbalance) FROM pgbench_branches) = h
		AND (SELECT sum(tbalance) FROM pgbench_tellers) = h FROM (SELECT coalesce(sum(delta), 0) AS h FROM pgbench_history) x`)
	if err == nil && out != "t" {
		err = errors.New("the sums of pgbench's tables do not agree")
	}
	return rows, took.Seconds(), err
}
