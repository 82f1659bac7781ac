package bench

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/digest"
)

// stageLimits are what each stage of a pass can do on this machine, in plain bytes of the volume a second: read and write of the device by as many
// readers as the source has, the others of one core.
type stageLimits struct {
	read, write                   float64
	digest, compress, unpack, tls float64 // tls: of bytes on the wire
	ratio                         float64 // bytes on the wire for each plain byte
}

// cpuCosts are the seconds of cores for each plain byte, of both ends; packed: compressed at the fastest level.
func (s stageLimits) cpuCosts(packed bool) map[string]float64 {
	if !packed {
		return map[string]float64{"digest": 2 / s.digest, "cipher": 2 / s.tls}
	}
	return map[string]float64{"digest": 2 / s.digest, "compress": 1 / s.compress, "decompress": 1 / s.unpack, "cipher": 2 * s.ratio / s.tls}
}

// slowest is the stage that limits a pass on so many cores over a line without a limit, and its limit; compressed or not, whichever is faster.
func (s stageLimits) slowest(cores int) (name string, limit float64) {
	for _, packed := range []bool{false, true} {
		if n, l := s.slowestOf(cores, packed); l > limit {
			name, limit = n, l
		}
	}
	return name, limit
}

func (s stageLimits) slowestOf(cores int, packed bool) (name string, limit float64) {
	costs, sum, dear := s.cpuCosts(packed), 0.0, ""
	for _, stage := range slices.Sorted(maps.Keys(costs)) {
		sum += costs[stage]
		if dear == "" || costs[stage] > costs[dear] {
			dear = stage
		}
	}
	name, limit = "cores, most of them for "+dear, float64(cores)/sum
	if s.read < limit {
		name, limit = "read", s.read
	}
	if s.write < limit {
		name, limit = "write", s.write
	}
	return name, limit
}

// stageTime is how long each stage is measured.
const stageTime = time.Second

// sampled is how much of the volume the stages in memory work on.
const sampled = 64 << 20

// stages measures each stage alone, then a pass with all of them: figure 9.
func (l *Lines) stages(ctx context.Context, until time.Time) error {
	img, err := l.volume(ctx, 0, 0)
	if err != nil {
		return err
	}
	limits, err := l.stageLimits(ctx, img, true)
	if err != nil {
		return err
	}
	var rates []float64
	err = l.repeat(until, func(int) error {
		c, err := l.cross(ctx, img, crossOptions{})
		rates = append(rates, float64(img.Used)/c.secs)
		return err
	})
	if err != nil {
		return err
	}
	cores := runtime.NumCPU()
	name, limit := limits.slowest(cores)
	return errors.Join(l.add("line stages", "whole pass", "bytes in use a second", Median(rates), "B/s"),
		l.add("line stages", "limit of the stages, "+name, fmt.Sprintf("bytes in use a second, %d cores", cores), limit, "B/s"),
		l.add("line stages", "whole pass / limit of the stages", "ratio", Median(rates)/limit, "ratio"))
}

// stageLimits measures; tell: and records.
func (l *Lines) stageLimits(ctx context.Context, img image, tell bool) (s stageLimits, err error) {
	var told []error
	record := func(name string, rate, mallocs float64) {
		if tell {
			told = append(told, l.add("line stages", name, "bytes a second", rate, "B/s"), l.add("line stages", name, "allocations for each MiB", mallocs, "1/MiB"))
		}
	}
	places, err := usedPlaces(img)
	if err != nil {
		return s, err
	}
	s.read, err = l.readStage(ctx, img, places, record)
	if err != nil {
		return s, err
	}
	s.write, err = l.writeStage(ctx, record)
	if err != nil {
		return s, err
	}
	plain, err := sample(img, places)
	if err != nil {
		return s, err
	}
	err = s.inMemory(plain, record)
	return s, errors.Join(append(told, err)...)
}

