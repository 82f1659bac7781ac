package buckets

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/dir"
)

// SoakOptions of a campaign. Run i uses seed Seed+i.
type SoakOptions struct {
	Exe      string // moverbench
	Runs     int
	Seed     uint64
	Parallel int
	Objects  int  // about so many at the beginning
	Workers  int  // processes
	External bool // the queue is a NATS server of its own, which is killed too
	Stops    bool // workers are stopped with SIGSTOP for 5 to 40 s too, and go on
	Keep     bool // leave the folder of a failed run
}

const (
	reconnect  = 100 * time.Millisecond
	soakBucket = "soak"
	soakKey    = "SOAKACCESS"
	soakSecret = "soak-secret"
	runLimit   = 5 * time.Minute
)

// Totals of a campaign.
type Totals struct {
	Runs, Kills, Faults int64
	Stops               int64 // workers that stood still and went on
	Objects             int64 // compared at the ends
	Copies, Stored      int64 // that ledgers recorded; PUTs and completed uploads that the server did
	Lost, Wrong, Left   int64
	Failed              int64 // runs
}

// Repeated is the share of what the server stored that nobody recorded: done a second time.
func (t Totals) Repeated() float64 { return float64(t.Stored-t.Copies) / float64(max(1, t.Copies)) }

// Soak moves folders into a BOS emulator under a live writer, kills workers and coordinators with -9, lets the server fail in every way, and compares every object
// at the end.
func Soak(ctx context.Context, o SoakOptions, w io.Writer) (Totals, error) {
	var mu sync.Mutex
	var sum Totals
	var failed error
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, o.Parallel))
	for i := range o.Runs {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r := &soak{o: o, seed: o.Seed + uint64(i)}
			began := time.Now()
			err := r.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			t := r.totals
			sum = Totals{sum.Runs + 1, sum.Kills + t.Kills, sum.Faults + t.Faults, sum.Stops + t.Stops, sum.Objects + t.Objects, sum.Copies + t.Copies, sum.Stored + t.Stored, sum.Lost + t.Lost,
				sum.Wrong + t.Wrong, sum.Left + t.Left, sum.Failed}
			verdict := "equal"
			if err != nil && ctx.Err() == nil {
				sum.Failed++
				verdict = err.Error()
				failed = errors.Join(failed, fmt.Errorf("seed %d: %w", r.seed, err))
			}
			fmt.Fprintf(w, "run %d: %d objects, %d kills, %d stops, %d faults, %d copies, %d stored, %.0f s: %s\n", r.seed, t.Objects, t.Kills, t.Stops, t.Faults, t.Copies, t.Stored,
				time.Since(began).Seconds(), verdict)
			return nil
		})
	}
	return sum, errors.Join(g.Wait(), failed)
}

// soak is one run.
type soak struct {
	o      SoakOptions
	seed   uint64
	totals Totals

	root   string
	rnd    *rand.Rand // of the main goroutine
	faults atomic.Int64
	quiet  atomic.Bool // no more faults
	emu    *bosemu.Server
	base   Child
	all    []*slot
	names  int        // of workers
	still  []*process // workers that stand still, or stood still and went on
	going  sync.WaitGroup
}

func (s *soak) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	s.rnd = rand.New(rand.NewPCG(s.seed, 1))
	if s.root, err = os.MkdirTemp("", "mover-buckets-"); err != nil {
		return err
	}
	defer func() {
		if err == nil || !s.o.Keep {
			_ = os.RemoveAll(s.root)
		} else {
			err = fmt.Errorf("%w (left in %s)", err, s.root)
		}
	}()
	if err := s.folders(); err != nil {
		return err
	}
	stop, err := s.server()
	if err != nil {
		return err
	}
	defer stop()
	src, err := dir.Open(dir.Config{Path: filepath.Join(s.root, "source")})
	if err != nil {
		return err
	}
	defer src.Close()
	if err := s.fill(ctx, src); err != nil {
		return err
	}
	time.Sleep(settle) // only what the writer changes is young, as in a bucket of the world, and copied again for that
	writing, end := context.WithCancel(ctx)
	var writer errgroup.Group
	writer.Go(func() error { return s.write(writing, src) })
	defer s.goOn()
	err = s.trouble(ctx)
	end()
	if e := writer.Wait(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	o, err := s.finish(ctx)
	s.goOn() // what comes late now is found by nobody but the judge
	if err != nil {
		return err
	}
	return s.judge(ctx, src, o)
}

