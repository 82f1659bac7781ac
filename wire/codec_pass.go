package wire

import "math"

// OPEN, OPENED, COMMIT, COMMITTED, ABORT, ABORTED, READBACK, ROOT, RELEASE, RELEASED: what is about a whole pass.

func (m *Open) Append(b []byte) []byte {
	b = u16(append(append(b, m.Pass[:]...), m.Kind, m.Consistency), m.Flags)
	b = u64(u64(append(b, m.Generation[:]...), m.Epoch), m.VolumeSize)
	return str(u64(u32(u32(b, m.BlockSize), m.LeafSize), m.Estimate), m.Identity)
}

func (m *Open) Decode(b []byte) error {
	s := scan{b: b}
	m.Pass, m.Kind, m.Consistency, m.Flags = s.id(), s.u8(), s.u8(), s.u16()
	m.Generation, m.Epoch, m.VolumeSize = s.id(), s.u64(), s.u64()
	m.BlockSize, m.LeafSize, m.Estimate, m.Identity = s.u32(), s.u32(), s.u64(), s.str()
	return s.end(TypeOpen, m)
}

func (m *Open) check() error {
	const t = TypeOpen
	if err := checkEnum(t, "kind", m.Kind, 1, 3); err != nil {
		return err
	}
	if err := checkEnum(t, "consistency", m.Consistency, 1, 2); err != nil {
		return err
	}
	if err := checkSize(t, "volume size", m.VolumeSize); err != nil {
		return err
	}
	switch {
	case m.Pass == [16]byte{}:
		return protocol(t, "no pass id")
	case m.Flags&^(FlagFrozen|FlagReclaim) != 0:
		return protocol(t, "unknown flags %#x", m.Flags)
	case m.VolumeSize == 0:
		return protocol(t, "volume size 0")
	case m.BlockSize < 512 || m.BlockSize&(m.BlockSize-1) != 0:
		return protocol(t, "block size %d", m.BlockSize)
	case m.LeafSize < 512 || m.LeafSize&(m.LeafSize-1) != 0:
		return protocol(t, "leaf size %d", m.LeafSize)
	}
	return checkString(t, "identity", m.Identity, MaxIdentity)
}

func (m *Opened) Append(b []byte) []byte {
	b = append(append(b, m.Pass[:]...), m.Mode)
	return ranges(u32(b, uint32(len(m.Done))), m.Done)
}

func (m *Opened) Decode(b []byte) error {
	s := scan{b: b}
	m.Pass, m.Mode = s.id(), s.u8()
	n := s.u32()
	if n > MaxOpened {
		return protocol(TypeOpened, "%d ranges, limit %d", n, MaxOpened)
	}
	m.Done = s.ranges(m.Done, int(n))
	return s.end(TypeOpened, m)
}

func (m *Opened) check() error {
	if err := checkEnum(TypeOpened, "mode", m.Mode, 1, 2); err != nil {
		return err
	}
	if err := checkCount(TypeOpened, "ranges", len(m.Done), 0, MaxOpened); err != nil {
		return err
	}
	return checkRanges(TypeOpened, m.Done)
}

// checkRanges wants seqs from 1, ascending and apart.
func checkRanges(t Type, rs []Range) error {
	var end uint32
	for _, r := range rs {
		if r.First <= end || r.Last < r.First {
			return protocol(t, "range %d to %d behind %d", r.First, r.Last, end)
		}
		end = r.Last
	}
	return nil
}

func (c *Counts) append(b []byte) []byte {
	b = u64(u64(u64(u64(b, c.Offered), c.Same), c.Copied), c.Sent)
	return u64(u64(u64(u64(b, c.Put), c.Zero), c.Free), c.Unreadable)
}

func (c *Counts) scan(s *scan) {
	c.Offered, c.Same, c.Copied, c.Sent = s.u64(), s.u64(), s.u64(), s.u64()
	c.Put, c.Zero, c.Free, c.Unreadable = s.u64(), s.u64(), s.u64(), s.u64()
}

