package simulator

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// bodyBytesMax bounds a request's body.
const bodyBytesMax = 64 << 10

// exchange is one request on its way through.
type exchange struct {
	s      *Simulator
	w      http.ResponseWriter
	r      *http.Request
	fault  fault
	ctl    Control
	params url.Values
}

// answer is a status and a body, complete.
type answer struct {
	status int
	body   []byte
	header map[string]string
}

// ServeHTTP answers one request.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", s.o.Now().UTC().Format(http.TimeFormat))
	path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v1"), "/")
	switch path {
	case "/_control":
		s.serveControl(w, r)
		return
	case "/_ledger":
		writeJSON(w, http.StatusOK, s.Ledger())
		return
	}
	f, ctl := s.draw()
	x := &exchange{s: s, w: w, r: r, fault: f, ctl: ctl}
	if s.isCut() {
		s.fire("cut")
		drop(w)
		return
	}
	if f == refuse {
		x.fired()
		drop(w)
		return
	}
	if f == captivePortal {
		x.fired()
		x.html()
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if err != nil {
		x.write(invalid("", "The request's body could not be read.").as(http.StatusRequestEntityTooLarge))
		return
	}
	if f == hang {
		x.fired()
		x.hang()
		return
	}
	x.serve(path, body)
}

// serve handles a request that reached the processor.
func (x *exchange) serve(path string, body []byte) {
	s := x.s
	if !s.authorized(x.r) {
		x.write(failure{Type: "invalid_request_error", Message: "Invalid API Key provided."}.as(http.StatusUnauthorized))
		return
	}
	if x.fault == error429 {
		x.fired()
		x.write(tooMany(x.ctl.RetryAfter))
		return
	}
	if !s.allow() {
		s.fire("rate")
		x.write(tooMany("1"))
		return
	}
	if x.fault == error503 {
		x.fired()
		x.write(failure{Type: "api_error", Message: "The service is unavailable for a moment."}.as(http.StatusServiceUnavailable))
		return
	}
	ep, ok := route(x.r.Method, path)
	if !ok {
		x.write(invalid("", "Unrecognized request URL ("+x.r.Method+": "+path+").").as(http.StatusNotFound))
		return
	}
	if x.r.Method == http.MethodGet {
		x.params = x.r.URL.Query()
		if x.fault == error500 || x.fault == error500AfterEffect {
			x.fired()
			x.write(broken())
			return
		}
		x.deliver(s.execute(ep, x.params, ""))
		return
	}
	if t, _, _ := strings.Cut(x.r.Header.Get("Content-Type"), ";"); len(body) > 0 && strings.TrimSpace(t) != "application/x-www-form-urlencoded" {
		x.write(invalid("", "Requests must be form-encoded.").as(http.StatusBadRequest))
		return
	}
	params, err := url.ParseQuery(string(body))
	if err != nil {
		x.write(invalid("", "The form could not be decoded.").as(http.StatusBadRequest))
		return
	}
	x.params = params
	x.post(ep, path)
}

// post works on a request that may take effect, once for its key.
func (x *exchange) post(ep endpoint, path string) {
	s := x.s
	key := x.r.Header.Get("Idempotency-Key")
	if len(key) > 255 {
		x.write(invalid("", "Idempotency keys have at most 255 characters.").as(http.StatusBadRequest))
		return
	}
	var k *keyed
	if key != "" {
		s.mu.Lock()
		c, held := s.state.claim(key, fingerprint(path, x.params.Encode()), s.o.Now())
		if c == replay && x.fault == declineRepeat && s.state.tookEffect(key) {
			f := declines["chargeDeclinedInsufficientFunds"]
			f.Type = "card_error"
			a := f.as(http.StatusPaymentRequired)
			held.store(a.status, a.body)
			s.mu.Unlock()
			x.fired()
			x.deliver(a)
			return
		}
		status, body := held.status, held.body
		s.mu.Unlock()
		switch c {
		case replay:
			x.deliver(answer{status: status, body: body, header: map[string]string{"Idempotent-Replayed": "true"}})
			return
		case mismatch:
			x.write(failure{Type: "idempotency_error", Message: "Keys for idempotent requests can only be used with the same parameters they were first used with."}.as(http.StatusBadRequest))
			return
		case inUse:
			a := failure{Type: "idempotency_error", Code: "idempotency_key_in_use", Message: "There is currently another in-progress request using this key."}.as(http.StatusConflict)
			a.header = map[string]string{"Stripe-Should-Retry": "true"}
			x.write(a)
			return
		}
		k = held
	}
	x.work()

	var a answer
	if x.fault == error500 {
		x.fired()
		a = broken()
	} else {
		a = s.execute(ep, x.params, key)
		if x.fault == error500AfterEffect {
			x.fired()
			a = broken()
		}
	}
	if k != nil {
		s.mu.Lock()
		if a.status == http.StatusBadRequest || a.status == http.StatusNotFound {
			s.state.unclaim(key, k) // no work began: nothing is stored
		} else {
			k.store(a.status, a.body)
		}
		s.mu.Unlock()
	}
	x.deliver(a)
}

