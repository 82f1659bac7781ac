package wire

import "unicode/utf8"

// CALL, RESULT, CHUNKS. Which members of Values a frame has is told by the table ops; what each of them looks like, here.

func (m *Call) Append(b []byte) []byte { return m.append(append(b, uint8(m.Op)), m.args()) }

func (m *Call) Decode(b []byte) error {
	s := scan{b: b}
	*m = Call{Op: Op(s.u8())}
	m.decode(&s, m.args())
	return s.end(TypeCall, m)
}

func (m *Call) check() error {
	if !m.Op.Known() {
		return protocol(TypeCall, "unknown %v", m.Op)
	}
	return m.Values.check(TypeCall, m.args())
}

func (m *Call) args() []member {
	if !m.Op.Known() {
		return nil
	}
	return ops[m.Op].args
}

func (m *Result) Append(b []byte) []byte {
	b = append(b, uint8(m.Op), m.Kind)
	switch m.Kind {
	case ResultDone:
		return m.append(b, m.values())
	case ResultMissing:
		return append(u32(b, m.Missing.N), m.Missing.Bitmap...)
	}
	f := &m.Failure
	return text(str(str(u32(u16(b, f.Status), f.RetryMS), f.Code), f.Request), f.Text)
}

func (m *Result) Decode(b []byte) error {
	s := scan{b: b}
	*m = Result{Op: Op(s.u8()), Kind: s.u8()}
	switch m.Kind {
	case ResultDone:
		m.decode(&s, m.values())
	case ResultMissing:
		m.Missing.N = s.u32()
		if m.Missing.N <= MaxBody {
			m.Missing.Bitmap = append([]byte(nil), s.take(BitmapSize(int(m.Missing.N)))...)
		}
	default:
		m.Failure = Failure{s.u16(), s.u32(), s.str(), s.str(), s.str()}
	}
	texts := []string{m.Failure.Text}
	for i := range m.Left {
		texts = append(texts, m.Left[i].Text)
	}
	for _, said := range texts { // what we say ourselves is cut to fit
		if err := checkString(TypeResult, "text", said, MaxText); err != nil {
			return err
		}
	}
	return s.end(TypeResult, m)
}

func (m *Result) check() error {
	const t = TypeResult
	switch {
	case !m.Op.Known():
		return protocol(t, "unknown %v", m.Op)
	case m.Kind > lastResult:
		return protocol(t, "kind %d", m.Kind)
	case m.Kind == ResultDone:
		return m.Values.check(t, m.values())
	case m.Kind == ResultMissing:
		if m.Op != OpPut && m.Op != OpPutPart {
			return protocol(t, "%v has no chunks", m.Op)
		}
		set, err := checkBitmap(t, m.Missing.Bitmap, int(min(m.Missing.N, MaxBody+1)), MaxBody)
		if err == nil && set == 0 {
			err = protocol(t, "no chunk is missing")
		}
		return err
	}
	if err := checkString(t, "code", m.Failure.Code, MaxName); err != nil {
		return err
	}
	return checkString(t, "request", m.Failure.Request, MaxName)
}

func (m *Result) values() []member {
	if !m.Op.Known() {
		return nil
	}
	return ops[m.Op].values
}

func (m *Chunks) Append(b []byte) []byte {
	return appendChunks(u16(b, uint16(len(m.Chunks))), m.Chunks)
}

func (m *Chunks) Decode(b []byte) error {
	s := scan{b: b}
	m.Chunks = s.chunks(m.Chunks, int(s.u16()))
	return s.end(TypeChunks, m)
}

func (m *Chunks) check() error {
	if err := checkCount(TypeChunks, "chunks", len(m.Chunks), 1, MaxOffered); err != nil {
		return err
	}
	all, err := checkChunks(TypeChunks, m.Chunks)
	if err == nil && all > MaxPlain {
		err = protocol(TypeChunks, "%d bytes, limit %d", all, MaxPlain)
	}
	return err
}

const chunkSize = 36 // digest, length u32

func appendChunks(b []byte, all []Chunk) []byte {
	for i := range all {
		b = u32(append(b, all[i].Digest[:]...), all[i].Len)
	}
	return b
}

func (s *scan) chunks(to []Chunk, n int) []Chunk {
	to = to[:0]
	if n > len(s.b)/chunkSize {
		s.bad = true
		return to
	}
	for range n {
		to = append(to, Chunk{s.digest(), s.u32()})
	}
	return to
}

func checkChunks(t Type, all []Chunk) (sum uint64, err error) {
	for i := range all {
		if n := all[i].Len; n == 0 || n > MaxChunk {
			return 0, protocol(t, "chunk of %d bytes, limits 1 and %d", n, MaxChunk)
		}
		sum += uint64(all[i].Len)
	}
	return sum, nil
}

