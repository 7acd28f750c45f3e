package simulator_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tenderbox/upstream/simulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// processor is a simulator on a loopback listener, and a plain client of it.
type processor struct {
	t *testing.T
	*simulator.Simulator
	url    string
	client *http.Client
}

func start(t *testing.T, o simulator.Options) *processor {
	t.Helper()
	s := simulator.New(o)
	base, err := s.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &processor{t: t, Simulator: s, url: base, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// reply is what came back; err if nothing whole did.
type reply struct {
	status int
	header http.Header
	body   string
	json   map[string]any
	err    error
}

func (r reply) errorType() string {
	e, _ := r.json["error"].(map[string]any)
	s, _ := e["type"].(string)
	return s
}

func (r reply) errorCode() string {
	e, _ := r.json["error"].(map[string]any)
	s, _ := e["code"].(string)
	return s
}

func (p *processor) do(req *http.Request) reply {
	resp, err := p.client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r := reply{status: resp.StatusCode, header: resp.Header, body: string(b), err: err}
	json.Unmarshal(b, &r.json)
	return r
}

func (p *processor) get(path string) reply {
	req, _ := http.NewRequestWithContext(p.t.Context(), "GET", p.url+path, nil)
	return p.do(req)
}

func (p *processor) post(path, key string, fields ...string) reply {
	f := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		f.Set(fields[i], fields[i+1])
	}
	req, _ := http.NewRequestWithContext(p.t.Context(), "POST", p.url+path, strings.NewReader(f.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	return p.do(req)
}

func (p *processor) charge(key string) reply {
	return p.post("/charges", key, "amount", "1999", "currency", "usd", "source", "tok_visa", "metadata[a]", "b")
}

// effects fails unless so many charges took effect.
func (p *processor) effects(want int) {
	p.t.Helper()
	if got := len(p.Ledger().Charges); got != want {
		p.t.Errorf("%d effects, want %d", got, want)
	}
}

func (p *processor) faults(f simulator.Faults) {
	p.t.Helper()
	if err := p.SetFaults(f); err != nil {
		p.t.Fatal(err)
	}
}

func TestChargeIsKeptAndListed(t *testing.T) {
	p := start(t, simulator.Options{})
	first := p.charge("k1")
	second := p.post("/v1/charges", "k2", "amount", "5", "currency", "EUR", "source", "tok_x", "description", "d")
	if first.status != 200 || first.json["amount"] != 1999.0 || first.json["status"] != "succeeded" || first.json["object"] != "charge" {
		t.Fatalf("charge: %+v", first)
	}
	id := first.json["id"].(string)
	if got := p.get("/charges/" + id); got.status != 200 || got.body != first.body {
		t.Errorf("retrieved %s, made %s", got.body, first.body)
	}
	page := p.get("/v1/charges?limit=1")
	data := page.json["data"].([]any)
	if page.json["object"] != "list" || page.json["has_more"] != true || data[0].(map[string]any)["id"] != second.json["id"] {
		t.Errorf("first page: %s", page.body)
	}
	page = p.get("/charges?limit=1&starting_after=" + second.json["id"].(string))
	if data := page.json["data"].([]any); page.json["has_more"] != false || data[0].(map[string]any)["id"] != id {
		t.Errorf("second page: %s", page.body)
	}
	page = p.get("/charges?ending_before=" + id)
	if data := page.json["data"].([]any); len(data) != 1 || data[0].(map[string]any)["id"] != second.json["id"] {
		t.Errorf("page before: %s", page.body)
	}
	if page = p.get("/charges?created[gte]=99999999999"); len(page.json["data"].([]any)) != 0 {
		t.Errorf("future page: %s", page.body)
	}
	l := p.Ledger()
	if len(l.Charges) != 2 || l.Charges[0].IdempotencyKey != "k1" || l.Charges[0].Metadata["a"] != "b" || l.Charges[1].Currency != "eur" {
		t.Errorf("ledger: %+v", l)
	}
	var over struct{ Charges []simulator.Effect }
	if err := json.Unmarshal([]byte(p.get("/_ledger").body), &over); err != nil || len(over.Charges) != 2 || over.Charges[0].ID != id {
		t.Errorf("/_ledger: %+v, %v", over, err)
	}
}

func TestValidation(t *testing.T) {
	p := start(t, simulator.Options{})
	for name, r := range map[string]reply{
		"zero":          p.post("/charges", "z", "amount", "0", "currency", "usd", "source", "t"),
		"fraction":      p.post("/charges", "z", "amount", "1.5", "currency", "usd", "source", "t"),
		"too much":      p.post("/charges", "z", "amount", "100000000", "currency", "usd", "source", "t"),
		"currency":      p.post("/charges", "z", "amount", "1", "currency", "u1d", "source", "t"),
		"source":        p.post("/charges", "z", "amount", "1", "currency", "usd"),
		"limit":         p.get("/charges?limit=101"),
		"cursor":        p.get("/charges?starting_after=ch_none"),
		"created":       p.get("/charges?created[gte]=x"),
		"long key":      p.post("/charges", strings.Repeat("k", 256), "amount", "1", "currency", "usd", "source", "t"),
		"nothing there": p.post("/refunds", "r", "amount", "1"),
	} {
		if r.status != 400 || r.errorType() != "invalid_request_error" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	for name, r := range map[string]reply{
		"no charge": p.get("/charges/ch_none"), "no path": p.get("/balance"), "no act": p.post("/payment_intents/pi_1/capture", ""),
		"no intent": p.post("/payment_intents/pi_1/confirm", ""), "refund of none": p.post("/refunds", "", "charge", "ch_none"),
	} {
		if r.status != 404 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	// Validation stores nothing: the key is still free.
	if r := p.charge("z"); r.status != 200 {
		t.Errorf("after validation: %d %s", r.status, r.body)
	}
	p.effects(1)
}

// Stripe takes 50 metadata keys on an object and no more.
func TestMetadataKeysAreCounted(t *testing.T) {
	p := start(t, simulator.Options{})
	with := func(n int, params ...string) []string {
		for i := range n {
			params = append(params, fmt.Sprintf("metadata[k%d]", i), "v")
		}
		return params
	}
	charge := []string{"amount", "1999", "currency", "usd", "source", "tok_visa"}
	if r := p.post("/charges", "many", with(51, charge...)...); r.status != 400 || r.errorType() != "invalid_request_error" {
		t.Errorf("charge with 51: %d %s", r.status, r.body)
	}
	if r := p.post("/payment_intents", "i", with(51, "amount", "1", "currency", "usd")...); r.status != 400 {
		t.Errorf("intent with 51: %d %s", r.status, r.body)
	}
	p.effects(0)
	made := p.post("/charges", "many", with(50, charge...)...) // the key is still free
	if made.status != 200 {
		t.Fatalf("charge with 50: %d %s", made.status, made.body)
	}
	if r := p.post("/refunds", "r", with(51, "charge", made.json["id"].(string))...); r.status != 400 {
		t.Errorf("refund with 51: %d %s", r.status, r.body)
	}
	p.effects(1)
}

func TestKeyIsAskedFor(t *testing.T) {
	p := start(t, simulator.Options{Key: "sk_right"})
	ask := func(set func(*http.Request)) int {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", p.url+"/charges", nil)
		set(req)
		return p.do(req).status
	}
	for name, c := range map[string]struct {
		set  func(*http.Request)
		want int
	}{
		"none":   {func(*http.Request) {}, 401},
		"wrong":  {func(r *http.Request) { r.Header.Set("Authorization", "Bearer sk_wrong") }, 401},
		"bearer": {func(r *http.Request) { r.Header.Set("Authorization", "Bearer sk_right") }, 200},
		"basic":  {func(r *http.Request) { r.SetBasicAuth("sk_right", "") }, 200},
	} {
		if got := ask(c.set); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestIdempotency(t *testing.T) {
	p := start(t, simulator.Options{})
	first := p.charge("k")
	again := p.charge("k")
	if again.status != 200 || again.body != first.body || again.header.Get("Idempotent-Replayed") != "true" || first.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("again: %+v, first %+v", again, first)
	}
	if other := p.post("/charges", "k", "amount", "2000", "currency", "usd", "source", "tok_visa"); other.status != 400 || other.errorType() != "idempotency_error" {
		t.Errorf("other parameters: %d %s", other.status, other.body)
	}
	if other := p.post("/payment_intents", "k", "amount", "1999", "currency", "usd", "source", "tok_visa", "metadata[a]", "b"); other.errorType() != "idempotency_error" {
		t.Errorf("other path: %d %s", other.status, other.body)
	}
	declined := p.post("/charges", "d", "amount", "1", "currency", "usd", "source", "tok_chargeDeclinedInsufficientFunds")
	if declined.status != 402 || declined.errorType() != "card_error" || declined.errorCode() != "card_declined" || !strings.Contains(declined.body, "insufficient_funds") {
		t.Errorf("decline: %d %s", declined.status, declined.body)
	}
	if again := p.post("/charges", "d", "amount", "1", "currency", "usd", "source", "tok_chargeDeclinedInsufficientFunds"); again.body != declined.body {
		t.Errorf("replayed decline: %s, first %s", again.body, declined.body)
	}
	p.effects(1)
	p.charge("")
	p.charge("")
	p.effects(3) // without a key each is another
}

func TestKeyRace(t *testing.T) {
	p := start(t, simulator.Options{})
	var clients sync.WaitGroup
	replies := make([]reply, 32)
	for i := range replies {
		clients.Go(func() { replies[i] = p.charge("same") })
	}
	clients.Wait()
	for _, r := range replies {
		if r.status != 200 && !(r.status == 409 && r.errorCode() == "idempotency_key_in_use") {
			t.Errorf("%d %s %v", r.status, r.body, r.err)
		}
	}
	p.effects(1)
}

func TestIntents(t *testing.T) {
	p := start(t, simulator.Options{})
	made := p.post("/payment_intents", "i1", "amount", "700", "currency", "usd", "payment_method", "pm_card_visa", "metadata[o]", "7")
	if made.status != 200 || made.json["status"] != "requires_confirmation" {
		t.Fatalf("intent: %s", made.body)
	}
	p.effects(0)
	id := made.json["id"].(string)
	done := p.post("/payment_intents/"+id+"/confirm", "i1:confirm")
	if done.status != 200 || done.json["status"] != "succeeded" || done.json["amount_received"] != 700.0 {
		t.Fatalf("confirmed: %s", done.body)
	}
	if l := p.Ledger().Charges; len(l) != 1 || l[0].PaymentIntent != id || l[0].Metadata["o"] != "7" || l[0].IdempotencyKey != "i1:confirm" {
		t.Errorf("ledger: %+v", l)
	}
	if r := p.post("/payment_intents/"+id+"/cancel", ""); r.status != 400 || r.errorCode() != "payment_intent_unexpected_state" {
		t.Errorf("cancel of a paid one: %d %s", r.status, r.body)
	}
	declined := p.post("/payment_intents", "i2", "amount", "1", "currency", "usd", "payment_method", "pm_card_visa_chargeDeclined", "confirm", "true")
	if declined.status != 402 || !strings.Contains(declined.body, "requires_payment_method") {
		t.Errorf("declined: %d %s", declined.status, declined.body)
	}
	open := p.post("/payment_intents", "i3", "amount", "1", "currency", "usd")
	if r := p.post("/payment_intents/"+open.json["id"].(string)+"/cancel", ""); r.json["status"] != "canceled" {
		t.Errorf("canceled: %s", r.body)
	}
	if r := p.get("/payment_intents"); len(r.json["data"].([]any)) != 3 {
		t.Errorf("list: %s", r.body)
	}
	p.effects(1)
}

func TestRefunds(t *testing.T) {
	p := start(t, simulator.Options{})
	id := p.charge("k").json["id"].(string)
	part := p.post("/refunds", "r1", "charge", id, "amount", "1000", "metadata[m]", "1")
	if part.status != 200 || part.json["amount"] != 1000.0 || part.json["object"] != "refund" {
		t.Fatalf("part: %s", part.body)
	}
	if again := p.post("/refunds", "r1", "charge", id, "amount", "1000", "metadata[m]", "1"); again.body != part.body {
		t.Errorf("replay: %s", again.body)
	}
	if r := p.post("/refunds", "r2", "charge", id, "amount", "1000"); r.status != 400 {
		t.Errorf("too much: %s", r.body)
	}
	if r := p.post("/refunds", "r3", "charge", id); r.json["amount"] != 999.0 {
		t.Errorf("rest: %s", r.body)
	}
	if r := p.post("/refunds", "r4", "charge", id); r.errorCode() != "charge_already_refunded" {
		t.Errorf("again: %s", r.body)
	}
	if got := p.get("/charges/" + id); got.json["refunded"] != true || got.json["amount_refunded"] != 1999.0 {
		t.Errorf("charge: %s", got.body)
	}
	if l := p.Ledger().Refunds; len(l) != 2 || l[0].Charge != id || l[0].IdempotencyKey != "r1" {
		t.Errorf("ledger: %+v", l)
	}
	if r := p.get("/refunds/" + part.json["id"].(string)); r.body != part.body {
		t.Errorf("retrieved: %s", r.body)
	}
}

func TestCutRefusesTheDial(t *testing.T) {
	p := start(t, simulator.Options{})
	for range 3 {
		p.charge("")
		if err := p.Cut(true); err != nil {
			t.Fatal(err)
		}
		if r := p.charge(""); r.err == nil || !strings.Contains(r.err.Error(), "refused") {
			t.Errorf("cut: %+v", r)
		}
		if err := p.Cut(false); err != nil {
			t.Fatal(err)
		}
	}
	p.charge("")
	p.effects(4)
}

func TestCutWithoutListener(t *testing.T) {
	s := simulator.New(simulator.Options{})
	server := httptest.NewServer(s)
	defer server.Close()
	p := &processor{t: t, Simulator: s, url: server.URL, client: server.Client()}
	s.Cut(true)
	if r := p.charge("k"); r.err == nil {
		t.Errorf("cut: %+v", r)
	}
	s.Cut(false)
	if r := p.charge("k"); r.status != 200 {
		t.Errorf("restored: %+v", r)
	}
	if got := s.Fired()["cut"]; got < 1 {
		t.Errorf("cut fired %d times", got)
	}
	p.effects(1)
}

func TestControl(t *testing.T) {
	p := start(t, simulator.Options{})
	control := func(body string) reply {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", p.url+"/_control", strings.NewReader(body))
		return p.do(req)
	}
	if r := control(`{"error503":1,"retry_after":"7"}`); r.status != 200 || r.json["error503"] != 1.0 {
		t.Fatalf("control: %+v", r)
	}
	if r := p.charge("k"); r.status != 503 {
		t.Errorf("faulty: %+v", r)
	}
	if r := control(`{"error429":1}`); r.json["error503"] != 1.0 {
		t.Errorf("other settings stay: %s", r.body)
	}
	if r := p.charge("k"); r.status != 429 || r.header.Get("Retry-After") != "7" {
		t.Errorf("faulty: %+v", r)
	}
	for _, bad := range []string{`{"eror500":1}`, `{"error500":1.5}`, `{"hang":-1}`, `nonsense`, `{"rate":-1}`, `{"latency_ms":-1}`, `{"pending":2}`, `{"pending_fails":-1}`, `{"settle_polls":-1}`, `{"settle_ms":-1}`, `{"forget_keys":1}`, `{"retry_after":"a\r\nb: c"}`} {
		if r := control(bad); r.status != 400 {
			t.Errorf("%s: %d %s", bad, r.status, r.body)
		}
	}
	control(`{"error503":0,"error429":0,"cut":true}`)
	if r := p.charge("k"); r.err == nil {
		t.Errorf("cut: %+v", r)
	}
	control(`{"cut":false}`)
	if r := p.charge("k"); r.status != 200 {
		t.Errorf("healed: %+v", r)
	}
	if fired := p.get("/_control").json["fired"].(map[string]any); fired["error503"] != 1.0 || fired["cut"] != 1.0 {
		t.Errorf("fired: %v", fired)
	}
}

// Example shows the simulator as the judge of a client.
func Example() {
	s := simulator.New(simulator.Options{Key: "sk_test"})
	url, err := s.Start("127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer s.Close()
	req, _ := http.NewRequest("POST", url+"/charges", strings.NewReader("amount=1999&currency=usd&source=tok_visa"))
	req.Header.Set("Authorization", "Bearer sk_test")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Idempotency-Key", "pay_1")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	json.NewEncoder(os.Stdout).Encode(s.Ledger().Charges[0].Amount)
	// Output: 1999
}
