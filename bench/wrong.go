package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/mover"
)

// Wrong is figure 5: a real gateway with one good flow, and connections of peers that must get nothing.
type Wrong struct {
	Bin         string
	Work        string // folder with room for two images, best on a tmpfs: a disk's noise is not the subject
	Results     *Results
	W           io.Writer
	Connections int           // of each kind against the idle gateway
	Pace        int           // connections per second beside the good flow
	Pairs       int           // of phases without and with the attack
	Phase       time.Duration // length of each
	Rate        int           // MiB/s of the good flow in the limited case: the line, not the processor, is the limit
	Runs        int           // pairs of whole passes of the unlimited case
}

// wrongRig is the gateway, the CA's server and the sources.
type wrongRig struct {
	*Rig
	w      *Wrong
	addr   string // of the gateway
	caAddr string
	token  string // used already
	ca     *Proc
	before map[string][sha256.Size]byte // of targets that must not change
}

func (w *Wrong) say(format string, args ...any) { fmt.Fprintf(w.W, format+"\n", args...) }

func (w *Wrong) add(subject, metric string, v float64, unit string) error {
	w.say("%-9s %-28s %-46s %10s %s", "wrong", subject, metric, number(v), unit)
	return w.Results.Add("wrong", subject, metric, v, unit)
}

const runSize = 1 << 30 // of the volume of an unlimited run

// Run does all of it.
func (w *Wrong) Run(ctx context.Context) (err error) {
	r, err := w.rig(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if r.ca != nil {
			r.ca.Kill()
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, r.Log("gateway"))
		}
		err = errors.Join(err, r.Close())
	}()
	a := newAttack(r)
	if err := w.idle(ctx, r, a); err != nil {
		return err
	}
	if err := w.limited(ctx, r, a); err != nil {
		return err
	}
	if err := w.unlimited(ctx, r, a); err != nil {
		return err
	}
	if err := a.clean(); err != nil {
		return err
	}
	if err := r.unchanged(); err != nil {
		return err
	}
	if err := r.gateway.Stop(); err != nil {
		return err
	}
	if err := r.ca.Stop(); err != nil {
		return err
	}
	return w.audited(r, a)
}

// idle attacks a gateway that does nothing else, as fast as it answers.
func (w *Wrong) idle(ctx context.Context, r *wrongRig, a *attack) error {
	if err := a.burst(ctx, 20); err != nil { // warm: what is made once is no growth
		return err
	}
	low, err := r.memory()
	if err != nil {
		return err
	}
	var peaks [2]int64 // flat: the second time needs no more than the first
	begin := time.Now()
	for i := range peaks {
		watch := r.watch(ctx)
		err := a.burst(ctx, (w.Connections+1)/2)
		peaks[i] = watch()
		if err != nil {
			return err
		}
	}
	n := (w.Connections + 1) / 2 * 2 * len(a.kinds)
	return errors.Join(
		w.add("idle gateway", fmt.Sprintf("wrong connections of %d kinds", len(a.kinds)), float64(n), ""),
		w.add("idle gateway", "wrong connections", float64(n)/time.Since(begin).Seconds(), "1/s"),
		w.add("idle gateway", "resident memory before", mib(low), "MiB"),
		w.add("idle gateway", "most resident memory, first half of them", mib(peaks[0]), "MiB"),
		w.add("idle gateway", "most resident memory, second half", mib(peaks[1]), "MiB"))
}

