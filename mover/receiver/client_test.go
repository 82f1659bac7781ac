package receiver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

func newID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// client is a source that does as it is told. It has one connection.
type client struct {
	r       *rig
	wc      *wire.Conn
	welcome wire.Welcome
	acked   wire.SeqSet
	req     uint32

	prints func(plain []byte) []uint64 // what it says to a NEED that asks; nil: it does not know PRINTS
	pages  wire.Pages                  // last answer
	todo   []uint32                    // AGAIN has come
	agains int
	s      *src   // of the last send
	p      *spass // of the last send
}

// dialPages is a source that tells prints.
func (r *rig) dialPages(tenant, host, flow string) *client {
	r.t.Helper()
	c, err := r.dialWith(tenant, host, newID(), flow, wire.CapZstd|wire.CapPages)
	must(r.t, err)
	c.prints = truth
	return c
}

func truth(plain []byte) []uint64 { return chunker.Prints(plain, nil) }

func (r *rig) dial(link [16]byte, flow string) (*client, error) {
	return r.dialAs("acme", "db1", link, flow)
}

// dialKeep is a source that confirms its points with KEEP.
func (r *rig) dialKeep(flow string) *client {
	r.t.Helper()
	c, err := r.dialWith("acme", "db1", newID(), flow, wire.CapZstd|wire.CapKeep)
	must(r.t, err)
	return c
}

func (r *rig) dialAs(tenant, host string, link [16]byte, flow string) (*client, error) {
	return r.dialWith(tenant, host, link, flow, wire.CapZstd)
}

func (r *rig) dialWith(tenant, host string, link [16]byte, flow string, caps uint64) (*client, error) {
	nc, err := wire.Dial(context.Background(), r.addr, r.clientTLS(tenant, host))
	if err != nil {
		return nil, err
	}
	c := &client{r: r, wc: wire.NewConn(nc), req: 1 << 20}
	r.clients = append(r.clients, c)
	h := &wire.Hello{MinVersion: 1, MaxVersion: 1, Capabilities: caps, Link: link, Conn: 1, Flow: flow, Agent: "test"}
	if err := c.wc.Write(wire.TypeHello, 0, h); err != nil {
		return nil, err
	}
	f, err := c.wc.ReadFrame(nil)
	if err != nil {
		c.close()
		return nil, err
	}
	if f.Type != wire.TypeWelcome {
		return nil, fmt.Errorf("%v instead of WELCOME", f.Type)
	}
	return c, c.welcome.Decode(f.Payload)
}

func (r *rig) mustDial(flow string) *client {
	r.t.Helper()
	c, err := r.dial(newID(), flow)
	must(r.t, err)
	return c
}

func (c *client) close() { c.wc.Close() }

// next returns the next frame that is no ACK or NOTICE; acks are collected.
func (c *client) next() (wire.Frame, error) {
	for {
		f, err := c.wc.ReadFrame(nil)
		if err != nil {
			return f, err
		}
		switch f.Type {
		case wire.TypeAck:
			var a wire.Ack
			if err := a.Decode(f.Payload); err != nil {
				return f, err
			}
			for _, r := range a.Ranges {
				c.acked.AddRange(r)
			}
			continue
		case wire.TypeNotice:
			continue
		case wire.TypeAgain:
			c.todo, c.agains = append(c.todo, f.Seq), c.agains+1
			continue
		}
		return f, nil
	}
}

// ask sends a request and decodes its answer.
func (c *client) ask(t wire.Type, m wire.Message, answer wire.Message) error {
	c.req++
	return c.askSeq(c.req, t, m, answer)
}

func (c *client) askSeq(seq uint32, t wire.Type, m wire.Message, answer wire.Message) error {
	if err := c.wc.Write(t, seq, m); err != nil {
		// The gateway's last words are worth more.
		if _, rerr := c.next(); rerr != nil && rerr != io.EOF {
			return rerr
		}
		return err
	}
	f, err := c.next()
	if err != nil {
		return err
	}
	if f.Type != wire.TypeOf(answer) || f.Seq != seq {
		return fmt.Errorf("%v of seq %d instead of %T", f.Type, f.Seq, answer)
	}
	return answer.Decode(f.Payload)
}

func (c *client) waitAcks(n int) error {
	for c.acked.Len() < n {
		if len(c.todo) > 0 {
			seq := c.todo[0]
			c.todo = c.todo[1:]
			if err := c.send(c.s, c.p, int(seq-1)); err != nil {
				return err
			}
			continue
		}
		f, err := c.wc.ReadFrame(nil)
		if err != nil {
			return err
		}
		if f.Type == wire.TypeAgain {
			c.todo, c.agains = append(c.todo, f.Seq), c.agains+1
			continue
		}
		if f.Type != wire.TypeAck {
			return fmt.Errorf("%v instead of ACK", f.Type)
		}
		var a wire.Ack
		if err := a.Decode(f.Payload); err != nil {
			return err
		}
		for _, r := range a.Ranges {
			c.acked.AddRange(r)
		}
	}
	return nil
}

