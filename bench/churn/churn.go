package churn

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config of a churn. Exactly one of Dir and Device is set.
type Config struct {
	Dir       string // a folder on the filesystem under test
	Device    string // or a block device without one
	Ledger    string // file for acknowledged writes; it must lie on another filesystem
	Seed      uint64
	Threads   int   // 0: 2
	FileSize  int64 // bytes each thread plays on; 0: 8 MiB
	Rate      int64 // bytes/s of all threads; 0: as fast as it goes
	DirectMix bool  // only 4 KiB O_DIRECT writes at random places
}

// Stats of a churn.
type Stats struct {
	Ops, Bytes, Errors int64
}

const (
	slotSize   = 4096
	slots      = 64        // slots of each thread, the part of its play that the ledger covers
	tainted    = 1 << 63   // ledger bit: a write of this slot failed, so its content is open
	ledgerSize = 64 * 1024 // bytes, enough for 128 threads
)

// Run writes until ctx ends. Failing writes are counted, not fatal: the disk under test may be made to fail.
func Run(ctx context.Context, c Config) (Stats, error) {
	if c.Threads == 0 {
		c.Threads = 2
	}
	if c.FileSize == 0 {
		c.FileSize = 8 << 20
	}
	ledger, err := openLedger(c.Ledger)
	if err != nil {
		return Stats{}, err
	}
	var ops, bytes, errs atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, c.Threads)
	start := time.Now()
	for t := range c.Threads {
		p, err := newPlayer(c, t, ledger[t*slots:(t+1)*slots])
		if err != nil {
			return Stats{}, err
		}
		wg.Go(func() {
			defer p.close()
			for ctx.Err() == nil {
				n, err := p.step()
				if err != nil && !tolerable(err) {
					failed <- fmt.Errorf("churn thread %d: %w", t, err)
					return
				} else if err != nil {
					errs.Add(1)
				}
				ops.Add(1)
				total := bytes.Add(int64(n))
				if c.Rate > 0 {
					ahead := time.Duration(float64(total)/float64(c.Rate)*float64(time.Second)) - time.Since(start)
					if ahead > time.Millisecond {
						select {
						case <-ctx.Done():
						case <-time.After(ahead):
						}
					}
				}
			}
		})
	}
	wg.Wait()
	st := Stats{ops.Load(), bytes.Load(), errs.Load()}
	select {
	case err := <-failed:
		return st, err
	default:
		return st, nil
	}
}

// tolerable errors are those of a disk that fails or is full on purpose.
func tolerable(err error) bool {
	for _, e := range []error{unix.EIO, unix.ENOSPC, unix.EROFS, unix.EOPNOTSUPP, unix.EDQUOT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func openLedger(path string) ([]uint64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(ledgerSize); err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, ledgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&m[0])), ledgerSize/8), nil
}

// player is one writing thread: it owns slots, and a file (or a stretch of the device) to play on.
type player struct {
	c      Config
	id     uint64
	rng    *rand.Rand
	ledger []uint64
	seq    uint64
	buf    []byte // aligned, 256 KiB

	slotFile *os.File
	slotOff  int64
	direct   *os.File // the play area through O_DIRECT
	buffered *os.File // and through the page cache
	off      int64    // of the play area in its file
	size     int64
	path     string
}

