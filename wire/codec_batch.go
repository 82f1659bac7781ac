package wire

import (
	"encoding/binary"
	"math/bits"
)

// CHECK, DIFFER, LEAVES, OFFER, NEED, PRINTS, PAGES, DATA, AGAIN, PUT, ACK: what a pass consists of. Decoding these into a message that is used
// again allocates nothing.

func (m *Check) Append(b []byte) []byte {
	return digests(u16(u64(b, m.First), uint16(len(m.Digests))), m.Digests)
}

func (m *Check) Decode(b []byte) error {
	s := scan{b: b}
	m.First = s.u64()
	m.Digests = s.digests(m.Digests, int(s.u16()))
	return s.end(TypeCheck, m)
}

func (m *Check) check() error {
	if err := checkCount(TypeCheck, "groups", len(m.Digests), 1, MaxGroups); err != nil {
		return err
	}
	if err := checkSize(TypeCheck, "group", m.First); err != nil {
		return err
	}
	return checkKnown(TypeCheck, m.Digests)
}

func (m *Leaves) Append(b []byte) []byte {
	return digests(u16(u64(b, m.First), uint16(len(m.Digests))), m.Digests)
}

func (m *Leaves) Decode(b []byte) error {
	s := scan{b: b}
	m.First = s.u64()
	m.Digests = s.digests(m.Digests, int(s.u16()))
	return s.end(TypeLeaves, m)
}

func (m *Leaves) check() error {
	if err := checkCount(TypeLeaves, "leaves", len(m.Digests), 1, MaxLeaves); err != nil {
		return err
	}
	if err := checkSize(TypeLeaves, "leaf", m.First); err != nil {
		return err
	}
	return checkKnown(TypeLeaves, m.Digests)
}

// BitmapSize is the bytes of a bitmap of n bits.
func BitmapSize(n int) int { return (n + 7) / 8 }

// Bit tells whether bit i of a bitmap is set; SetBit sets it.
func Bit(bitmap []byte, i int) bool { return bitmap[i/8]>>(i%8)&1 != 0 }
func SetBit(bitmap []byte, i int)   { bitmap[i/8] |= 1 << (i % 8) }

// checkBitmap wants exactly n bits, the unused ones 0, and counts them.
func checkBitmap(t Type, b []byte, n, most int) (set int, err error) {
	if err := checkCount(t, "bits", n, 1, most); err != nil {
		return 0, err
	}
	if len(b) != BitmapSize(n) {
		return 0, protocol(t, "a bitmap of %d bytes for %d bits", len(b), n)
	}
	if n%8 != 0 && b[len(b)-1]>>(n%8) != 0 {
		return 0, protocol(t, "bits are set behind the last of %d", n)
	}
	for _, v := range b {
		set += bits.OnesCount8(v)
	}
	return set, nil
}

func (m *Differ) Append(b []byte) []byte { return append(u16(b, m.N), m.Bitmap...) }

func (m *Differ) Decode(b []byte) error {
	s := scan{b: b}
	m.N = s.u16()
	m.Bitmap = append(m.Bitmap[:0], s.take(BitmapSize(int(m.N)))...)
	return s.end(TypeDiffer, m)
}

func (m *Differ) check() error {
	_, err := checkBitmap(TypeDiffer, m.Bitmap, int(m.N), MaxGroups)
	return err
}

func (m *Need) Append(b []byte) []byte {
	b = u16(u16(append(u16(b, m.N), m.Bitmap...), m.Same), m.Copied)
	if m.Flags != 0 { // older peers know none
		b = append(b, m.Flags)
	}
	return b
}

func (m *Need) Decode(b []byte) error {
	s := scan{b: b}
	m.N = s.u16()
	m.Bitmap = append(m.Bitmap[:0], s.take(BitmapSize(int(m.N)))...)
	m.Same, m.Copied, m.Flags = s.u16(), s.u16(), 0
	if len(s.b) > 0 {
		if m.Flags = s.u8(); m.Flags == 0 {
			return protocol(TypeNeed, "flags of 0 are left out")
		}
	}
	return s.end(TypeNeed, m)
}

