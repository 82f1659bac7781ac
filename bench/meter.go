package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Meter is a provider's meter: the counters of the queue at the source's end of a line, as the kernel keeps them.
type Meter struct {
	fd    int
	index int // of the line's device
}

// openMeter opens one in a network namespace, for which it moves the thread there.
func openMeter(ns string) (*Meter, error) {
	f, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter namespace %s: %w", ns, err)
	}
	dev, err := net.InterfaceByName(lineDevice)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Meter{fd, dev.Index}, nil
}

// Close closes it.
func (m *Meter) Close() error { return unix.Close(m.fd) }

const (
	sizeofTcmsg  = 20
	statsBasic   = 1          // TCA_STATS_BASIC
	rootOfDevice = 0xffffffff // TC_H_ROOT
)

// Read is what went over the line until now, and when that was.
func (m *Meter) Read() (Traffic, time.Time, error) {
	req := make([]byte, unix.SizeofNlMsghdr+sizeofTcmsg)
	ne := binary.NativeEndian
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], unix.RTM_GETQDISC)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	ne.PutUint32(req[unix.SizeofNlMsghdr+4:], uint32(m.index))
	if err := unix.Sendto(m.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return Traffic{}, time.Time{}, fmt.Errorf("ask for queues: %w", err)
	}
	var found *Traffic
	var at time.Time
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(m.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return Traffic{}, at, fmt.Errorf("read queues: %w", err)
		}
		if at.IsZero() {
			at = time.Now()
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(ne.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return Traffic{}, at, fmt.Errorf("queues: message of %d bytes in %d", size, len(b))
			}
			switch ne.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				if found == nil {
					return Traffic{}, at, errors.New("queues: no root queue")
				}
				return *found, at, nil
			case unix.NLMSG_ERROR:
				return Traffic{}, at, errors.New("queues: refused")
			case unix.RTM_NEWQDISC:
				if t, ok := m.root(b[unix.SizeofNlMsghdr:size]); ok {
					found = &t
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// root reads the counters of a queue, if it is the device's root.
func (m *Meter) root(b []byte) (t Traffic, ok bool) {
	ne := binary.NativeEndian
	if len(b) < sizeofTcmsg || int(ne.Uint32(b[4:])) != m.index || ne.Uint32(b[12:]) != rootOfDevice {
		return t, false
	}
	stats := attribute(b[sizeofTcmsg:], unix.TCA_STATS2)
	if basic := attribute(stats, statsBasic); len(basic) >= 12 {
		return Traffic{Bytes: int64(ne.Uint64(basic)), Packets: int64(ne.Uint32(basic[8:]))}, true
	}
	return t, false
}

// attribute is the value of one of b's attributes, or nil.
func attribute(b []byte, kind uint16) []byte {
	ne := binary.NativeEndian
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return nil
		}
		if ne.Uint16(b[2:])&^(1<<15) == kind { // without the flag of nested ones
			return b[4:n]
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return nil
}
