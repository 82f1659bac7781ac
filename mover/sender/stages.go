package sender

import (
	"context"
	"errors"
	"fmt"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// worker reads and offers.
func (r *run) worker(ctx context.Context) error {
	for b := range r.work {
		if err := r.begin(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) begin(ctx context.Context, b *batch) error {
	if b.shape == bare {
		return r.sendBare(ctx, b)
	}
	if r.p.sealed.Load() {
		return fmt.Errorf("%w: pass %v would be read again after its moment", sentinel.ErrCorrupt, r.p.id)
	}
	buf, err := r.buffers.Get(ctx)
	if err != nil {
		return err
	}
	ext := b.ext
	if b.shape == put && r.p.around {
		ext = b.around(r.table.Size())
	}
	b.buf, b.n = buf, 0
	b.asks, b.prints, b.pages, b.found = false, b.prints[:0], nil, found{}
	for _, e := range ext {
		b.n += int(e.Len)
	}
	b.bad, err = r.reader.read(ctx, ext, buf[:b.n])
	if err != nil {
		return err
	}
	r.p.read.Add(b.bytes)
	if err := r.gov.wait(ctx); err != nil {
		return err
	}
	if b.shape == put && !r.p.around {
		return r.toPacker(ctx, b)
	}
	b.digests = chunker.Digests(buf[:b.n], b.digests[:0])
	if err := r.remember(ext, b.digests); err != nil {
		return err
	}
	if b.shape == put {
		b.trim(ext)
		return r.toPacker(ctx, b)
	}
	if len(b.bad) > 0 {
		return r.toPacker(ctx, b)
	}
	if b.shape == checked && b.seq == 0 {
		return r.check(ctx, b)
	}
	if allZero(b) {
		return r.toPacker(ctx, b)
	}
	if r.postpone(b); len(b.ext) == 0 {
		return nil
	}
	return r.offer(ctx, b)
}

// remember puts the digests of leaves that were read in full into the source's table. Leaves that are still free at the target
// keep their marker until the commit: a pass that dies must leave them to be sent whole again.
func (r *run) remember(ext []extent.Extent, digests []digest.Digest) error {
	i := 0
	for _, e := range ext {
		n := int(chunker.Leaves(e.Len))
		first := e.Off / chunker.LeafSize
		if r.p.whole == nil || !r.p.whole.Intersects(e) {
			if err := r.table.Set(first, digests[i:i+n]); err != nil {
				return fmt.Errorf("digest table: %w", err)
			}
		} else {
			for k := range n {
				if r.p.whole.Intersects(chunker.LeafExtent(r.table.Size(), first+int64(k))) {
					continue
				}
				if err := r.table.Set(first+int64(k), digests[i+k:i+k+1]); err != nil {
					return fmt.Errorf("digest table: %w", err)
				}
			}
		}
		i += n
	}
	return nil
}

// allZero tells whether everything read is zeros; such a batch is put as a few items instead of offered.
func allZero(b *batch) bool {
	for i, d := range b.digests {
		if d != chunker.ZeroDigest(min(chunker.LeafSize, b.n-i*chunker.LeafSize)) {
			return false
		}
	}
	return true
}

// check asks whether the group differs at all.
func (r *run) check(ctx context.Context, b *batch) error {
	d, ok := r.table.Group(b.group)
	if !ok {
		return fmt.Errorf("%w: digest table: group %d is not known after it was read", sentinel.ErrCorrupt, b.group)
	}
	seq := r.link.nextSeq()
	r.mu.Lock()
	r.checks[seq], b.ask = b, seq
	r.mu.Unlock()
	return r.write(ctx, b, asked, false, wire.TypeCheck, seq, &wire.Check{First: uint64(b.group), Digests: []digest.Digest{d}})
}

// write picks a connection and sends a frame of b. When ctx ends while the line lets nothing begin, b stays where it is.
func (r *run) write(ctx context.Context, b *batch, s stage, withSeq bool, t wire.Type, seq uint32, m wire.Message) error {
	c, err := r.link.Pick()
	if err != nil {
		r.redo(b)
		return err
	}
	if t.Bulk() {
		if err := c.Await(ctx); err != nil {
			return err
		}
	}
	if !r.attach(b, c, s, withSeq) {
		r.redo(b)
		return nil
	}
	if withSeq {
		seq = b.seq
	}
	err = c.Write(t, seq, m)
	r.wrote(b, c, err)
	return ours(err)
}

// ours is an error that another connection would not mend: the frame itself is wrong.
func ours(err error) error {
	if errors.Is(err, sentinel.ErrProtocol) {
		return err
	}
	return nil
}

func (r *run) offer(ctx context.Context, b *batch) error {
	b.counts, b.final, b.payload = mover.Counts{Offered: uint64(len(b.digests))}, false, 0
	return r.write(ctx, b, asked, true, wire.TypeOffer, 0, &wire.Offer{Runs: b.leafRuns(), Digests: b.digests})
}

// toPacker queues what is put.
func (r *run) toPacker(ctx context.Context, b *batch) error {
	b.need = b.need[:0]
	select {
	case r.queue <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *run) sendBare(ctx context.Context, b *batch) error {
	b.counts, b.final = mover.Counts(wire.CountItems(b.items)), true
	return r.write(ctx, b, sending, true, wire.TypePut, 0, &wire.Put{Items: b.items, Digest: digest.Sum(nil)})
}

// pack sends what is needed.
func (r *run) pack(ctx context.Context) error {
	scratch := r.packer.scratch()
	defer r.packer.done(scratch)
	for {
		var b *batch
		select {
		case b = <-r.queue:
		case <-ctx.Done():
			return nil
		}
		var err error
		if len(b.need) == 0 && b.shape == offered && len(b.bad) == 0 && !allZero(b) {
			err = r.offer(ctx, b) // its group differs
		} else {
			err = r.transmit(ctx, b, scratch)
		}
		if err != nil {
			return err
		}
	}
}

// transmit writes DATA or PUT. It owns b until the frame is on the socket, and the buffer is released then.
func (r *run) transmit(ctx context.Context, b *batch, scratch *[]byte) error {
	if len(b.need) > 0 {
		// Where nothing is compressed the line is no bottleneck, and another round trip is nothing for a pause.
		if b.asks && r.packer.compresses() && !r.p.around {
			return r.sendPrints(b)
		}
		return r.transmitData(ctx, b, scratch)
	}
	plain := b.itemize()
	if len(b.items) > wire.MaxItems {
		r.split(b)
		return nil
	}
	if err := r.gov.wait(ctx); err != nil {
		return err
	}
	b.counts, b.final = mover.Counts(wire.CountItems(b.items)), true
	sum := digest.Sum(plain)
	codec, payload := r.packer.compress(plain, scratch, r.p.weakest())
	b.payload = int64(len(payload))
	if codec != wire.CodecPlain {
		r.release(b)
	}
	return r.write(ctx, b, sending, true, wire.TypePut, 0,
		&wire.Put{Items: b.items, Codec: codec, Plain: uint32(len(plain)), Digest: sum, Payload: payload})
}

// sendPrints tells the prints of what is needed; PAGES then says which pages have to be sent. The batch keeps its buffer until then.
func (r *run) sendPrints(b *batch) error {
	b.asks = false
	for _, leaf := range b.needed() {
		b.prints = chunker.Prints(leaf, b.prints)
	}
	r.mu.Lock()
	b.stage = asked
	b.writing++
	c := b.conn // as in transmitData
	r.mu.Unlock()
	err := c.Write(wire.TypePrints, b.seq, &wire.Prints{Prints: b.prints})
	r.wrote(b, c, err)
	return ours(err)
}

func (r *run) transmitData(ctx context.Context, b *batch, scratch *[]byte) error {
	n, plain := b.compact()
	if err := r.gov.wait(ctx); err != nil {
		return err
	}
	codec, payload := r.packer.compress(plain, scratch, r.p.weakest())
	if codec != wire.CodecPlain {
		r.release(b)
	}
	r.mu.Lock()
	b.counts.Sent, b.final, b.payload = uint64(n), true, int64(len(payload))
	b.writing++
	c := b.conn // stays: whoever loses it leaves a batch in stage sending to its packer
	r.mu.Unlock()
	if err := c.Await(ctx); err != nil {
		r.mu.Lock()
		b.writing--
		r.mu.Unlock()
		return err
	}
	err := c.Write(wire.TypeData, b.seq, &wire.Data{Codec: codec, Plain: uint32(len(plain)), Payload: payload})
	r.wrote(b, c, err)
	return ours(err)
}

// split makes two batches of one that would have too many items.
func (r *run) split(b *batch) {
	whole := b.bytes
	rest := b.split()
	r.release(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.room.Give(whole - b.bytes)
	if b.conn != nil {
		b.conn.Load.Add(b.bytes - whole)
	}
	r.redoLocked(b)
	r.p.mu.Lock()
	r.p.again = append(r.p.again, rest)
	r.p.mu.Unlock()
}
