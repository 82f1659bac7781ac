package wire

// HELLO, WELCOME, ERROR, NOTICE, PING, PONG, STATE, FLOWSTATE: what is about the connection.

func (m *Hello) Append(b []byte) []byte {
	b = u16(u16(u32(b, HelloMagic), m.MinVersion), m.MaxVersion)
	b = append(u64(b, m.Capabilities), m.Link[:]...)
	return str(str(append(b, m.Conn), m.Flow), m.Agent)
}

func (m *Hello) Decode(b []byte) error {
	s := scan{b: b}
	if magic := s.u32(); magic != HelloMagic {
		return protocol(TypeHello, "magic %08x, not %08x", magic, HelloMagic)
	}
	m.MinVersion, m.MaxVersion, m.Capabilities, m.Link, m.Conn = s.u16(), s.u16(), s.u64(), s.id(), s.u8()
	m.Flow, m.Agent = s.str(), s.str()
	return s.end(TypeHello, m)
}

func (m *Hello) check() error {
	switch {
	case m.MinVersion == 0 || m.MinVersion > m.MaxVersion:
		return protocol(TypeHello, "versions %d to %d", m.MinVersion, m.MaxVersion)
	case m.Link == [16]byte{}:
		return protocol(TypeHello, "no link id")
	case m.Conn >= MaxConns:
		return protocol(TypeHello, "connection %d, limit %d", m.Conn, MaxConns-1)
	case m.Flow == "":
		return protocol(TypeHello, "no flow")
	}
	if err := checkString(TypeHello, "flow", m.Flow, MaxName); err != nil {
		return err
	}
	return checkString(TypeHello, "agent", m.Agent, MaxName)
}

func (m *Welcome) Append(b []byte) []byte {
	b = u64(u16(b, m.Version), m.Capabilities)
	return m.State.Append(u64(u32(b, m.KeepaliveMS), m.Window))
}

func (m *Welcome) Decode(b []byte) error {
	s := scan{b: b}
	m.Version, m.Capabilities, m.KeepaliveMS, m.Window = s.u16(), s.u64(), s.u32(), s.u64()
	m.State.scan(&s)
	return s.end(TypeWelcome, m)
}

func (m *Welcome) check() error {
	switch {
	case m.Version == 0:
		return protocol(TypeWelcome, "version 0")
	case m.KeepaliveMS == 0 || m.KeepaliveMS > KeepaliveMS:
		return protocol(TypeWelcome, "keepalive of %d ms, limits 1 and %d", m.KeepaliveMS, KeepaliveMS)
	case m.Window < MaxPlain || m.Window > MaxSize:
		return protocol(TypeWelcome, "window of %d bytes, least %d", m.Window, MaxPlain)
	}
	return m.State.valid(TypeWelcome)
}

func (m *FlowState) Append(b []byte) []byte {
	b = u64(append(append(b, m.Phase), m.Generation[:]...), m.Epoch)
	b = append(u64(u64(b, m.VolumeSize), m.TargetSize), m.Pass[:]...)
	return str(u64(append(b, m.Mode), m.Known), m.Identity)
}

func (m *FlowState) Decode(b []byte) error {
	s := scan{b: b}
	m.scan(&s)
	return s.end(TypeFlowState, m)
}

func (m *FlowState) scan(s *scan) {
	m.Phase, m.Generation, m.Epoch = s.u8(), s.id(), s.u64()
	m.VolumeSize, m.TargetSize, m.Pass = s.u64(), s.u64(), s.id()
	m.Mode, m.Known, m.Identity = s.u8(), s.u64(), s.str()
}

func (m *FlowState) check() error { return m.valid(TypeFlowState) }

func (m *FlowState) valid(t Type) error {
	if err := checkEnum(t, "phase", m.Phase, 1, 4); err != nil {
		return err
	}
	if err := checkEnum(t, "mode", m.Mode, 0, 2); err != nil {
		return err
	}
	if err := checkSize(t, "volume size", m.VolumeSize); err != nil {
		return err
	}
	if err := checkSize(t, "target size", m.TargetSize); err != nil {
		return err
	}
	return checkString(t, "identity", m.Identity, MaxIdentity)
}

func (e *Error) Append(b []byte) []byte { return text(u32(u16(b, e.Code), e.RetryMS), e.Text) }

func (e *Error) Decode(b []byte) error {
	s := scan{b: b}
	e.Code, e.RetryMS, e.Text = s.u16(), s.u32(), s.str()
	if err := checkString(TypeError, "text", e.Text, MaxText); err != nil {
		return err
	}
	return s.end(TypeError, e)
}

// check takes codes that version 1 does not have: the text is worth reading all the same.
func (e *Error) check() error {
	if e.Code == 0 {
		return protocol(TypeError, "code 0")
	}
	return nil
}

func (m *Notice) Append(b []byte) []byte {
	return text(u64(u64(u16(b, m.Code), m.Done), m.Total), m.Text)
}

func (m *Notice) Decode(b []byte) error {
	s := scan{b: b}
	m.Code, m.Done, m.Total, m.Text = s.u16(), s.u64(), s.u64(), s.str()
	if err := checkString(TypeNotice, "text", m.Text, MaxText); err != nil {
		return err
	}
	return s.end(TypeNotice, m)
}

func (m *Notice) check() error { return nil }

func (m *Ping) Append(b []byte) []byte { return u64(b, m.Cookie) }

func (m *Ping) Decode(b []byte) error {
	s := scan{b: b}
	m.Cookie = s.u64()
	return s.end(TypePing, m)
}

func (m *Ping) check() error { return nil }

func (m *Pong) Append(b []byte) []byte { return u64(b, m.Cookie) }

func (m *Pong) Decode(b []byte) error {
	s := scan{b: b}
	m.Cookie = s.u64()
	return s.end(TypePong, m)
}

func (m *Pong) check() error { return nil }

func (m *State) Append(b []byte) []byte { return b }

func (m *State) Decode(b []byte) error {
	s := scan{b: b}
	return s.end(TypeState, m)
}

func (m *State) check() error { return nil }
