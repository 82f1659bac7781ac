package wire

// KEEP, KEPT: what a recovery point is worth, once that is certain (C13).

func (m *Keep) Append(b []byte) []byte {
	b = u16(u16(append(b, m.Moment[:]...), m.Members), m.Flags)
	b = append(append(b, m.Consistency), m.Generation[:]...)
	return str(u64(u64(b, m.Epoch), uint64(m.UnixNano)), m.Group)
}

func (m *Keep) Decode(b []byte) error {
	s := scan{b: b}
	m.Moment, m.Members, m.Flags, m.Consistency = s.id(), s.u16(), s.u16(), s.u8()
	m.Generation, m.Epoch, m.UnixNano, m.Group = s.id(), s.u64(), int64(s.u64()), s.str()
	return s.end(TypeKeep, m)
}

func (m *Keep) check() error {
	const t = TypeKeep
	switch {
	case m.Moment == [16]byte{}:
		return protocol(t, "no moment")
	case m.Members == 0:
		return protocol(t, "a moment of no flow")
	case m.Group == "" && m.Members > 1:
		return protocol(t, "%d flows without a group", m.Members)
	case m.Flags&^(FlagRehearse|FlagCutover) != 0 || m.Flags == FlagRehearse|FlagCutover:
		return protocol(t, "unknown flags %#x", m.Flags)
	case m.Epoch == 0:
		return protocol(t, "epoch 0")
	}
	if err := checkEnum(t, "consistency", m.Consistency, 1, 3); err != nil {
		return err
	}
	return checkString(t, "group", m.Group, MaxName)
}

func (m *Kept) Append(b []byte) []byte { return text(str(append(b, m.Consistency), m.Point), m.Text) }

func (m *Kept) Decode(b []byte) error {
	s := scan{b: b}
	m.Consistency, m.Point, m.Text = s.u8(), s.str(), s.str()
	if err := checkString(TypeKept, "text", m.Text, MaxText); err != nil {
		return err
	}
	return s.end(TypeKept, m)
}

func (m *Kept) check() error {
	if err := checkEnum(TypeKept, "consistency", m.Consistency, 0, 3); err != nil {
		return err
	}
	if m.Consistency == 0 && m.Point != "" {
		return protocol(TypeKept, "refused, and yet a point")
	}
	return checkString(TypeKept, "point", m.Point, MaxName)
}
