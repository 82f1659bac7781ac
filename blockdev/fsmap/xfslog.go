package fsmap

import (
	"bytes"
	"encoding/binary"
)

const (
	xfsLogBlock   = 512 // the log counts in these
	xfsLogMagic   = 0xfeedbabe
	xfsLogUnmount = 0x20 // flag of an operation: the unmount record
)

// checkLog proves that the log ends in an unmount record, which XFS writes when everything else is on disk.
//
// The log is a ring of 512-byte blocks. The first word of each is the number of the round in which it was written (of a record's
// header: its magic, the round follows). So a log that was written in order has blocks of one round up to its head, and of the round
// before from there on. Any other picture, as torn writes leave, proves nothing.
func (x *xfs) checkLog() error {
	if x.logStart == 0 {
		return unsure("the log lies on another device")
	}
	ag, block := x.logStart>>x.agLog, x.logStart&(1<<x.agLog-1)
	begin := (ag*x.agBlocks + block) * x.bs
	count := x.logBlocks * x.bs / xfsLogBlock
	if ag >= x.agCount || block+x.logBlocks > x.agBlocks || count < 2 {
		return unsure("the log lies at block %d of group %d", block, ag)
	}
	var err error
	var round uint32
	head, last := int64(-1), int64(-1) // head: first block of the round before; last: begin of the last record before the head
	for i := range count {
		b, err := x.d.at(begin+i*xfsLogBlock, xfsLogBlock)
		if err != nil {
			return err
		}
		now, header := binary.BigEndian.Uint32(b), false
		if now == xfsLogMagic {
			now, header = binary.BigEndian.Uint32(b[4:]), true
		}
		switch {
		case i == 0:
			round = now
		case head < 0 && now == round-1:
			head = i
		case head < 0 && now != round, head >= 0 && now != round-1:
			return unsure("the log is torn")
		}
		if header && (head < 0) {
			last = i
		}
	}
	if head < 0 {
		head = count
	}
	if round == 0 || last < 0 {
		return unsure("the log has no last record")
	}
	x.next = begin + head%count*xfsLogBlock
	if x.behind, err = x.d.copy(x.next, xfsLogBlock); err != nil {
		return err
	}
	return x.checkUnmount(begin, head, last)
}

// recheckLog proves that nobody has written to the log since checkLog: the first to do so writes the block behind the last record.
func (x *xfs) recheckLog() error {
	x.d.forget()
	b, err := x.d.at(x.next, xfsLogBlock)
	if err == nil && !bytes.Equal(b, x.behind) {
		err = unsure("somebody has mounted it meanwhile")
	}
	return err
}

// checkUnmount checks that the record at block last is an unmount record that ends at head.
func (x *xfs) checkUnmount(begin, head, last int64) error {
	b, err := x.d.copy(begin+last*xfsLogBlock, 2*xfsLogBlock)
	if err != nil {
		return err
	}
	u32 := func(off int) int64 { return int64(binary.BigEndian.Uint32(b[off:])) }
	version, length, ops, room := u32(8), u32(12), u32(40), u32(320)
	headers := int64(1)
	if version&2 != 0 && room > 32<<10 {
		headers = (room + 32<<10 - 1) / (32 << 10)
	}
	if last+headers+(length+xfsLogBlock-1)/xfsLogBlock != head || ops != 1 || headers > 8 {
		return unsure("it was not unmounted cleanly: the log does not end in an unmount record; mount it once")
	}
	op, err := x.d.at(begin+(last+headers)*xfsLogBlock, xfsLogBlock)
	if err != nil {
		return err
	}
	if op[9]&xfsLogUnmount == 0 {
		return unsure("it was not unmounted cleanly: the log ends in another record; mount it once")
	}
	return nil
}
