package email

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

// TestEncryption: which server is trusted with what.
func TestEncryption(t *testing.T) {
	pool, cert := authority(t, "mail.example")
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	const password = "pass/word%"
	const login = "shop:pass%2Fword%25@"
	for name, tc := range map[string]struct {
		url     string
		trusted bool
		ways    []string // "": no AUTH
		tls     bool     // the server offers STARTTLS
		secure  bool     // the mail went encrypted
		says    string   // "": it arrived
		way     string
	}{
		"opportunistic, not offered":           {"smtp://mail.example", false, nil, false, false, "", ""},
		"opportunistic, offered, any":          {"smtp://mail.example", false, nil, true, true, "", ""},
		"opportunistic, login, true":           {"smtp://" + login + "mail.example", true, []string{"PLAIN"}, true, true, "", "PLAIN"},
		"opportunistic, login, forged":         {"smtp://" + login + "mail.example", false, []string{"PLAIN"}, true, false, "TLS: tls: failed to verify certificate", ""},
		"opportunistic, login, in clear":       {"smtp://" + login + "mail.example", true, []string{"PLAIN"}, false, false, "AUTH: the server offers no encryption", ""},
		"opportunistic, login, here, in clear": {"smtp://" + login + "127.0.0.1", true, []string{"PLAIN"}, false, false, "", "PLAIN"},
		"mandatory, offered":                   {"smtp+starttls://mail.example", true, nil, true, true, "", ""},
		"mandatory, not offered":               {"smtp+starttls://mail.example", true, nil, false, false, "TLS: the server does not offer STARTTLS", ""},
		"mandatory, forged":                    {"smtp+starttls://mail.example", false, nil, true, false, "TLS: tls: failed to verify certificate", ""},
		"mandatory, login":                     {"smtp+starttls://" + login + "mail.example", true, []string{"LOGIN"}, true, true, "", "LOGIN"},
		"mandatory, PLAIN before LOGIN":        {"smtp+starttls://" + login + "mail.example", true, []string{"LOGIN", "PLAIN"}, true, true, "", "PLAIN"},
		"mandatory, foreign login":             {"smtp+starttls://" + login + "mail.example", true, []string{"GSSAPI"}, true, false, "AUTH: the server offers no way to log in", ""},
		"mandatory, no login there":            {"smtp+starttls://" + login + "mail.example", true, nil, true, false, "AUTH: the server offers no way to log in", ""},
		"implicit":                             {"smtps://mail.example", true, nil, false, true, "", ""},
		"implicit, login":                      {"smtps://" + login + "mail.example", true, []string{"PLAIN"}, false, true, "", "PLAIN"},
		"implicit, forged":                     {"smtps://mail.example", false, nil, false, false, "TLS: tls: failed to verify certificate", ""},
		"implicit, other name":                 {"smtps://mail2.example", true, nil, false, false, "TLS: tls: failed to verify certificate", ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := openOffice(t, func(o *office, s *smtp.Server) {
				o.ways, s.AllowInsecureAuth = tc.ways, true
				if strings.Contains(tc.url, "@") && tc.ways != nil {
					o.user, o.password = "shop", password
				}
				switch {
				case strings.HasPrefix(tc.url, "smtps"):
					s.Addr, s.TLSConfig = "implicit", config
				case tc.tls:
					s.TLSConfig = config
				}
			})
			opts := Options{SMTPURL: tc.url}
			if tc.trusted {
				opts.RootCAs = pool
			}
			m := mailer(t, o, opts)
			err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com")))
			got := o.deliveries()
			if tc.says != "" {
				if wished(err) != "snooze" || !strings.Contains(m.Status().LastError, tc.says) || len(got) != 0 || len(o.logins) != 0 {
					t.Fatalf("%v, status %+v, %d mails, logins %v; want it to wait because of %q", err, m.Status(), len(got), o.logins, tc.says)
				}
				return
			}
			if wished(err) != "done" || len(got) != 1 || got[0].secure != tc.secure {
				t.Fatalf("%v, status %+v, mails %d; want one, encrypted: %v", err, m.Status(), len(got), tc.secure)
			}
			if way := strings.Join(o.logins, ","); way != tc.way {
				t.Errorf("logged in by %q, want %q", way, tc.way)
			}
		})
	}
}

// TestWrongPassword: mail waits for a person to mend it, and the password, which this server repeats, is seen nowhere.
func TestWrongPassword(t *testing.T) {
	pool, cert := authority(t, "mail.example")
	o := openOffice(t, func(o *office, s *smtp.Server) {
		o.user, o.password, o.ways = "shop", "the right one", []string{"PLAIN"}
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	})
	var logged strings.Builder
	m := mailer(t, o, Options{SMTPURL: "smtp+starttls://shop:opensesame@mail.example", RootCAs: pool, Logger: logTo(&logged)})
	err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com")))
	if wished(err) != "snooze" || m.Status().LastError != "the mail server cannot be used: AUTH: 535" {
		t.Errorf("%v, status %+v", err, m.Status())
	}
	if !strings.Contains(logged.String(), "AUTH: 535") {
		t.Errorf("nobody hears of it: %q", &logged)
	}
	for _, s := range []string{logged.String(), err.Error(), m.Status().LastError} {
		if strings.Contains(s, "opensesame") || strings.Contains(s, "Ada") {
			t.Errorf("a secret is seen: %s", s)
		}
	}
	b64 := base64.StdEncoding.EncodeToString
	if got := m.server.repeat("you said opensesame and "+b64([]byte("\x00shop\x00opensesame"))+" and "+b64([]byte("opensesame")), ""); got != "you said … and … and …" {
		t.Errorf("the password is repeated: %s", got)
	}
}

