package chunker

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/moverd/mover/internal/digest"
)

var errWrite = errors.New("write digest table")

// flush writes what has changed in an order that never lets the file claim a digest that was not set: first the rows of groups
// whose pages are about to change say unknown, then the pages are written, then the rows tell the truth. A kill
// between costs digests, never truth. After an error everything that is not written yet stays in memory.
func (s *shard) flush() error {
	if s.held {
		return nil
	}
	for _, no := range s.queue {
		if n := &s.t.nodes[no]; n.each != nil && n.each.anyRisky() {
			if err := s.writeRow(no, true); err != nil {
				return err
			}
		}
	}
	if err := s.cache.write(); err != nil {
		return err
	}
	if err := s.writeSums(); err != nil {
		return err
	}
	for i, no := range s.queue {
		if err := s.writeRow(no, false); err != nil {
			s.queue = append(s.queue[:0], s.queue[i:]...)
			return err
		}
		n := &s.t.nodes[no]
		n.changed = false
		if n.each != nil {
			clear(n.each.risky[:])
			n.compact(s.t.groupsOf(no))
		}
		if n.punch {
			n.punch = false
			s.punch(no)
		}
	}
	s.queue = s.queue[:0]
	return nil
}

// writeSums writes digests of groups, adjacent ones together.
func (s *shard) writeSums() error {
	list := slices.Sorted(maps.Keys(s.sums))
	var buf [pageSize]byte
	for len(list) > 0 {
		n := 0
		for ; n < len(list) && n < fanOut && list[n] == list[0]+int64(n); n++ {
			d := s.sums[list[n]]
			copy(buf[n*digest.Size:], d[:])
			if p := s.cache.pages[s.t.digestPage(list[n])]; p != nil {
				digestsIn(p.buf)[list[n]%fanOut] = d
			}
		}
		if _, err := s.t.file.WriteAt(buf[:n*digest.Size], s.t.digests+list[0]*digest.Size); err != nil {
			return fmt.Errorf("%w: %w", errWrite, err)
		}
		for _, g := range list[:n] {
			delete(s.sums, g)
		}
		list = list[n:]
	}
	return nil
}

func (s *shard) writeRow(no int64, weak bool) error {
	var b [rowSize]byte
	s.t.nodes[no].row(&b, s.t.groupsOf(no), weak)
	if _, err := s.t.file.WriteAt(b[:], s.t.rows+no*rowSize); err != nil {
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}

// fillNode gives every leaf below node no the same special digest.
func (s *shard) fillNode(no int64, st state) {
	n := &s.t.nodes[no]
	if n.each == nil && n.all == st {
		return
	}
	count := s.t.groupsOf(no)
	mixed := false
	for i := 0; i < count && !mixed; i++ {
		mixed = n.state(i).mixed()
	}
	if mixed {
		s.dropPages(no)
		n.punch = true
	}
	s.change(no)
	n.all, n.each = st, nil
	s.countUniform(no)
}

// extents of node no in the file, in pages: records, digests of groups, digests of leaves.
func (s *shard) extents(no int64) [3][2]int64 {
	g, t := no*fanOut, s.t
	return [3][2]int64{
		{t.recordPage(g), t.recordPage(g + fanOut)},
		{t.digestPage(g), t.digestPage(g + fanOut)},
		{t.leafPage(g), t.leafPage(g + int64(t.groupsOf(no)))},
	}
}

func (s *shard) dropPages(no int64) {
	for _, e := range s.extents(no) {
		s.cache.drop(e[0], e[1])
	}
	for g := no * fanOut; g < (no+1)*fanOut && len(s.sums) > 0; g++ {
		delete(s.sums, g)
	}
}

// punch gives the space of node no's pages back to the filesystem, if no group needs them. It is no loss if that is not possible.
func (s *shard) punch(no int64) {
	n := &s.t.nodes[no]
	for i := range s.t.groupsOf(no) {
		if n.state(i).mixed() {
			return
		}
	}
	for _, e := range s.extents(no) {
		if err := s.t.file.punch(e[0]*pageSize, (e[1]-e[0])*pageSize); err != nil {
			s.t.note(err)
			return
		}
	}
}
