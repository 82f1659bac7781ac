package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/mover"
)

// mix is a soak run of a group: one to three disks with writers, points and rehearsals among the faults, every kept point that the bench has a
// copy of its own of restored and compared, a cutover, perhaps a rollback and another one.
type mix struct {
	plan   mixPlan
	keep   bool
	f      *fleet
	truths map[string]map[string]string // by disk and point: what the disk held
	events []string

	kills, cuts, ended int64
	points, unseen     int64 // that were taken; of these, those of which the bench could not get a copy in time
	restored, checked  int64
	report             *mover.Report
	gap                string
}

// mixPlan follows from the seed.
type mixPlan struct {
	seed       uint64
	kinds      []string
	sector     int
	threads    int
	rate       string
	conns      int
	interval   string
	logLimit   string
	fullState  bool
	fullTarget bool
	steps      []fault
	rollback   bool
	rng        *rand.Rand
}

const (
	takePoint  = "point"
	rehearse   = "rehearsal"
	killPoint  = "point and kill"
	cutPoint   = "point and cut line"
	writerSize = 6 << 20
)

func newMixPlan(seed uint64) mixPlan {
	rng := rand.New(rand.NewPCG(seed, 0x6d6978))
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	p := mixPlan{seed: seed, rng: rng, sector: 512, threads: 1 + rng.IntN(2), rate: pick("2MiB", "8MiB", "20MiB"), conns: 2 + rng.IntN(3),
		interval: pick("0s", "200ms", "1s"), logLimit: pick("16MiB", "64MiB", "64MiB"), rollback: rng.IntN(3) == 0}
	for range []int{1, 2, 2, 3}[rng.IntN(4)] {
		p.kinds = append(p.kinds, pick("ext4", "ext4", "xfs"))
	}
	if rng.IntN(4) == 0 {
		p.sector = 4096
	}
	kinds := []string{killSource, killGateway, killBoth, cutLine, takePoint, takePoint, rehearse, killPoint, cutPoint}
	if rng.IntN(4) == 0 {
		p.fullState = true
		kinds = append(kinds, fillState)
	}
	if rng.IntN(3) == 0 {
		p.fullTarget = true
		kinds = append(kinds, fillTarget)
	}
	for range 3 + rng.IntN(3) {
		p.steps = append(p.steps, fault{pick(kinds...), ms(rng, 600), ms(rng, 300)})
	}
	p.steps = append(p.steps, fault{takePoint, ms(rng, 300), 0})
	return p
}

func (p mixPlan) String() string {
	return fmt.Sprintf("group of %s, %d-byte sectors, %s/s by %d threads each, log %s, %d steps", strings.Join(p.kinds, "+"), p.sector, p.rate, p.threads,
		p.logLimit, len(p.steps))
}

func (m *mix) outcome() outcome {
	o := outcome{text: m.plan.String(), events: m.events, gap: m.gap, kills: m.kills, cuts: m.cuts, checked: m.checked, points: m.points, unseen: m.unseen,
		restored: m.restored, ended: m.ended}
	if m.report != nil {
		o.text += fmt.Sprintf("; pause %.0f ms, %d points, %d restored", m.report.Pause*1000, m.points, m.restored)
	}
	return o
}

func (m *mix) note(format string, args ...any) {
	m.events = append(m.events, fmt.Sprintf(format, args...))
}

func (m *mix) run(ctx context.Context, bin string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	p := m.plan
	m.truths = map[string]map[string]string{}
	o := RigOptions{Interval: p.interval, Limit: "20s", Deadline: "30s", Leave: "frozen", Conns: p.conns, LogLimit: p.logLimit, Freeze: true,
		Points: "{method: reflink, keep: {last: 40}}"}
	if m.f, err = newFleet(ctx, bin, o, p.sector, p.kinds...); err != nil {
		return err
	}
	defer func() {
		if err != nil && m.keep {
			fmt.Fprintln(os.Stderr, "kept:", m.f.r.Dir)
			return
		}
		err = errors.Join(err, m.f.close())
	}()
	if p.fullState {
		if err := m.smallState(ctx); err != nil {
			return err
		}
	}
	for i := range m.f.disks {
		if err := m.startWriter(ctx, i); err != nil {
			return err
		}
	}
	if err := m.f.start(ctx); err != nil {
		return err
	}
	for _, st := range p.steps {
		if err := pause(ctx, st.wait); err != nil {
			return err
		}
		m.note("%s", st.kind)
		if err := m.step(ctx, st); err != nil {
			return fmt.Errorf("%s: %w", st.kind, err)
		}
		if err := m.supervise(); err != nil {
			return err
		}
	}
	return m.finish(ctx)
}