// limited runs the good flow at a rate below what the machine can, in phases without and with the attack.
func (w *Wrong) limited(ctx context.Context, r *wrongRig, a *attack) error {
	seconds := float64(2*w.Pairs)*(w.Phase.Seconds()+0.5) + 10
	size := (int64(seconds*float64(w.Rate))<<20 + 8<<20) &^ (1<<20 - 1)
	volume := r.path("volume-disk")
	if err := randomFile(volume, size, 1); err != nil {
		return err
	}
	if err := r.source("disk", volume, fmt.Sprintf("%dMiB/s", w.Rate)); err != nil {
		return err
	}
	if _, err := r.Await(ctx, "source", "sending", time.Minute, func(s mover.Status) bool { return s.Pass != nil && s.Pass.Acked > int64(w.Rate)<<20 }); err != nil {
		return err
	}
	var without, with, ratios []float64
	var quiet, busy int64
	for i := range w.Pairs {
		var rate [2]float64
		for j := range 2 {
			attacked := j != i%2 // the order alternates
			watch := r.watch(ctx)
			v, err := w.phase(ctx, r, a, attacked)
			peak := watch()
			if err != nil {
				return err
			}
			if attacked {
				rate[1], busy = v, max(busy, peak)
			} else {
				rate[0], quiet = v, max(quiet, peak)
			}
		}
		without, with, ratios = append(without, rate[0]), append(with, rate[1]), append(ratios, rate[1]/rate[0])
		w.say("  pair %d: %.2f MiB/s without, %.2f with, ratio %.3f", i+1, rate[0], rate[1], rate[1]/rate[0])
	}
	if _, err := r.Await(ctx, "source", "at a point", 5*time.Minute, func(s mover.Status) bool { return s.PointEpoch > 0 }); err != nil {
		return err
	}
	r.endSource()
	if err := same(volume, r.target("disk")); err != nil {
		return err
	}
	if err := os.Remove(volume); err != nil {
		return err
	}
	subject := fmt.Sprintf("flow of %d MiB/s, %d/s wrong", w.Rate, w.Pace)
	return errors.Join(w.ratios(subject, without, with, ratios),
		w.add(subject, "most resident memory without", mib(quiet), "MiB"), w.add(subject, "most resident memory with", mib(busy), "MiB"))
}

func (w *Wrong) ratios(subject string, without, with, ratios []float64) error {
	lo, hi := MedianInterval(ratios)
	return errors.Join(
		w.add(subject, fmt.Sprintf("throughput without, median of %d", len(without)), Median(without), "MiB/s"),
		w.add(subject, fmt.Sprintf("throughput with, median of %d", len(with)), Median(with), "MiB/s"),
		w.add(subject, "with to without, median of pairs", Median(ratios), ""),
		w.add(subject, "95 % interval of the median, low", lo, ""), w.add(subject, "95 % interval of the median, high", hi, ""))
}

// phase measures the good flow for a while. The half second before it lets the one before fade.
func (w *Wrong) phase(ctx context.Context, r *wrongRig, a *attack, attacked bool) (rate float64, err error) {
	actx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	if attacked {
		go func() { done <- a.paced(actx, w.Pace) }()
	} else {
		done <- nil
	}
	defer func() {
		stop()
		err = errors.Join(err, <-done)
	}()
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return 0, err
	}
	n0, t0, err := r.sent(ctx)
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, w.Phase); err != nil {
		return 0, err
	}
	n1, t1, err := r.sent(ctx)
	if err != nil {
		return 0, err
	}
	return float64(n1-n0) / (1 << 20) / t1.Sub(t0).Seconds(), nil
}

// unlimited times whole passes that take what the machine has, without and with the attack.
func (w *Wrong) unlimited(ctx context.Context, r *wrongRig, a *attack) error {
	var without, with, ratios []float64
	for i := range w.Runs {
		var rate [2]float64
		for j := range 2 {
			name := fmt.Sprintf("run%d", 2*i+j)
			volume := r.path("work/volume-run")
			if err := randomFile(volume, runSize, uint64(2*i+j+2)); err != nil {
				return err
			}
			attacked := j != i%2
			v, err := w.pass(ctx, r, a, name, volume, attacked)
			if err != nil {
				return err
			}
			if attacked {
				rate[1] = v
			} else {
				rate[0] = v
			}
			if err := same(volume, r.target(name)); err != nil {
				return err
			}
			if err := os.Truncate(r.target(name), 0); err != nil { // memory is needed for the next
				return err
			}
		}
		without, with, ratios = append(without, rate[0]), append(with, rate[1]), append(ratios, rate[1]/rate[0])
		w.say("  unlimited pair %d: %.0f MiB/s without, %.0f with, ratio %.3f", i+1, rate[0], rate[1], rate[1]/rate[0])
	}
	if w.Runs == 0 {
		return nil
	}
	return w.ratios(fmt.Sprintf("unlimited flow, %d/s wrong", w.Pace), without, with, ratios)
}

