package sender

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// slowCommitter is a gateway that carries a COMMIT out after its connection was lost and after the source has asked how it went.
type slowCommitter struct {
	t     *testing.T
	l     net.Listener
	table string // of the source; copied when COMMIT comes, as a kill would leave it
	wg    sync.WaitGroup

	mu        sync.Mutex // guards all below
	conns     []net.Conn
	open      wire.Open
	committed *wire.Committed
	commits   int
}

func newSlowCommitter(t *testing.T, table string) *slowCommitter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &slowCommitter{t: t, l: l, table: table}
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.conns = append(g.conns, c)
			g.mu.Unlock()
			g.wg.Go(func() { g.serve(wire.NewConn(c)) })
		}
	})
	return g
}

func (g *slowCommitter) end() {
	g.l.Close()
	g.cut()
	g.wg.Wait()
}

func (g *slowCommitter) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		c.Close()
	}
}

func (g *slowCommitter) state() wire.FlowState {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open.Epoch == 0 {
		return wire.FlowState{Phase: uint8(mover.Fresh)}
	}
	return wire.FlowState{Phase: uint8(mover.Incomplete), VolumeSize: g.open.VolumeSize, Pass: g.open.Pass, Mode: uint8(mover.Direct)}
}

func (g *slowCommitter) serve(c *wire.Conn) {
	defer c.Close()
	for {
		f, err := c.ReadFrame(nil)
		if err != nil {
			return
		}
		m := wire.New(f.Type)
		if err := m.Decode(f.Payload); err != nil {
			g.t.Error(err)
			return
		}
		ack := &wire.Ack{Ranges: []wire.Range{{First: f.Seq, Last: f.Seq}}}
		switch m := m.(type) {
		case *wire.Hello:
			err = c.Write(wire.TypeWelcome, 0, &wire.Welcome{Version: wire.Version, Capabilities: wire.CapZstd, KeepaliveMS: wire.KeepaliveMS, Window: 64 << 20, State: g.state()})
		case *wire.State:
			s := g.state()
			err = c.Write(wire.TypeFlowState, f.Seq, &s)
		case *wire.Open:
			err = g.answerOpen(c, f.Seq, m)
		case *wire.Offer:
			n := len(m.Digests)
			need := &wire.Need{N: uint16(n), Bitmap: make([]byte, wire.BitmapSize(n))}
			for i := range n {
				wire.SetBit(need.Bitmap, i)
			}
			err = c.Write(wire.TypeNeed, f.Seq, need)
		case *wire.Data, *wire.Put:
			err = c.Write(wire.TypeAck, 0, ack)
		case *wire.Commit:
			g.commit(m)
			return
		}
		if err != nil {
			return
		}
	}
}

func (g *slowCommitter) answerOpen(c *wire.Conn, seq uint32, m *wire.Open) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.committed != nil { // by now it is carried out
		return c.Write(wire.TypeCommitted, seq, g.committed)
	}
	g.open = *m
	return c.Write(wire.TypeOpened, seq, &wire.Opened{Pass: m.Pass, Mode: uint8(mover.Direct)})
}

func (g *slowCommitter) commit(m *wire.Commit) {
	b, err := os.ReadFile(g.table)
	if err == nil {
		err = os.WriteFile(g.table+".killed", b, 0o600)
	}
	if err != nil {
		g.t.Error(err)
	}
	g.mu.Lock()
	g.commits++
	g.committed = &wire.Committed{Pass: m.Pass, Generation: g.open.Generation, Epoch: g.open.Epoch, Mode: uint8(mover.Direct), Counts: m.Counts}
	g.mu.Unlock()
	g.cut()
}

// A first pass whose COMMIT got no answer, and was carried out after the source had asked for the state, ends well. And a source that is
// killed at that moment leaves a digest table that is right: from the commit on it is trusted.
func TestFirstCommitUnanswered(t *testing.T) {
	const size = 4<<20 + 5*chunker.LeafSize
	vol := fault.NewMem(size)
	junk := make([]byte, size)
	for i := range junk {
		junk[i] = byte(i*7 + i>>9)
	}
	if _, err := vol.WriteAt(junk, 0); err != nil {
		t.Fatal(err)
	}
	table := filepath.Join(t.TempDir(), "table")
	g := newSlowCommitter(t, table)
	defer g.end()
	pool := buffers.New(chunker.BatchSize, 32<<20)
	free := extent.NewSet(size, chunker.LeafSize)
	free.Add(extent.Extent{Off: 7 * chunker.LeafSize, Len: 9 * chunker.LeafSize})
	generation := newID()
	f, err := New(Config{Flow: "disk", Gateway: "test", Conns: 2, Interval: time.Hour, BackOff: time.Millisecond}, Deps{Volume: vol,
		Tracker: mover.NewScan(size, generation, "test"), Table: table, Buffers: pool,
		Used: func(context.Context) (*extent.Set, error) { return free, nil },
		Paths: onePath(func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", g.l.Addr().String())
		})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	end := time.Now().Add(20 * time.Second)
	for s := f.Status(); s.Passes == 0; s = f.Status() {
		if s.State == mover.Stopped || time.Now().After(end) {
			t.Fatalf("%+v", s)
		}
		time.Sleep(time.Millisecond) // polling what a person would watch
	}
	if g.commits != 1 {
		t.Errorf("%d commits", g.commits)
	}
	killed, err := chunker.OpenTable(table+".killed", size)
	if err != nil {
		t.Fatal(err)
	}
	defer killed.Close()
	tag := mover.ParseTag(killed.Owner())
	leaves, known, marked := killed.Counts()
	if tag.Generation != generation || known != leaves || marked != 9 {
		t.Errorf("a kill at the commit leaves %d of %d leaves known, %d free, of generation %v (%v)", known, leaves, marked, tag.Generation, generation)
	}
}
