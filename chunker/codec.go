package chunker

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/moverd/mover/internal/sentinel"
)

// MaxPlain is the most plain bytes of a batch that a Codec packs or unpacks.
const MaxPlain = BatchSize

// Level is how hard to compress.
type Level uint8

const (
	Off Level = iota
	Fastest
	Default
	Better
	Best
	levels
)

var levelNames = [levels]string{"off", "fastest", "default", "better", "best"}

func (l Level) String() string {
	if l < levels {
		return levelNames[l]
	}
	return fmt.Sprintf("unknown(%d)", uint8(l))
}

// ParseLevel reads a level's name.
func ParseLevel(s string) (Level, error) {
	for i, n := range levelNames {
		if n == s {
			return Level(i), nil
		}
	}
	return Off, fmt.Errorf("compression level %q: one of off, fastest, default, better, best: %w", s, sentinel.ErrUsage)
}

// CodecConfig bounds a Codec's memory. Zero values are defaults.
type CodecConfig struct {
	Encoders int // most encoders over all levels, and so most calls of Compress at a time; default GOMAXPROCS
	Decoders int // the same for Decompress; default GOMAXPROCS
}

// Codec packs batches with zstd: one frame each, content size set, no checksum (C7 has digests). Safe for concurrent use.
type Codec struct {
	cfg CodecConfig
	dec *zstd.Decoder

	mu   sync.Mutex // guards all below
	wait *sync.Cond // signalled when an encoder comes back
	made int        // encoders that exist
	idle [levels][]*zstd.Encoder
}

// NewCodec makes a Codec. Encoders are made when first needed.
func NewCodec(cfg CodecConfig) (*Codec, error) {
	if cfg.Encoders <= 0 {
		cfg.Encoders = runtime.GOMAXPROCS(0)
	}
	if cfg.Decoders <= 0 {
		cfg.Decoders = runtime.GOMAXPROCS(0)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(cfg.Decoders), zstd.WithDecoderMaxMemory(MaxPlain),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make a zstd decoder: %w", err)
	}
	c := &Codec{cfg: cfg, dec: dec}
	c.wait = sync.NewCond(&c.mu)
	return c, nil
}

// Close frees what the codec holds. No call may be under way.
func (c *Codec) Close() { c.dec.Close() }

// leastPacked is the least bytes that are packed: the frames of fewer do not announce their size.
const leastPacked = 256

// Bound is the capacity that dst needs behind its length so that Compress of n bytes does not allocate.
func Bound(n int) int { return n + n>>14 + 64 }

// Compress appends one zstd frame with src to dst. ok is false, and dst comes back as it was, when src does not shrink by at
// least 3 %: send it plain.
func (c *Codec) Compress(dst, src []byte, l Level) (out []byte, ok bool) {
	if l == Off || len(src) < leastPacked {
		return dst, false
	}
	e := c.get(l)
	out = e.EncodeAll(src, dst)
	c.put(l, e)
	if n := len(out) - len(dst); n > len(src)-len(src)*3/100 {
		return dst, false
	}
	return out, true
}

func (c *Codec) get(l Level) *zstd.Encoder {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if e, ok := pop(&c.idle[l]); ok {
			return e
		}
		if c.made < c.cfg.Encoders {
			c.made++
			return c.make(l)
		}
		if c.dropIdle() {
			continue
		}
		c.wait.Wait()
	}
}

// dropIdle gives up an encoder of any level. mu is held.
func (c *Codec) dropIdle() bool {
	for l := range c.idle {
		if _, ok := pop(&c.idle[l]); ok {
			c.made--
			return true
		}
	}
	return false
}

func pop(s *[]*zstd.Encoder) (*zstd.Encoder, bool) {
	n := len(*s) - 1
	if n < 0 {
		return nil, false
	}
	e := (*s)[n]
	(*s)[n] = nil
	*s = (*s)[:n]
	return e, true
}

func (c *Codec) put(l Level, e *zstd.Encoder) {
	c.mu.Lock()
	c.idle[l] = append(c.idle[l], e)
	c.mu.Unlock()
	c.wait.Signal()
}

func (c *Codec) make(l Level) *zstd.Encoder {
	level := [...]zstd.EncoderLevel{Fastest: zstd.SpeedFastest, Default: zstd.SpeedDefault,
		Better: zstd.SpeedBetterCompression, Best: zstd.SpeedBestCompression}[l]
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(MaxPlain), zstd.WithLowerEncoderMem(true)) // no slower where batches come as a whole, and 8 MiB less
	if err != nil {
		panic(fmt.Sprintf("chunker: encoder options: %v", err)) // constants
	}
	return e
}

// Decompress appends the plain bytes of src, one zstd frame of exactly plain bytes, to dst. It does not allocate when dst has
// room for them. Anything else than such a frame is ErrCorrupt.
func (c *Codec) Decompress(dst, src []byte, plain int) ([]byte, error) {
	if plain < 0 || plain > MaxPlain {
		return dst, fmt.Errorf("batch of %d plain bytes, at most %d are allowed: %w", plain, MaxPlain, sentinel.ErrCorrupt)
	}
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return dst, fmt.Errorf("read zstd header: %v: %w", err, sentinel.ErrCorrupt)
	}
	if h.Skippable || !h.HasFCS || h.FrameContentSize != uint64(plain) {
		return dst, fmt.Errorf("zstd frame does not announce %d bytes: %w", plain, sentinel.ErrCorrupt)
	}
	if !oneFrame(src, &h) {
		return dst, fmt.Errorf("zstd frame is cut short or not alone: %w", sentinel.ErrCorrupt)
	}
	at := len(dst)
	if cap(dst)-at < plain {
		dst = append(make([]byte, 0, at+plain), dst...)
	}
	out, err := c.dec.DecodeAll(src, dst[:at:at+plain])
	if err != nil {
		return dst[:at], fmt.Errorf("decompress %d bytes: %v: %w", len(src), err, sentinel.ErrCorrupt)
	}
	if len(out) != at+plain {
		return dst[:at], fmt.Errorf("zstd frame holds %d bytes, %d were announced: %w", len(out)-at, plain, sentinel.ErrCorrupt)
	}
	return out, nil
}

// oneFrame tells whether src is the frame that h heads and nothing else, by walking its blocks.
func oneFrame(src []byte, h *zstd.Header) bool {
	for b := src[h.HeaderSize:]; len(b) >= 3; {
		block := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		last, kind, size := block&1 != 0, block>>1&3, block>>3
		if kind == 1 { // one byte, repeated
			size = 1
		}
		if b = b[3:]; size > len(b) {
			return false
		}
		b = b[size:]
		if last && h.HasCheckSum {
			return len(b) == 4
		} else if last {
			return len(b) == 0
		}
	}
	return false
}