// server starts the emulator, and a place for the queue.
func (s *soak) server() (stop func(), err error) {
	rnd := rand.New(rand.NewPCG(s.seed, 2))
	var mu sync.Mutex
	return s.serve(32, func(r bosemu.Request) bosemu.Fault {
		mu.Lock()
		defer mu.Unlock()
		return s.fault(rnd, r)
	})
}

// serve starts the emulator with these faults, and a place for the queue of workers that have at most so many objects under way.
func (s *soak) serve(most int, fault func(bosemu.Request) bosemu.Fault) (stop func(), err error) {
	s.emu, err = bosemu.New(bosemu.Config{Dir: filepath.Join(s.root, "spill"), Buckets: []bosemu.Bucket{{Name: soakBucket, Owner: "soak"}},
		Accounts: []bosemu.Account{{ID: "soak", AccessKey: soakKey, SecretKey: soakSecret}}, Fault: fault})
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: s.emu}
	go func() { _ = srv.Serve(ln) }()
	free, err := net.Listen("tcp", "127.0.0.1:0") // the queue's port
	if err != nil {
		return nil, err
	}
	queue := free.Addr().String()
	free.Close()
	s.base = Child{Ledger: filepath.Join(s.root, "ledger"), Work: filepath.Join(s.root, "queue"), Queue: queue, From: Place{Dir: filepath.Join(s.root, "source")},
		To: Place{Endpoint: "http://" + ln.Addr().String(), Bucket: soakBucket, Key: soakKey, Password: soakSecret}, Most: most, External: s.o.External}
	if s.o.External {
		s.base.PKI = filepath.Join(s.root, "pki")
		if err := certify(s.base.PKI, queue, mostNames); err != nil {
			return nil, err
		}
	}
	return func() { _ = srv.Close(); _ = s.emu.Close() }, nil
}

