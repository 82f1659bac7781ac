package catalog

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
)

// Prints is a flow's file of the prints of its target's pages, 8 bytes for each, at 8 times the page's number; 0: not known. It is never synced and may be
// stale: what it says is checked before use. A nil *Prints knows nothing. Safe for concurrent use.
type Prints struct {
	file *os.File
	room func() bool
	full atomic.Bool // a write has failed
}

// OpenPrints opens the file at path, or makes it. Nothing is written to it while the state disk has no room for more of the index.
func (x *Index) OpenPrints(path string) (*Prints, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the prints of pages: %w", err)
	}
	return &Prints{file: f, room: x.room}, nil
}

// Put tells that the pages from first have these prints.
func (p *Prints) Put(first int64, prints []uint64) {
	if p == nil || p.full.Load() || !p.room() {
		return
	}
	b := make([]byte, 0, 8*len(prints))
	for _, v := range prints {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	if _, err := p.file.WriteAt(b, 8*first); err != nil {
		p.full.Store(true)
	}
}

// Get fills prints with those of the pages from first; 0 for what is not known.
func (p *Prints) Get(first int64, prints []uint64) {
	clear(prints)
	if p == nil || first < 0 {
		return
	}
	b := make([]byte, 8*len(prints))
	n, _ := p.file.ReadAt(b, 8*first)
	for i := range n / 8 {
		prints[i] = binary.BigEndian.Uint64(b[8*i:])
	}
}

// Close closes the file.
func (p *Prints) Close() error {
	if p == nil {
		return nil
	}
	return p.file.Close()
}
