package webhook

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"code.dny.dev/ssrf"
	"golang.org/x/net/dns/dnsmessage"

	"tenderbox/jobs"
)

func TestGuard(t *testing.T) {
	const no, lan, yes = "", "lan", "yes"
	for address, want := range map[string]string{
		"93.184.216.34": yes, "1.1.1.1": yes, "172.32.0.1": yes, "100.128.0.1": yes, "2606:2800:220:1::1": yes, "64:ff9b::1.1.1.1": yes,

		"127.0.0.1": lan, "127.8.8.8": lan, "10.255.0.1": lan, "172.16.0.1": lan, "172.31.255.255": lan, "192.168.0.1": lan,
		"100.64.0.1": lan, "100.127.255.255": lan, "::1": lan, "fc00::1": lan, "fdff::1": lan,
		"::ffff:127.0.0.1": lan, "::ffff:10.0.0.1": lan,

		"0.0.0.0": no, "0.1.2.3": no, "169.254.0.1": no, "169.254.169.254": no, "::ffff:169.254.169.254": no,
		"192.0.0.1": no, "192.0.2.1": no, "192.88.99.1": no, "198.18.0.1": no, "198.51.100.1": no, "203.0.113.1": no,
		"224.0.0.1": no, "239.255.255.255": no, "240.0.0.1": no, "255.255.255.255": no,
		"::": no, "::2": no, "::127.0.0.1": no, "fe80::1": no, "fe80::1%lo": no, "::1%lo": no, "febf::1": no, "fec0::1": no, "ff02::1": no, "ff0e::1": no,
		"64:ff9b::127.0.0.1": no, "64:ff9b::10.0.0.1": no, "64:ff9b::169.254.169.254": no, "64:ff9b:1::1.1.1.1": no,
		"2002:7f00:1::1": no, "2002:a00:1::": no, "2001::1": no, "2001:db8::1": no, "3fff::1": no, "5f00::1": no, "100::1": no,
	} {
		a := netip.MustParseAddr(address)
		for _, allowLAN := range []bool{false, true} {
			g := guardFor(allowLAN)
			ok := want == yes || want == lan && allowLAN
			if err := g.check(a); ok != (err == nil) {
				t.Errorf("%s, LAN %v: %v", address, allowLAN, err)
			}
			if got := g.isLAN(a); got != (ok && want == lan) {
				t.Errorf("%s, LAN %v: isLAN says %v", address, allowLAN, got)
			}
			r := new(reach)
			ctx := context.WithValue(t.Context(), reachKey{}, r)
			err := g.control(ctx, "tcp6", netip.AddrPortFrom(a, 443).String(), nil)
			if toLAN, _ := r.get(); ok != (err == nil) || toLAN != (ok && want == lan) {
				t.Errorf("dial %s, LAN %v: %v, on the LAN %v", address, allowLAN, err, toLAN)
			}
		}
	}
	for _, c := range [][2]string{{"udp4", "1.1.1.1:443"}, {"unix", "/run/x"}, {"tcp4", "/run/x"}, {"tcp4", "shop.example:443"}, {"tcp", "1.1.1.1:443"}} {
		if onLAN.control(t.Context(), c[0], c[1], nil) == nil {
			t.Errorf("%v may be dialled", c)
		}
	}
}

// names is a name server on loopback that a test writes.
type names struct {
	mu     sync.Mutex // guards what follows
	asked  map[string]int
	answer func(name string, n int) []string // n: 1 for the first time; nil: no such name
}

