package simulator_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"tenderbox/upstream/simulator"
)

// made makes an intent with the payment method, and returns its path.
func (p *processor) made(method string, fields ...string) (path string) {
	p.t.Helper()
	r := p.post("/payment_intents", "", append(fields, "amount", "700", "currency", "usd", "payment_method", method, "payment_method_types[]", "card")...)
	if r.status != 200 || r.json["status"] != "requires_confirmation" || !strings.Contains(r.body, `"payment_method_types":["card"]`) {
		p.t.Fatalf("intent: %d %s", r.status, r.body)
	}
	return "/payment_intents/" + r.json["id"].(string)
}

// is fails unless the answer has the status and the object, or the error's intent, the state.
func (p *processor) is(r reply, status int, state string) {
	p.t.Helper()
	o := r.json
	if e, ok := o["error"].(map[string]any); ok {
		o, _ = e["payment_intent"].(map[string]any)
	}
	if r.status != status || o["status"] != state {
		p.t.Errorf("%d %s; want %d, %s", r.status, r.body, status, state)
	}
}

// An intent is charged once, whatever keys its confirmations come under, and never after it was canceled.
func TestIntentIsChargedOnce(t *testing.T) {
	p := start(t, simulator.Options{})
	path := p.made("pm_card_visa")
	p.is(p.post(path+"/confirm", "a"), 200, "succeeded")
	for _, key := range []string{"b", "c", ""} {
		r := p.post(path+"/confirm", key)
		if p.is(r, 400, "succeeded"); r.errorCode() != "payment_intent_unexpected_state" {
			t.Errorf("again: %s", r.body)
		}
	}
	p.ForgetAllKeys()
	p.is(p.post(path+"/confirm", "a"), 400, "succeeded")
	p.effects(1)
	path = p.made("pm_card_visa")
	if r := p.post(path+"/cancel", "", "cancellation_reason", "abandoned"); r.json["cancellation_reason"] != "abandoned" {
		t.Errorf("canceled: %s", r.body)
	}
	p.is(p.post(path+"/confirm", ""), 400, "canceled")
	p.is(p.post(path+"/cancel", ""), 400, "canceled")
	p.effects(1)
}

// A declined confirmation takes the payment method away and says why; the intent waits for another.
func TestDeclinedConfirmation(t *testing.T) {
	p := start(t, simulator.Options{})
	path := p.made("pm_card_chargeDeclinedLostCard")
	r := p.post(path+"/confirm", "a")
	if p.is(r, 402, "requires_payment_method"); r.errorType() != "card_error" || !strings.Contains(r.body, "lost_card") {
		t.Errorf("declined: %s", r.body)
	}
	got := p.get(path)
	last, _ := got.json["last_payment_error"].(map[string]any)
	if p.is(got, 200, "requires_payment_method"); last["decline_code"] != "lost_card" || last["type"] != "card_error" || got.json["payment_method"] != nil {
		t.Errorf("then: %s", got.body)
	}
	if r := p.post(path+"/confirm", "b"); r.status != 400 || r.errorCode() != "payment_intent_unexpected_state" {
		t.Errorf("without a payment method: %s", r.body)
	}
	p.effects(0)
	p.is(p.post(path+"/confirm", "c", "payment_method", "pm_card_visa"), 200, "succeeded")
	if got := p.get(path); got.json["last_payment_error"] != nil {
		t.Errorf("after all: %s", got.body)
	}
	p.effects(1)
}

func TestAuthentication(t *testing.T) {
	p := start(t, simulator.Options{})
	path := p.made("pm_card_authenticationRequired")
	r := p.post(path+"/confirm", "a", "error_on_requires_action", "true")
	if p.is(r, 402, "requires_payment_method"); r.errorType() != "card_error" || r.errorCode() != "authentication_required" {
		t.Errorf("nobody can act: %s", r.body)
	}
	path = p.made("pm_card_authenticationRequired")
	r = p.post(path+"/confirm", "b")
	if p.is(r, 200, "requires_action"); r.json["next_action"] == nil {
		t.Errorf("somebody can act: %s", r.body)
	}
	if r := p.post("/charges", "c", "amount", "1", "currency", "usd", "source", "tok_authenticationRequired"); r.status != 402 || !strings.Contains(r.body, "authentication_required") {
		t.Errorf("charge: %s", r.body)
	}
	if r := p.post("/payment_intents", "d", "amount", "1", "currency", "usd", "payment_method", "pm", "error_on_requires_action", "true"); r.status != 400 {
		t.Errorf("only a confirmation takes it: %s", r.body)
	}
	p.effects(0)
}

