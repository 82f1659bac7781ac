package chunker

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/moverd/mover/internal/digest"
)

var errWrite = errors.New("write digest table")

// flush writes what has changed: first it withdraws the claim to digests of groups whose leaves are about to change, then it writes
// digests of leaves, records, digests of groups, and rows, in this order: what makes a claim comes after what it is about. So the
// file never claims for a leaf what it had not since the last flush, and leaves that did not change keep what they have, whichever
// write is the last. After an error everything that is not written yet stays in memory.
//
// With PowerCut that stays true when the disk reorders. Records that make leaves known are written twice, first with these leaves
// unknown; a barrier stands before the second time and before the rows, unless nothing became known and no group got its first pages
// (later pages of a group hold the same as before for the leaves that did not change).
func (s *shard) flush() error {
	born, err := s.writePages()
	if err != nil {
		return err
	}
	if born {
		if err := s.t.datasync(); err != nil {
			return err
		}
	}
	return s.writeRows()
}

// writePages is the first part of flush; born tells that the barrier is needed.
func (s *shard) writePages() (born bool, err error) {
	if s.held {
		return false, nil
	}
	for _, no := range s.queue {
		n := &s.t.nodes[no]
		if n.each != nil && n.each.anyRisky() {
			if claims, changed := n.each.doubt(); changed {
				if err := s.writeRow(no, &node{each: &groups{state: claims}}); err != nil {
					return false, err
				}
				n.each.file = claims
			}
		}
		born = born || s.t.powerCut && n.born()
	}
	if err := s.cache.write(s.t.leafPage(0)); err != nil {
		return false, err
	}
	if err := s.writeRecords(); err != nil {
		return false, err
	}
	return born || len(s.grown) > 0, s.writeSums()
}

// writeRecords writes records, as if the leaves in grown were unknown still; what it hides remains to be written.
func (s *shard) writeRecords() error {
	truth := make(map[int64]record, len(s.grown))
	for g, hide := range s.grown {
		p := s.cache.pages[s.t.recordPage(g)] // still there, as it is dirty
		var r record
		r.decode(p.buf[recordAt(g):])
		truth[g] = r
		for i := range hide {
			r.unknown[i] |= hide[i]
		}
		r.encode(p.buf[recordAt(g):])
	}
	err := s.cache.write(0)
	for g, r := range truth {
		s.putRecord(s.cache.pages[s.t.recordPage(g)], recordAt(g), &r)
	}
	return err
}

// writeRows is the last part of flush.
func (s *shard) writeRows() error {
	if s.held {
		return nil
	}
	if err := s.cache.write(0); err != nil {
		return err
	}
	clear(s.grown)
	s.cache.shrink()
	for i, no := range s.queue {
		n := &s.t.nodes[no]
		if err := s.writeRow(no, n); err != nil {
			s.queue = append(s.queue[:0], s.queue[i:]...)
			return err
		}
		n.changed = false
		if n.each != nil {
			clear(n.each.risky[:])
			n.each.file = n.each.state
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

// writeRow writes the states of n as the row of node no.
func (s *shard) writeRow(no int64, n *node) error {
	var b [rowSize]byte
	n.row(&b, s.t.groupsOf(no))
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
	for g := no * fanOut; g < (no+1)*fanOut; g++ {
		delete(s.sums, g)
		delete(s.grown, g)
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
