package cbt

import (
	"errors"
	"iter"
	"math/bits"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
)

// windowWords is how many words of taken are mapped at a time: the bitmaps of a big volume would otherwise count wholly as
// this process's resident memory.
const windowWords = 1 << 17

// leaf is one tracked disk. The lock of its Tracker guards it.
type leaf struct {
	plan   *leafPlan
	st     *leafState
	per    int64 // granules in a word of dirty and of coarse
	dirty  *ebpf.Map
	taken  *ebpf.Map
	coarse []uint64
	cells  []cell
	flight []note
	mems   [][]byte // behind coarse, cells and flight
	stat   *os.File // the kernel's account
}

// openLeaf keeps clones of the maps; the caller closes its own.
func openLeaf(p *plan, lp *leafPlan, maps map[string]*ebpf.Map) (_ *leaf, err error) {
	l := &leaf{plan: lp, per: perWord(p.variant)}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.dirty, err = maps["dirty"].Clone(); err != nil {
		return nil, err
	}
	if l.taken, err = maps["taken"].Clone(); err != nil {
		return nil, err
	}
	if l.coarse, err = mapSlice[uint64](l, maps["coarse"]); err != nil {
		return nil, err
	}
	if l.cells, err = mapSlice[cell](l, maps["cells"]); err != nil {
		return nil, err
	}
	if l.flight, err = mapSlice[note](l, maps["flight"]); err != nil {
		return nil, err
	}
	l.stat, err = os.Open(filepath.Join(lp.disk.dir, "stat"))
	return l, err
}

// mapSlice maps the whole of an array map whose values are T.
func mapSlice[T any](l *leaf, m *ebpf.Map) ([]T, error) {
	var zero T
	if m.ValueSize() != uint32(unsafe.Sizeof(zero)) {
		return nil, errors.New("a pinned map is of another version")
	}
	mem, err := mapMemory(m, 0, int64(m.MaxEntries())*int64(m.ValueSize()))
	if err != nil {
		return nil, err
	}
	l.mems = append(l.mems, mem)
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), m.MaxEntries()), nil
}

func (l *leaf) close() {
	for _, m := range l.mems {
		unix.Munmap(m)
	}
	l.mems, l.coarse, l.cells, l.flight = nil, nil, nil, nil
	if l.dirty != nil {
		l.dirty.Close()
	}
	if l.taken != nil {
		l.taken.Close()
	}
	if l.stat != nil {
		l.stat.Close()
	}
}

// windows maps taken and dirty piece by piece: first is the number of taken[0], and dirty begins with the same granule.
func (l *leaf) windows(f func(first int64, taken, dirty []uint64)) error {
	all := words(l.plan.granules, 64)
	for first := int64(0); first < all; first += windowWords {
		if err := l.window(first, min(windowWords, all-first), f); err != nil {
			return err
		}
	}
	return nil
}

func (l *leaf) window(first, n int64, f func(int64, []uint64, []uint64)) error {
	scale := 64 / l.per
	firstDirty := first * scale
	nDirty := min(n*scale, words(l.plan.granules, l.per)-firstDirty)
	tk, err := mapMemory(l.taken, first*8, n*8)
	if err != nil {
		return err
	}
	defer unix.Munmap(tk)
	d, err := mapMemory(l.dirty, firstDirty*8, nDirty*8)
	if err != nil {
		return err
	}
	defer unix.Munmap(d)
	f(first, unsafe.Slice((*uint64)(unsafe.Pointer(&tk[0])), n), unsafe.Slice((*uint64)(unsafe.Pointer(&d[0])), nDirty))
	return nil
}

// take moves everything dirty into taken and emits taken, 64 granules at a time (C1). A bit is in taken before it is cleared in dirty,
// and only bits that were seen are cleared (C9): a kill between any two instructions loses none.
func (l *leaf) take(emit func(word int64, granules uint64)) error {
	return l.windows(func(first int64, taken, dirty []uint64) {
		l.spread(first, taken)
		if l.per == 64 {
			for i := range taken {
				d := atomic.LoadUint64(&dirty[i])
				tk := taken[i]
				if d|tk == 0 {
					continue
				}
				if d != 0 {
					tk |= d
					atomic.StoreUint64(&taken[i], tk)
					atomic.AndUint64(&dirty[i], ^d)
				}
				emit(first+int64(i), tk)
			}
			return
		}
		for i := range taken {
			part := dirty[i*8 : min(i*8+8, len(dirty))]
			d, seen := gather(part)
			tk := taken[i] | d
			if tk == 0 {
				continue
			}
			if d != 0 {
				atomic.StoreUint64(&taken[i], tk)
				for j := range part {
					if seen[j] != 0 {
						atomic.AndUint64(&part[j], ^seen[j])
					}
				}
			}
			emit(first+int64(i), tk)
		}
	})
}