func newPlayer(c Config, t int, ledger []uint64) (*player, error) {
	buf, err := unix.Mmap(-1, 0, 256<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	p := &player{c: c, id: c.Seed<<8 | uint64(t), rng: rand.New(rand.NewPCG(c.Seed, uint64(t))), ledger: ledger, buf: buf, size: c.FileSize}
	for _, s := range ledger { // a restarted writer goes on above what it wrote before
		p.seq = max(p.seq, s&^tainted)
	}
	p.seq += 1 << 20
	slotPath := c.Device
	if c.Dir != "" {
		slotPath = filepath.Join(c.Dir, fmt.Sprintf("slots-%d", t))
		p.path = filepath.Join(c.Dir, fmt.Sprintf("play-%d", t))
	} else {
		p.path = c.Device
		share := int64(slots*slotSize) + c.FileSize
		p.slotOff, p.off = int64(t)*share, int64(t)*share+slots*slotSize
	}
	if p.slotFile, err = os.OpenFile(slotPath, os.O_RDWR|p.create()|unix.O_DIRECT|unix.O_DSYNC, 0o600); err != nil {
		return nil, err
	}
	return p, p.open()
}

func (p *player) create() int {
	if p.c.Dir != "" {
		return os.O_CREATE
	}
	return 0
}

func (p *player) open() (err error) {
	if p.direct, err = os.OpenFile(p.path, os.O_RDWR|p.create()|unix.O_DIRECT, 0o600); err != nil {
		return err
	}
	p.buffered, err = os.OpenFile(p.path, os.O_RDWR, 0)
	return err
}

func (p *player) close() {
	for _, f := range []*os.File{p.slotFile, p.direct, p.buffered} {
		if f != nil {
			f.Close()
		}
	}
	unix.Munmap(p.buf)
}

// step does one write of a random kind and returns its bytes.
func (p *player) step() (int, error) {
	if p.c.DirectMix {
		return p.write(p.direct, 4096)
	}
	kind := p.rng.IntN(100)
	switch {
	case kind < 30:
		return p.slot()
	case kind < 50:
		return p.write(p.direct, 4096<<p.rng.IntN(6))
	case kind < 70:
		n, err := p.write(p.buffered, 512*(1+p.rng.IntN(128)))
		if err == nil && p.rng.IntN(4) == 0 {
			err = unix.Fdatasync(int(p.buffered.Fd()))
		}
		return n, err
	}
	if p.c.Device != "" {
		return p.device(kind)
	}
	return p.file(kind)
}

// slot writes one slot durably and then says so in the ledger.
func (p *player) slot() (int, error) {
	i := p.rng.IntN(slots)
	b := p.fill(slotSize, int64(i*slotSize))
	if _, err := p.slotFile.WriteAt(b, p.slotOff+int64(i*slotSize)); err != nil {
		atomic.OrUint64(&p.ledger[i], tainted)
		return 0, err
	}
	atomic.StoreUint64(&p.ledger[i], p.seq)
	return slotSize, nil
}

func (p *player) fill(n int, pos int64) []byte {
	p.seq++
	Fill(p.buf[:n], p.id, p.seq, pos)
	return p.buf[:n]
}

// place picks an aligned place for n bytes in the play area.
func (p *player) place(n int, align int64) int64 {
	return p.rng.Int64N((p.size-int64(n))/align+1) * align
}

func (p *player) write(f *os.File, n int) (int, error) {
	align := int64(4096)
	if f == p.buffered {
		align = SectorSize
	}
	at := p.place(n, align)
	return f.WriteAt(p.fill(n, at), p.off+at)
}

// device does what only block devices do. Discards are followed by nothing: what they leave is the device's choice, and is compared as such.
func (p *player) device(kind int) (int, error) {
	n := 4096 << p.rng.IntN(6)
	rng := [2]uint64{uint64(p.off + p.place(n, 4096)), uint64(n)}
	req := uintptr(unix.BLKDISCARD)
	if kind < 85 {
		req = unix.BLKZEROOUT
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, p.buffered.Fd(), req, uintptr(unsafe.Pointer(&rng))); e != 0 {
		return 0, e
	}
	return n, nil
}

// file does what only filesystems do.
func (p *player) file(kind int) (int, error) {
	n := 4096 << p.rng.IntN(6)
	at := p.place(n, 4096)
	fd := int(p.buffered.Fd())
	switch {
	case kind < 78:
		return p.mmap(at, n)
	case kind < 82:
		return n, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, at, int64(n))
	case kind < 86:
		return n, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(n))
	case kind < 89:
		return n, unix.Fallocate(fd, 0, at, int64(n))
	case kind < 92:
		return 0, p.buffered.Truncate(at + int64(n))
	case kind < 96:
		return p.replace()
	case kind < 98:
		return 0, unix.Syncfs(fd)
	}
	return p.small()
}

