package bus

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// openListening answers a bus with a TCP port, at which tenants a and b have the keys key-a and key-b.
func openListening(t *testing.T) *Bus {
	t.Helper()
	return open(t, Options{Dir: filepath.Join(t.TempDir(), "bus"), Listen: "127.0.0.1:0",
		Authenticate: func(user, password string) (string, bool) {
			switch {
			case user == "panic":
				panic("of the test")
			case user == "wild":
				return "*", true
			}
			return user, (user == "a" || user == "b") && password == "key-"+user
		}})
}

// client is a tenant's program with an ordinary NATS client.
type client struct {
	*nats.Conn
	failed chan error // what the server complained about
}

func connect(t *testing.T, b *Bus, opts ...nats.Option) (*client, error) {
	t.Helper()
	c := &client{failed: make(chan error, 16)}
	opts = append(opts, nats.MaxReconnects(0), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.failed <- err }))
	var err error
	c.Conn, err = nats.Connect("nats://"+b.Addr(), opts...)
	if err == nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

func mustConnect(t *testing.T, b *Bus, tenant string) *client {
	t.Helper()
	c, err := connect(t, b, nats.UserInfo(tenant, "key-"+tenant))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStrangersDoNotConnect(t *testing.T) {
	b := openListening(t)
	for name, opt := range map[string]nats.Option{
		"nobody":                 nats.Name("x"),
		"wrong key":              nats.UserInfo("a", "key-b"),
		"no key":                 nats.UserInfo("a", ""),
		"unknown":                nats.UserInfo("c", "key-c"),
		"the box without secret": nats.UserInfo(boxUser, ""),
		"the box by guess":       nats.UserInfo(boxUser, "secret"),
		"a token":                nats.Token("key-a"),
		"a tenant of wildcards":  nats.UserInfo("wild", "x"),
		"whoever makes us panic": nats.UserInfo("panic", "x"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := connect(t, b, opt); !errors.Is(err, nats.ErrAuthorization) {
				t.Errorf("error %v, want an authorization violation", err)
			}
		})
	}
}

func TestTenantHearsItsOwnEventsOnly(t *testing.T) {
	b := openListening(t)
	a := mustConnect(t, b, "a")
	sub, err := a.SubscribeSync("evt.a.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	ms := messages("1/0", 1, 9)
	for i := range ms {
		ms[i].Event.Tenant = []string{"a", "b", "a-b"}[i%3]
	}
	publish(t, b, ms)
	for _, want := range []Message{ms[0], ms[3], ms[6]} {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != "evt.a.payment.created" || m.Header.Get("Nats-Msg-Id") != want.Event.ID || !strings.Contains(string(m.Data), want.Event.ID) {
			t.Errorf("got %q with id %q, want %q", m.Subject, m.Header.Get("Nats-Msg-Id"), want.Event.ID)
		}
	}
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, err := sub.Pending(); n != 0 || err != nil {
		t.Errorf("%d more messages, %v", n, err)
	}
}

func TestTenantMayDoNothingElse(t *testing.T) {
	b := openListening(t)
	publish(t, b, messages("1/0", 1, 3))
	for _, subject := range []string{">", "*.>", "evt.>", "evt.*.>", "evt.b.>", "evt.b.payment.created", "evt.a", "$JS.API.>", "$JS.EVENT.>",
		"$SYS.>", "_INBOX.>", "$JS.ACK.>", "evt.*.payment.created"} {
		t.Run("subscribe "+subject, func(t *testing.T) {
			a := mustConnect(t, b, "a")
			if _, err := a.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
			wantViolation(t, a)
		})
	}
	for _, subject := range []string{"evt.a.payment.created", "evt.b.x", "$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.INFO.EVENTS",
		"$JS.API.DIRECT.GET.EVENTS", "$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING", "_INBOX.x"} {
		t.Run("publish "+subject, func(t *testing.T) {
			a := mustConnect(t, b, "a")
			if err := a.PublishRequest(subject, "evt.a.answer", nil); err != nil {
				t.Fatal(err)
			}
			wantViolation(t, a)
		})
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 3}, 3)
}

func wantViolation(t *testing.T, c *client) {
	t.Helper()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-c.failed:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("error %v, want a permissions violation", err)
		}
	case <-time.After(patience):
		t.Error("allowed")
	}
}

func TestOneTenantCannotTakeAllConnections(t *testing.T) {
	b := openListening(t)
	var conns []*client
	for range tenantConnsMax {
		conns = append(conns, mustConnect(t, b, "a"))
	}
	if _, err := connect(t, b, nats.UserInfo("a", "key-a")); !errors.Is(err, nats.ErrAuthorization) {
		t.Fatalf("one more: %v", err)
	}
	mustConnect(t, b, "b")
	for _, c := range conns {
		c.Close()
	}
	// The server learns of an end when it reads; the clients' are all handed in by now.
	for {
		if _, err := connect(t, b, nats.UserInfo("a", "key-a")); err == nil {
			return
		} else if !errors.Is(err, nats.ErrAuthorization) {
			t.Fatal(err)
		}
		if t.Context().Err() != nil {
			t.Fatal("ended connections are still counted")
		}
	}
}

func TestDisconnectEndsATenantsConnections(t *testing.T) {
	b := openListening(t)
	a, other := mustConnect(t, b, "a"), mustConnect(t, b, "b")
	closed := a.StatusChanged(nats.CLOSED)
	b.Disconnect("a")
	b.Disconnect("nobody")
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("still connected")
	}
	if err := other.Flush(); err != nil {
		t.Errorf("another tenant: %v", err)
	}
}

func TestAddressInUseIsNoReasonToGiveUpTheStream(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	publish(t, b, messages("1/0", 1, 3))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	listening := o
	listening.Listen = l.Addr().String()
	listening.Authenticate = func(string, string) (string, bool) { return "", false }
	if _, err := Open(t.Context(), listening); !errors.Is(err, ErrListen) {
		t.Fatalf("error %v, want ErrListen", err)
	}
	b = open(t, o)
	if b.Recreated() || b.Addr() != "" {
		t.Errorf("recreated %v, listening on %q", b.Recreated(), b.Addr())
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 3}, 3)
}

func TestStalledClientDoesNotHoldUpTheBus(t *testing.T) {
	b := openListening(t)
	conn, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write([]byte(`CONNECT {"user":"a","pass":"key-a","verbose":false}` + "\r\nSUB evt.a.> 1\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	for r := bufio.NewScanner(conn); r.Scan() && r.Text() != "PONG"; { // subscribed; from here on it never reads
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range 10 { // 20 MB: more than the sockets and pendingMax hold
		ms := messages("1/0", uint64(i)*BatchMax+1, BatchMax)
		for i := range ms {
			ms[i].Event.Tenant, ms[i].Event.Data = "a", json.RawMessage(`"`+strings.Repeat("x", 2000)+`"`)
		}
		if _, err := b.Publish(ctx, ms); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLabels(t *testing.T) {
	for s, want := range map[string]bool{"a": true, "0": true, "a-b": true, strings.Repeat("a", 63): true, "": false, "-a": false, "a-": false,
		"A": false, "a.b": false, "*": false, ">": false, "a b": false, "ä": false, strings.Repeat("a", 64): false, "a\n": false, "$box": false} {
		if got := isLabel(s); got != want {
			t.Errorf("isLabel(%q) = %v", s, got)
		}
	}
}
