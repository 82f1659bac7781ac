package wire

// DEMAND, GRANT, SPENT: a flow's share of a line.

func (m *Demand) Append(b []byte) []byte {
	return u64(u64(u32(append(b, m.Class), m.Serial), m.Want), m.Backlog)
}

func (m *Demand) Decode(b []byte) error {
	s := scan{b: b}
	m.Class, m.Serial, m.Want, m.Backlog = s.u8(), s.u32(), s.u64(), s.u64()
	return s.end(TypeDemand, m)
}

func (m *Demand) check() error {
	if err := checkEnum(TypeDemand, "class", m.Class, 0, 4); err != nil {
		return err
	}
	switch {
	case m.Want > MaxSize || m.Backlog > MaxSize:
		return protocol(TypeDemand, "wants %d bytes/s for %d bytes, limit %d", m.Want, m.Backlog, uint64(MaxSize))
	case m.Class == 0 && m.Want > 0:
		return protocol(TypeDemand, "wants %d bytes/s for nothing", m.Want)
	}
	return nil
}

func (m *Grant) Append(b []byte) []byte {
	return text(str(u64(u32(u64(u32(b, m.Serial), m.Rate), m.TTLMS), m.Safe), m.Line), m.Why)
}

func (m *Grant) Decode(b []byte) error {
	s := scan{b: b}
	m.Serial, m.Rate, m.TTLMS, m.Safe, m.Line, m.Why = s.u32(), s.u64(), s.u32(), s.u64(), s.str(), s.str()
	if err := checkString(TypeGrant, "why", m.Why, MaxText); err != nil {
		return err
	}
	return s.end(TypeGrant, m)
}

func (m *Grant) check() error {
	switch {
	case m.Rate > MaxSize || m.Safe > MaxSize:
		return protocol(TypeGrant, "%d bytes/s, or %d without a lease, limit %d", m.Rate, m.Safe, uint64(MaxSize))
	case m.TTLMS == 0 || m.TTLMS > MaxTTLMS:
		return protocol(TypeGrant, "lease of %d ms, limits 1 and %d", m.TTLMS, MaxTTLMS)
	}
	return checkString(TypeGrant, "line", m.Line, MaxName)
}

func (m *Spent) Append(b []byte) []byte { return u64(b, m.Bytes) }

func (m *Spent) Decode(b []byte) error {
	s := scan{b: b}
	m.Bytes = s.u64()
	return s.end(TypeSpent, m)
}

func (m *Spent) check() error {
	if m.Bytes > MaxSpent {
		return protocol(TypeSpent, "%d bytes at once, limit %d", m.Bytes, uint64(MaxSpent))
	}
	return nil
}
