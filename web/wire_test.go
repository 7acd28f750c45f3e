package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/ledger"
)

// startServer runs the handler on a port, with the limits that the program sets.
func (ts *testServer) start(edit func(*http.Server)) string {
	ts.t.Helper()
	s := httptest.NewUnstartedServer(ts.Server)
	s.Config.MaxHeaderBytes = 16 << 10
	s.Config.ReadHeaderTimeout = 20 * time.Second
	s.Config.ReadTimeout = 20 * time.Second
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	if edit != nil {
		edit(s.Config)
	}
	s.Start()
	ts.t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// wire writes raw bytes and returns the status of what comes back, 0 for a connection that was closed without a word.
func wire(t *testing.T, address, raw string) (status int, answer string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, raw) // the server may hang up in the middle of it
	got, _ := io.ReadAll(bufio.NewReader(c))
	var minor int
	_, _ = fmt.Sscanf(string(got), "HTTP/1.%d %d", &minor, &status)
	return status, string(got)
}

func TestHostileWire(t *testing.T) {
	ts := newTestServer(t, nil)
	address := ts.start(func(s *http.Server) {
		s.ReadTimeout = 500 * time.Millisecond
		s.ReadHeaderTimeout = 500 * time.Millisecond
	})
	head := "POST /api/v1/payments HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + ts.shop + "\r\nContent-Type: application/json\r\nConnection: close\r\n"
	for name, c := range map[string]struct {
		raw    string
		status []int // 0: closed without an answer
	}{
		"header without colon":      {head + "Nonsense\r\n\r\n", []int{400}},
		"space before colon":        {head + "X-A : b\r\n\r\n", []int{400}},
		"header of 24 KiB":          {head + "X-Long: " + strings.Repeat("x", 24<<10) + "\r\n\r\n", []int{431}},
		"header of 17 KiB":          {head + "X-Long: " + strings.Repeat("x", 17<<10) + "\r\n\r\n", []int{431}},
		"200 headers":               {head + strings.Repeat("X-A: b\r\n", 200) + "\r\n", []int{431}},
		"a megabyte of key":         {"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + strings.Repeat("k", 1<<20) + "\r\n\r\n", []int{431, 0}},
		"control character in key":  {head + "Idempotency-Key: a\x01b\r\n\r\n", []int{400}},
		"NUL in key":                {head + "Idempotency-Key: a\x00b\r\n\r\n", []int{400}},
		"bare CR in key":            {head + "Idempotency-Key: a\rb\r\n\r\n", []int{400}},
		"no host":                   {"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", []int{400}},
		"no host, HTTP/1.0":         {"GET /healthz HTTP/1.0\r\n\r\n", []int{421}},
		"empty host":                {"GET /healthz HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", []int{421}},
		"two hosts":                 {"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", []int{400}},
		"absolute target elsewhere": {"GET http://evil.example/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", []int{421}},
		"absolute target here":      {"GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", []int{200}},
		"CONNECT elsewhere":         {"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", []int{421}},
		"CONNECT here":              {"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1:443\r\nConnection: close\r\n\r\n", []int{404}},
		"OPTIONS *":                 {"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", []int{200, 404}},
		"TRACE":                     {"TRACE /api/v1/payments HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", []int{405}},
		"TLS hello":                 {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", []int{400, 0}},
		"HTTP/2 preface":            {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{400}},
		"random bytes":              {"\x9c\x00\xff\x13\x37\r\n\r\n", []int{400, 0}},
		"nothing":                   {"\r\n\r\n", []int{400, 0}},
		"upgrade":                   {"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n", []int{400}},
		"length that lies, short":   {head + "Content-Length: 5000\r\n\r\n" + goodPayment, []int{408, 400, 0}},
		"length of letters":         {head + "Content-Length: abc\r\n\r\n", []int{400}},
		"negative length":           {head + "Content-Length: -1\r\n\r\n", []int{400}},
		"two lengths":               {head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + goodPayment, []int{400}},
		"length over 64 KiB":        {head + "Content-Length: 100000000\r\n\r\n", []int{413}},
		"bad chunks":                {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + goodPayment + "\r\n0\r\n\r\n", []int{400}},
		"endless chunk size":        {head + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("f", 5000), []int{400}},
		"chunks cut short":          {head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"am", []int{408, 400, 0}},
		"chunks over 64 KiB":        {head + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("400\r\n"+strings.Repeat(" ", 1024)+"\r\n", 80), []int{413}},
		"unknown transfer encoding": {head + "Transfer-Encoding: gzip\r\n\r\n" + goodPayment, []int{400, 501}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // those that must run into a deadline do so together
			status, answer := wire(t, address, c.raw)
			for _, s := range c.status {
				if status == s {
					return
				}
			}
			t.Errorf("got %d, want one of %v: %.300s", status, c.status, answer)
		})
	}
}

// A body in one-byte chunks is taken if it ends, and given up if it does not.
func TestSlowBody(t *testing.T) {
	ts := newTestServer(t, nil)
	head := "POST /api/v1/payments HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + ts.shop +
		"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
	var chunks strings.Builder
	for _, b := range []byte(goodPayment) {
		fmt.Fprintf(&chunks, "1\r\n%c\r\n", b)
	}
	if status, answer := wire(t, ts.start(nil), head+chunks.String()+"0\r\n\r\n"); status != 201 {
		t.Errorf("got %d: %s", status, answer)
	}
	impatient := ts.start(func(s *http.Server) { s.ReadTimeout = 100 * time.Millisecond })
	if status, answer := wire(t, impatient, head+chunks.String()); status != 408 && status != 0 {
		t.Errorf("got %d: %s", status, answer)
	}
	if n := len(ts.ledger.payments["shop"]); n != 1 {
		t.Errorf("%d payments, want the one whose body ended", n)
	}
}

// A wait outlives the deadlines for receiving and answering: the client asked for it.
func TestWaitMovesDeadlines(t *testing.T) {
	ts := newTestServer(t, nil)
	w := &deadlineRecorder{ResponseRecorder: httptest.NewRecorder(), read: time.Now(), write: time.Now()}
	ts.ledger.await = func(_ context.Context, d time.Duration) {
		if d != 20*time.Second || !w.read.IsZero() || time.Until(w.write) < 20*time.Second {
			t.Errorf("waits %v with deadlines %v and %v", d, w.read, w.write)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v1/payments", strings.NewReader(goodPayment))
	r.Host = "127.0.0.1"
	r.Header = http.Header{"Authorization": {"Bearer " + ts.shop}, "Content-Type": {"application/json"}, "Prefer": {"respond-async, wait=20; x=y"}}
	ts.ServeHTTP(w, r)
	if w.Code != 201 || !strings.Contains(w.Body.String(), `"status":"succeeded"`) || w.Header().Get("Preference-Applied") != "wait=20" {
		t.Errorf("got %d: %v %s", w.Code, w.Header(), w.Body)
	}
	for asked, want := range map[string]time.Duration{"wait=1": time.Second, "wait=31": waitMax, "Wait = \"7\"": 7 * time.Second, "a, wait=3": 3 * time.Second} {
		if got := preferredWait([]string{asked}); got != want {
			t.Errorf("%s: %v, want %v", asked, got, want)
		}
	}
}

type deadlineRecorder struct {
	*httptest.ResponseRecorder
	read, write time.Time
}

func (w *deadlineRecorder) SetReadDeadline(at time.Time) error  { w.read = at; return nil }
func (w *deadlineRecorder) SetWriteDeadline(at time.Time) error { w.write = at; return nil }

// Overload: the excess is told so before any work, what is in hand goes on, and probes are answered.
func TestOverload(t *testing.T) {
	ts := newTestServer(t, nil)
	entered, release := make(chan struct{}, inFlightMax), make(chan struct{})
	ts.ledger.pay = func(context.Context, ledger.NewPayment) error { entered <- struct{}{}; <-release; return nil }
	var group sync.WaitGroup
	var mu sync.Mutex // guards statuses
	statuses := map[int]int{}
	send := func(key string) {
		group.Go(func() {
			a := ts.ask("POST /api/v1/payments", goodPayment, "key", key)
			mu.Lock()
			defer mu.Unlock()
			statuses[a.status]++
		})
	}
	for range tenantInFlightMax {
		send(ts.shop)
	}
	for range tenantInFlightMax {
		<-entered
	}
	// The tenant's share is full; another's is not.
	a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(429, "rate_limited")
	if a.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	for range inFlightMax - tenantInFlightMax {
		send(ts.bar)
	}
	for range inFlightMax - tenantInFlightMax {
		<-entered
	}
	a = ts.ask("POST /api/v1/payments", goodPayment, "key", ts.bar).is(503, "overloaded")
	if a.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	ts.ask("GET /api/v1/status", "", "key", operatorToken).is(503, "overloaded")
	ts.ask("GET /healthz", "").is(200, "")
	ts.ask("GET /readyz", "").is(200, "")
	close(release)
	group.Wait()
	if statuses[201] != inFlightMax || len(statuses) != 1 {
		t.Errorf("what was in hand ended with %v", statuses)
	}
	ts.ledger.pay = nil
	ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(201, "")
	if n := ts.admission.inFlight.Load(); n != 0 {
		t.Errorf("%d requests in flight at the end", n)
	}
}

// Those who wait for an outcome do not keep others from paying, and have a limit of their own.
func TestWaitersDoNotBlock(t *testing.T) {
	ts := newTestServer(t, nil)
	entered, release := make(chan struct{}), make(chan struct{})
	ts.ledger.await = func(context.Context, time.Duration) { entered <- struct{}{}; <-release }
	var group sync.WaitGroup
	for range waitersMax {
		group.Go(func() {
			for { // a share may be full for a moment; a client comes again
				if a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Prefer", "wait=30"); a.status == 201 {
					return
				}
			}
		})
	}
	for range waitersMax {
		<-entered
	}
	a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Prefer", "wait=30").is(201, "")
	if a.json["status"] != "pending" {
		t.Errorf("one too many waited: %s", a.body)
	}
	close(release)
	group.Wait()
	if in, waiting := ts.admission.inFlight.Load(), ts.admission.waiting.Load(); in != 0 || waiting != 0 {
		t.Errorf("%d in flight, %d waiting at the end", in, waiting)
	}
}

func TestPanic(t *testing.T) {
	ts := newTestServer(t, nil)
	ts.ledger.pay = func(context.Context, ledger.NewPayment) error { panic("index out of reach") }
	a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(500, "internal")
	if strings.Contains(a.body, "reach") || !strings.Contains(ts.log.String(), "index out of reach") {
		t.Errorf("the cause belongs to the log alone: %s\n%s", a.body, ts.log)
	}
	if m := ts.ask("GET /metrics", "", "key", operatorToken); !strings.Contains(m.body, "tenderbox_http_panics_total 1") ||
		!strings.Contains(m.body, `tenderbox_http_requests_total{route="POST /api/v1/payments",status="500"} 1`) {
		t.Errorf("not counted:\n%s", m.body)
	}
	ts.ledger.pay = nil
	ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(201, "")
	if n := ts.admission.inFlight.Load(); n != 0 {
		t.Errorf("%d requests in flight at the end", n)
	}
}