// noted yields, in bytes of the disk, what writes were issued and not seen complete. They are not put into taken: a note stays until its
// write is marked.
func (l *leaf) noted() iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		for i := range l.flight {
			n := &l.flight[i]
			for issued := atomic.LoadUint64(&n.issued); issued != 0; {
				e := extent.Extent{Off: int64(atomic.LoadUint64(&n.sector)) * 512, Len: int64(atomic.LoadUint32(&n.bytes))}
				again := atomic.LoadUint64(&n.issued)
				if again != issued { // another write took the place while we looked
					issued = again
					continue
				}
				if !yield(e) {
					return
				}
				break
			}
		}
	}
}

// gather turns up to 8 words of bytes into one word of bits; seen is what the bytes were.
func gather(part []uint64) (granules uint64, seen [8]uint64) {
	for j := range part {
		if w := atomic.LoadUint64(&part[j]); w != 0 {
			seen[j] = w
			granules |= w & 0x0101010101010101 * 0x0102040810204080 >> 56 << (8 * j)
		}
	}
	return granules, seen
}

// unitWords is how many words of taken one granule of coarse stands for.
func (l *leaf) unitWords() int64 { return coarseWords * l.per / 64 }

// inCoarse gives the word of coarse, and the mask in it, for unit u.
func (l *leaf) inCoarse(u int64) (*uint64, uint64) {
	width := 64 / l.per
	return &l.coarse[u/l.per], (1<<width - 1) << (u % l.per * width)
}

// spread moves marks of whole units from coarse into a window of taken; the same order as in take.
func (l *leaf) spread(first int64, taken []uint64) {
	per := l.unitWords()
	for at := int64(0); at < int64(len(taken)); at += per {
		word, mask := l.inCoarse((first + at) / per)
		if atomic.LoadUint64(word)&mask == 0 {
			continue
		}
		for i := at; i < min(at+per, int64(len(taken))); i++ {
			atomic.StoreUint64(&taken[i], l.valid(first+i))
		}
		atomic.AndUint64(word, ^mask)
	}
}

// valid has the bits of a word of taken that stand for a granule.
func (l *leaf) valid(word int64) uint64 {
	if n := l.plan.granules - word*64; n < 64 {
		return 1<<n - 1
	}
	return ^uint64(0)
}

// count is how many granules are dirty or taken.
func (l *leaf) count() (n int64, err error) {
	per := l.unitWords()
	err = l.windows(func(first int64, taken, dirty []uint64) {
		for i := range taken {
			at := first + int64(i)
			if word, mask := l.inCoarse(at / per); atomic.LoadUint64(word)&mask != 0 {
				n += int64(bits.OnesCount64(l.valid(at)))
				continue
			}
			d := taken[i]
			if l.per == 64 {
				d |= atomic.LoadUint64(&dirty[i])
			} else {
				g, _ := gather(dirty[i*8 : min(i*8+8, len(dirty))])
				d |= g
			}
			if d != 0 {
				n += int64(bits.OnesCount64(d))
			}
		}
	})
	return n, err
}

// retire empties taken.
func (l *leaf) retire() error {
	return l.windows(func(_ int64, taken, _ []uint64) { zero(taken) })
}

// clear empties everything: only before a rescan.
func (l *leaf) clear() error {
	for i := range l.coarse {
		atomic.StoreUint64(&l.coarse[i], 0)
	}
	return l.windows(func(_ int64, taken, dirty []uint64) {
		zero(taken)
		zero(dirty)
	})
}

func zero(w []uint64) {
	for i := range w {
		if atomic.LoadUint64(&w[i]) != 0 {
			atomic.StoreUint64(&w[i], 0)
		}
	}
}

// marked counts the granules that were marked since the last take, by whole windows.
func (l *leaf) marked() (n int64, err error) {
	per := l.unitWords()
	err = l.windows(func(first int64, taken, dirty []uint64) {
		for i := range taken {
			at := first + int64(i)
			word, mask := l.inCoarse(at / per)
			switch {
			case atomic.LoadUint64(word)&mask != 0:
				n += int64(bits.OnesCount64(l.valid(at)))
			case l.per == 64:
				n += int64(bits.OnesCount64(atomic.LoadUint64(&dirty[i])))
			default:
				g, _ := gather(dirty[i*8 : min(i*8+8, len(dirty))])
				n += int64(bits.OnesCount64(g))
			}
		}
	})
	return n, err
}
