package chunker

import (
	"errors"

	"github.com/moverd/mover/internal/digest"
)

var errHole = errors.New("a digest that should be known is missing")

// groupSum is the digest of group g; ok is false when one of its leaves is unknown.
func (s *shard) groupSum(g int64) (d digest.Digest, ok bool, err error) {
	switch st := s.state(g); st {
	case allUnknown, partial:
		return digest.Unknown, false, nil
	case stale:
		d, err = s.finish(g)
		return d, err == nil, err
	case known:
		if err := s.room(1); err != nil {
			return digest.Unknown, false, err
		}
		_, at, err := s.digestAt(g)
		if err != nil {
			return digest.Unknown, false, err
		}
		return *at, true, nil
	default:
		return s.t.uniformSum(g, st), true, nil
	}
}

// finish computes and stores the digest of group g, which is stale.
func (s *shard) finish(g int64) (digest.Digest, error) {
	if err := s.room(2); err != nil {
		return digest.Unknown, err
	}
	p, err := s.leafPage(g, false)
	if err != nil {
		return digest.Unknown, err
	}
	ds := leavesIn(p)[:s.t.leavesOf(g)]
	if st, ok := s.t.uniformly(g, ds); ok && st != allUnknown {
		return s.t.uniformSum(g, st), s.setUniform(g, st)
	}
	d, ok := groupDigest(ds)
	if !ok {
		return d, errHole
	}
	if err := s.putDigest(g, d); err != nil {
		return d, err
	}
	s.put(g, known, true)
	return d, nil
}

// nodeSum brings the digest of node no up to date; ok is false when a leaf below is unknown.
func (s *shard) nodeSum(no int64) (d digest.Digest, ok bool) {
	n, count := &s.t.nodes[no], s.t.groupsOf(no)
	if !n.stale {
		return n.digest, true
	}
	for i := range count {
		if st := n.state(i); st == allUnknown || st == partial {
			return digest.Unknown, false
		} else if n.each == nil {
			break
		}
	}
	if n.each == nil && count == fanOut && !n.all.mixed() && no != s.t.nodeCount-1 {
		n.digest = s.t.uniformNodes[n.all]
		n.stale = false
		return n.digest, true
	}
	var ds [fanOut]digest.Digest
	for i := range count {
		g := no*fanOut + int64(i)
		d, ok, err := s.groupSum(g)
		if err != nil {
			s.fail(g, err)
		}
		if !ok {
			return digest.Unknown, false
		}
		ds[i] = d
	}
	n.digest = nodeDigest(ds[:count])
	n.stale = false
	return n.digest, true
}

// countNode makes the counts of node no right.
func (s *shard) countNode(no int64) error {
	n, count := &s.t.nodes[no], s.t.groupsOf(no)
	if n.counted {
		return nil
	}
	if n.each == nil && !n.all.mixed() {
		s.countUniform(no)
		return nil
	}
	n.known, n.free = 0, 0
	for i := range count {
		g := no*fanOut + int64(i)
		leaves := s.t.leavesOf(g)
		r := uniformRecord(n.state(i), leaves)
		if n.state(i).mixed() {
			if err := s.room(1); err != nil {
				return err
			}
			var err error
			if _, _, r, err = s.record(g); err != nil {
				return err
			}
		}
		n.known += int32(leaves - r.unknown.count())
		n.free += int32(r.free.count())
	}
	n.counted = true
	return nil
}

func (s *shard) countUniform(no int64) {
	n := &s.t.nodes[no]
	n.known, n.free, n.counted = 0, 0, true
	if n.all != allUnknown {
		n.known = int32(s.t.leavesUnder(no))
	}
	if n.all == allFree {
		n.free = n.known
	}
}
