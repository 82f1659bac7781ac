package catalog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// logMagic is the first 8 bytes of a log; the last is the version.
const logMagic = "MVREDO\x00\x01"

// Head is the header of a log: which pass it belongs to and what that builds on.
type Head struct {
	Flow           string
	Pass           blockdev.ID
	Kind           mover.PassKind
	Consistency    mover.Consistency
	Mode           mover.Mode // at the beginning; RecSwitch changes it
	Generation     blockdev.ID
	Epoch          uint64
	BaseGeneration blockdev.ID
	BaseEpoch      uint64
	VolumeSize     int64
	Began          time.Time
	nonce          uint64
}

func (h *Head) append(b []byte) []byte {
	b = append(b, logMagic...)
	b = binary.BigEndian.AppendUint64(b, h.nonce)
	b = append(b, byte(h.Kind), byte(h.Consistency), byte(h.Mode), 0)
	b = append(b, h.Pass[:]...)
	b = append(b, h.Generation[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Epoch)
	b = append(b, h.BaseGeneration[:]...)
	b = binary.BigEndian.AppendUint64(b, h.BaseEpoch)
	b = binary.BigEndian.AppendUint64(b, uint64(h.VolumeSize))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Began.UnixNano()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Flow)))
	b = append(b, h.Flow...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decode reads a header and returns its checksum. ok is false for anything but a whole header of this version.
func (h *Head) decode(b []byte) (crc uint32, ok bool) {
	d := decoder{b: b}
	if string(d.take(len(logMagic))) != logMagic {
		return 0, false
	}
	*h = Head{nonce: d.u64(), Kind: mover.PassKind(d.byte()), Consistency: mover.Consistency(d.byte()), Mode: mover.Mode(d.byte())}
	d.byte()
	h.Pass = blockdev.ID(d.take(16))
	h.Generation = blockdev.ID(d.take(16))
	h.Epoch = d.u64()
	h.BaseGeneration = blockdev.ID(d.take(16))
	h.BaseEpoch = d.u64()
	h.VolumeSize = int64(d.u64())
	h.Began = time.Unix(0, int64(d.u64())).UTC()
	hi, lo := d.byte(), d.byte()
	h.Flow = string(d.take(int(hi)<<8 | int(lo)))
	n := len(b) - len(d.b)
	crc = d.u32()
	return crc, !d.bad && crc == crc32.Checksum(b[:n], castagnoli)
}

func appendRecHeader(b []byte, r Rec, ref Ref, prev uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, recMagic)
	flags := byte(0)
	if r.Final {
		flags = 1
	}
	b = append(b, byte(r.Kind), flags)
	b = binary.BigEndian.AppendUint16(b, r.Attempt)
	b = binary.BigEndian.AppendUint32(b, r.Seq)
	b = binary.BigEndian.AppendUint32(b, ref.Meta)
	b = binary.BigEndian.AppendUint32(b, ref.Payload)
	b = binary.BigEndian.AppendUint32(b, ref.crc)
	b = binary.BigEndian.AppendUint32(b, prev)
	crc := crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, r.Meta)
	return binary.BigEndian.AppendUint32(b, crc)
}

// OpenLog reads the log at path after a restart, calls visit for every record up to the first one that is torn, and continues
// behind it. There is no log: nil, nil.
func OpenLog(path string, o LogOptions, visit func(Rec, Ref) error) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the redo log: %w", err)
	}
	l := &Log{path: path, dir: filepath.Dir(path), f: f, opt: o.withDefaults(), end: logHeader}
	ok, err := l.scan(visit)
	if err == nil && ok {
		// What was found may not have reached the disk: it is acked from now on.
		l.durable = 0
		err = l.Sync()
	}
	if err != nil || !ok {
		f.Close()
		return nil, err
	}
	return l, nil
}

func (l *Log) scan(visit func(Rec, Ref) error) (bool, error) {
	st, err := l.f.Stat()
	if err != nil {
		return false, err
	}
	l.alloc = st.Size()
	r := bufio.NewReaderSize(io.NewSectionReader(l.f, 0, st.Size()), 1<<20)
	head := make([]byte, logHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return false, ignoreEOF(err)
	}
	crc, ok := l.Head.decode(head)
	if !ok {
		return false, nil
	}
	l.crc = crc
	h := make([]byte, recHeader)
	for {
		if _, err := io.ReadFull(r, h); err != nil {
			return true, ignoreEOF(err)
		}
		rec, ref, ok := l.parse(h)
		if !ok {
			return true, nil
		}
		if ok, err = readBody(r, h, &rec, ref); err != nil || !ok {
			return true, err
		}
		if err := visit(rec, ref); err != nil {
			return true, fmt.Errorf("redo log: record at %d: %w", ref.Off, err)
		}
		l.crc = binary.BigEndian.Uint32(h[recHeader-4:])
		l.end += int64(recHeader) + int64(ref.Meta) + int64(ref.Payload)
	}
}

// parse reads a record header that should stand at l.end.
func (l *Log) parse(h []byte) (Rec, Ref, bool) {
	d := decoder{b: h}
	magic, kind, flags := d.u32(), d.byte(), d.byte()
	hi, lo := d.byte(), d.byte()
	r := Rec{Kind: RecKind(kind), Final: flags == 1, Attempt: uint16(hi)<<8 | uint16(lo), Seq: d.u32()}
	ref := Ref{Off: l.end, Meta: d.u32(), Payload: d.u32(), crc: d.u32()}
	ok := magic == recMagic && d.u32() == l.crc && ref.Meta <= maxMeta && ref.Payload <= maxPayload
	return r, ref, ok
}

// readBody reads and checks meta and payload.
func readBody(r io.Reader, h []byte, rec *Rec, ref Ref) (bool, error) {
	rec.Meta = make([]byte, ref.Meta)
	if _, err := io.ReadFull(r, rec.Meta); err != nil {
		return false, ignoreEOF(err)
	}
	crc := crc32.Update(crc32.Checksum(h[:recHeader-4], castagnoli), castagnoli, rec.Meta)
	if crc != binary.BigEndian.Uint32(h[recHeader-4:]) {
		return false, nil
	}
	sum := crc32.New(castagnoli)
	if _, err := io.CopyN(sum, r, int64(ref.Payload)); err != nil {
		return false, ignoreEOF(err)
	}
	return sum.Sum32() == ref.crc, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("read the redo log: %w: %w", err, sentinel.ErrCorrupt)
}
