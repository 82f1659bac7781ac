package cbt

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sort"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

const minGranule = 4 << 10

// makePlan looks at the disks and decides the granule.
func makePlan(o Options) (*plan, error) {
	p := &plan{variant: o.variant, size: o.Size, layout: o.Map, digest: mapDigest(o.Map, o.Size)}
	if o.Identity != nil {
		id, err := o.Identity()
		if err != nil {
			return nil, fmt.Errorf("ask for the volume's identity: %w", err)
		}
		p.identity = id
	}
	spans, err := leafSpans(o.Map, o.Size)
	if err != nil {
		return nil, err
	}
	p.granule = chooseGranule(spans, o.Memory/2, perWord(o.variant))
	for _, s := range spans {
		d, err := lookDisk(s.Dev)
		if err != nil {
			return nil, err
		}
		if err := d.refuse(); err != nil {
			return nil, err
		}
		l := leafPlan{disk: d, start: s.DevOff, length: s.Len}
		l.granules = (s.Len + p.granule - 1) / p.granule
		if l.sectors, err = d.number("size"); err != nil {
			return nil, err
		}
		if s.DevOff+s.Len > l.sectors*512 {
			return nil, fmt.Errorf("%w: the map ends at byte %d of %s, which has %d", sentinel.ErrUsage, s.DevOff+s.Len, d, l.sectors*512)
		}
		seq, _ := d.number("diskseq") // from 5.15
		l.seq = uint64(seq)
		l.depth, l.queues = d.requests()
		p.leaves = append(p.leaves, l)
	}
	return p, nil
}

// leafSpans gives, for each leaf disk, the span from its first to its last byte that the map uses.
func leafSpans(m extent.Map, size int64) ([]extent.Segment, error) {
	span := map[uint64]extent.Extent{}
	for _, s := range m {
		if s.Off < 0 || s.Len <= 0 || s.Off+s.Len > size || s.DevOff < 0 || s.DevOff%512 != 0 {
			return nil, fmt.Errorf("%w: map has a bad segment %+v", sentinel.ErrUsage, s)
		}
		e := extent.Extent{Off: s.DevOff, Len: s.Len}
		if old, ok := span[s.Dev]; ok {
			end := max(old.End(), e.End())
			e.Off = min(old.Off, e.Off)
			e.Len = end - e.Off
		}
		span[s.Dev] = e
	}
	if len(span) > maxLeaves {
		return nil, fmt.Errorf("%w: the volume lies on %d disks, %d can be tracked", sentinel.ErrNotSupported, len(span), maxLeaves)
	}
	var out []extent.Segment
	for dev, e := range span {
		out = append(out, extent.Segment{Dev: dev, DevOff: e.Off, Len: e.Len})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Dev < out[j].Dev })
	return out, nil
}

// chooseGranule finds the smallest power of two from 4 KiB up whose dirty maps fit into so many bytes.
func chooseGranule(spans []extent.Segment, memory, perWord int64) int64 {
	for g := int64(minGranule); ; g *= 2 {
		var total int64
		for _, s := range spans {
			total += words((s.Len+g-1)/g, perWord) * 8
		}
		if total <= memory || g >= 1<<30 {
			return g
		}
	}
}

// words is how many words of 64 bits hold n granules.
func words(n, perWord int64) int64 { return (n + perWord - 1) / perWord }

// perWord is how many granules one word of a dirty map holds.
func perWord(variant string) int64 {
	if variant == VariantBytemap {
		return 8
	}
	return 64
}

func mapDigest(m extent.Map, size int64) digest.Digest {
	b := binary.LittleEndian.AppendUint64(nil, uint64(size))
	for _, s := range m {
		for _, v := range []uint64{uint64(s.Off), uint64(s.Len), s.Dev, uint64(s.DevOff)} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return digest.Sum(b)
}

// shift is log2 of the granule in sectors.
func (p *plan) shift() uint32 { return uint32(bits.TrailingZeros64(uint64(p.granule))) - 9 }
