package webhook

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"tenderbox/jobs"
)

func listen(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestDelivery(t *testing.T) {
	rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ int) {
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		w.WriteHeader(http.StatusAccepted)
	}}
	b := newBox(t, listen(t, rc)+"/hook?token=x", Options{AllowLAN: true})
	b.all["we_1"] = Endpoint{URL: b.all["we_1"].URL, Secrets: []Secret{secretB, secretA}}
	for n := 1; n <= 2; n++ {
		before := time.Now().Truncate(time.Second)
		e := b.event()
		j := b.outcome(b.send(e, "we_1"))
		var result Result
		if err := json.Unmarshal(j.Result, &result); j.State != jobs.Completed || err != nil || result.Status != 202 || result.Attempt != 1 {
			t.Fatalf("%s: %s", j.State, j.Result)
		}
		all := rc.requests()
		if len(all) != n {
			t.Fatalf("%d requests for %d events", len(all), n)
		}
		g := all[n-1]
		if string(g.body) != string(e.JSON) {
			t.Errorf("sent %s, want it as it is: %s", g.body, e.JSON)
		}
		for name, want := range map[string]string{"webhook-id": e.ID, "content-type": "application/json", "user-agent": "Tenderbox-Webhooks/1",
			"cookie": "", "accept-encoding": "", "authorization": ""} {
			if v := g.header.Get(name); v != want {
				t.Errorf("%s: %q, want %q", name, v, want)
			}
		}
		seconds, err := strconv.ParseInt(g.header.Get("webhook-timestamp"), 10, 64)
		if at := time.Unix(seconds, 0); err != nil || at.Before(before) || at.After(time.Now()) {
			t.Errorf("signed at %v, %v", at, err)
		}
		if !g.signed(secretA) || !g.signed(secretB) || g.signed("whsec_"+strings.Repeat("A", 32)) {
			t.Errorf("signatures: %q", g.header.Get("webhook-signature"))
		}
		for _, s := range []string{secretA, secretB} {
			official, err := standardwebhooks.NewWebhook(s)
			fatalIf(t, err)
			if err := official.Verify(g.body, g.header); err != nil {
				t.Errorf("the official library: %v", err)
			}
			if official.Verify(append(g.body, ' '), g.header) == nil {
				t.Error("the canary: another body is taken")
			}
		}
	}
}

// The vector that the specification's libraries share.
func TestSignatureVector(t *testing.T) {
	got, err := sign([]Secret{secretA, secretA}, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	if err != nil || got != want+" "+want {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range [][]Secret{nil, {""}, {"whsec_"}, {"whsec_!!!"}, {"whsec_AAAA"}, {secretA, "whsec_AAAA"}} {
		if got, err := sign(bad, "m", time.Unix(0, 0), nil); err == nil || got != "" || strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%q: %v", got, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	var stray atomic.Int64
	elsewhere := listen(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stray.Add(1) }))
	for _, c := range []struct {
		status int
		state  jobs.State
		says   string
	}{
		{200, jobs.Completed, ""}, {201, jobs.Completed, ""}, {204, jobs.Completed, ""}, {299, jobs.Completed, ""},
		{300, jobs.Delayed, "redirects are not followed"}, {301, jobs.Delayed, "redirects are not followed"}, {302, jobs.Delayed, "answered 302 Found after"},
		{303, jobs.Delayed, "redirects are not followed"}, {304, jobs.Delayed, "redirects are not followed"},
		{307, jobs.Delayed, "redirects are not followed"}, {308, jobs.Delayed, "redirects are not followed"},
		{400, jobs.Delayed, "answered 400 Bad Request after"}, {401, jobs.Delayed, "401"}, {404, jobs.Delayed, "404"}, {409, jobs.Delayed, "409"},
		{410, jobs.Failed, "answered 410 Gone; the endpoint is now disabled"},
		{429, jobs.Delayed, "answered 429 Too Many Requests"}, {500, jobs.Delayed, "answered 500"}, {503, jobs.Delayed, "answered 503"},
		{600, jobs.Delayed, "answered 600 (no known status)"}, {999, jobs.Delayed, "answered 999"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ int) {
				w.Header().Set("Location", elsewhere)
				w.WriteHeader(c.status)
			}}
			b := newBox(t, listen(t, rc), Options{AllowLAN: true})
			j, least, most := b.attempt()
			if j.State != c.state || j.AttemptsMade != 1 || !strings.Contains(j.LastError, c.says) {
				t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
			}
			if told := j.History[0].Error; c.state != jobs.Completed && StatusOf(told) != c.status || c.state == jobs.Completed && StatusOf(told) != 0 {
				t.Errorf("the history's %q is read as %d", told, StatusOf(told))
			}
			if c.state == jobs.Delayed && (most < 5*time.Second || least > 5*time.Second+500*time.Millisecond) {
				t.Errorf("again in %v to %v", least, most)
			}
			if e, _ := b.Endpoint("shop", "we_1"); e.Disabled != (c.status == 410) || e.Disabled && b.reasons["we_1"] != "it answered 410 Gone" {
				t.Errorf("disabled: %v, %q", e.Disabled, b.reasons["we_1"])
			}
			if n := len(rc.requests()); n != 1 || stray.Load() != 0 {
				t.Errorf("%d requests, %d elsewhere", n, stray.Load())
			}
			if strings.Contains(j.LastError, elsewhere) {
				t.Error("it tells where the redirect leads")
			}
			if c.status != 410 {
				return
			}
			if j, _, _ := b.attempt(); j.State != jobs.Failed || !strings.Contains(j.LastError, "disabled") || len(rc.requests()) != 1 {
				t.Errorf("the next one: %s %q, %d requests", j.State, j.LastError, len(rc.requests()))
			}
		})
	}
}