// member is one field of Values.
type member struct {
	append func(b []byte, v *Values) []byte
	decode func(s *scan, v *Values)
	check  func(t Type, v *Values) error
}

func (v *Values) append(b []byte, all []member) []byte {
	for _, m := range all {
		b = m.append(b, v)
	}
	return b
}

func (v *Values) decode(s *scan, all []member) {
	for _, m := range all {
		m.decode(s, v)
	}
}

func (v *Values) check(t Type, all []member) error {
	for _, m := range all {
		if err := m.check(t, v); err != nil {
			return err
		}
	}
	return nil
}

func bytesMember(what string, most int, at func(*Values) *string) member {
	return member{
		func(b []byte, v *Values) []byte { return str(b, *at(v)) },
		func(s *scan, v *Values) { *at(v) = s.str() },
		func(t Type, v *Values) error { return checkLen(t, what, *at(v), most) },
	}
}

func u32Member(at func(*Values) *uint32) member {
	return member{
		func(b []byte, v *Values) []byte { return u32(b, *at(v)) },
		func(s *scan, v *Values) { *at(v) = s.u32() },
		func(Type, *Values) error { return nil },
	}
}

func u64Member(what string, at func(*Values) *uint64) member {
	return member{
		func(b []byte, v *Values) []byte { return u64(b, *at(v)) },
		func(s *scan, v *Values) { *at(v) = s.u64() },
		func(t Type, v *Values) error { return checkSize(t, what, *at(v)) },
	}
}

// listMember is a list with a count of 16 bits.
func listMember[T any](what string, most int, at func(*Values) *[]T, put func([]byte, *T) []byte, take func(*scan) T, check func(Type, []T) error) member {
	return member{
		func(b []byte, v *Values) []byte {
			all := *at(v)
			b = u16(b, uint16(len(all)))
			for i := range all {
				b = put(b, &all[i])
			}
			return b
		},
		func(s *scan, v *Values) {
			for n := int(s.u16()); n > 0 && !s.bad; n-- {
				*at(v) = append(*at(v), take(s))
			}
		},
		func(t Type, v *Values) error {
			if err := checkCount(t, what, len(*at(v)), 0, most); err != nil {
				return err
			}
			return check(t, *at(v))
		},
	}
}

func checkLen(t Type, what, s string, most int) error {
	if len(s) > most {
		return protocol(t, "%s has %d bytes, limit %d", what, len(s), most)
	}
	return nil
}

