package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// Way is how connections leave this machine. The zero value leaves that to the routes.
type Way struct {
	Source netip.Addr // address of this machine; packets leave by the interface that has it
	Device string     // interface; default the one that has Source
	DSCP   uint8      // 0 to 63
}

func (w Way) String() string {
	var s []string
	if w.Source.IsValid() {
		s = append(s, "from "+w.Source.String())
	}
	if w.Device != "" {
		s = append(s, "by "+w.Device)
	}
	return strings.Join(s, " ")
}

// Dialer gives what never lets a connection leave in another way: an address alone would not do, for the routes may take it anywhere.
func (w Way) Dialer() (*net.Dialer, error) {
	d := &net.Dialer{Timeout: handshakeLimit}
	device := w.Device
	if w.Source.IsValid() {
		has, err := deviceOf(w.Source)
		if err != nil {
			return nil, err
		}
		if device != "" && device != has {
			return nil, fmt.Errorf("address %v is on interface %s, not on %s: %w", w.Source, has, device, sentinel.ErrRefused)
		}
		device = has
		d.LocalAddr = &net.TCPAddr{IP: w.Source.AsSlice(), Zone: w.Source.Zone()}
	}
	if device == "" && w.DSCP == 0 {
		return d, nil
	}
	d.Control = func(network, _ string, raw syscall.RawConn) (err error) {
		e := raw.Control(func(fd uintptr) { err = w.mark(int(fd), network, device) })
		return errors.Join(e, err)
	}
	return d, nil
}

func (w Way) mark(fd int, network, device string) error {
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return fmt.Errorf("bind to interface %s: %w", device, err)
		}
	}
	if w.DSCP == 0 {
		return nil
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if network == "tcp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if err := unix.SetsockoptInt(fd, level, option, int(w.DSCP)<<2); err != nil {
		return fmt.Errorf("set DSCP %d: %w", w.DSCP, err)
	}
	return nil
}

func (w Way) explain(err error) error {
	if s := w.String(); s != "" {
		return fmt.Errorf("%s: %w", s, Explain(err))
	}
	return Explain(err)
}

// deviceOf finds the interface that has an address.
func deviceOf(a netip.Addr) (string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, x := range addrs {
			if n, ok := x.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a.Unmap().WithZone("") {
					return i.Name, nil
				}
			}
		}
	}
	return "", fmt.Errorf("no interface of this host has the address %v: %w", a, sentinel.ErrNotFound)
}