func TestGoneButNotDisabled(t *testing.T) {
	b := newBox(t, listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })), Options{AllowLAN: true})
	b.disabled = errors.New("disk full")
	j, _, _ := b.attempt()
	wantRetry(t, j, "could not be disabled: disk full")
}

func TestNoEndpoint(t *testing.T) {
	rc := &receiver{}
	b := newBox(t, listen(t, rc), Options{AllowLAN: true})
	b.all["we_off"] = Endpoint{URL: b.all["we_1"].URL, Secrets: []Secret{secretA}, Disabled: true}
	b.all["we_lan"] = Endpoint{URL: "https://169.254.169.254/latest", Secrets: []Secret{secretA}}
	b.all["we_mute"] = Endpoint{URL: b.all["we_1"].URL}
	for id, says := range map[string]string{"we_off": "the endpoint is disabled", "we_x": "the endpoint was removed",
		"we_lan": "the endpoint's url: its address: not a public address", "we_mute": "no secret"} {
		if j := b.outcome(b.send(b.event(), id)); j.State != jobs.Failed || !strings.Contains(j.LastError, says) {
			t.Errorf("%s: %s %q", id, j.State, j.LastError)
		}
	}
	if n := len(rc.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// counted counts what the box reads of a connection.
type counted struct {
	net.Conn
	read *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// Fault 11 of RELIABILITY.md: hostile bodies neither hold a worker nor fill the memory, and a status that came stands.
func TestHostileBodies(t *testing.T) {
	const much = 64 << 20
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := io.CopyN(z, zeros{}, much)
	fatalIf(t, errors.Join(err, z.Close()))
	for name, c := range map[string]struct {
		header http.Header
		body   func() io.Reader
		whole  bool // the connection could be kept
	}{
		"small":               {http.Header{}, func() io.Reader { return strings.NewReader("ok") }, true},
		"huge":                {http.Header{}, func() io.Reader { return io.LimitReader(zeros{}, much) }, false},
		"huge, and announced": {http.Header{"Content-Length": {strconv.Itoa(much)}}, func() io.Reader { return io.LimitReader(zeros{}, much) }, false},
		"announced, not sent": {http.Header{"Content-Length": {strconv.Itoa(much)}}, func() io.Reader { return strings.NewReader("x") }, false},
		"gzip bomb":           {http.Header{"Content-Encoding": {"gzip"}}, func() io.Reader { return bytes.NewReader(bomb.Bytes()) }, false},
		"no gzip at all":      {http.Header{"Content-Encoding": {"gzip"}}, func() io.Reader { return strings.NewReader("x") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for k, v := range c.header {
					w.Header()[k] = v
				}
				_, _ = io.Copy(w, c.body())
			})), Options{AllowLAN: true})
			dial := b.d.dial
			var read, dials atomic.Int64
			b.d.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				dials.Add(1)
				return counted{conn, &read}, err
			}
			for range 2 {
				if j, _, _ := b.attempt(); j.State != jobs.Completed {
					t.Errorf("%s: %q", j.State, j.LastError)
				}
			}
			if n := read.Load(); n == 0 || n > 2*(drainBytesMax+8<<10) {
				t.Errorf("%d bytes were read", n)
			}
			if n := dials.Load(); (n == 1) != c.whole {
				t.Errorf("%d connections for two requests", n)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What is no HTTP fails, and what it says is told to nobody: behind the URL may be a neighbour's mail server.
func TestGarbageAnswers(t *testing.T) {
	for name, c := range map[string]struct{ sends, says string }{
		"banner":         {"220 canary.example ESMTP\r\n", "no answer that could be understood"},
		"nothing":        {"", "closed the connection without an answer"},
		"half a status":  {"HTTP/1.1 20", "no answer that could be understood"},
		"bad header":     {"HTTP/1.1 200 OK\r\ncanary\r\n\r\n", "no answer that could be understood"},
		"huge header":    {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("canary", 10_000) + "\r\n\r\n", "no answer that could be understood"},
		"endless 1xx":    {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: canary\r\n\r\n", 10_000), "no answer that could be understood"},
		"status of text": {"HTTP/1.1 canary OK\r\n\r\n", "no answer that could be understood"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			fatalIf(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				buffer := make([]byte, 64<<10)
				_, _ = conn.Read(buffer)
				_, _ = io.WriteString(conn, c.sends)
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn) // until the box closes it, so that nothing is reset
			}()
			t.Cleanup(func() { _ = l.Close(); <-done })
			b := newBox(t, "http://"+l.Addr().String(), Options{AllowLAN: true})
			j, _, _ := b.attempt()
			wantRetry(t, j, c.says)
			if strings.Contains(j.LastError, "canary") {
				t.Errorf("it quotes what came: %q", j.LastError)
			}
		})
	}
}

func TestCertificatesAreVerified(t *testing.T) {
	rc := &receiver{}
	s := httptest.NewUnstartedServer(rc)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients hang up on it by design
	s.StartTLS()
	t.Cleanup(s.Close)
	ours := x509.NewCertPool()
	ours.AddCert(s.Certificate())
	b := newBox(t, s.URL, Options{AllowLAN: true, RootCAs: ours})
	if j, _, _ := b.attempt(); j.State != jobs.Completed {
		t.Errorf("%s: %q", j.State, j.LastError)
	}
	for name, o := range map[string]Options{"unknown authority": {AllowLAN: true}, "no authority": {AllowLAN: true, RootCAs: x509.NewCertPool()}} {
		b := newBox(t, s.URL, o)
		j, _, _ := b.attempt()
		wantRetry(t, j, "its certificate is not valid: x509: certificate signed by unknown authority")
		if len(rc.requests()) != 1 {
			t.Errorf("%s: it was sent all the same", name)
		}
	}
	plain := newBox(t, strings.Replace(listen(t, rc), "http:", "https:", 1), Options{AllowLAN: true})
	j, _, _ := plain.attempt()
	wantRetry(t, j, "it does not speak https")
}

func TestRefusedConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatalIf(t, err)
	address := l.Addr().String()
	fatalIf(t, l.Close())
	b := newBox(t, "http://"+address+"/token-canary?t=token-canary", Options{AllowLAN: true, Line: func() Line { return LineDown }})
	j, _, _ := b.attempt() // the LAN needs no line
	wantRetry(t, j, "connection failed: connect: connection refused")
	b.pause()
	if text := j.LastError + b.logs.String(); strings.Contains(text, "token-canary") || strings.Contains(text, address) || !strings.Contains(text, "evt_1") {
		t.Errorf("it tells too much, or nothing: %s", text)
	}
}

// INV-23: no secret in errors, results or logs, however it is printed.
func TestSecretsAreNotShown(t *testing.T) {
	b := newBox(t, listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })), Options{AllowLAN: true})
	j, _, _ := b.attempt()
	b.pause()
	e := b.all["we_1"]
	encoded, err := json.Marshal(e)
	fatalIf(t, err)
	text := fmt.Sprintf("%v %+v %#v %s %q %x %s", e, e, e, e.Secrets, e.Secrets[0], e.Secrets[0], encoded) + j.LastError + string(j.Data) + b.logs.String()
	if strings.Contains(text, secretA[6:]) || strings.Contains(text, fmt.Sprintf("%x", secretA)) || !strings.Contains(text, "[redacted]") {
		t.Error("it shows a secret: ", text)
	}
}