var (
	vKey    = bytesMember("key", MaxKey, func(v *Values) *string { return &v.Key })
	vUpload = bytesMember("upload", MaxUpload, func(v *Values) *string { return &v.Upload })
	vPrefix = bytesMember("prefix", MaxKey, func(v *Values) *string { return &v.Prefix })
	vAfter  = bytesMember("place", MaxKey, func(v *Values) *string { return &v.After })
	vEtag   = bytesMember("ETag", MaxETag, func(v *Values) *string { return &v.ETag })
	vName   = bytesMember("name", MaxName, func(v *Values) *string { return &v.Name })
	vNo     = u32Member(func(v *Values) *uint32 { return &v.No })
	vMost   = u32Member(func(v *Values) *uint32 { return &v.Most })
	vOf     = u32Member(func(v *Values) *uint32 { return &v.Of })
	vOff    = u64Member("offset", func(v *Values) *uint64 { return &v.Off })
	vLength = u64Member("length", func(v *Values) *uint64 { return &v.Len })

	vFlag = member{
		func(b []byte, v *Values) []byte { return append(b, bit(v.Flag)) },
		func(s *scan, v *Values) { v.Flag = s.flag() },
		func(Type, *Values) error { return nil },
	}
	vNow = member{
		func(b []byte, v *Values) []byte { return u64(b, uint64(v.Now)) },
		func(s *scan, v *Values) { v.Now = int64(s.u64()) },
		func(Type, *Values) error { return nil },
	}
	vBytes = member{
		func(b []byte, v *Values) []byte { return append(u32(b, uint32(len(v.Bytes))), v.Bytes...) },
		func(s *scan, v *Values) { v.Bytes = append([]byte(nil), s.take(int(s.u32()))...) },
		func(t Type, v *Values) error { return checkCount(t, "bytes", len(v.Bytes), 0, MaxPiece) },
	}
	vChunks = member{
		func(b []byte, v *Values) []byte { return appendChunks(u32(b, uint32(len(v.Body))), v.Body) },
		func(s *scan, v *Values) { v.Body = s.chunks(nil, int(s.u32())) },
		func(t Type, v *Values) error {
			if err := checkCount(t, "chunks", len(v.Body), 0, MaxBody); err != nil {
				return err
			}
			_, err := checkChunks(t, v.Body)
			return err
		},
	}
	vSums = member{
		func(b []byte, v *Values) []byte { return digests(u16(b, uint16(len(v.Sums))), v.Sums) },
		func(s *scan, v *Values) { v.Sums = s.digests(nil, int(s.u16())) },
		func(t Type, v *Values) error { return checkCount(t, "digests", len(v.Sums), 0, MaxSums) },
	}
	vPut = member{
		func(b []byte, v *Values) []byte {
			return append(str(appendAttrs(b, &v.Put.Attrs), v.Put.Class), v.Put.Flags)
		},
		func(s *scan, v *Values) { v.Put = PutOptions{s.attrs(), s.str(), s.u8()} },
		func(t Type, v *Values) error {
			if v.Put.Flags&^FlagAbsent != 0 {
				return protocol(t, "unknown flags %#x", v.Put.Flags)
			}
			if err := checkLen(t, "class", v.Put.Class, MaxName); err != nil {
				return err
			}
			return checkAttrs(t, &v.Put.Attrs)
		},
	}
	vStore  = member{appendTraits, decodeTraits, checkTraits}
	vObject = member{
		func(b []byte, v *Values) []byte {
			return u32(appendAttrs(appendEntry(b, &v.Object.Entry), &v.Object.Attrs), uint32(v.Object.Tags))
		},
		func(s *scan, v *Values) { v.Object = Object{s.entry(), s.attrs(), int32(s.u32())} },
		func(t Type, v *Values) error {
			if v.Object.Tags < -1 {
				return protocol(t, "%d tags", v.Object.Tags)
			}
			if err := checkEntries(t, []Entry{v.Object.Entry}); err != nil {
				return err
			}
			return checkAttrs(t, &v.Object.Attrs)
		},
	}

	vEntries = listMember("entries", MaxPage, func(v *Values) *[]Entry { return &v.Entries }, appendEntry, (*scan).entry, checkEntries)
	vKeys    = listMember("keys", MaxPage, func(v *Values) *[]string { return &v.Keys }, appendString, (*scan).str, func(t Type, all []string) error {
		return checkAll(t, "key", all, MaxKey)
	})
	vGrants = listMember("grants", MaxPairs, func(v *Values) *[]string { return &v.Grants }, appendString, (*scan).str, func(t Type, all []string) error {
		return checkAll(t, "grant", all, MaxText)
	})
	vTags = listMember("tags", MaxPairs, func(v *Values) *[]Pair { return &v.Tags }, appendPair, (*scan).pair, func(t Type, all []Pair) error {
		_, err := checkPairs(t, all, 0)
		return err
	})
	vParts = listMember("parts", MaxParts, func(v *Values) *[]Part { return &v.Parts },
		func(b []byte, p *Part) []byte { return str(u64(u32(b, p.No), p.Size), p.ETag) },
		func(s *scan) Part { return Part{s.u32(), s.u64(), s.str()} }, checkParts)
	vLeft = listMember("keys", MaxPage, func(v *Values) *[]Left { return &v.Left },
		func(b []byte, l *Left) []byte { return text(append(str(b, l.Key), l.Kind), l.Text) },
		func(s *scan) Left { return Left{s.str(), s.u8(), s.str()} }, checkLeft)
	vUploads = listMember("uploads", MaxPage, func(v *Values) *[]Upload { return &v.Uploads },
		func(b []byte, u *Upload) []byte { return u64(str(str(b, u.Key), u.ID), uint64(u.Begun)) },
		func(s *scan) Upload { return Upload{s.str(), s.str(), int64(s.u64())} }, checkUploads)
)

func bit(v bool) uint8 {
	if v {
		return 1
	}
	return 0
}

// flag takes a byte that is 0 or 1.
func (s *scan) flag() bool {
	v := s.u8()
	s.bad = s.bad || v > 1
	return v == 1
}

func appendString(b []byte, s *string) []byte { return str(b, *s) }

func checkAll(t Type, what string, all []string, most int) error {
	for _, s := range all {
		if err := checkLen(t, what, s, most); err != nil {
			return err
		}
	}
	return nil
}

func appendPair(b []byte, p *Pair) []byte { return str(str(b, p.Name), p.Value) }
func (s *scan) pair() Pair                { return Pair{s.str(), s.str()} }

