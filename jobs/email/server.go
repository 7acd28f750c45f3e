package email

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

const (
	portSubmission  = 587 // RFC 6409
	portSubmissions = 465 // RFC 8314: TLS from the first byte on
)

// encryption says when a connection is encrypted.
type encryption int

const (
	opportunistic encryption = iota // STARTTLS if it is offered
	mandatory                       // STARTTLS, or no mail
	implicit                        // from the first byte on
)

var (
	errNoStartTLS  = errors.New("the server does not offer STARTTLS")
	errUnencrypted = errors.New("the server offers no encryption, and the password is not sent without it")
	errNoAuth      = errors.New("the server offers no way to log in that is known here")
)

// server is the mail server: where it is and how to be let in.
type server struct {
	host, address  string // host:port is the address
	encryption     encryption
	user, password string
	tls            *tls.Config
	hello          string

	connectTimeout, commandTimeout, answerTimeout time.Duration

	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// newServer reads the URL. Errors never repeat it: it holds the password.
func newServer(o Options) (*server, error) {
	u, err := url.Parse(o.SMTPURL)
	if err != nil {
		return nil, errors.New("not a URL like smtps://user:password@mail.example.com (user and password percent-encoded)")
	}
	s := &server{
		host: u.Hostname(), hello: helloName(), dial: (&net.Dialer{}).DialContext,
		connectTimeout: o.ConnectTimeout, commandTimeout: o.CommandTimeout, answerTimeout: o.AnswerTimeout,
	}
	port := portSubmission
	switch u.Scheme {
	case "smtp":
		s.encryption = opportunistic
	case "smtp+starttls":
		s.encryption = mandatory
	case "smtps":
		s.encryption, port = implicit, portSubmissions
	default:
		return nil, errors.New("begin it with smtp://, smtp+starttls:// or smtps://")
	}
	if s.host == "" || !isHostName(s.host) && net.ParseIP(s.host) == nil {
		return nil, errors.New("the host is missing or none")
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("nothing may follow the port")
	}
	if p := u.Port(); p != "" {
		if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
			return nil, errors.New("the port is none")
		}
	}
	s.address = net.JoinHostPort(s.host, strconv.Itoa(port))
	s.user = u.User.Username()
	s.password, _ = u.User.Password()
	if (s.user == "") != (s.password == "") {
		return nil, errors.New("a user needs a password, and a password a user")
	}
	s.tls = tlsConfig(s, o.RootCAs)
	return s, nil
}

// tlsConfig: a certificate is checked wherever that protects something. It does not where STARTTLS is only taken if it is offered, because whoever
// could forge the certificate could as well take out the offer; with a password to protect there has to be a true one.
func tlsConfig(s *server, roots *x509.CertPool) *tls.Config {
	c := &tls.Config{ServerName: s.host, RootCAs: roots, MinVersion: tls.VersionTLS12}
	if s.encryption == opportunistic && (s.password == "" || s.local()) {
		c.InsecureSkipVerify = true
	}
	return c
}

// local says whether the server is this machine, where nobody listens in between.
func (s *server) local() bool {
	ip := net.ParseIP(s.host)
	return s.host == "localhost" || ip != nil && ip.IsLoopback()
}

// open connects, encrypts and logs in. Its errors say that the server cannot be used now, or carry ctx's.
func (s *server) open(ctx context.Context) (*session, error) {
	dialing, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	raw, err := s.dial(dialing, "tcp", s.address)
	if err != nil {
		return nil, s.failed(ctx, stageConnect, err, "")
	}
	x := &session{s: s, conn: &frugal{Conn: raw, left: sessionBytesMax}}
	x.unwatch = context.AfterFunc(ctx, func() { raw.Close() })
	stage, err := x.begin()
	if err != nil {
		x.drop()
		return nil, s.failed(ctx, stage, err, "")
	}
	return x, nil
}

// begin takes a new connection to where mail can be handed over, and says at which stage it did not get there.
func (x *session) begin() (stage, error) {
	s := x.s
	if err := x.within(s.connectTimeout); err != nil {
		return stageConnect, err
	}
	conn := x.conn
	if s.encryption == implicit {
		secure := tls.Client(conn, s.tls)
		if err := secure.Handshake(); err != nil { // the deadline bounds it
			return stageTLS, err
		}
		conn = secure
	}
	var err error
	if x.c, err = smtp.NewClient(conn, s.host); err != nil {
		return stageGreeting, err
	}
	x.c.SkipSMTPUTF8(true) // nothing here needs it
	if err := x.c.Hello(s.hello); err != nil {
		return stageHello, err
	}
	encrypted := s.encryption == implicit
	if !encrypted {
		offered, _ := x.c.Extension("STARTTLS")
		if !offered && s.encryption == mandatory {
			return stageTLS, errNoStartTLS
		}
		if offered {
			if err := x.c.StartTLS(s.tls); err != nil {
				return stageTLS, err
			}
			encrypted = true
		}
	}
	if s.user == "" {
		return "", nil
	}
	if !encrypted && !s.local() {
		return stageAuth, errUnencrypted
	}
	if err := x.c.Auth(&login{s: s}); err != nil {
		return stageAuth, err
	}
	return "", nil
}

// login chooses among the ways to log in that the server offers: first one that does not show it the password.
type login struct {
	s      *server
	chosen smtp.Auth
}

// Start is called with what the server offers.
func (l *login) Start(offer *smtp.ServerInfo) (string, []byte, error) {
	s := l.s
	for _, way := range []struct {
		name string
		auth func() smtp.Auth
	}{
		{"SCRAM-SHA-256", func() smtp.Auth { return smtp.ScramSHA256Auth(s.user, s.password) }},
		{"PLAIN", func() smtp.Auth { return smtp.PlainAuth("", s.user, s.password, s.host, s.local()) }},
		{"LOGIN", func() smtp.Auth { return smtp.LoginAuth(s.user, s.password, s.host, s.local()) }},
		{"CRAM-MD5", func() smtp.Auth { return smtp.CRAMMD5Auth(s.user, s.password) }},
	} {
		if slices.Contains(offer.Auth, way.name) {
			l.chosen = way.auth()
			return l.chosen.Start(offer)
		}
	}
	return "", nil, errNoAuth
}

// Next is called with the server's challenges.
func (l *login) Next(challenge []byte, more bool) ([]byte, error) {
	if l.chosen == nil {
		return nil, errNoAuth
	}
	return l.chosen.Next(challenge, more)
}

// sessionBytesMax is what a server may say in one session. A hundred mails are answered with less than 100 kB.
const sessionBytesMax = 1 << 20

// frugal reads so many bytes and then no more: a server that never ends its line would fill the memory.
type frugal struct {
	net.Conn
	left int // one goroutine reads
}

func (f *frugal) Read(p []byte) (int, error) {
	if f.left <= 0 {
		return 0, fmt.Errorf("the server said more than %d bytes", sessionBytesMax)
	}
	n, err := f.Conn.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}
