package catalog

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// Batch is the meta of a batch or done record: what a batch (or one part of it) does to the target.
type Batch struct {
	Counts mover.Counts
	Items  []wire.Item     // ascending within an item list; data items take their bytes from Parts, in order
	Leaves []digest.Digest // data items are whole leaves, and these are their digests; or else
	Digest digest.Digest   // of all plain bytes
	Parts  []Part          // of the payload; empty in done records
}

// Part is a piece of a record's payload, coded as it was received.
type Part struct {
	Codec uint8
	Plain uint32 // bytes after decoding
	Size  uint32 // bytes in the payload
}

func appendCounts(b []byte, c mover.Counts) []byte {
	for _, v := range [...]uint64{c.Offered, c.Same, c.Copied, c.Sent, c.Put, c.Zero, c.Free, c.Unreadable} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// Append encodes x behind b.
func (x *Batch) Append(b []byte) []byte {
	b = appendCounts(b, x.Counts)
	b = binary.AppendUvarint(b, uint64(len(x.Items)))
	for _, it := range x.Items {
		b = append(b, byte(it.Kind))
		b = binary.AppendUvarint(b, it.Off)
		b = binary.AppendUvarint(b, it.Len)
	}
	b = binary.AppendUvarint(b, uint64(len(x.Leaves)))
	for i := range x.Leaves {
		b = append(b, x.Leaves[i][:]...)
	}
	b = append(b, x.Digest[:]...)
	b = append(b, byte(len(x.Parts)))
	for _, p := range x.Parts {
		b = append(b, p.Codec)
		b = binary.BigEndian.AppendUint32(b, p.Plain)
		b = binary.BigEndian.AppendUint32(b, p.Size)
	}
	return b
}

// Decode reads what Append wrote; nothing in x aliases b.
func (x *Batch) Decode(b []byte) error {
	d := decoder{b: b}
	x.Counts = d.counts()
	x.Items = x.Items[:0]
	for n := d.count(3); n > 0; n-- {
		x.Items = append(x.Items, wire.Item{Kind: wire.ItemKind(d.byte()), Off: d.uvarint(), Len: d.uvarint()})
	}
	x.Leaves = x.Leaves[:0]
	for n := d.count(digest.Size); n > 0; n-- {
		x.Leaves = append(x.Leaves, d.digest())
	}
	x.Digest = d.digest()
	x.Parts = x.Parts[:0]
	for n := int(d.byte()); n > 0; n-- {
		x.Parts = append(x.Parts, Part{Codec: d.byte(), Plain: d.u32(), Size: d.u32()})
	}
	return d.end()
}

// Commit is the meta of a commit record.
type Commit struct {
	Batches     uint32
	Consistency mover.Consistency
	Proven      bool
	Time        time.Time
	Counts      mover.Counts
}

// Append encodes c behind b.
func (c *Commit) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, c.Batches)
	proven := byte(0)
	if c.Proven {
		proven = 1
	}
	b = append(b, byte(c.Consistency), proven)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Time.UnixNano()))
	return appendCounts(b, c.Counts)
}

// Decode reads what Append wrote.
func (c *Commit) Decode(b []byte) error {
	d := decoder{b: b}
	*c = Commit{Batches: d.u32(), Consistency: mover.Consistency(d.byte()), Proven: d.byte() == 1}
	c.Time = time.Unix(0, int64(d.u64())).UTC()
	c.Counts = d.counts()
	return d.end()
}

// AppendIntent encodes n stretches from first; DecodeIntent reads them.
func AppendIntent(b []byte, first, n int64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(first)), uint64(n))
}

// DecodeIntent reads what AppendIntent wrote.
func DecodeIntent(b []byte) (first, n int64, err error) {
	d := decoder{b: b}
	first, n = int64(d.uvarint()), int64(d.uvarint())
	return first, n, d.end()
}

// decoder takes values from the front of b; after bad is set all of them are zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return make([]byte, n)
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) byte() byte  { return d.take(1)[0] }
func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

func (d *decoder) digest() digest.Digest { return digest.Digest(d.take(digest.Size)) }

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.bad || n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a number of elements of at least size bytes each, so that it cannot ask for more than the bytes hold.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.bad = true
		return 0
	}
	return int(n)
}

func (d *decoder) counts() (c mover.Counts) {
	for _, p := range []*uint64{&c.Offered, &c.Same, &c.Copied, &c.Sent, &c.Put, &c.Zero, &c.Free, &c.Unreadable} {
		*p = d.uvarint()
	}
	return c
}

func (d *decoder) end() error {
	if d.bad || len(d.b) != 0 {
		return fmt.Errorf("redo log: meta of a record does not decode: %w", sentinel.ErrCorrupt)
	}
	return nil
}
