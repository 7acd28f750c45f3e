package email

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/mail"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// office is a real mail server in the test's process, over TCP, or over pipes in a bubble of made time. Connections reach it through the
// dialer that a Mailer is given, so that a line can be cut without waiting for the machine.
type office struct {
	t      testing.TB
	server *smtp.Server
	l      net.Listener

	mu       sync.Mutex // guards what follows
	down     error      // what dialing gives; nil: the line is up
	dials    int
	logins   []string
	got      []delivery
	under    int    // mails under way
	user     string // "": nobody has to log in
	password string
	ways     []string // mechanisms it offers

	// What it answers; nil: it takes everything.
	onMail, onRcpt func(address string) error
	onData         func(d delivery) error
	hangUp         func(d delivery) bool // after taking a mail, cut the connection instead of answering
}

// delivery is a mail that the office has seen to its last byte.
type delivery struct {
	from, to string
	raw      []byte
	secure   bool
}

func (d delivery) message(t testing.TB) *mail.Message {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(d.raw))
	if err != nil {
		t.Fatalf("the mail cannot be read: %v\n%s", err, d.raw)
	}
	return m
}

func (d delivery) id(t testing.TB) string { return d.message(t).Header.Get("Message-ID") }

// openOffice starts a server; config may change it before it serves.
func openOffice(t testing.TB, config func(o *office, s *smtp.Server)) *office {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return openOfficeAt(t, l, config)
}

// openPipes starts a server that is reached by pipes.
func openPipes(t testing.TB, config func(o *office, s *smtp.Server)) *office {
	t.Helper()
	return openOfficeAt(t, &pipes{c: make(chan net.Conn), closed: make(chan struct{})}, config)
}

func openOfficeAt(t testing.TB, l net.Listener, config func(o *office, s *smtp.Server)) *office {
	t.Helper()
	o := &office{t: t, l: l}
	o.server = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &visit{o: o, c: c}, nil }))
	o.server.Domain = "mail.example"
	o.server.ErrorLog = log.New(io.Discard, "", 0)
	if config != nil {
		config(o, o.server)
	}
	if o.server.Addr == "implicit" {
		l = tls.NewListener(l, o.server.TLSConfig)
		o.server.TLSConfig = nil
	}
	done := make(chan error, 1)
	go func() { done <- o.server.Serve(l) }()
	t.Cleanup(func() {
		o.server.Close()
		o.l.Close()
		<-done
	})
	return o
}

// dial is for server.dial.
func (o *office) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	o.mu.Lock()
	o.dials++
	down := o.down
	o.mu.Unlock()
	if down != nil {
		return nil, down
	}
	p, ok := o.l.(*pipes)
	if !ok {
		return (&net.Dialer{}).DialContext(ctx, "tcp", o.l.Addr().String())
	}
	here, there := net.Pipe()
	select {
	case p.c <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cut takes the line down, or up again.
func (o *office) cut(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = err
}

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

func (o *office) deliveries() []delivery {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]delivery(nil), o.got...)
}

// tally counts the deliveries to each recipient.
func (o *office) tally() map[string]int {
	n := map[string]int{}
	for _, d := range o.deliveries() {
		n[d.to]++
	}
	return n
}

// pipes is a listener in memory.
type pipes struct {
	c      chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "memory"} }

// visit is one client's session.
type visit struct {
	o        *office
	c        *smtp.Conn
	loggedIn bool
	from, to string
}

func (v *visit) Reset()        { v.from, v.to = "", "" }
func (v *visit) Logout() error { return nil }

func (v *visit) AuthMechanisms() []string { return v.o.ways }

func (v *visit) Auth(way string) (sasl.Server, error) {
	check := func(user, password string) error {
		v.o.mu.Lock()
		defer v.o.mu.Unlock()
		if user != v.o.user || password != v.o.password {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "no entry for " + user + " with " + password}
		}
		v.loggedIn = true
		v.o.logins = append(v.o.logins, way)
		return nil
	}
	switch way {
	case sasl.Plain:
		return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
	case sasl.Login:
		return &loginServer{check: check}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

// loginServer is AUTH LOGIN, which the library offers to clients only.
type loginServer struct {
	check func(user, password string) error
	said  []string
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if response != nil {
		l.said = append(l.said, string(response))
	}
	if len(l.said) < 2 {
		return []byte([]string{"Username:", "Password:"}[len(l.said)]), false, nil
	}
	return nil, true, l.check(l.said[0], l.said[1])
}

func (v *visit) Mail(from string, _ *smtp.MailOptions) error {
	if v.o.user != "" && !v.loggedIn {
		return &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "log in first"}
	}
	v.from = from
	if v.o.onMail != nil {
		return v.o.onMail(from)
	}
	return nil
}

func (v *visit) Rcpt(to string, _ *smtp.RcptOptions) error {
	v.to = to
	if v.o.onRcpt != nil {
		return v.o.onRcpt(to)
	}
	return nil
}

func (v *visit) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, secure := v.c.TLSConnectionState()
	d := delivery{from: v.from, to: v.to, raw: raw, secure: secure}
	if v.o.onData != nil {
		if err := v.o.onData(d); err != nil {
			return err
		}
	}
	v.o.mu.Lock()
	v.o.got = append(v.o.got, d)
	v.o.mu.Unlock()
	if v.o.hangUp != nil && v.o.hangUp(d) {
		v.c.Conn().Close()
		return errors.New("gone")
	}
	return nil
}

// authority makes certificates that only those who know it trust.
func authority(t testing.TB, host string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// mailer makes a Mailer whose mail goes to the office, if there is one.
func mailer(t testing.TB, o *office, opts Options) *Mailer {
	t.Helper()
	if opts.Folder == "" {
		opts.Folder = t.TempDir()
	}
	if o != nil && opts.SMTPURL == "" {
		opts.SMTPURL = "smtp://mail.example"
	}
	if opts.From == "" {
		opts.From = "Corner Shop <shop@corner.example>"
	}
	m, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if o != nil {
		m.server.dial = o.dial
	}
	return m
}