// What is processing comes to its end after so many looks by its id, and so much time.
func TestProcessing(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		method, end string
		effects     int
	}{{"pm_card_processing", "succeeded", 1}, {"pm_card_processingFail", "requires_payment_method", 0}} {
		t.Run(c.method, func(t *testing.T) {
			clock := now
			p := start(t, simulator.Options{Now: func() time.Time { return clock }})
			if err := p.SetSettling(simulator.Settling{SettlePolls: 2, SettleMS: 60_000}); err != nil {
				t.Fatal(err)
			}
			path := p.made(c.method)
			p.is(p.post(path+"/confirm", "a"), 200, "processing")
			p.is(p.post(path+"/confirm", "b"), 400, "processing")
			p.is(p.post(path+"/cancel", "b"), 400, "processing")
			clock = clock.Add(time.Hour)
			p.is(p.get(path), 200, "processing")
			p.get("/payment_intents") // does not ask for this one
			p.effects(0)
			charge := p.get(path).json["latest_charge"].(string)
			p.effects(c.effects)
			p.is(p.get(path), 200, c.end)
			want := map[string]string{"succeeded": "succeeded", "requires_payment_method": "failed"}[c.end]
			p.is(p.get("/charges/"+charge), 200, want)
			if failed := strings.Contains(p.get(path).body, `"code":"card_declined"`); failed != (want == "failed") {
				t.Errorf("%s", p.get(path).body)
			}

			p.SetSettling(simulator.Settling{SettleMS: 60_000})
			r := p.post("/charges", "k", "amount", "5", "currency", "usd", "source", c.method)
			path = "/charges/" + r.json["id"].(string)
			p.is(r, 200, "pending")
			p.is(p.get(path), 200, "pending")
			clock = clock.Add(time.Minute)
			p.is(p.get(path), 200, want)
			p.is(p.post("/charges", "k", "amount", "5", "currency", "usd", "source", c.method), 200, "pending") // as it was answered
			p.effects(2 * c.effects)
		})
	}
}

// Without settings what is pending has ended when the next request comes; by settings anything may be pending first.
func TestPending(t *testing.T) {
	p := start(t, simulator.Options{})
	p.is(p.post(p.made("pm_card_processing")+"/confirm", ""), 200, "processing")
	p.effects(1)
	control := func(body string) reply {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", p.url+"/_control", strings.NewReader(body))
		return p.do(req)
	}
	if r := control(`{"pending":1,"pending_fails":1,"settle_polls":1}`); r.status != 200 || r.json["pending"] != 1.0 || r.json["settle_polls"] != 1.0 {
		t.Fatalf("control: %s", r.body)
	}
	r := p.charge("k")
	p.is(r, 200, "pending")
	path := "/charges/" + r.json["id"].(string)
	p.is(p.get(path), 200, "pending")
	p.is(p.get(path), 200, "failed")
	control(`{"pending_fails":0,"settle_polls":0}`)
	p.is(p.post(p.made("pm_card_visa")+"/confirm", ""), 200, "processing")
	p.effects(2)
	control(`{"pending":0}`)
	p.is(p.charge("l"), 200, "succeeded")
	p.effects(3)
}

