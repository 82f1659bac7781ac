package fsmap

import (
	"encoding/binary"

	"github.com/moverd/mover/extent"
)

// swapHeader is what is kept of a swap area: the header's page, up to the largest page there is.
const swapHeader = 64 << 10

// swapPage finds the size of the page that ends with sig, or 0.
func swapPage(b []byte, sig string) int64 {
	for page := 4096; page <= swapHeader && page <= len(b); page *= 2 {
		if string(b[page-10:][:len(sig)]) == sig {
			return int64(page)
		}
	}
	return 0
}

func isSwap(b []byte) bool { return swapPage(b, "SWAPSPACE2") > 0 }

// swapFree calls all pages behind the header free. A hibernation image has another signature (S1SUSPEND) in the same place and is in use.
func swapFree(d *disk, b []byte, free func(extent.Extent) error) error {
	page := swapPage(b, "SWAPSPACE2")
	if v := binary.LittleEndian.Uint32(b[1024:]); v != 1 {
		return unsure("swap header of version %d", v)
	}
	end := min(d.size, (int64(binary.LittleEndian.Uint32(b[1028:]))+1)*page)
	if end <= swapHeader {
		return nil
	}
	return free(extent.Extent{Off: swapHeader, Len: end - swapHeader})
}