func (m *mix) smallState(ctx context.Context) error {
	dir := m.f.r.path("state-fs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if _, err := Run(ctx, "mount", "-t", "tmpfs", "-o", "size=128m", "state-fs", dir); err != nil {
		return err
	}
	m.f.r.Defer(func() error { return Unmount(dir) })
	m.f.r.o.RedoDir = dir
	return nil
}

func (m *mix) startWriter(ctx context.Context, i int) (err error) {
	d := m.f.disks[i]
	d.writer, err = m.f.r.Writer(ctx, "--ledger", m.ledger(d), "--seed", fmt.Sprint(m.seed(i)), "--threads", fmt.Sprint(m.plan.threads), "--rate", m.plan.rate,
		"--size", fmt.Sprintf("%dMiB", writerSize>>20), "--dir", d.dir)
	return err
}

func (m *mix) ledger(d *fleetDisk) string { return m.f.r.path("ledger-" + d.Name) }

func (m *mix) seed(i int) uint64 { return m.plan.seed*8 + uint64(i) }

// supervise starts again what has ended by itself, as systemd would, and counts it.
func (m *mix) supervise() error {
	r := m.f.r
	for _, p := range []struct {
		proc  *Proc
		start func() error
		name  string
	}{{r.gateway, r.StartGateway, "gateway"}, {r.source, r.StartSource, "source"}} {
		select {
		case <-p.proc.done:
			m.ended++
			m.note("%s ended by itself: %v: %s", p.name, p.proc.err, lastLine(r.Log(p.name)))
			if err := p.start(); err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func (m *mix) step(ctx context.Context, st fault) error {
	r := m.f.r
	switch st.kind {
	case killSource:
		m.kills++
		r.KillSource()
		return errors.Join(pause(ctx, st.length), r.StartSource())
	case killGateway:
		m.kills++
		r.KillGateway()
		return errors.Join(pause(ctx, st.length), r.StartGateway())
	case killBoth:
		m.kills += 2
		r.KillGateway()
		r.KillSource()
		return errors.Join(r.StartGateway(), r.StartSource())
	case cutLine:
		m.cuts++
		r.Proxy.Cut()
		return nil
	case fillState:
		return fillUp(ctx, r.path("state-fs"), st.length)
	case fillTarget:
		return fillUp(ctx, r.path(targetStore), st.length)
	}
	return m.moment(ctx, st)
}

// fillUp leaves a filesystem without space for a while.
func fillUp(ctx context.Context, dir string, length time.Duration) error {
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		return err
	}
	left := int64(8 << 30)
	for off := int64(0); left >= 4096; {
		if unix.Fallocate(int(f.Fd()), 0, off, left) != nil {
			left /= 2
			continue
		}
		off += left
	}
	return errors.Join(f.Close(), pause(ctx, length), os.Remove(f.Name()))
}

// moment takes a point, or rehearses a cutover, which leaves one, perhaps while something fails, and copies the disks under the freeze. That a
// point is not taken is no failure of the run: it was told so.
func (m *mix) moment(ctx context.Context, st fault) error {
	r := m.f.r
	args := []string{"point", r.o.unit()}
	if st.kind == rehearse {
		args = []string{"cutover", r.o.unit(), "--rehearse", "--yes"}
	}
	before := map[string]map[string]bool{}
	for _, d := range m.f.disks {
		all, err := m.f.points(ctx, d)
		if err != nil { // the gateway is just starting: what is new afterwards will not be known
			m.note("points: %.120v", err)
			before = nil
			break
		}
		before[d.Name] = map[string]bool{}
		for _, p := range all {
			before[d.Name][p.ID] = true
		}
	}
	wctx, stop := context.WithCancel(ctx)
	seen := make(chan truth, 1)
	name := fmt.Sprintf("m%d", len(m.events))
	go func() { seen <- m.f.watch(wctx, name) }()
	verb := make(chan error, 1)
	vctx, vstop := context.WithTimeout(ctx, 40*time.Second)
	defer vstop()
	go func() {
		_, err := r.Ctl(vctx, "source", args...)
		verb <- err
	}()
	var err error
	if st.kind == killPoint || st.kind == cutPoint {
		err = m.disturb(ctx, st)
	}
	err = errors.Join(err, ctx.Err())
	verr := <-verb
	stop()
	t := <-seen
	if err != nil {
		return err
	}
	if verr != nil || before == nil {
		m.note("%s: %.200v", st.kind, verr)
		t.drop() // what it was of is not known
		return nil
	}
	return m.match(ctx, before, t)
}

// disturb kills or cuts at a random moment while a point is being taken.
func (m *mix) disturb(ctx context.Context, st fault) error {
	if err := pause(ctx, ms(m.plan.rng, 900)); err != nil {
		return err
	}
	kinds := []string{killSource, killGateway, killBoth}
	if st.kind == cutPoint {
		kinds = []string{cutLine}
	}
	return m.step(ctx, fault{kind: kinds[m.plan.rng.IntN(len(kinds))], length: 100 * time.Millisecond})
}

// match notes which point of each disk is new, and what it has to hold.
func (m *mix) match(ctx context.Context, before map[string]map[string]bool, t truth) error {
	for _, d := range m.f.disks {
		all, err := m.f.points(ctx, d)
		if err != nil {
			m.note("points: %.120v", err)
			return nil
		}
		var fresh []string
		for _, p := range all {
			if !before[d.Name][p.ID] {
				fresh = append(fresh, p.ID)
			}
		}
		switch {
		case len(fresh) == 0:
			m.note("no point of %s is kept", d.Name)
		case len(fresh) > 1: // of a moment before that nobody waited for any more
			m.note("%d new points of %s", len(fresh), d.Name)
			m.points++
			m.unseen++
		default:
			if m.points++; t == nil {
				m.unseen++
				continue
			}
			if m.truths[d.Name] == nil {
				m.truths[d.Name] = map[string]string{}
			}
			m.truths[d.Name][fresh[0]] = t[d.Name]
		}
	}
	return nil
}

// finish cuts over, compares, perhaps rolls back and cuts over again, and restores what is kept.
func (m *mix) finish(ctx context.Context) error {
	if err := m.cutover(ctx); err != nil {
		return err
	}
	if m.plan.rollback {
		if err := m.equal(ctx); err != nil {
			return err
		}
		if _, err := m.f.r.Ctl(ctx, "source", "rollback", m.f.r.o.unit(), "--yes"); err != nil {
			return fmt.Errorf("rollback: %w", err)
		}
		m.note("rolled back")
		if err := pause(ctx, ms(m.plan.rng, 500)); err != nil {
			return err
		}
		if err := m.cutover(ctx); err != nil {
			return err
		}
	}
	if err := m.restores(ctx); err != nil {
		return err
	}
	return m.judge(ctx)
}

func (m *mix) cutover(ctx context.Context) (err error) {
	for range 12 {
		if err = m.supervise(); err != nil {
			return err
		}
		if m.report, err = m.f.r.Cutover(ctx, io.Discard); err == nil {
			break
		}
		m.note("cutover again: %.200v", err)
		if ctx.Err() != nil {
			return err
		}
		for _, d := range m.f.disks { // a full disk may stop a flow until the operator says so
			if _, err := m.f.r.Ctl(ctx, "source", "resume", d.Name); err != nil {
				m.note("resume: %.120v", err)
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("no cutover succeeded: %w\ngateway log:\n%s", err, m.f.r.Log("gateway"))
	}
	all, err := m.f.r.Statuses(ctx, "source")
	for _, st := range all {
		m.gap = or(m.gap, st.Gap)
	}
	return err
}

// equal compares every disk with its target, page by page, while the sources stand still.
func (m *mix) equal(ctx context.Context) error {
	for _, d := range m.f.disks {
		if _, err := compare(ctx, d.Volume, d.Target, d.size); err != nil {
			return fmt.Errorf("%s after the cutover: %w", d.Name, err)
		}
	}
	return nil
}

// restores has points restored of which the bench has copies of its own, and compares each page. What was free may be zeros.
func (m *mix) restores(ctx context.Context) error {
	for _, d := range m.f.disks {
		all, err := m.f.points(ctx, d)
		if err != nil {
			return err
		}
		kept := map[string]bool{}
		for _, p := range all {
			kept[p.ID] = true
		}
		for id, want := range m.truths[d.Name] {
			if !kept[id] {
				return fmt.Errorf("point %s of %s is gone", id, d.Name)
			}
			file, err := m.f.restore(ctx, d, id, "restored-"+d.Name+"-"+id)
			if err != nil {
				return err
			}
			old, err := compare(ctx, want, file, d.size)
			if err == nil && old > 0 && m.plan.rng.IntN(3) == 0 {
				err = m.sameFiles(ctx, d, want, file)
			}
			if err != nil {
				return fmt.Errorf("point %s of %s is not what the disk held: %w", id, d.Name, err)
			}
			m.restored++
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameFiles compares two images of one moment file by file: where bytes differ, nothing may lie there.
func (m *mix) sameFiles(ctx context.Context, d *fleetDisk, a, b string) error {
	var dirs []string
	defer func() {
		for _, dir := range dirs {
			_ = Unmount(dir)
			_ = os.Remove(dir)
		}
	}()
	for i, image := range []string{a, b} {
		img := fmt.Sprintf("%s.look%d", image, i) // the log is replayed in a copy
		if err := clone(image, img); err != nil {
			return err
		}
		defer os.Remove(img)
		dir, err := m.f.r.Mount(ctx, img, filepath.Base(img), "-o", map[string]string{"ext4": "loop", "xfs": "nouuid,loop"}[d.fs])
		if err != nil {
			return err
		}
		dirs = append(dirs, dir)
	}
	_, err := Run(ctx, "diff", "-r", "--no-dereference", dirs[0], dirs[1])
	return err
}

// judge compares the targets of the cutover as judge of a single disk does.
func (m *mix) judge(ctx context.Context) error {
	if err := m.equal(ctx); err != nil {
		return err
	}
	for i, d := range m.f.disks {
		if !isFrozen(d.dir) {
			return fmt.Errorf("%s was to stay frozen after the cutover", d.dir)
		}
		select {
		case <-d.writer.done:
			return fmt.Errorf("the writer of %s has ended: %w: %s", d.Name, d.writer.err, m.f.r.Log("writer"))
		default:
		}
		img := d.Target + ".look"
		if err := clone(d.Target, img); err != nil {
			return err
		}
		dir, err := m.f.r.Mount(ctx, img, "look-"+d.Name, "-o", map[string]string{"ext4": "loop", "xfs": "nouuid,loop"}[d.fs])
		if err != nil {
			return err
		}
		n, err := churn.Check(churn.Config{Dir: dir, Ledger: m.ledger(d), Seed: m.seed(i), Threads: m.plan.threads, FileSize: writerSize})
		m.checked += int64(n)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
		if err := errors.Join(Unmount(dir), released(ctx, img)); err != nil {
			return err
		}
		check := map[string][]string{"ext4": {"e2fsck", "-fn"}, "xfs": {"xfs_repair", "-n", "-f"}}[d.fs]
		if _, err := Run(ctx, check[0], append(check[1:], img)...); err != nil {
			return err
		}
	}
	return nil
}