func (w *Wrong) pass(ctx context.Context, r *wrongRig, a *attack, name, volume string, attacked bool) (rate float64, err error) {
	actx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	if attacked {
		go func() { done <- a.paced(actx, w.Pace) }()
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			stop()
			return 0, errors.Join(err, <-done)
		}
	} else {
		done <- nil
	}
	defer func() {
		stop()
		err = errors.Join(err, <-done)
	}()
	if err := r.source(name, volume, "0"); err != nil {
		return 0, err
	}
	defer r.endSource()
	// From the first byte on: how fast a daemon starts is not the subject.
	if _, err := r.Await(ctx, "source", "sending", time.Minute, func(s mover.Status) bool { return s.Pass != nil && s.Pass.Acked > 0 || s.PointEpoch > 0 }); err != nil {
		return 0, err
	}
	st, err := r.Status(ctx, "source")
	begin := time.Now()
	if err != nil {
		return 0, err
	}
	var had int64
	if st.Pass != nil {
		had = st.Pass.Acked
	}
	if _, err := r.Await(ctx, "source", "at a point", 2*time.Minute, func(s mover.Status) bool { return s.PointEpoch > 0 }); err != nil {
		return 0, err
	}
	return float64(runSize-had) / (1 << 20) / time.Since(begin).Seconds(), nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// audited proves both trails and compares their counts with what was tried.
func (w *Wrong) audited(r *wrongRig, a *attack) error {
	count := func(dir string, events ...string) (n int, kinds map[string]int, records int, err error) {
		kinds = map[string]int{}
		_, err = audit.Verify(dir, func(rec audit.Record) error {
			records++
			for _, e := range events {
				switch rec.Event {
				case e:
					key := fmt.Sprint(rec.Details["kind"])
					if e == "link.accepted" {
						if key = rec.Flow; !strings.HasSuffix(key, "/own") {
							continue
						}
					}
					kinds[key]++
					n++
				case e + ".more":
					list, _ := rec.Details["of"].([]any)
					for _, x := range list {
						m := x.(map[string]any)
						key, v := m["kind"].(string), int(m["attempts"].(float64))
						if e == "link.accepted" && !strings.HasSuffix(key, "/own") || strings.HasPrefix(key, "ended: ") {
							continue
						}
						kinds[key] += v
						n += v
					}
				}
			}
			return nil
		})
		return n, kinds, records, err
	}
	n, kinds, records, err := count(r.path("gw-state/audit"), "link.refused", "link.accepted")
	if err != nil {
		return err
	}
	m, _, _, err := count(r.path("pki/audit"), "pki.refused")
	if err != nil {
		return err
	}
	w.say("  the gateway's trail has %v", kinds)
	gw, ca := a.reached()
	if err := errors.Join(
		w.add("trail", "wrong connections that reached the gateway", float64(gw), ""),
		w.add("trail", "of these in its audit trail", float64(n), ""),
		w.add("trail", "records of the trail in all", float64(records), ""),
		w.add("trail", "replayed tokens at the CA", float64(ca), ""),
		w.add("trail", "of these in its audit trail", float64(m), "")); err != nil {
		return err
	}
	if n != gw || m != ca {
		return fmt.Errorf("the trails have %d and %d attempts, %d and %d were made", n, m, gw, ca)
	}
	return nil
}