func TestRefundsThatTakeTime(t *testing.T) {
	p := start(t, simulator.Options{})
	for token, c := range map[string]struct{ first, then string }{
		"tok_pendingRefund":     {"pending", "succeeded"},
		"tok_pendingRefundFail": {"pending", "failed"},
		"tok_refundFail":        {"succeeded", "failed"},
	} {
		t.Run(token, func(t *testing.T) {
			p.SetSettling(simulator.Settling{SettlePolls: 1})
			before := len(p.Ledger().Refunds)
			id := p.post("/charges", "", "amount", "500", "currency", "usd", "source", token).json["id"].(string)
			r := p.post("/refunds", "", "charge", id, "amount", "300", "reason", "duplicate")
			path := "/refunds/" + r.json["id"].(string)
			if p.is(r, 200, c.first); r.json["reason"] != "duplicate" {
				t.Errorf("%s", r.body)
			}
			if r := p.post("/refunds", "", "charge", id, "amount", "300"); r.status != 400 {
				t.Errorf("what is under way is not left: %s", r.body)
			}
			p.is(p.get(path), 200, c.first)
			p.is(p.get(path), 200, c.then)
			given := len(p.Ledger().Refunds) - before
			left := p.get("/charges/" + id).json["amount_refunded"]
			if c.then == "failed" && (given != 0 || left != 0.0 || !strings.Contains(p.get(path).body, `"failure_reason":"`)) ||
				c.then == "succeeded" && (given != 1 || left != 300.0) {
				t.Errorf("%d given back, %v of the charge: %s", given, left, p.get(path).body)
			}
		})
	}
}

func TestRefundsRefused(t *testing.T) {
	p := start(t, simulator.Options{})
	id := p.charge("k").json["id"].(string)
	open := strings.TrimPrefix(p.made("pm_card_visa"), "/payment_intents/")
	for name, c := range map[string]struct {
		fields []string
		status int
	}{
		"unknown reason":    {[]string{"charge", id, "reason", "because"}, 400},
		"unpaid intent":     {[]string{"payment_intent", open}, 400},
		"intent of nobody":  {[]string{"payment_intent", "pi_none"}, 404},
		"more than is left": {[]string{"charge", id, "amount", "2000"}, 400},
		"nothing at all":    {[]string{"charge", id, "amount", "0"}, 400},
	} {
		if r := p.post("/refunds", "", c.fields...); r.status != c.status || r.errorType() != "invalid_request_error" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	if n := len(p.Ledger().Refunds); n != 0 {
		t.Errorf("%d refunds", n)
	}
}

// Lists are narrowed by what Stripe narrows them by; a parameter that it does not know is refused.
func TestListsAreNarrowed(t *testing.T) {
	p := start(t, simulator.Options{})
	one, two := p.charge("1").json["id"].(string), p.charge("2").json["id"].(string)
	path := p.made("pm_card_visa")
	p.post(path+"/confirm", "")
	intent := strings.TrimPrefix(path, "/payment_intents/")
	for _, fields := range [][]string{{"charge", one, "amount", "1"}, {"charge", one, "amount", "2"}, {"charge", two}, {"payment_intent", intent}} {
		p.post("/refunds", strings.Join(fields, ":"), fields...)
	}
	for query, want := range map[string]int{
		"/refunds": 4, "/refunds?charge=" + one: 2, "/refunds?charge=" + two: 1, "/refunds?payment_intent=" + intent: 1,
		"/refunds?charge=" + one + "&limit=1": 1, "/refunds?charge=ch_none": 0, "/charges?payment_intent=" + intent: 1, "/charges": 3,
	} {
		if data, _ := p.get(query).json["data"].([]any); len(data) != want {
			t.Errorf("%s: %s, want %d", query, p.get(query).body, want)
		}
	}
	if r := p.get("/refunds?charge=" + one + "&limit=1"); r.json["has_more"] != true {
		t.Errorf("%s", r.body)
	}
	for _, query := range []string{"/charges?charge=" + one, "/payment_intents?payment_intent=" + intent, "/charges?create[gte]=1"} {
		if r := p.get(query); r.status != 400 || r.errorCode() != "parameter_unknown" {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	if l := p.Ledger().Refunds; len(l) != 4 || l[3].PaymentIntent != intent || l[3].IdempotencyKey != "payment_intent:"+intent {
		t.Errorf("ledger: %+v", l)
	}
}

// Keys are forgotten at a moment that a test chooses: what was settled is then charged again.
func TestKeysAreForgottenOnDemand(t *testing.T) {
	p := start(t, simulator.Options{})
	p.charge("k")
	p.charge("k")
	p.effects(1)
	req, _ := http.NewRequestWithContext(t.Context(), "POST", p.url+"/_control", strings.NewReader(`{"forget_keys":true}`))
	if r := p.do(req); r.status != 200 || strings.Contains(r.body, "forget_keys") {
		t.Errorf("%d %s", r.status, r.body)
	}
	p.charge("k")
	p.effects(2)
	p.charge("k")
	p.effects(2) // once, not from now on
}