// src is a source volume with what it knows of its history.
type src struct {
	b   []byte
	id  string
	gen [16]byte
	ep  uint64
}

func newSrc(size int64) *src { return &src{b: make([]byte, size), id: "vol-1", gen: newID()} }

// batch is one batch of a pass: an offer of leaves, or a put of items.
type batch struct {
	leaves []int64 // ascending
	free   map[int64]bool
	items  []wire.Item
}

// pass is what a source knows about its pass.
type spass struct {
	id      [16]byte
	kind    mover.PassKind
	epoch   uint64
	est     uint64
	cons    mover.Consistency
	flags   uint16
	batches []batch
	counts  []mover.Counts // by batch
}

func (c *client) open(s *src, p *spass) (*wire.Opened, error) {
	var o wire.Opened
	c.acked.Clear()
	err := c.ask(wire.TypeOpen, &wire.Open{Pass: p.id, Kind: uint8(p.kind), Consistency: uint8(mover.Crash), Flags: p.flags, Generation: s.gen, Epoch: p.epoch,
		VolumeSize: uint64(len(s.b)), BlockSize: 512, LeafSize: leafSize, Estimate: p.est, Identity: s.id}, &o)
	return &o, err
}

func (s *src) leaf(l int64) []byte {
	e := chunker.LeafExtent(int64(len(s.b)), l)
	return s.b[e.Off:e.End()]
}

func (s *src) extent(it wire.Item) []byte { return s.b[it.Off : it.Off+it.Len] }

var codec = func() *chunker.Codec {
	c, err := chunker.NewCodec(chunker.CodecConfig{})
	if err != nil {
		panic(err)
	}
	return c
}()

func pack(plain []byte) (uint8, []byte) {
	if b, ok := codec.Compress(nil, plain, chunker.Fastest); ok {
		return wire.CodecZstd, b
	}
	return wire.CodecPlain, plain
}

// send sends batch i of p, without waiting for its ack.
func (c *client) send(s *src, p *spass, i int) error {
	b := &p.batches[i]
	seq := uint32(i + 1)
	c.s, c.p = s, p
	if len(b.items) > 0 {
		return c.put(s, p, seq, b)
	}
	o := &wire.Offer{}
	for _, l := range b.leaves {
		if n := len(o.Runs); n > 0 && o.Runs[n-1].First+uint64(o.Runs[n-1].N) == uint64(l) {
			o.Runs[n-1].N++
		} else {
			o.Runs = append(o.Runs, wire.Run{First: uint64(l), N: 1})
		}
		d := digest.Sum(s.leaf(l))
		if b.free[l] {
			d = digest.Free
		}
		o.Digests = append(o.Digests, d)
	}
	var need wire.Need
	if err := c.askSeq(seq, wire.TypeOffer, o, &need); err != nil {
		return err
	}
	cnt := mover.Counts{Offered: uint64(len(b.leaves)), Same: uint64(need.Same), Copied: uint64(need.Copied)}
	var plain []byte
	for k, l := range b.leaves {
		if wire.Bit(need.Bitmap, k) {
			if b.free[l] {
				return errors.New("gateway needs a free leaf")
			}
			plain = append(plain, s.leaf(l)...)
			cnt.Sent++
		}
	}
	if need.Flags&wire.FlagPrints != 0 && c.prints != nil {
		var err error
		if plain, err = c.trim(seq, plain, &cnt); err != nil {
			return err
		}
	}
	p.counts[i] = cnt
	if len(plain) == 0 {
		return nil
	}
	d := &wire.Data{Plain: uint32(len(plain))}
	d.Codec, d.Payload = pack(plain)
	return c.bulk(wire.TypeData, seq, d)
}

// trim tells prints and leaves out what the gateway has found.
func (c *client) trim(seq uint32, plain []byte, cnt *mover.Counts) ([]byte, error) {
	prints := c.prints(plain)
	if prints == nil {
		return plain, nil
	}
	if err := c.askSeq(seq, wire.TypePrints, &wire.Prints{Prints: prints}, &c.pages); err != nil {
		return nil, err
	}
	if int(c.pages.N) != len(prints) {
		return nil, fmt.Errorf("%d pages, not %d", c.pages.N, len(prints))
	}
	var rest []byte
	for at := 0; at < len(plain); at += leafSize {
		any := false
		for off := at; off < min(at+leafSize, len(plain)); off += pageSize {
			if wire.Bit(c.pages.Bitmap, off/pageSize) {
				any = true
				rest = append(rest, plain[off:min(off+pageSize, len(plain))]...)
			}
		}
		if !any {
			cnt.Sent--
			cnt.Copied++
		}
	}
	return rest, nil
}

