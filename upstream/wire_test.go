package upstream_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	goodCharge  = `{"id":"ch_1","object":"charge","amount":1999,"currency":"usd","status":"succeeded"}`
	cardError   = `{"error":{"type":"card_error","code":"card_declined","message":"no"}}`
	serverError = `{"error":{"type":"api_error","message":"no"}}`
)

var payment = upstream.ChargeRequest{Amount: 1999, Currency: "usd", Source: "tok_visa",
	Metadata: map[string]string{"tenderbox_payment": "pay_1"}}

// account returns the box's own account with that configuration.
func account(t *testing.T, c upstream.Config) (*upstream.Accounts, *upstream.Account) {
	t.Helper()
	as := upstream.NewAccounts(c)
	a, err := as.Get("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(as.CloseIdleConnections)
	return as, a
}

func pay(ctx context.Context, a *upstream.Account, key string) upstream.Answer {
	path, body := payment.Encode()
	return a.Post(ctx, path, body, key)
}

// reply is a handler that answers everything alike.
func reply(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// closed returns the URL of a port where nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return "http://" + l.Addr().String()
}

func TestRequestOnTheWire(t *testing.T) {
	var got *http.Request
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		reply(200, goodCharge)(w, r)
	}))
	defer server.Close()
	_, a := account(t, upstream.Config{URL: server.URL + "/v1/", Key: "sk_secret"})
	answer := pay(t.Context(), a, "pay_1")
	if answer.Outcome != upstream.Succeeded || answer.Object.ID != "ch_1" || !answer.MaybeSent || answer.Date.IsZero() {
		t.Errorf("answer %+v", answer)
	}
	_, want := payment.Encode()
	if got.Method != "POST" || got.URL.Path != "/v1/charges" || !bytes.Equal(body, want) {
		t.Errorf("%s %s %q", got.Method, got.URL, body)
	}
	for name, want := range map[string]string{
		"Authorization": "Bearer sk_secret", "Stripe-Version": "2022-11-15", "Idempotency-Key": "pay_1",
		"Content-Type": "application/x-www-form-urlencoded", "Accept-Encoding": "", "User-Agent": "tenderbox", "Accept": "application/json",
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	if answer := a.Get(t.Context(), "/charges/ch_1"); answer.Outcome != upstream.Succeeded || got.Method != "GET" || got.Header.Get("Idempotency-Key") != "" {
		t.Errorf("get: %+v", answer)
	}
}

// RELIABILITY fault 11, over real connections.
func TestHostileAnswers(t *testing.T) {
	var trap atomic.Int64
	victim := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { trap.Add(1) }))
	defer victim.Close()
	bomb := gzipped(32 << 20)
	for _, c := range []struct {
		name   string
		h      http.HandlerFunc
		reason string
	}{
		{"HTML", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>Welcome</html>") }, "without a JSON object"},
		{"another amount", reply(200, strings.Replace(goodCharge, "1999", "1", 1)), "another amount"},
		{"redirect to 127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, victim.URL+"/charges", http.StatusTemporaryRedirect)
		}, "redirect"},
		{"redirect to nonsense", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://[::1")
			w.WriteHeader(302)
		}, "redirect"},
		{"truncated", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "500")
			io.WriteString(w, goodCharge)
		}, "cut within the answer"},
		{"1 GiB", func(w http.ResponseWriter, r *http.Request) {
			chunk := []byte(strings.Repeat(" ", 64<<10))
			for range 1 << 14 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "too large"},
		{"1 GiB announced", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1073741824")
			for range 1 << 14 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, "too large"},
		{"gzip bomb", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb)
		}, "without a JSON object"},
		{"huge headers", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			io.WriteString(w, goodCharge)
		}, "not HTTP"},
		{"not HTTP", func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(conn, "220 mail.example ESMTP\r\n")
			conn.Close()
		}, "not HTTP"},
		{"idempotency error", reply(400, `{"error":{"type":"idempotency_error"}}`), "idempotency_error"},
		{"in progress", reply(409, `{"error":{"type":"idempotency_error","code":"idempotency_key_in_use"}}`), "409"},
		{"500", reply(500, serverError), "500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.h)
			defer server.Close()
			_, a := account(t, upstream.Config{URL: server.URL})
			answer := pay(t.Context(), a, "k")
			if answer.Outcome != upstream.Unknown || !answer.MaybeSent || !strings.Contains(answer.Reason, c.reason) {
				t.Errorf("%s, sent %v, %q; want unknown, sent, %q", answer.Outcome, answer.MaybeSent, answer.Reason, c.reason)
			}
		})
	}
	if trap.Load() != 0 {
		t.Errorf("the redirect was followed %d times", trap.Load())
	}
}

// gzipped returns that many zeros, packed.
func gzipped(n int) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(make([]byte, n))
	z.Close()
	return b.Bytes()
}

// A worker is held no longer than the timeout, whatever dribbles in.
func TestSlowAnswersEndInTime(t *testing.T) {
	dribble := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for _, b := range []byte(goodCharge) {
			if _, err := w.Write([]byte{b}); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
				return
			}
		}
	}
	never := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	late := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-time.After(6 * time.Second):
			reply(200, goodCharge)(w, r)
		case <-r.Context().Done():
		}
	}
	for name, h := range map[string]http.HandlerFunc{"one byte a second": dribble, "never": never, "after our timeout": late} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := upstreamtest.NewLine(t, h)
				_, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
				from := time.Now()
				answer := pay(t.Context(), a, "k")
				if answer.Outcome != upstream.Unknown || !answer.MaybeSent || !strings.Contains(answer.Reason, "timeout") {
					t.Errorf("%+v", answer)
				}
				if took := time.Since(from); took != 5*time.Second {
					t.Errorf("took %v", took)
				}
				if line.Dials() != 1 {
					t.Errorf("%d dials: a timeout is no connection that failed", line.Dials())
				}
			})
		})
	}
}