// rig makes certificates of all kinds, targets with content, and starts the gateway and the CA's server.
func (w *Wrong) rig(ctx context.Context) (_ *wrongRig, err error) {
	base, err := NewRig(ctx, w.Bin, RigOptions{})
	if err != nil {
		return nil, err
	}
	r := &wrongRig{Rig: base, w: w, before: map[string][sha256.Size]byte{}}
	defer func() {
		if err != nil {
			if r.ca != nil {
				r.ca.Kill()
			}
			err = errors.Join(err, r.Close())
		}
	}()
	work, err := os.MkdirTemp(w.Work, "mover-wrong-")
	if err != nil {
		return nil, err
	}
	r.Defer(func() error { return os.RemoveAll(work) })
	if err := os.Symlink(work, r.path("work")); err != nil {
		return nil, err
	}
	pkiDir := r.path("pki")
	for _, args := range [][]string{
		{"pki", "host", "--tenant", "evil", "--host", "web1", "--out", r.path("evil")},
		{"pki", "host", "--tenant", "demo", "--host", "web2"}, {"pki", "host", "--tenant", "demo", "--host", "web3"},
		{"pki", "host", "--tenant", "demo", "--host", "web5"}, {"pki", "host", "--tenant", "demo", "--host", "web6"},
		{"pki", "revoke", "--host", "demo/web3"},
		{"pki", "init", "--dir", r.path("foreign")}, {"pki", "host", "--dir", r.path("foreign"), "--out", r.path("foreign"), "--tenant", "demo", "--host", "web1"},
	} {
		if args[1] != "init" && args[2] != "--dir" {
			args = append(args, "--dir", pkiDir)
		}
		if args[1] == "host" && !strings.Contains(strings.Join(args, " "), "--out") {
			args = append(args, "--out", pkiDir)
		}
		if out, err := r.moverctl(ctx, args...); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
	}
	if err := expired(pkiDir, "web1", "web4"); err != nil {
		return nil, err
	}
	for _, name := range []string{"secret", "refused"} {
		if err := randomFile(r.target(name), 8<<20, 7); err != nil {
			return nil, err
		}
		if r.before[name], err = digestFile(r.target(name)); err != nil {
			return nil, err
		}
	}
	if err := r.startGateway(ctx); err != nil {
		return nil, err
	}
	return r, r.startCA(ctx)
}

func (r *wrongRig) target(name string) string { return r.path("work/target-" + name) }