// mmap stores through a shared mapping; the kernel writes it whenever it likes.
func (p *player) mmap(at int64, n int) (int, error) {
	if st, err := p.buffered.Stat(); err != nil {
		return 0, err
	} else if st.Size() < at+int64(n) { // a store behind the end would be a SIGBUS
		if err := p.buffered.Truncate(p.size); err != nil {
			return 0, err
		}
	}
	// Allocated first: a store that finds no space is a SIGBUS as well.
	if err := unix.Fallocate(int(p.buffered.Fd()), 0, at, int64(n)); err != nil {
		return 0, err
	}
	m, err := unix.Mmap(int(p.buffered.Fd()), at, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(m)
	copy(m, p.fill(n, at))
	if p.rng.IntN(3) == 0 {
		return n, unix.Msync(m, unix.MS_SYNC)
	}
	return n, nil
}

// replace writes a new file and puts it in the old one's place, as editors and databases do.
func (p *player) replace() (int, error) {
	p.direct.Close()
	p.buffered.Close()
	if p.rng.IntN(2) == 0 {
		if err := os.Remove(p.path); err != nil {
			return 0, errors.Join(err, p.open())
		}
		return 0, p.open()
	}
	n := 4096 * (1 + p.rng.IntN(16))
	tmp := p.path + ".new"
	err := os.WriteFile(tmp, p.fill(n, 0), 0o600)
	if err == nil {
		err = os.Rename(tmp, p.path)
	}
	return n, errors.Join(err, p.open())
}

// small makes and unlinks small files, for the sake of metadata.
func (p *player) small() (int, error) {
	for i := range 8 {
		name := fmt.Sprintf("%s.%d", p.path, i)
		if p.rng.IntN(2) == 0 {
			if err := os.WriteFile(name, p.fill(1024, 0), 0o600); err != nil {
				return 0, err
			}
		} else if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
	}
	return 4096, nil
}

// Check compares what a copy holds with what the ledger says was acknowledged: every slot must describe itself and be at
// least as new as the ledger. It returns how many slots were checked.
func Check(c Config) (int, error) {
	if c.Threads == 0 {
		c.Threads = 2
	}
	if c.FileSize == 0 {
		c.FileSize = 8 << 20
	}
	ledger, err := openLedger(c.Ledger)
	if err != nil {
		return 0, err
	}
	checked := 0
	for t := range c.Threads {
		path, off := c.Device, int64(t)*(int64(slots*slotSize)+c.FileSize)
		if c.Dir != "" {
			path, off = filepath.Join(c.Dir, fmt.Sprintf("slots-%d", t)), 0
		}
		f, err := os.Open(path)
		if err != nil {
			return checked, err
		}
		for i := range slots {
			want := ledger[t*slots+i]
			if want == 0 || want&tainted != 0 {
				continue
			}
			if err := checkSlot(f, off, i, c.Seed<<8|uint64(t), want); err != nil {
				f.Close()
				return checked, fmt.Errorf("%s slot %d: %w", path, i, err)
			}
			checked++
		}
		f.Close()
	}
	return checked, nil
}

func checkSlot(f *os.File, off int64, i int, writer, want uint64) error {
	b := make([]byte, slotSize)
	if _, err := f.ReadAt(b, off+int64(i*slotSize)); err != nil {
		return err
	}
	for s := 0; s < slotSize; s += SectorSize {
		d, ok := Parse(b[s:])
		switch {
		case !ok:
			return fmt.Errorf("sector %d is torn or foreign; write %d was acknowledged", s/SectorSize, want)
		case d.Writer != writer || d.Pos != int64(i*slotSize+s):
			return fmt.Errorf("sector %d is misplaced: %v", s/SectorSize, d)
		case d.Seq < want:
			return fmt.Errorf("sector %d is write %d, but write %d was acknowledged: a lost write", s/SectorSize, d.Seq, want)
		}
	}
	return nil
}