// folders makes the folders of a run.
func (s *soak) folders() error {
	for _, d := range []string{"source", "spill", "queue", "logs"} {
		if err := os.Mkdir(filepath.Join(s.root, d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// target is the emulator's bucket, for the judge.
func (s *soak) target() (objstore.Store, error) {
	return bos.New(bos.Config{Endpoint: s.base.To.Endpoint, Bucket: soakBucket, Credentials: objstore.Fixed{ID: soakKey, Secret: soakSecret}})
}

// fault is what goes wrong with one request in thirty.
func (s *soak) fault(rnd *rand.Rand, r bosemu.Request) bosemu.Fault {
	if s.quiet.Load() || rnd.IntN(30) > 0 {
		return bosemu.Fault{}
	}
	s.faults.Add(1)
	kind := rnd.IntN(9)
	if (kind == 1 || kind == 2) && rnd.IntN(8) > 0 {
		kind = 0 // who is asked to slow down does, and the run would take hours
	}
	switch kind {
	case 0:
		return bosemu.Fault{Code: "InternalError"}
	case 1:
		return bosemu.Fault{Code: "ServiceUnavailable"}
	case 2:
		return bosemu.Fault{Code: "RequestRateLimitExceeded"}
	case 3:
		return bosemu.Fault{CutRequest: 1 + rnd.Int64N(5000)}
	case 4:
		return bosemu.Fault{LoseAnswer: true}
	case 5:
		return bosemu.Fault{CutAnswer: 1 + rnd.Int64N(200)}
	case 6:
		return bosemu.Fault{Delay: time.Duration(rnd.IntN(300)) * time.Millisecond}
	case 7:
		return bosemu.Fault{FlipSent: true}
	}
	return bosemu.Fault{NoETag: true}
}

// fill makes the objects of the beginning.
func (s *soak) fill(ctx context.Context, src objstore.Store) error {
	n := s.o.Objects/2 + s.rnd.IntN(max(1, s.o.Objects))
	for i := range n {
		if err := put(ctx, src, fmt.Sprintf("%02x/%d", s.rnd.IntN(64), i), s.rnd.IntN(20_000), s.rnd.Uint64()); err != nil {
			return err
		}
	}
	for i := range 2 {
		if err := put(ctx, src, fmt.Sprintf("large/%d", i), 17<<20+s.rnd.IntN(24<<20), s.rnd.Uint64()); err != nil {
			return err
		}
	}
	return nil
}

// noise is bytes that a seed makes.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = rnd.Read(b)
	return b
}

func put(ctx context.Context, src objstore.Store, key string, n int, seed uint64) error {
	b := noise(n, seed)
	_, err := src.Put(ctx, key, objstore.Bytes(b), objstore.PutOptions{Attrs: objstore.Attrs{ContentType: "application/x-soak", Meta: map[string]string{"seed": fmt.Sprint(seed)}}})
	return err
}

// write puts, overwrites and deletes until ctx ends.
func (s *soak) write(ctx context.Context, src objstore.Store) error {
	rnd := rand.New(rand.NewPCG(s.seed, 3))
	for ctx.Err() == nil {
		key := fmt.Sprintf("%02x/%d", rnd.IntN(64), rnd.IntN(s.o.Objects))
		var err error
		switch n := rnd.IntN(20); {
		case n < 5:
			_, err = src.Delete(ctx, key)
		case n == 5:
			err = put(ctx, src, fmt.Sprintf("large/%d", rnd.IntN(3)), 17<<20+rnd.IntN(8<<20), rnd.Uint64())
		default:
			err = put(ctx, src, key, rnd.IntN(20_000), rnd.Uint64())
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("write the source: %w", err)
		}
		select {
		case <-time.After(time.Duration(rnd.IntN(40)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// process is a child under way.
type process struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error
}

func (s *soak) start(c Child) (*process, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.root, "logs", c.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{cmd: exec.Command(s.o.Exe, "bucket", "child"), done: make(chan error, 1)}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = bytes.NewReader(text), &p.out, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.done <- p.cmd.Wait() }()
	return p, nil
}

// kill ends a child with -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (s *soak) child(role, name string) Child {
	c := s.base
	c.Role, c.Name = role, name
	return c
}

// slot is a place for a process that is there again and again.
type slot struct {
	*process
	role, name string
}

// slots are those of a run: coordinator, workers and, where it is a process of its own, the queue's server.
func (s *soak) slots() []*slot {
	out := []*slot{{role: "coordinator", name: "coordinator"}}
	if s.o.External {
		out = append(out, &slot{role: "server", name: "server"})
	}
	for range max(1, s.o.Workers) {
		out = append(out, &slot{role: "worker", name: s.name()})
	}
	return out
}

// name is one that no worker had.
func (s *soak) name() string {
	s.names++
	return workerName(s.names)
}

// mostNames is more than the workers of a run, and those that take the place of others.
const mostNames = 16

func (s *soak) fillSlots(slots []*slot, change func(*Child)) (err error) {
	for _, p := range slots {
		if p.process != nil {
			continue
		}
		c := s.child(p.role, p.name)
		if c.PKI != "" && p.role == "worker" {
			if _, err := os.Stat(filepath.Join(c.PKI, p.name+".pem")); err != nil {
				if err := pki.IssueHost(c.PKI, c.PKI, tenant, p.name, time.Hour); err != nil {
					return err
				}
			}
		}
		if change != nil {
			change(&c)
		}
		if p.process, err = s.start(c); err != nil {
			return err
		}
	}
	return nil
}

func (s *soak) killSlots() {
	for _, p := range s.all {
		if p.process != nil {
			p.kill()
			p.process = nil
		}
	}
}

// ended tells which process has ended by itself, within d.
func ended(ctx context.Context, slots []*slot, d time.Duration) (*slot, error) {
	end := time.After(d)
	for {
		for _, p := range slots {
			select {
			case err := <-p.done:
				p.process = nil
				return p, err
			default:
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-end:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// trouble runs passes, kills processes at random moments, and lets workers stand still.
func (s *soak) trouble(ctx context.Context) error {
	s.all = s.slots()
	slots := s.all
	defer s.killSlots()
	for range 3 + s.rnd.IntN(5) {
		if err := s.fillSlots(slots, nil); err != nil {
			return err
		}
		p, err := ended(ctx, slots, time.Duration(50+s.rnd.IntN(1500))*time.Millisecond)
		if p != nil && (err != nil || p.role != "coordinator") { // a coordinator has ended its pass
			return s.told(p.role, err)
		}
		if err != nil {
			return err
		}
		if p != nil {
			continue
		}
		p = slots[s.rnd.IntN(len(slots))]
		if s.o.Stops && p.role == "worker" && s.rnd.IntN(2) == 0 {
			s.stop(ctx, p)
			continue
		}
		p.kill()
		p.process = nil
		s.totals.Kills++
	}
	return nil
}

// stop lets a worker stand still for a while. Another one takes its place, under another name.
func (s *soak) stop(ctx context.Context, p *slot) {
	still := p.process
	_ = still.cmd.Process.Signal(syscall.SIGSTOP)
	p.process, p.name = nil, s.name()
	s.still = append(s.still, still)
	s.totals.Stops++
	d := time.Duration(5000+s.rnd.IntN(35_000)) * time.Millisecond
	s.going.Go(func() {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		_ = still.cmd.Process.Signal(syscall.SIGCONT)
	})
}

// goOn waits until all that stood still went on, and long enough for what they write late.
func (s *soak) goOn() {
	s.going.Wait()
	if len(s.still) > 0 {
		time.Sleep(time.Second)
	}
	for _, p := range s.still {
		p.kill()
	}
	s.still = nil
}

// told adds the end of the log to an error of a child.
func (s *soak) told(what string, err error) error {
	files, _ := filepath.Glob(filepath.Join(s.root, "logs", what+"*"))
	text := ""
	for _, f := range files {
		b, _ := os.ReadFile(f)
		text += string(b[max(0, len(b)-600):])
	}
	return fmt.Errorf("a %s ended: %v: %s", what, err, text)
}

// finish runs the final pass over a source that stands still, still with faults, and without any more.
func (s *soak) finish(ctx context.Context) (o Outcome, err error) {
	time.Sleep(settle) // what was written last shows in the next listing
	slots := s.all     // under the names that they had: each knows that the one before it is dead
	defer s.killSlots()
	if err := s.fillSlots(slots, func(c *Child) { c.Final = c.Role == "coordinator" }); err != nil {
		return o, err
	}
	p := slots[0].process
	select {
	case err = <-p.done:
		slots[0].process = nil
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return o, s.told("coordinator", err)
	}
	return o, json.Unmarshal(p.out.Bytes(), &o)
}

const settle = 2200 * time.Millisecond

// judge compares both ends by itself, not by what the flow says.
func (s *soak) judge(ctx context.Context, src objstore.Store, o Outcome) error {
	s.quiet.Store(true)
	dst, err := s.target()
	if err != nil {
		return err
	}
	defer dst.Close()
	a, err := contents(ctx, src)
	if err != nil {
		return err
	}
	b, err := contents(ctx, dst)
	if err != nil {
		return err
	}
	counts := s.emu.Counts()
	s.totals.Faults, s.totals.Objects = s.faults.Load(), int64(len(a))
	s.totals.Copies, s.totals.Stored = o.State.Ever, counts["PutObject"]+counts["CompleteMultipartUpload"]
	s.totals.Left = int64(s.emu.Pending(soakBucket))
	var bad error
	for k := range a {
		if _, ok := b[k]; !ok {
			s.totals.Lost++
			bad = errors.Join(bad, fmt.Errorf("%s is lost", k))
		} else if a[k] != b[k] {
			s.totals.Wrong++
			bad = errors.Join(bad, fmt.Errorf("%s differs: %s, %s", k, a[k], b[k]))
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			s.totals.Wrong++
			bad = errors.Join(bad, fmt.Errorf("%s is only at the target", k))
		}
	}
	if s.totals.Left > 0 {
		bad = errors.Join(bad, fmt.Errorf("%d uploads are left", s.totals.Left))
	}
	if v := o.Verified; v.Differ > 0 || v.Objects != int64(len(a)) || o.State.Objects != int64(len(a)) || o.State.Failed+o.State.Refused > 0 {
		bad = errors.Join(bad, fmt.Errorf("there are %d objects; the flow says %+v, verified %+v %v", len(a), o.State, v, o.Differ))
	}
	return bad
}

// contents is every object of a bucket by a digest of all that is carried.
func contents(ctx context.Context, s objstore.Store) (map[string]string, error) {
	out := map[string]string{}
	for after := ""; ; {
		p, err := s.List(ctx, objstore.Query{After: after})
		if err != nil {
			return nil, err
		}
		for _, e := range p.Entries {
			obj, body, err := s.Get(ctx, e.Key, objstore.GetOptions{})
			if err != nil {
				return nil, err
			}
			h := sha256.New()
			_, err = io.Copy(h, body)
			if err = errors.Join(err, body.Close()); err != nil {
				return nil, err
			}
			out[e.Key] = fmt.Sprintf("%x %s %v", h.Sum(nil)[:8], obj.Attrs.ContentType, obj.Attrs.Meta)
			after = e.Key
		}
		if !p.More {
			return out, nil
		}
	}
}
