package chunker

import (
	"slices"

	"github.com/moverd/mover/internal/digest"
)

// forgetHoles records that leaves of group g without a digest are unknown, as a power cut may leave them; the rest of the group stands.
func (s *shard) forgetHoles(g int64, ds []digest.Digest) error {
	for i, d := range ds {
		if d == digest.Unknown {
			if err := s.forget(g, i, i+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// groupSum is the digest of group g; ok is false when one of its leaves is unknown.
func (s *shard) groupSum(g int64) (d digest.Digest, ok bool, err error) {
	switch st := s.state(g); st {
	case allUnknown, partial:
		return digest.Unknown, false, nil
	case stale:
		return s.finish(g)
	case known:
		if d, ok := s.sums[g]; ok {
			return d, true, nil
		}
		b, err := s.view(s.t.digestPage(g), 0)
		if err != nil {
			return digest.Unknown, false, err
		}
		return digestsIn(b)[g%fanOut], true, nil
	default:
		return s.t.uniformSum(g, st), true, nil
	}
}

// finish computes and stores the digest of group g, which is stale.
func (s *shard) finish(g int64) (d digest.Digest, ok bool, err error) {
	if err := s.room(0); err != nil {
		return digest.Unknown, false, err
	}
	b, err := s.view(s.t.leafPage(g), 1)
	if err != nil {
		return digest.Unknown, false, err
	}
	ds := digestsIn(b)[:s.t.leavesOf(g)]
	if st, ok := s.t.uniformly(g, ds); ok && st != allUnknown {
		return s.t.uniformSum(g, st), true, s.setUniform(g, st)
	}
	if d, ok = groupDigest(ds); !ok {
		return d, false, s.forgetHoles(g, slices.Clone(ds))
	}
	s.sums[g] = d
	s.put(g, known, true)
	return d, true, nil
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
	var ds, inFile [fanOut]digest.Digest
	read := false
	for i := range count {
		g := no*fanOut + int64(i)
		if n.state(i) == known && !n.risky(i) {
			if !read {
				b, err := s.view(s.t.digestPage(g), 0)
				if err != nil {
					s.fail(g, err)
					return digest.Unknown, false
				}
				inFile, read = *digestsIn(b), true
			}
			ds[i] = inFile[i]
			continue
		}
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
			var err error
			if r, err = s.readRecord(g); err != nil {
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