// TestEndlessAnswer: a server that never ends its line is left before it fills the memory.
func TestEndlessAnswer(t *testing.T) {
	o := openOffice(t, nil)
	m := mailer(t, o, Options{})
	here, there := net.Pipe()
	m.server.dial = func(context.Context, string, string) (net.Conn, error) { return here, nil }
	said := make(chan int)
	go func() {
		n, line := 0, make([]byte, 4096)
		for {
			w, err := there.Write(line)
			if n += w; err != nil {
				said <- n
				return
			}
		}
	}()
	err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com")))
	if wished(err) != "snooze" || !strings.Contains(m.Status().LastError, "the server said more than") {
		t.Errorf("%v, status %+v", err, m.Status())
	}
	if n := <-said; n > sessionBytesMax+4096 {
		t.Errorf("%d bytes were read", n)
	}
}

// TestHungServer: a server that says nothing is left after the time that is meant for it.
func TestHungServer(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	m := mailer(t, openOffice(t, nil), Options{ConnectTimeout: 1})
	m.server.dial = func(context.Context, string, string) (net.Conn, error) { return here, nil }
	err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com")))
	if wished(err) != "snooze" || !strings.Contains(m.Status().LastError, "timeout") {
		t.Errorf("%v, status %+v", err, m.Status())
	}
	if _, err := there.Write([]byte("220")); err == nil {
		t.Error("the connection was left open")
	}
}

// TestOptions: what is wrong is named, and no password with it.
func TestOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		o    Options
		says string
	}{
		"scheme":         {Options{SMTPURL: "http://u:secret@h"}, "smtp url: begin it with"},
		"not a url":      {Options{SMTPURL: "smtp://u:sec%ret@h"}, "smtp url: not a URL"},
		"control":        {Options{SMTPURL: "smtp://u:secret@h\r\n"}, "smtp url: not a URL"},
		"no host":        {Options{SMTPURL: "smtp://u:secret@:25"}, "smtp url: the host"},
		"strange host":   {Options{SMTPURL: "smtp://u:secret@a_b!"}, "smtp url: the host"},
		"port":           {Options{SMTPURL: "smtp://u:secret@h:70000"}, "smtp url: the port"},
		"path":           {Options{SMTPURL: "smtp://u:secret@h/x"}, "smtp url: nothing may follow"},
		"query":          {Options{SMTPURL: "smtp://u:secret@h?x=secret"}, "smtp url: nothing may follow"},
		"user alone":     {Options{SMTPURL: "smtp://secret@h"}, "smtp url: a user needs a password"},
		"password alone": {Options{SMTPURL: "smtp://:secret@h"}, "smtp url: a user needs a password"},
		"no from":        {Options{SMTPURL: "smtp://u:secret@h"}, "from: an address is needed"},
		"bad from":       {Options{From: "a@b.example\r\nBcc: secret@d.example"}, "from: an address has no control"},
		"timeout":        {Options{AnswerTimeout: -1}, "answer timeout: -1ns is below zero"},
		"no templates":   {Options{Templates: "/nowhere/at/all"}, "templates: "},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.o.From == "" && name != "no from" {
				tc.o.From = "shop@corner.example"
			}
			_, err := New(tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %q and no secret", err, tc.says)
			}
		})
	}
	_, err := New(Options{SMTPURL: "x", From: "y", ConnectTimeout: -1})
	for _, part := range []string{"smtp url", "from", "connect timeout"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name the %s", err, part)
		}
	}
}

// TestStatus: where mail goes, and from whom.
func TestStatus(t *testing.T) {
	for url, want := range map[string]string{
		"smtp://mail.example":                             "mail.example:587",
		"smtp+starttls://mail.example":                    "mail.example:587",
		"smtps://mail.example":                            "mail.example:465",
		"smtp://[::1]:25":                                 "[::1]:25",
		"smtps://a%40b.example:secret@mail.example:4465/": "mail.example:4465",
	} {
		m := mailer(t, nil, Options{SMTPURL: url})
		if s := m.Status(); s.Mode != ModeSMTP || s.Server != want || s.Folder != "" || !s.DownSince.IsZero() {
			t.Errorf("%s: %+v, want %s", url, s, want)
		}
	}
	m, err := New(Options{SMTPURL: "smtps://a%40b.example:secret@mail.example"})
	if err != nil || m.from.Address != "a@b.example" {
		t.Errorf("%v: the user's address is not the sender", err)
	}
	m, err = New(Options{})
	if err != nil || m.from.Address != "tenderbox@localhost" {
		t.Fatalf("the zero value: %v", err)
	}
	if s := m.Status(); s.Mode != ModeFiles || s.Folder != "tenderbox-data/mail/out" || s.Server != "" {
		t.Errorf("the zero value: %+v", s)
	}
}

// TestDialerOfItsOwn: without a test's dialer a real one is used; a port that nobody listens on is an outage.
func TestDialerOfItsOwn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	greeted := make(chan error, 1)
	go func() { // one visitor is turned away
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte("554 no mail here\r\n"))
			err = errors.Join(err, c.Close())
		}
		greeted <- err
	}()
	m := mailer(t, nil, Options{SMTPURL: "smtp://" + l.Addr().String()})
	if err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com"))); wished(err) != "snooze" {
		t.Errorf("%v, want a snooze", err)
	}
	if err := <-greeted; err != nil {
		t.Fatal(err)
	}
	if s := m.Status(); !strings.Contains(s.LastError, "greeting: 554: no mail here") {
		t.Errorf("%+v", s)
	}
}