func (m *Need) check() error {
	set, err := checkBitmap(TypeNeed, m.Bitmap, int(m.N), MaxLeaves)
	if err == nil && set+int(m.Same)+int(m.Copied) > int(m.N) {
		err = protocol(TypeNeed, "%d leaves: %d needed, %d same, %d copied", m.N, set, m.Same, m.Copied)
	}
	if err == nil && (m.Flags&^FlagPrints != 0 || m.Flags != 0 && set == 0) {
		err = protocol(TypeNeed, "flags %#x with %d needed", m.Flags, set)
	}
	return err
}

func (m *Prints) Append(b []byte) []byte {
	b = u16(b, uint16(len(m.Prints)))
	for _, p := range m.Prints {
		b = u64(b, p)
	}
	return b
}

func (m *Prints) Decode(b []byte) error {
	s := scan{b: b}
	n := int(s.u16())
	m.Prints = m.Prints[:0]
	for p := s.take(8 * n); len(p) > 0; p = p[8:] {
		m.Prints = append(m.Prints, binary.BigEndian.Uint64(p))
	}
	return s.end(TypePrints, m)
}

func (m *Prints) check() error {
	return checkCount(TypePrints, "pages", len(m.Prints), 1, MaxPages)
}

func (m *Pages) Append(b []byte) []byte { return append(u16(b, m.N), m.Bitmap...) }

func (m *Pages) Decode(b []byte) error {
	s := scan{b: b}
	m.N = s.u16()
	m.Bitmap = append(m.Bitmap[:0], s.take(BitmapSize(int(m.N)))...)
	return s.end(TypePages, m)
}

func (m *Pages) check() error {
	_, err := checkBitmap(TypePages, m.Bitmap, int(m.N), MaxPages)
	return err
}

func (m *Again) Append(b []byte) []byte { return b }
func (m *Again) Decode(b []byte) error  { return (&scan{b: b}).end(TypeAgain, m) }
func (m *Again) check() error           { return nil }

func (m *Offer) Append(b []byte) []byte {
	b = u16(b, uint16(len(m.Runs)))
	for _, r := range m.Runs {
		b = u16(u64(b, r.First), r.N)
	}
	return digests(b, m.Digests)
}

func (m *Offer) Decode(b []byte) error {
	s := scan{b: b}
	n, leaves := int(s.u16()), 0
	if n > MaxLeaves {
		return protocol(TypeOffer, "%d runs, limit %d", n, MaxLeaves)
	}
	m.Runs = m.Runs[:0]
	for range n {
		r := Run{s.u64(), s.u16()}
		m.Runs = append(m.Runs, r)
		leaves += int(r.N)
	}
	m.Digests = s.digests(m.Digests, leaves)
	return s.end(TypeOffer, m)
}

func (m *Offer) check() error {
	const t = TypeOffer
	if err := checkCount(t, "runs", len(m.Runs), 1, MaxLeaves); err != nil {
		return err
	}
	if err := checkCount(t, "leaves", len(m.Digests), 1, MaxLeaves); err != nil {
		return err
	}
	var end uint64
	leaves := 0
	for _, r := range m.Runs {
		if r.N == 0 || r.First < end || r.First > MaxSize { // C10
			return protocol(t, "run of %d leaves at %d behind leaf %d", r.N, r.First, end)
		}
		end = r.First + uint64(r.N)
		leaves += int(r.N)
	}
	if leaves != len(m.Digests) {
		return protocol(t, "%d digests for %d leaves", len(m.Digests), leaves)
	}
	return checkKnown(t, m.Digests)
}

func (m *Data) Append(b []byte) []byte     { return append(m.appendHead(b), m.Payload...) }
func (m *Data) appendHead(b []byte) []byte { return u32(append(b, m.Codec), m.Plain) }
func (m *Data) body() []byte               { return m.Payload }

func (m *Data) Decode(b []byte) error {
	s := scan{b: b}
	m.Codec, m.Plain = s.u8(), s.u32()
	m.Payload = s.take(len(s.b))
	return s.end(TypeData, m)
}