func (r *wrongRig) moverctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(r.Bin, "moverctl"), args...).Output()
	if err != nil {
		var e *exec.ExitError
		if errors.As(err, &e) {
			out = append(out, e.Stderr...)
		}
		return string(out), fmt.Errorf("moverctl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

func (r *wrongRig) startGateway(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	r.addr = fmt.Sprintf("127.0.0.1:%d", port)
	var flows strings.Builder
	flow := func(host, name string, create bool) {
		fmt.Fprintf(&flows, "    - {tenant: demo, host: %s, name: %s, target: %s, create: %v}\n", host, name, r.target(name), create)
	}
	flow("web1", "disk", true)
	for i := range 2 * r.w.Runs {
		flow("web1", fmt.Sprintf("run%d", i), true)
	}
	flow("web2", "secret", false)
	flow("web5", "refused", false)
	flow("web6", "own", true)
	policy := "rules:\n"
	for _, host := range []string{"web1", "web2", "web6"} {
		policy += fmt.Sprintf("  - {tenant: demo, host: %s, targets: [%s/target-*], connections: 64}\n", host, r.path("work"))
	}
	policy += "  - {tenant: demo, host: web5, targets: [/srv/nothing/*]}\n"
	text := fmt.Sprintf(`gateway:
  listen: %s
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "off"}
  tls: {ca: %s, cert: %s, key: %s, crl: %s}
  policy: %s
  memory: 512MiB
  log-limit: 64MiB
  flows:
%s`, r.addr, r.path("gw-state"), r.path("gw-run"), r.path("gateway.sock"), r.path("pki/ca.pem"), r.path("pki/gw.pem"), r.path("pki/gw.key"), r.path("pki/ca.crl"),
		r.path("policy.yaml"), flows.String())
	if err := errors.Join(os.WriteFile(r.path("policy.yaml"), []byte(policy), 0o600), os.WriteFile(r.path("gateway.yaml"), []byte(text), 0o600)); err != nil {
		return err
	}
	if r.gateway, err = r.start("gateway", "gateway", "-c", r.path("gateway.yaml")); err != nil {
		return err
	}
	for range 200 {
		if _, err = r.Ctl(ctx, "gateway", "status"); err == nil {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return err
}

// startCA starts pki serve and uses up a token.
func (r *wrongRig) startCA(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	r.caAddr = fmt.Sprintf("127.0.0.1:%d", port)
	if r.ca, err = r.command(filepath.Join(r.Bin, "moverctl"), "pki", "serve", "--dir", r.path("pki"), "--listen", r.caAddr); err != nil {
		return err
	}
	token, err := r.moverctl(ctx, "pki", "token", "--dir", r.path("pki"), "--tenant", "demo", "--host", "web7")
	if err != nil {
		return err
	}
	r.token = strings.TrimSpace(token)
	for range 100 {
		if _, err = r.moverctl(ctx, "pki", "enrol", "--dir", r.path("web7"), "--address", r.caAddr, "--token", r.token); err == nil {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return err
}

// source starts the good source for one flow.
func (r *wrongRig) source(name, volume, rate string) error {
	text := fmt.Sprintf(`source:
  state: %s
  run: %s
  socket: %s
  metrics: {listen: "off"}
  gateway: {address: %s, ca: %s, cert: %s, key: %s, connections: 4}
  limits: {read-rate: %s, io-priority: none}
  tracking: {method: scan, pin-dir: %s}
  flows:
    - {name: %s, volume: %s, interval: 1h}
`, r.path("src-state"), r.path("src-run"), r.path("source.sock"), r.addr, r.path("pki/ca.pem"), r.path("pki/web1.pem"), r.path("pki/web1.key"), rate, r.pinDir(), name, volume)
	if err := os.WriteFile(r.path("source.yaml"), []byte(text), 0o600); err != nil {
		return err
	}
	p, err := r.start("source", "source", "-c", r.path("source.yaml"))
	r.Rig.source = p
	return err
}

func (r *wrongRig) endSource() {
	if r.Rig.source != nil {
		if err := r.Rig.source.Stop(); err != nil {
			r.w.say("  source: %v", err)
		}
		r.Rig.source = nil
	}
}

// sent is how much the good flow has put on the wire, and when that was asked.
func (r *wrongRig) sent(ctx context.Context) (int64, time.Time, error) {
	before := time.Now()
	st, err := r.Status(ctx, "source")
	return st.WireOut, before.Add(time.Since(before) / 2), err
}

// memory is what the gateway has resident now.
func (r *wrongRig) memory() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.gateway.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("no VmRSS of the gateway")
}

// watch samples the memory until the function that it returns is called, which tells the most.
func (r *wrongRig) watch(ctx context.Context) func() int64 {
	ctx, stop := context.WithCancel(ctx)
	most := make(chan int64, 1)
	go func() {
		var peak int64
		for {
			if n, err := r.memory(); err == nil {
				peak = max(peak, n)
			}
			if pause(ctx, 100*time.Millisecond) != nil {
				most <- peak
				return
			}
		}
	}()
	return func() int64 { stop(); return <-most }
}

// unchanged compares the targets of others with what they were.
func (r *wrongRig) unchanged() error {
	for name, was := range r.before {
		now, err := digestFile(r.target(name))
		if err != nil {
			return err
		}
		if now != was {
			return fmt.Errorf("target %s has changed", name)
		}
	}
	if _, err := os.Stat(r.target("own")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the target of a flow that was never opened is there: %v", err)
	}
	return nil
}

func digestFile(path string) (d [sha256.Size]byte, err error) {
	b, err := os.ReadFile(path)
	return sha256.Sum256(b), err
}

// same compares two files byte by byte.
func same(a, b string) error {
	x, err := os.Open(a)
	if err != nil {
		return err
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return err
	}
	defer y.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(x, p)
		m, _ := io.ReadFull(y, q)
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			return fmt.Errorf("%s and %s differ behind byte %d", a, b, off)
		}
		if off += int64(n); err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// randomFile makes a file of content that does not compress.
func randomFile(path string, size int64, seed uint64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return err
	}
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 9})
	b := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(b)) {
		rng.Read(b)
		if _, err := f.Write(b[:min(int64(len(b)), size-off)]); err != nil {
			return err
		}
	}
	return f.Close()
}

// expired makes NAME.pem beside the CA, as LIKE.pem but ended yesterday.
func expired(dir, like, name string) error {
	der := func(path string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			return nil, err
		}
		p, _ := pem.Decode(b)
		return p.Bytes, nil
	}
	caDER, err1 := der("ca.pem")
	keyDER, err2 := der("ca.key")
	likeDER, err3 := der(like + ".pem")
	hostKey, err4 := os.ReadFile(filepath.Join(dir, like+".key"))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	ca, err1 := x509.ParseCertificate(caDER)
	key, err2 := x509.ParsePKCS8PrivateKey(keyDER)
	cert, err3 := x509.ParseCertificate(likeDER)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	cert.NotBefore, cert.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	out, err := x509.CreateCertificate(crand.Reader, cert, ca, cert.PublicKey, key.(*ecdsa.PrivateKey))
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: out}), 0o600),
		os.WriteFile(filepath.Join(dir, name+".key"), hostKey, 0o600))
}
