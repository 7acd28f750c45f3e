package webhook

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"code.dny.dev/ssrf"
)

// errAddress does not name the address: what a name resolves to here may be no business of the tenant's.
var errAddress = errors.New("not a public address, and the operator has not allowed the LAN")

var (
	// lan4 and lan6 are what a LAN is made of: loopback, private addresses, a carrier's (RFC 1918, 6598, 4193). Link-local
	// addresses are not: the best known of them gives a cloud's keys to whoever asks (169.254.169.254), and routers hand out none.
	lan4 = []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"),
	}
	lan6 = []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7")}
)

// guard decides which addresses may be dialled. Public is what IANA's registries of special addresses do not name; the library keeps
// them. Refused whatever the operator allows: unspecified, link-local, multicast, broadcast, documentation, reserved.
type guard struct {
	public, allowed *ssrf.Guardian
}

var (
	public   = ssrf.New(ssrf.WithAnyPort()) // ports are judged with the URL
	onPublic = &guard{public: public, allowed: public}
	onLAN    = &guard{public: public, allowed: ssrf.New(ssrf.WithAnyPort(), ssrf.WithAllowedV4Prefixes(lan4...), ssrf.WithAllowedV6Prefixes(lan6...))}
)

func guardFor(allowLAN bool) *guard {
	if allowLAN {
		return onLAN
	}
	return onPublic
}

func (g *guard) check(a netip.Addr) error {
	a = a.Unmap()
	judge := g.allowed
	if ssrf.IPv6NAT64Prefix.Contains(a) { // how an IPv6-only line reaches IPv4 (RFC 6052); only the internet is behind it
		b := a.As16()
		a, judge = netip.AddrFrom4([4]byte(b[12:])), g.public
	}
	if a.Zone() != "" || judge.SafeAddr(a) != nil {
		return errAddress
	}
	return nil
}

// isLAN reports an allowed address that needs no line.
func (g *guard) isLAN(a netip.Addr) bool {
	return g.check(a) == nil && g.public.SafeAddr(a.Unmap()) != nil && !ssrf.IPv6NAT64Prefix.Contains(a)
}

// control is the dialer's: it is called with the address of each connection that is about to be made, whatever a name resolved to before.
func (g *guard) control(ctx context.Context, network, address string, _ syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return errAddress
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errAddress
	}
	if err := g.check(ap.Addr()); err != nil {
		return err
	}
	reachOf(ctx).toward(g.isLAN(ap.Addr()))
	return nil
}

// reach is how far a request came. The dialer and the transport note it on their goroutines.
type reach struct {
	mu        sync.Mutex // guards what follows; a leaf
	lan       bool       // the address is on the LAN
	connected bool       // there was a connection
}

type reachKey struct{}

// reachOf finds the request's reach in its context; nil: nobody asks.
func reachOf(ctx context.Context) *reach {
	r, _ := ctx.Value(reachKey{}).(*reach)
	return r
}

func (r *reach) toward(lan bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lan = r.lan || lan
}

// connection notes a connection, new or kept.
func (r *reach) connection(c net.Conn, g *guard) {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected = true
	r.lan = r.lan || err == nil && g.isLAN(ap.Addr())
}

func (r *reach) get() (lan, connected bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lan, r.connected
}
