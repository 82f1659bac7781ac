package relay

import (
	"sync"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/wire"
)

// outbox brings chunks over one connection, many together: they are asked about in one frame, and what is needed of them is compressed as one.
type outbox struct {
	c     *conn
	ready chan *batch

	mu    sync.Mutex // guards all below
	open  *batch     // takes more
	under map[digest.Digest]*batch
	err   error // the connection has ended
}

// batch is chunks that travel together.
type batch struct {
	chunks []wire.Chunk
	bytes  [][]byte
	leases []*lease
	size   int
	done   chan struct{} // closed when the gateway has them, or err tells why not
	err    error
}

const (
	outboxWorkers = 3                    // batches of a connection that are under way: one waits for NEED while others are packed and sent
	readyBatches  = 64                   // that wait for a worker; what they hold is leased
	gather        = 3 * time.Millisecond // that a batch waits for more
)

// packer has the memory in which a batch is packed.
type packer struct{ plain, packed []byte }

func newOutbox(c *conn) *outbox {
	return &outbox{c: c, ready: make(chan *batch, readyBatches), under: map[digest.Digest]*batch{}}
}

// add puts a chunk into a batch. Those that are on their way already are not sent twice. l holds p until the batch has gone.
func (o *outbox) add(d digest.Digest, p []byte, l *lease) (*batch, error) {
	o.mu.Lock()
	if o.err != nil {
		defer o.mu.Unlock()
		return nil, o.err
	}
	if b := o.under[d]; b != nil {
		o.mu.Unlock()
		return b, nil
	}
	var full *batch
	if b := o.open; b != nil && (b.size+len(p) > batchMost || len(b.chunks) == wire.MaxOffered) {
		full, o.open = b, nil
	}
	if o.open == nil {
		b := &batch{done: make(chan struct{})}
		o.open = b
		time.AfterFunc(gather, func() { o.flush(b) })
	}
	b := o.open
	b.chunks = append(b.chunks, wire.Chunk{Digest: d, Len: uint32(len(p))})
	b.bytes, b.leases, b.size = append(b.bytes, p), append(b.leases, l), b.size+len(p)
	l.take()
	o.under[d] = b
	o.mu.Unlock()
	if full != nil {
		o.hand(full)
	}
	return b, nil
}

// flush hands a batch over that has waited long enough.
func (o *outbox) flush(b *batch) {
	o.mu.Lock()
	mine := o.open == b
	if mine {
		o.open = nil
	}
	o.mu.Unlock()
	if mine {
		o.hand(b)
	}
}

func (o *outbox) hand(b *batch) {
	select {
	case o.ready <- b:
	case <-o.c.gone: // fail ends it
	}
}

// work sends batches until the connection ends.
func (o *outbox) work() {
	for {
		select {
		case b := <-o.ready:
			err := o.send(b)
			if err != nil {
				o.c.wc.Close()
				<-o.c.gone
				err = o.c.err
			}
			o.end(b, err)
		case <-o.c.gone:
			return
		}
	}
}

func (o *outbox) send(b *batch) error {
	c := o.c
	seq, ch := c.seq.Add(1), make(chan *wire.Need, 1)
	c.mu.Lock()
	c.asked[seq] = ch
	c.mu.Unlock()
	if err := c.wc.Write(wire.TypeChunks, seq, &wire.Chunks{Chunks: b.chunks}); err != nil {
		return err
	}
	c.s.counts.offered.Add(int64(b.size))
	var need *wire.Need
	select {
	case need = <-ch:
	case <-c.gone:
		return c.err
	}
	if int(need.N) != len(b.chunks) {
		return errWrongNeed
	}
	var p *packer
	select {
	case p = <-c.s.pack:
	case <-c.gone:
		return c.err
	}
	defer func() { c.s.pack <- p }()
	p.plain = p.plain[:0]
	for i := range b.chunks {
		if wire.Bit(need.Bitmap, i) {
			p.plain = append(p.plain, b.bytes[i]...)
		}
	}
	if len(p.plain) == 0 {
		return nil
	}
	m := &wire.Data{Codec: wire.CodecPlain, Plain: uint32(len(p.plain)), Payload: p.plain}
	if packed, ok := c.s.codec.Compress(p.packed[:0], p.plain, c.s.cfg.Level); ok {
		p.packed = packed
		m.Codec, m.Payload = wire.CodecZstd, packed
	}
	if err := c.wc.Await(c.s.ctx); err != nil {
		return err
	}
	if err := c.wc.Write(wire.TypeData, seq, m); err != nil {
		return err
	}
	c.s.counts.needed.Add(int64(len(p.plain)))
	c.s.counts.packed.Add(int64(len(m.Payload)))
	return nil
}

// end tells those who wait for a batch.
func (o *outbox) end(b *batch, err error) {
	o.mu.Lock()
	for _, ch := range b.chunks {
		if o.under[ch.Digest] == b {
			delete(o.under, ch.Digest)
		}
	}
	o.mu.Unlock()
	b.err = err
	close(b.done)
	for _, l := range b.leases {
		l.give()
	}
}

// fail ends what has not been sent; the workers have ended.
func (o *outbox) fail(err error) {
	o.mu.Lock()
	o.err, o.open = err, nil
	left := map[*batch]bool{}
	for _, b := range o.under {
		left[b] = true
	}
	o.mu.Unlock()
	for b := range left {
		o.end(b, err)
	}
}
