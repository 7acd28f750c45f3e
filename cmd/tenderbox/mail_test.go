package main

import (
	"fmt"
	"io"
	"net"
	"net/mail"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// mailServer is a real mail server on loopback that a script can take down and bring back at its address.
type mailServer struct {
	address string
	server  *smtp.Server // nil: down

	mu    sync.Mutex // guards mails
	mails []string   // "recipient: subject"
	news  chan struct{}
}

func (m *mailServer) up() error {
	l, err := net.Listen("tcp", m.address)
	if err != nil {
		return err
	}
	m.address = l.Addr().String()
	m.server = smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &mailSession{m: m}, nil }))
	m.server.Domain = "localhost"
	go m.server.Serve(l) // ends with Close
	return nil
}

func (m *mailServer) down() error {
	s := m.server
	m.server = nil
	return s.Close()
}

// arrived waits until as many mails are there, and holds them against what is wanted.
func (m *mailServer) arrived(want []string) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		m.mu.Lock()
		got := append([]string(nil), m.mails...)
		m.mu.Unlock()
		if len(got) >= len(want) {
			for _, w := range want {
				if n := strings.Count("\n"+strings.Join(got, "\n")+"\n", "\n"+w+"\n"); n != 1 {
					return fmt.Errorf("%q arrived %d times; there are %q", w, n, got)
				}
			}
			if len(got) > len(want) {
				return fmt.Errorf("%d mails, want %d: %q", len(got), len(want), got)
			}
			return nil
		}
		select {
		case <-m.news:
		case <-timeout.C:
			return fmt.Errorf("%d of %d mails arrived: %q", len(got), len(want), got)
		}
	}
}

type mailSession struct {
	m  *mailServer
	to string
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error      { return nil }
func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error { s.to = to; return nil }
func (s *mailSession) Reset()                                    {}
func (s *mailSession) Logout() error                             { return nil }

func (s *mailSession) Data(r io.Reader) error {
	msg, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	s.m.mu.Lock()
	s.m.mails = append(s.m.mails, s.to+": "+msg.Header.Get("Subject"))
	s.m.mu.Unlock()
	select {
	case s.m.news <- struct{}{}:
	default:
	}
	return nil
}