func (m *Commit) Append(b []byte) []byte {
	b = u32(append(b, m.Pass[:]...), m.Batches)
	b = u64(u16(append(b, m.Consistency), m.Flags), uint64(m.UnixNano))
	return m.Counts.append(b)
}

func (m *Commit) Decode(b []byte) error {
	s := scan{b: b}
	m.Pass, m.Batches, m.Consistency, m.Flags, m.UnixNano = s.id(), s.u32(), s.u8(), s.u16(), int64(s.u64())
	m.Counts.scan(&s)
	return s.end(TypeCommit, m)
}

func (m *Commit) check() error {
	if m.Flags&^FlagProven != 0 {
		return protocol(TypeCommit, "unknown flags %#x", m.Flags)
	}
	return checkEnum(TypeCommit, "consistency", m.Consistency, 1, 2)
}

func (m *Committed) Append(b []byte) []byte {
	b = append(append(b, m.Pass[:]...), m.Generation[:]...)
	return m.Counts.append(append(u64(b, m.Epoch), m.Mode))
}

func (m *Committed) Decode(b []byte) error {
	s := scan{b: b}
	m.Pass, m.Generation, m.Epoch, m.Mode = s.id(), s.id(), s.u64(), s.u8()
	m.Counts.scan(&s)
	return s.end(TypeCommitted, m)
}

func (m *Committed) check() error { return checkEnum(TypeCommitted, "mode", m.Mode, 1, 2) }

func (m *Abort) Append(b []byte) []byte { return append(b, m.Pass[:]...) }

func (m *Abort) Decode(b []byte) error {
	s := scan{b: b}
	m.Pass = s.id()
	return s.end(TypeAbort, m)
}

func (m *Abort) check() error { return nil }

func (m *Aborted) Append(b []byte) []byte { return append(b, m.Pass[:]...) }

func (m *Aborted) Decode(b []byte) error {
	s := scan{b: b}
	m.Pass = s.id()
	return s.end(TypeAborted, m)
}

func (m *Aborted) check() error { return nil }

func (m *ReadBack) Append(b []byte) []byte { return append(b, m.Scope) }

func (m *ReadBack) Decode(b []byte) error {
	s := scan{b: b}
	m.Scope = s.u8()
	return s.end(TypeReadBack, m)
}

func (m *ReadBack) check() error {
	return checkEnum(TypeReadBack, "scope", m.Scope, ScopeTouched, ScopeAll)
}

func (m *Root) Append(b []byte) []byte {
	return u64(u64(u64(append(b, m.Digest[:]...), m.Leaves), m.Free), m.ReadBack)
}

func (m *Root) Decode(b []byte) error {
	s := scan{b: b}
	m.Digest, m.Leaves, m.Free, m.ReadBack = s.digest(), s.u64(), s.u64(), s.u64()
	return s.end(TypeRoot, m)
}

func (m *Root) check() error {
	if m.Leaves > math.MaxInt64 || m.Free > m.Leaves || m.ReadBack > m.Leaves {
		return protocol(TypeRoot, "%d leaves, %d free, %d read", m.Leaves, m.Free, m.ReadBack)
	}
	return nil
}

func (m *Release) Append(b []byte) []byte {
	b = append(append(b, m.Digest[:]...), m.Generation[:]...)
	return str(u64(b, m.Epoch), m.Report)
}

func (m *Release) Decode(b []byte) error {
	s := scan{b: b}
	m.Digest, m.Generation, m.Epoch, m.Report = s.digest(), s.id(), s.u64(), s.str()
	return s.end(TypeRelease, m)
}

func (m *Release) check() error { return checkString(TypeRelease, "report", m.Report, MaxText) }

func (m *Released) Append(b []byte) []byte { return u64(append(b, m.Generation[:]...), m.Epoch) }

func (m *Released) Decode(b []byte) error {
	s := scan{b: b}
	m.Generation, m.Epoch = s.id(), s.u64()
	return s.end(TypeReleased, m)
}

func (m *Released) check() error { return nil }