// inMemory measures the stages that need a core only.
func (s *stageLimits) inMemory(plain []byte, record func(string, float64, float64)) error {
	pieces := slices.Collect(slices.Chunk(plain, chunker.BatchSize))
	sums := make([]digest.Digest, 0, chunker.GroupLeaves)
	rate, mallocs := spin(func(i int) int {
		p := pieces[i%len(pieces)]
		sums = chunker.Digests(p, sums[:0])
		return len(p)
	})
	s.digest = rate
	record("digest, one core", rate, mallocs)

	codec, err := chunker.NewCodec(chunker.CodecConfig{Encoders: 1, Decoders: 1})
	if err != nil {
		return err
	}
	defer codec.Close()
	out := make([]byte, 0, chunker.Bound(chunker.BatchSize))
	packed := make([][]byte, len(pieces))
	var in, made int64
	for level := chunker.Best; level >= chunker.Fastest; level-- { // fastest last: it is what the limit is reckoned with, and what is unpacked
		in, made = 0, 0
		rate, mallocs := spin(func(i int) int {
			p := pieces[i%len(pieces)]
			z, ok := codec.Compress(out[:0], p, level)
			if in += int64(len(p)); ok {
				made += int64(len(z))
			} else {
				made += int64(len(p))
			}
			return len(p)
		})
		s.compress, s.ratio = rate, float64(made)/float64(in)
		record(fmt.Sprintf("compress %s to %.3f, one core", level, s.ratio), rate, mallocs)
	}
	for i, p := range pieces {
		if z, ok := codec.Compress(nil, p, chunker.Fastest); ok {
			packed[i] = z
		}
	}
	buf := make([]byte, 0, chunker.BatchSize)
	var failed error
	s.unpack, mallocs = spin(func(i int) int {
		p := pieces[i%len(pieces)]
		if z := packed[i%len(pieces)]; z != nil {
			if _, err := codec.Decompress(buf[:0], z, len(p)); err != nil {
				failed = err
			}
		}
		return len(p)
	})
	if failed != nil {
		return failed
	}
	record("decompress, one core", s.unpack, mallocs)
	s.tls, mallocs, err = cipherStage(plain)
	record("cipher (AES-128-GCM, records of 16 KiB), one core", s.tls, mallocs)
	return err
}

// spin calls do for stageTime; do tells how many bytes it did.
func spin(do func(i int) int) (rate, mallocs float64) {
	do(0)
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	start, n := time.Now(), 0
	for i := 0; time.Since(start) < stageTime; i++ {
		n += do(i)
	}
	secs := time.Since(start).Seconds()
	runtime.ReadMemStats(&b)
	return float64(n) / secs, float64(b.Mallocs-a.Mallocs) / (float64(n) / (1 << 20))
}

func cipherStage(plain []byte) (rate, mallocs float64, err error) {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		return 0, 0, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return 0, 0, err
	}
	const record = 16 << 10
	out, nonce := make([]byte, 0, record+aead.Overhead()), make([]byte, aead.NonceSize())
	rate, mallocs = spin(func(i int) int {
		at := i % (len(plain) / record) * record
		aead.Seal(out, nonce, plain[at:at+record], nil)
		return record
	})
	return rate, mallocs, nil
}

