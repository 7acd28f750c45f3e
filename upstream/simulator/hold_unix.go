//go:build unix

package simulator

import (
	"net"
	"net/netip"
	"syscall"
)

// holdPort binds address without listening, and returns what it is bound to: dials to it are refused, and nobody else
// gets the port. A listener can be had beside it, but not the other way round, so it comes first. Without it a client's
// own dial could, while the line is cut, be given the port as its source, and connect to itself.
func holdPort(address string) (bound string, release func(), err error) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return "", nil, err
	}
	ap := tcp.AddrPort()
	if !ap.Addr().IsValid() { // ":9000": every address
		ap = netip.AddrPortFrom(netip.IPv6Unspecified(), ap.Port())
	}
	family, sa := syscall.AF_INET, syscall.Sockaddr(&syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ipv4(ap.Addr())})
	if !ap.Addr().Unmap().Is4() {
		family, sa = syscall.AF_INET6, &syscall.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	}
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return "", nil, err
	}
	// With SO_REUSEADDR, which package net sets too, a bound socket does not stop another from listening.
	if err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err == nil {
		err = syscall.Bind(fd, sa)
	}
	if err == nil {
		sa, err = syscall.Getsockname(fd)
	}
	if err != nil {
		syscall.Close(fd)
		return "", nil, &net.OpError{Op: "bind", Net: "tcp", Err: err}
	}
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		ap = netip.AddrPortFrom(ap.Addr(), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		ap = netip.AddrPortFrom(ap.Addr(), uint16(sa.Port))
	}
	return ap.String(), func() { syscall.Close(fd) }, nil
}

func ipv4(a netip.Addr) (b [4]byte) {
	if a = a.Unmap(); a.Is4() {
		b = a.As4()
	}
	return b
}