func (m *Data) check() error {
	if m.Plain == 0 {
		return protocol(TypeData, "no bytes")
	}
	return checkPacked(TypeData, m.Codec, m.Plain, m.Payload)
}

// checkPacked keeps payloads at or below their plain size, which bounds what a receiver needs.
func checkPacked(t Type, codec uint8, plain uint32, payload []byte) error {
	n := uint64(len(payload))
	switch {
	case plain > MaxPlain:
		return protocol(t, "%d plain bytes, limit %d", plain, MaxPlain)
	case codec == CodecPlain && n != uint64(plain):
		return protocol(t, "%d bytes, said to be %d", n, plain)
	case codec == CodecZstd && (n == 0 || n >= uint64(plain)):
		return protocol(t, "%d bytes of zstd for %d plain bytes", n, plain)
	}
	return checkEnum(t, "codec", codec, CodecPlain, CodecZstd)
}

func (m *Put) Append(b []byte) []byte { return append(m.appendHead(b), m.Payload...) }
func (m *Put) body() []byte           { return m.Payload }

func (m *Put) appendHead(b []byte) []byte {
	b = u16(b, uint16(len(m.Items)))
	for _, it := range m.Items {
		b = u64(u64(append(b, uint8(it.Kind)), it.Off), it.Len)
	}
	return append(u32(append(b, m.Codec), m.Plain), m.Digest[:]...)
}

func (m *Put) Decode(b []byte) error {
	s := scan{b: b}
	n := int(s.u16())
	if n > MaxItems {
		return protocol(TypePut, "%d items, limit %d", n, MaxItems)
	}
	m.Items = m.Items[:0]
	for range n {
		m.Items = append(m.Items, Item{ItemKind(s.u8()), s.u64(), s.u64()})
	}
	m.Codec, m.Plain, m.Digest = s.u8(), s.u32(), s.digest()
	m.Payload = s.take(len(s.b))
	return s.end(TypePut, m)
}

func (m *Put) check() error {
	const t = TypePut
	if err := checkCount(t, "items", len(m.Items), 1, MaxItems); err != nil {
		return err
	}
	var end, plain uint64
	for _, it := range m.Items {
		if err := checkEnum(t, "item of kind", uint8(it.Kind), uint8(ItemData), uint8(ItemUnreadable)); err != nil {
			return err
		}
		if it.Len == 0 || it.Off < end || it.Off > MaxSize || it.Len > MaxSize-it.Off { // C10
			return protocol(t, "item of %d bytes at %d behind byte %d", it.Len, it.Off, end)
		}
		end = it.Off + it.Len
		if it.Kind == ItemData {
			plain += it.Len
		}
	}
	if plain != uint64(m.Plain) {
		return protocol(t, "items of %d bytes, said to be %d", plain, m.Plain)
	}
	return checkPacked(t, m.Codec, m.Plain, m.Payload)
}

func (m *Ack) Append(b []byte) []byte { return ranges(u16(b, uint16(len(m.Ranges))), m.Ranges) }

func (m *Ack) Decode(b []byte) error {
	s := scan{b: b}
	m.Ranges = s.ranges(m.Ranges, int(s.u16()))
	return s.end(TypeAck, m)
}

// check lets ranges come in any order, as batches end; a set is the reader's business.
func (m *Ack) check() error {
	if err := checkCount(TypeAck, "ranges", len(m.Ranges), 1, MaxRanges); err != nil {
		return err
	}
	for _, r := range m.Ranges {
		if r.First == 0 || r.Last < r.First {
			return protocol(TypeAck, "range %d to %d", r.First, r.Last)
		}
	}
	return nil
}

// CountItems adds up the bytes of items by kind.
func CountItems(items []Item) (c Counts) {
	for _, it := range items {
		switch it.Kind {
		case ItemData:
			c.Put += it.Len
		case ItemZero:
			c.Zero += it.Len
		case ItemFree:
			c.Free += it.Len
		case ItemUnreadable:
			c.Unreadable += it.Len
		}
	}
	return c
}