// usedPlaces are the groups of an image that lie in its data.
func usedPlaces(img image) ([]int64, error) {
	f, err := os.Open(img.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []int64
	for off := int64(0); ; {
		at, err := f.Seek(off, unix.SEEK_DATA)
		if err != nil {
			break // no more
		}
		at = at / chunker.BatchSize * chunker.BatchSize
		if at+chunker.BatchSize > img.Size {
			break
		}
		out = append(out, at)
		off = at + chunker.BatchSize
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds nothing", img.Path)
	}
	return out, nil
}

// sample reads evenly spread groups.
func sample(img image, places []int64) ([]byte, error) {
	f, err := os.Open(img.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := min(len(places), sampled/chunker.BatchSize)
	out := make([]byte, n*chunker.BatchSize)
	for i := range n {
		if _, err := f.ReadAt(out[i*chunker.BatchSize:(i+1)*chunker.BatchSize], places[i*len(places)/n]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readers of a device at a time, as many as the source has.
const readers = 4

// readStage reads the groups in use through a loop device as the source does.
func (l *Lines) readStage(ctx context.Context, img image, places []int64, record func(string, float64, float64)) (rate float64, err error) {
	r, err := NewRig(ctx, l.Bin, RigOptions{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := cold(img.Path); err != nil {
		return 0, err
	}
	dev, err := r.attach(ctx, img.Path)
	if err != nil {
		return 0, err
	}
	v, err := disk.OpenVolume(dev)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	rate, mallocs, err := parallel(func(i int64, buf []byte) (int, error) { return v.ReadAt(buf, places[i%int64(len(places))]) })
	record(fmt.Sprintf("read, %d at a time", readers), rate, mallocs)
	return rate, err
}

// writeStage writes groups into a new image as the gateway does, to the end of the sync.
func (l *Lines) writeStage(_ context.Context, record func(string, float64, float64)) (rate float64, err error) {
	path := filepath.Join(l.Work, "stage.img")
	const size = 64 << 30 // a hole; what is written in the time is far less
	t, err := disk.OpenTarget(path, disk.TargetOptions{Size: size, Create: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.Close(), os.Remove(path)) }()
	began := time.Now()
	rate, mallocs, err := parallel(func(i int64, buf []byte) (int, error) {
		if i == 0 || buf[0] == 0 {
			for k := range buf {
				buf[k] = byte(k*7 + 1)
			}
		}
		return t.WriteAt(buf, i*chunker.BatchSize%size)
	})
	if err != nil {
		return 0, err
	}
	bytes := rate * time.Since(began).Seconds()
	if err := t.Sync(); err != nil {
		return 0, err
	}
	rate = bytes / time.Since(began).Seconds()
	record(fmt.Sprintf("write and sync, %d at a time", readers), rate, mallocs)
	return rate, nil
}

// parallel has readers call do with groups for stageTime.
func parallel(do func(i int64, buf []byte) (int, error)) (rate, mallocs float64, err error) {
	pool := buffers.New(chunker.BatchSize, readers*chunker.BatchSize)
	defer pool.Close()
	var next, done atomic.Int64
	errs := make([]error, readers)
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range readers {
		wg.Go(func() {
			buf, err := pool.Get(context.Background())
			if err != nil {
				errs[w] = err
				return
			}
			defer pool.Put(buf)
			for time.Since(start) < stageTime {
				n, err := do(next.Add(1)-1, buf)
				if err != nil {
					errs[w] = err
					return
				}
				done.Add(int64(n))
			}
		})
	}
	wg.Wait()
	secs := time.Since(start).Seconds()
	runtime.ReadMemStats(&b)
	n := float64(done.Load())
	return n / secs, float64(b.Mallocs-a.Mallocs) / max(n/(1<<20), 1), errors.Join(errs...)
}

// cores moves the volume with both daemons on the same few cores: figure 8.
func (l *Lines) cores(ctx context.Context, until time.Time) error {
	img, err := l.volume(ctx, 0, 0)
	if err != nil {
		return err
	}
	limits, err := l.stageLimits(ctx, img, false)
	if err != nil {
		return err
	}
	rates, cpu := map[int][]float64{}, map[int][]float64{}
	err = l.repeat(until, func(int) error {
		for _, n := range l.Cores {
			if n > runtime.NumCPU() {
				continue
			}
			c, err := l.cross(ctx, img, crossOptions{cores: n})
			if err != nil {
				return fmt.Errorf("%d cores: %w", n, err)
			}
			rates[n], cpu[n] = append(rates[n], float64(img.Used)/c.secs), append(cpu[n], c.cpu/c.secs)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range l.Cores {
		if n > runtime.NumCPU() {
			l.say("           %d cores: this machine has %d", n, runtime.NumCPU())
			continue
		}
		name, limit := limits.slowest(n)
		subject := fmt.Sprintf("mover, both ends on %d cores", n)
		err = errors.Join(err, l.add("line cores", subject, "median bytes in use a second", Median(rates[n]), "B/s"), l.add("line cores", subject, "cores busy", Median(cpu[n]), "cores"),
			l.add("line cores", subject, "limit of the stages: "+name, limit, "B/s"))
	}
	return err
}