// resolver returns a resolver that asks it.
func (n *names) resolver(t testing.TB) *net.Resolver {
	t.Helper()
	n.asked = map[string]int{}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	fatalIf(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 4096)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if reply := n.reply(buffer[:size]); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (n *names) reply(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Additionals = true, nil
	name := strings.TrimSuffix(q.Name.String(), ".")
	n.mu.Lock()
	defer n.mu.Unlock()
	if q.Type == dnsmessage.TypeA {
		n.asked[name]++
	}
	addresses := n.answer(name, n.asked[name])
	if addresses == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, address := range addresses {
		a := netip.MustParseAddr(address)
		header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// A name of the internet that stands for an address of the LAN is not dialled, however the answer is dressed.
func TestNamesOfTheLAN(t *testing.T) {
	rc := &receiver{}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(listen(t, rc), "http://"))
	fatalIf(t, err)
	servers := &names{answer: func(name string, _ int) []string {
		return map[string][]string{
			"plain.evil.example":  {"127.0.0.1"},
			"six.evil.example":    {"::1"},
			"mapped.evil.example": {"::ffff:127.0.0.1"},
			"nat64.evil.example":  {"64:ff9b::7f00:1"},
			"zero.evil.example":   {"0.0.0.0"},
			"cloud.evil.example":  {"169.254.169.254"},
			"many.evil.example":   {"203.0.113.1", "127.0.0.1", "::1"},
		}[name]
	}}
	resolver := servers.resolver(t)
	for _, name := range []string{"plain", "six", "mapped", "nat64", "zero", "cloud", "many"} {
		host := name + ".evil.example"
		b := newBox(t, "https://"+host+":"+port+"/", Options{Resolver: resolver})
		j, _, _ := b.attempt()
		wantRetry(t, j, "the URL's host is not a public address, and the operator has not allowed the LAN")
		servers.mu.Lock()
		if servers.asked[host] == 0 {
			t.Errorf("the canary: nobody asked for %s", host)
		}
		servers.mu.Unlock()
	}
	if n := len(rc.requests()); n != 0 {
		t.Errorf("%d requests came", n)
	}
	// The same name server, with the LAN allowed: the way is open, and it was the guard that closed it.
	b := newBox(t, "http://plain.evil.example:"+port+"/", Options{Resolver: resolver, AllowLAN: true})
	if j, _, _ := b.attempt(); j.State != jobs.Completed || len(rc.requests()) != 1 {
		t.Errorf("%s: %q, %d requests", j.State, j.LastError, len(rc.requests()))
	}
	unknown := newBox(t, "https://unknown.evil.example/", Options{Resolver: resolver})
	j, _, _ := unknown.attempt()
	wantRetry(t, j, "the URL's host is not known by that name")
}

// A name that stood for a good address when it was asked first, and for another when it is dialled again. Here 127.0.0.1 is all that is
// public, and 127.0.0.2 is the LAN.
func TestRebindingName(t *testing.T) {
	rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ int) { w.Header().Set("Connection", "close") }}
	good, err := net.Listen("tcp", "127.0.0.1:0")
	fatalIf(t, err)
	port := netip.MustParseAddrPort(good.Addr().String()).Port()
	private, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port).String())
	fatalIf(t, err)
	secret := &receiver{}
	for l, h := range map[net.Listener]http.Handler{good: rc, private: secret} {
		s := &http.Server{Handler: h}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-done })
	}
	servers := &names{answer: func(_ string, n int) []string {
		if n <= 1 {
			return []string{"127.0.0.1"}
		}
		return []string{"127.0.0.2"}
	}}
	b := newBox(t, "http://rebind.evil.example:"+strconv.Itoa(int(port)), Options{})
	b.pause()
	only := ssrf.New(ssrf.WithAnyPort(), ssrf.WithAllowedV4Prefixes(netip.MustParsePrefix("127.0.0.1/32")))
	g := &guard{public: only, allowed: only}
	b.d.o.AllowLAN = true // for plain http; the guard is the test's
	b.d.guard = g
	b.d.dial = (&net.Dialer{Resolver: servers.resolver(t), ControlContext: g.control}).DialContext
	b.run()
	if j, _, _ := b.attempt(); j.State != jobs.Completed || len(rc.requests()) != 1 {
		t.Fatalf("the first time: %s %q", j.State, j.LastError)
	}
	j, _, _ := b.attempt()
	wantRetry(t, j, "not a public address")
	if n := len(secret.requests()); n != 0 {
		t.Errorf("%d requests reached what is private", n)
	}
}
