package fsmap

import (
	"encoding/binary"
	"slices"

	"github.com/moverd/mover/extent"
)

// metadata collects where the bitmaps and inode tables lie, as bytes, ascending. A group whose bitmap was never written does not tell;
// elsewhere it is a second lock on the same door. Neighbours merge, so the list stays short with flex_bg.
func (x *ext) metadata() ([]extent.Extent, error) {
	var kinds [3][]extent.Extent
	for g := range x.groups {
		b, err := x.desc(g)
		if err != nil {
			return nil, err
		}
		for i, e := range []extent.Extent{
			{Off: x.block(b, 0x0, 0x20), Len: 1}, {Off: x.block(b, 0x4, 0x24), Len: 1}, {Off: x.block(b, 0x8, 0x28), Len: x.tableBlocks},
		} {
			if e.Off < x.first || e.End() > x.blocks {
				return nil, unsure("metadata of group %d lies at blocks %v", g, e)
			}
			e = extent.Extent{Off: e.Off * x.bs, Len: e.Len * x.bs}
			k := kinds[i]
			if n := len(k); n > 0 && k[n-1].End() == e.Off {
				k[n-1].Len += e.Len
			} else {
				kinds[i] = append(k, e)
			}
		}
	}
	all := slices.Concat(kinds[0], kinds[1], kinds[2])
	slices.SortFunc(all, func(a, b extent.Extent) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	return all, nil
}

// group tells what of group g is free. meta is advanced to what ends behind the group's begin.
func (x *ext) group(g int64, meta *[]extent.Extent, free func(extent.Extent) error) error {
	b, err := x.desc(g)
	if err != nil {
		return err
	}
	begin := (x.first + g*x.perGroup) * x.bs
	end := min(begin+x.perGroup*x.bs, x.blocks*x.bs)
	out := func(e extent.Extent) error {
		return x.without(e.Intersect(extent.Extent{Off: begin, Len: end - begin}), meta, free)
	}
	if x.uninit && binary.LittleEndian.Uint16(b[0x12:])&extBlockUninit != 0 {
		// Only what lies at the group's begin may be in use: superblock, descriptors and what is reserved for more of them; and metadata.
		skip := (2 + (x.groups*x.descSize+x.bs-1)/x.bs + x.reserved) * x.bs
		skip = (skip + x.cluster - 1) / x.cluster * x.cluster
		return out(extent.Extent{Off: begin + skip, Len: max(0, end-begin-skip)})
	}
	clusters := (end - begin + x.cluster - 1) / x.cluster
	bitmap, err := x.bitmap(g, b)
	if err != nil {
		return err
	}
	count := binary.LittleEndian.Uint16(b[0xc:])
	n, from := int64(0), int64(-1)
	for i := range clusters + 1 {
		if i < clusters && bitmap[i/8]&(1<<(i%8)) == 0 {
			n++
			if from < 0 {
				from = i
			}
		} else if from >= 0 {
			if err := out(extent.Extent{Off: begin + from*x.cluster, Len: (i - from) * x.cluster}); err != nil {
				return err
			}
			from = -1
		}
	}
	if uint16(n) != count {
		return unsure("the bitmap of group %d has %d free clusters, its descriptor %d", g, n, count)
	}
	return nil
}

// bitmap reads the block bitmap of group g, whose descriptor is b.
func (x *ext) bitmap(g int64, b []byte) ([]byte, error) {
	bitmap, err := x.bitmaps.copy(x.block(b, 0x0, 0x20)*x.bs, x.bs)
	if err != nil {
		return nil, err
	}
	if x.roCompat&extMetaCsum != 0 {
		sum := crc(x.seed, bitmap[:x.perGroup*x.bs/x.cluster/8])
		same := uint16(sum) == binary.LittleEndian.Uint16(b[0x18:])
		if x.descSize >= 64 {
			same = same && uint16(sum>>16) == binary.LittleEndian.Uint16(b[0x38:])
		}
		if !same {
			return nil, unsure("the checksum of the block bitmap of group %d is wrong", g)
		}
	}
	return bitmap, nil
}

// without calls free with e less what is in meta. Extents come in ascending order, so meta is consumed.
func (x *ext) without(e extent.Extent, meta *[]extent.Extent, free func(extent.Extent) error) error {
	for !e.Empty() {
		for len(*meta) > 0 && (*meta)[0].End() <= e.Off {
			*meta = (*meta)[1:]
		}
		if len(*meta) == 0 || (*meta)[0].Off >= e.End() {
			return free(e)
		}
		m := (*meta)[0]
		if m.Off > e.Off {
			if err := free(extent.Extent{Off: e.Off, Len: m.Off - e.Off}); err != nil {
				return err
			}
		}
		e = extent.Extent{Off: m.End(), Len: e.End() - m.End()}
	}
	return nil
}
