package chunker

import "github.com/cespare/xxhash/v2"

// PageSize is what is looked for inside of leaves that nobody has as a whole; LeafPages are the pages of a leaf. Most filesystems place files at multiples of
// it, so the same file lies on other offsets of the grid of leaves on another host.
const (
	PageSize  = 4 << 10
	LeafPages = LeafSize / PageSize
)

// Print is what a page is looked up by: a hint and no proof. Anybody can make two pages with one print, so whoever uses what was found by it has to digest it.
func Print(page []byte) uint64 { return xxhash.Sum64(page) }

// ZeroPrint is the print of a page of zeros.
var ZeroPrint = Print(zeros[:PageSize])

// Prints appends the print of each page of buf to out; the last page may be short. It does not allocate when out has room.
func Prints(buf []byte, out []uint64) []uint64 {
	for len(buf) > 0 {
		n := min(PageSize, len(buf))
		out = append(out, Print(buf[:n]))
		buf = buf[n:]
	}
	return out
}