// checkPairs wants names to ascend, so that what means the same is the same. n bytes are taken already.
func checkPairs(t Type, all []Pair, n int) (int, error) {
	for i, p := range all {
		if i > 0 && p.Name <= all[i-1].Name {
			return n, protocol(t, "name %q behind %q", p.Name, all[i-1].Name)
		}
		n += len(p.Name) + len(p.Value)
	}
	if n > MaxAttrs {
		return n, protocol(t, "attributes of %d bytes, limit %d", n, MaxAttrs)
	}
	return n, nil
}

func appendAttrs(b []byte, a *Attrs) []byte {
	for i := range a.Headers {
		b = str(b, a.Headers[i])
	}
	b = u16(b, uint16(len(a.Meta)))
	for i := range a.Meta {
		b = appendPair(b, &a.Meta[i])
	}
	return b
}

func (s *scan) attrs() (a Attrs) {
	for i := range a.Headers {
		a.Headers[i] = s.str()
	}
	for n := int(s.u16()); n > 0 && !s.bad; n-- {
		a.Meta = append(a.Meta, s.pair())
	}
	return a
}

func checkAttrs(t Type, a *Attrs) error {
	n := 0
	for _, h := range a.Headers {
		n += len(h)
	}
	if err := checkCount(t, "pairs of metadata", len(a.Meta), 0, MaxPairs); err != nil {
		return err
	}
	_, err := checkPairs(t, a.Meta, n)
	return err
}

func appendEntry(b []byte, e *Entry) []byte {
	return str(u64(str(u64(str(b, e.Key), e.Size), e.ETag), uint64(e.Modified)), e.Class)
}

func (s *scan) entry() Entry { return Entry{s.str(), s.u64(), s.str(), int64(s.u64()), s.str()} }

func checkEntries(t Type, all []Entry) error {
	for i := range all {
		e := &all[i]
		if err := checkSize(t, "size", e.Size); err != nil {
			return err
		}
		for _, c := range []struct {
			what, s string
			most    int
		}{{"key", e.Key, MaxKey}, {"ETag", e.ETag, MaxETag}, {"class", e.Class, MaxName}} {
			if err := checkLen(t, c.what, c.s, c.most); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkParts(t Type, all []Part) error {
	for _, p := range all {
		if err := checkSize(t, "size", p.Size); err != nil {
			return err
		}
		if err := checkLen(t, "ETag", p.ETag, MaxETag); err != nil {
			return err
		}
	}
	return nil
}

func checkLeft(t Type, all []Left) error {
	for _, l := range all {
		if l.Kind < ResultFinal || l.Kind > lastResult {
			return protocol(t, "kind %d", l.Kind)
		}
		if err := checkLen(t, "key", l.Key, MaxKey); err != nil {
			return err
		}
	}
	return nil
}

func checkUploads(t Type, all []Upload) error {
	for _, u := range all {
		if err := checkLen(t, "key", u.Key, MaxKey); err != nil {
			return err
		}
		if err := checkLen(t, "upload", u.ID, MaxUpload); err != nil {
			return err
		}
	}
	return nil
}

func appendTraits(b []byte, v *Values) []byte {
	t := &v.Store
	b = str(str(str(b, t.Name), t.Rule), t.Root)
	b = u64(u64(u64(u64(u64(b, t.Put), t.Object), t.PartLeast), t.PartAlign), t.PartMost)
	return u32(u32(u32(u32(b, t.Parts), t.List), t.Batch), t.Meta)
}

func decodeTraits(s *scan, v *Values) {
	v.Store = StoreTraits{s.str(), s.str(), s.str(), s.u64(), s.u64(), s.u64(), s.u64(), s.u64(), s.u32(), s.u32(), s.u32(), s.u32()}
}

func checkTraits(t Type, v *Values) error {
	m := &v.Store
	for _, n := range []uint64{m.Put, m.Object, m.PartLeast, m.PartAlign, m.PartMost} {
		if err := checkSize(t, "limit", n); err != nil {
			return err
		}
	}
	switch {
	case !utf8.ValidString(m.Name) || !utf8.ValidString(m.Rule):
		return protocol(t, "name or rule is not UTF-8")
	case len(m.Name) > MaxText || len(m.Rule) > MaxName || len(m.Root) > MaxKey:
		return protocol(t, "name, rule or root of %d, %d and %d bytes", len(m.Name), len(m.Rule), len(m.Root))
	case m.List == 0 || m.List > MaxPage || m.Batch == 0 || m.Batch > MaxPage || m.Parts > MaxParts:
		return protocol(t, "pages of %d and %d keys, %d parts", m.List, m.Batch, m.Parts)
	}
	return nil
}