// work takes the time that was set, also when the client has gone.
func (x *exchange) work() {
	if x.ctl.LatencyMS == 0 {
		return
	}
	t := time.NewTimer(time.Duration(x.ctl.LatencyMS) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-x.s.closed:
	}
}

// deliver sends an answer, unless a fault is in its way.
func (x *exchange) deliver(a answer) {
	switch x.fault {
	case dropAfterEffect:
		x.fired()
		drop(x.w)
	case hangAfterEffect:
		x.fired()
		x.hang()
	case slowBody:
		x.fired()
		x.slow(a)
	case garbage:
		x.fired()
		x.garbage(a)
	default:
		x.write(a)
	}
}

func (x *exchange) fired() { x.s.fire(string(x.fault)) }

func (x *exchange) head(a answer) {
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Request-Id", x.s.requestID())
	for k, v := range a.header {
		h.Set(k, v)
	}
}

func (x *exchange) write(a answer) {
	x.head(a)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	x.w.WriteHeader(a.status)
	x.w.Write(a.body) // an error here means that the client has gone
}

// hang waits for the client to give up.
func (x *exchange) hang() {
	select {
	case <-x.r.Context().Done():
	case <-x.s.closed:
	}
	drop(x.w)
}

func (x *exchange) slow(a answer) {
	x.head(a)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	x.w.WriteHeader(a.status)
	flush := http.NewResponseController(x.w)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range a.body {
		if _, err := x.w.Write(a.body[i : i+1]); err != nil || flush.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-x.r.Context().Done():
			return
		case <-x.s.closed:
			return
		}
	}
}

const portalPage = `<!doctype html><html><head><title>Welcome</title></head><body><h1>Free Wi-Fi</h1><form method="post" action="/login"><button>Accept and connect</button></form></body></html>`

func (x *exchange) html() {
	x.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	io.WriteString(x.w, portalPage)
}

// garbage sends something else with status 200, one kind after the other.
func (x *exchange) garbage(a answer) {
	body := string(a.body)
	switch x.s.turn() % 6 {
	case 0:
		x.html()
		return
	case 1:
		body = body[:len(body)/2]
	case 2:
		body = alter(a.body, "amount", func(v any) any { n, _ := v.(float64); return n + 1 })
	case 3:
		body = alter(a.body, "currency", func(any) any { return "xts" })
	case 4:
		body = alter(a.body, "id", func(any) any { return "" })
	case 5:
		body = "\x00\xff\xfe{{{" + body
	}
	x.write(answer{status: http.StatusOK, body: []byte(body)})
}

// alter changes one member of a JSON object; an answer that is none stays as it is, but cut.
func alter(body []byte, member string, f func(any) any) string {
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil || m[member] == nil {
		return string(body[:len(body)-1])
	}
	m[member] = f(m[member])
	b, err := json.Marshal(m)
	if err != nil {
		return ""
	}
	return string(b)
}

// drop closes the connection at once, with a reset where the system can.
func drop(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // no connection to take: net/http's own way to cut
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

func (s *Simulator) isCut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut || s.control.Cut
}

func (s *Simulator) allow() bool {
	s.mu.Lock()
	limiter := s.limiter
	s.mu.Unlock()
	return limiter == nil || limiter.AllowN(s.o.Now(), 1)
}

func (s *Simulator) requestID() string {
	return fmt.Sprintf("req_sim%016d", s.requests.Add(1))
}

// turn counts garbage.
func (s *Simulator) turn() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fired[string(garbage)]
}

func (s *Simulator) authorized(r *http.Request) bool {
	if s.o.Key == "" {
		return true
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		given, _, _ = r.BasicAuth()
	}
	return subtle.ConstantTimeCompare([]byte(given), []byte(s.o.Key)) == 1
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error here means that the client has gone
}