func (c *client) put(s *src, p *spass, seq uint32, b *batch) error {
	m := &wire.Put{Items: b.items}
	var plain []byte
	for _, it := range b.items {
		if it.Kind == wire.ItemData {
			plain = append(plain, s.extent(it)...)
		}
	}
	m.Plain, m.Digest = uint32(len(plain)), digest.Sum(plain)
	m.Codec, m.Payload = pack(plain)
	p.counts[seq-1] = mover.Counts(wire.CountItems(m.Items))
	return c.bulk(wire.TypePut, seq, m)
}

// bulk writes; if the gateway has hung up, its reason is the error.
func (c *client) bulk(t wire.Type, seq uint32, m wire.Message) error {
	err := c.wc.Write(t, seq, m)
	if err == nil {
		return nil
	}
	if last := c.last(); last != nil && last != io.EOF {
		return last
	}
	return err
}

func (p *spass) total() (t mover.Counts) {
	for _, c := range p.counts {
		t.Add(c)
	}
	return t
}

func (c *client) commit(p *spass) (*wire.Committed, error) {
	cons := p.cons
	if cons == 0 {
		cons = mover.Crash
	}
	var a wire.Committed
	err := c.ask(wire.TypeCommit, &wire.Commit{Pass: p.id, Batches: uint32(len(p.batches)), Consistency: uint8(cons), Flags: wire.FlagProven,
		UnixNano: time.Now().UnixNano(), Counts: wire.Counts(p.total())}, &a)
	return &a, err
}

// run sends a whole pass.
func (c *client) run(s *src, p *spass) (mover.Mode, error) {
	o, err := c.open(s, p)
	if err != nil {
		return 0, err
	}
	return mover.Mode(o.Mode), c.rest(s, p, o)
}

// rest sends what is not durable yet and commits.
func (c *client) rest(s *src, p *spass, o *wire.Opened) error {
	for _, r := range o.Done {
		c.acked.AddRange(r)
	}
	for i := range p.batches {
		if !c.acked.Has(uint32(i + 1)) {
			if err := c.send(s, p, i); err != nil {
				return err
			}
		}
	}
	if err := c.waitAcks(len(p.batches)); err != nil {
		return err
	}
	_, err := c.commit(p)
	if err == nil {
		s.ep = p.epoch
	}
	return err
}

// moment is a KEEP of what s was at its last commit.
func (s *src) moment(worth mover.Consistency) *wire.Keep {
	return &wire.Keep{Moment: newID(), Members: 1, Consistency: uint8(worth), Generation: s.gen, Epoch: s.ep, UnixNano: time.Now().UnixNano()}
}

func (c *client) keep(m *wire.Keep) (wire.Kept, error) {
	var a wire.Kept
	return a, c.ask(wire.TypeKeep, m, &a)
}

func (c *client) readBack(scope uint8) (*wire.Root, error) {
	var root wire.Root
	return &root, c.ask(wire.TypeReadBack, &wire.ReadBack{Scope: scope}, &root)
}

// newPass makes a pass of batches.
func (s *src) newPass(kind mover.PassKind, batches ...batch) *spass {
	return &spass{id: newID(), kind: kind, epoch: s.ep + 1, batches: batches, counts: make([]mover.Counts, len(batches))}
}

// whole offers every leaf, n to a batch.
func (s *src) whole(n int) (out []batch) {
	for l := int64(0); l < chunker.Leaves(int64(len(s.b))); l++ {
		if l%int64(n) == 0 {
			out = append(out, batch{})
		}
		b := &out[len(out)-1]
		b.leaves = append(b.leaves, l)
	}
	return out
}

func item(k wire.ItemKind, e extent.Extent) wire.Item {
	return wire.Item{Kind: k, Off: uint64(e.Off), Len: uint64(e.Len)}
}

// root is the source's Merkle root.
func (s *src) root(r *rig, free map[int64]bool) digest.Digest {
	t, err := chunker.OpenTable(r.t.TempDir()+"/table", int64(len(s.b)))
	must(r.t, err)
	defer t.Close()
	must(r.t, t.Set(0, chunker.Digests(s.b, nil)))
	for l := range free {
		must(r.t, t.Set(l, []digest.Digest{digest.Free}))
	}
	root, ok := t.Root()
	if !ok {
		r.t.Fatal("source has no root")
	}
	return root
}
