package wire

import (
	"context"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Pace holds the writers of connections to a rate. n counts bytes of the TCP stream, TLS included.
type Pace interface {
	// Ready waits until a frame may begin or done is closed.
	Ready(done <-chan struct{})
	// Wait waits until n bytes may be sent or done is closed.
	Wait(done <-chan struct{}, n int64)
	// Spend counts bytes that do not wait: frames without bulk.
	Spend(n int64)
	// Slice is how many bytes should be written at once.
	Slice() int
}

// SetPace makes DATA and PUT wait for p; nil: for nobody. It is called before any of them is written.
func (c *Conn) SetPace(p Pace) { c.pace = p }

// Await waits until DATA or PUT may begin, or the connection is closed. When ctx ends before, it returns its error. Other frames go meanwhile: pings have to, or
// the peer takes us for dead.
func (c *Conn) Await(ctx context.Context) error {
	if c.pace == nil {
		return ctx.Err()
	}
	over, ready, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-ctx.Done():
		case <-c.gone:
		case <-ready:
			return
		}
		close(over)
	}()
	c.pace.Ready(over)
	close(ready)
	<-ended
	return ctx.Err()
}

// SetPatience sets how long the peer may be silent before it counts as gone; default 30 s. It is called before anything is read or written.
func (c *Conn) SetPatience(d time.Duration) { c.dead = d }

// slice is how many bytes are written at once.
func (c *Conn) slice(isBulk bool) int {
	if c.pace == nil || !isBulk {
		return sliceSize
	}
	return max(recordSize, min(sliceSize, c.pace.Slice()/recordSize*recordSize))
}

// recordSize is the payload of a full TLS record: smaller writes would cost headers.
const recordSize = 16 << 10

// keepPace waits, or counts. Close ends the wait.
func (c *Conn) keepPace(n int, isBulk bool) {
	if c.pace == nil {
		return
	}
	n += (n>>14 + 1) * recordOverhead
	if isBulk {
		c.pace.Wait(c.gone, int64(n))
	} else {
		c.pace.Spend(int64(n))
	}
}

// recordOverhead is what TLS 1.3 adds to a record: its header, the type, and the tag.
const recordOverhead = 5 + 1 + 16

// MSS is the payload of a TCP segment, as the kernel has agreed on it with the peer; 0: not known.
func (c *Conn) MSS() (mss int) {
	c.control(func(fd int) {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			mss = int(info.Snd_mss)
		}
	})
	return mss
}

// Crossed is what the kernel has received of the connection, read by anybody or not: bytes of the TCP stream, and packets with those that
// carry none. The packets wrap around. false: the kernel does not tell, or the connection is closed.
func (c *Conn) Crossed() (bytes int64, packets uint32, ok bool) {
	c.control(func(fd int) {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Segs_in > 0 {
			bytes, packets, ok = int64(info.Bytes_received), info.Segs_in, true
		}
	})
	return bytes, packets, ok
}

// Sent is how a connection's bytes go, as the kernel sees it.
type Sent struct {
	Acked    int64         // bytes that the peer's kernel has confirmed
	Waiting  int64         // bytes here that can not go yet
	PeerFull time.Duration // for how long it was the peer that took no more, not the line, since the connection began
}

// Sent tells how the bytes of the connection go; false: the kernel does not, or the connection is closed.
func (c *Conn) Sent() (s Sent, ok bool) {
	c.control(func(fd int) {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Segs_out > 0 {
			s, ok = Sent{int64(info.Bytes_acked), int64(info.Notsent_bytes), time.Duration(info.Rwnd_limited) * time.Microsecond}, true
		}
	})
	return s, ok
}

// IPv6 tells whether the packets of the connection have the longer headers.
func (c *Conn) IPv6() bool {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	return ok && a.IP.To4() == nil
}

// Smooth has the kernel spread packets so that no more than rate, bytes/s, leave at any time; 0: no bound. Where it cannot, bursts are as long as
// a slice. It also keeps what was written from piling up in the socket while the peer or the line is slow: what waits there was let go under one lease
// and would go under another.
func (c *Conn) Smooth(rate uint64) {
	pace, unsent := rate, int(min(max(leastUnsent, rate/unsentPart), 1<<30))
	if rate == 0 {
		pace, unsent = ^uint64(0), 0 // as the machine is set
	}
	c.control(func(fd int) {
		_ = unix.SetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, pace)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
}

// Shallow keeps more than n bytes from waiting in the socket.
func (c *Conn) Shallow(n int) {
	c.control(func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n) })
}

const (
	// leastUnsent and a second's bytes by unsentPart are how much may wait in a socket: two slices of a small rate, else one.
	leastUnsent = 2 * recordSize
	unsentPart  = 40
)

// control calls f with the socket below, if there is one.
func (c *Conn) control(f func(fd int)) {
	nc := c.raw()
	if count, ok := nc.(*CountConn); ok {
		nc = count.Conn
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
