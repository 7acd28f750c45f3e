//go:build unix

package simulator

import (
	"net"
	"net/netip"
	"syscall"
)

// holdPort binds address without listening: dials to it are refused, and nobody else gets the port meanwhile. Without
// it a client's own dial could be given the port as its source, and connect to itself.
func holdPort(address string) (release func(), err error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
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
		return nil, err
	}
	// With SO_REUSEADDR, which package net sets too, a bound socket does not stop another from listening.
	if err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err == nil {
		err = syscall.Bind(fd, sa)
	}
	if err != nil {
		syscall.Close(fd)
		return nil, &net.OpError{Op: "bind", Net: "tcp", Err: err}
	}
	return func() { syscall.Close(fd) }, nil
}

func ipv4(a netip.Addr) (b [4]byte) {
	if a = a.Unmap(); a.Is4() {
		b = a.As4()
	}
	return b
}