// MaybeSent is false exactly where nothing can have left.
func TestMaybeSent(t *testing.T) {
	cut := func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		conn.Close()
	}
	plain := httptest.NewServer(http.HandlerFunc(cut))
	defer plain.Close()
	secure := httptest.NewUnstartedServer(reply(200, goodCharge))
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	defer secure.Close()
	ended, end := context.WithCancel(t.Context())
	end()

	for _, c := range []struct {
		name    string
		ctx     context.Context
		config  upstream.Config
		outcome upstream.Outcome
		sent    bool
		reason  string
	}{
		{"dial refused", t.Context(), upstream.Config{URL: closed(t)}, upstream.Retryable, false, "connection refused"},
		{"name not resolved", t.Context(), upstream.Config{URL: "http://processor.test", Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "processor.test", IsNotFound: true}}
		}}, upstream.Retryable, false, "name not resolved"},
		{"certificate unknown", t.Context(), upstream.Config{URL: secure.URL}, upstream.Retryable, false, "certificate"},
		{"TLS on a plain port", t.Context(), upstream.Config{URL: strings.Replace(plain.URL, "http", "https", 1)}, upstream.Retryable, false, ""},
		{"cut after the write", t.Context(), upstream.Config{URL: plain.URL}, upstream.Unknown, true, "cut before an answer"},
		{"caller gone before", ended, upstream.Config{URL: plain.URL}, upstream.Retryable, false, "not sent"},
		{"no upstream", t.Context(), upstream.Config{}, upstream.Retryable, false, "no upstream configured"},
		{"write fails at once", t.Context(), upstream.Config{URL: "http://processor.test", Dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			t.Cleanup(func() { far.Close() })
			return deaf{near}, nil
		}}, upstream.Unknown, true, ""},
		{"a transport that proves nothing", t.Context(), upstream.Config{URL: "http://processor.test", Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			return nil, errors.New("no")
		})}, upstream.Unknown, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, a := account(t, c.config)
			answer := pay(c.ctx, a, "k")
			if answer.Outcome != c.outcome || answer.MaybeSent != c.sent || !strings.Contains(answer.Reason, c.reason) {
				t.Errorf("%s, sent %v, %q; want %s, %v, %q", answer.Outcome, answer.MaybeSent, answer.Reason, c.outcome, c.sent, c.reason)
			}
			if strings.Contains(answer.Reason, "127.0.0.1") || strings.Contains(answer.Reason, "processor.test") {
				t.Errorf("the reason quotes an address: %q", answer.Reason)
			}
		})
	}
}

// deaf is a connection that takes no write.
type deaf struct{ net.Conn }

func (deaf) Write([]byte) (int, error) { return 0, errors.New("broken") }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The same over TLS: the handshake's writes are not the request's.
func TestMaybeSentOverTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		conn.Close()
	}))
	defer server.Close()
	transport := server.Client().Transport.(*http.Transport)
	_, a := account(t, upstream.Config{URL: server.URL, Transport: transport})
	if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Unknown || !answer.MaybeSent {
		t.Errorf("cut after the write: %+v", answer)
	}
	server.Close()
	if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Retryable || answer.MaybeSent {
		t.Errorf("dial refused: %+v", answer)
	}
}

func TestNonsenseIsNotSent(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Add(1) }))
	defer server.Close()
	_, a := account(t, upstream.Config{URL: server.URL})
	for _, key := range []string{"", "a\r\nX: y", "ключ", strings.Repeat("k", 256)} {
		if answer := pay(t.Context(), a, key); answer.Outcome != upstream.Retryable || answer.MaybeSent {
			t.Errorf("key %q: %+v", key, answer)
		}
	}
	for _, path := range []string{"", "charges", "//evil.example/charges", "/a b", "/a\r\nb", "/é", "/a#b", `/\evil.example`} {
		if answer := a.Post(t.Context(), path, nil, "k"); answer.Outcome != upstream.Retryable || answer.MaybeSent {
			t.Errorf("path %q: %+v", path, answer)
		}
	}
	if n.Load() != 0 {
		t.Errorf("%d requests left", n.Load())
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	server := httptest.NewUnstartedServer(reply(200, goodCharge))
	server.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	server.Config.ErrorLog = quiet
	server.StartTLS()
	defer server.Close()
	_, a := account(t, upstream.Config{URL: server.URL})
	if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Retryable || answer.MaybeSent {
		t.Errorf("%+v", answer)
	}
}

func BenchmarkPost(b *testing.B) {
	server := httptest.NewServer(reply(200, goodCharge))
	defer server.Close()
	as := upstream.NewAccounts(upstream.Config{URL: server.URL, Key: "sk"})
	defer as.CloseIdleConnections()
	a, _ := as.Get("", "", "")
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if answer := pay(b.Context(), a, fmt.Sprint("k", n.Add(1))); answer.Outcome != upstream.Succeeded {
				b.Error(answer.Reason)
				return
			}
		}
	})
}
