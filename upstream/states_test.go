package upstream

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Requests for what has states.
var (
	create  = call{method: "POST", path: "/payment_intents", body: []byte("amount=1999&currency=usd&payment_method=pm_1")}
	confirm = call{method: "POST", path: "/payment_intents/pi_1/confirm", body: []byte("error_on_requires_action=true")}
	intents = call{method: "GET", path: "/payment_intents/pi_1"}
	refund  = call{method: "POST", path: "/refunds", body: []byte("amount=1999&charge=ch_1")}
	refunds = call{method: "GET", path: "/refunds/re_1"}
	charges = call{method: "GET", path: "/charges/ch_1"}
)

func stated(object, id, status, more string) string {
	return fmt.Sprintf(`{"object":%q,"id":%q,"amount":1999,"currency":"usd","status":%q%s}`, object, id, status, more)
}

const lastError = `,"last_payment_error":{"type":"card_error","code":"card_declined","decline_code":"lost_card","message":"No.","charge":"ch_9","payment_method":{"id":"pm_1","object":"payment_method"}}`

// TestStates is the table of what each state of an object proves, for each request whose answer shows it.
func TestStates(t *testing.T) {
	lost := Failure{Type: "card_error", Code: "card_declined", DeclineCode: "lost_card", Message: "No.", ObjectID: "ch_9"}
	intent := func(status, more string) string { return stated("payment_intent", "pi_1", status, more) }
	for _, c := range []struct {
		body    string
		calls   []call
		outcome Outcome
		made    bool
		final   bool
		failure Failure
	}{
		{intent("requires_confirmation", ""), []call{create, confirm, intents}, Unknown, true, false, Failure{}},
		// Nothing says that it was tried in vain: it may be on its first day.
		{intent("requires_payment_method", ""), []call{create, confirm, intents}, Unknown, true, false, Failure{}},
		{intent("requires_payment_method", `,"last_payment_error":null`), []call{create, confirm, intents}, Unknown, true, false, Failure{}},
		{intent("requires_payment_method", lastError), []call{create, confirm, intents}, Declined, false, false, lost},
		{intent("requires_action", lastError), []call{create, confirm, intents}, Unknown, true, false, Failure{}},
		{intent("requires_capture", ""), []call{create, confirm, intents}, Unknown, true, false, Failure{}},
		{intent("processing", ""), []call{create, confirm, intents}, Unknown, true, false, Failure{}},
		{intent("succeeded", ""), []call{create, confirm, intents}, Succeeded, false, true, Failure{}},
		{intent("canceled", ""), []call{create, confirm, intents}, Declined, false, true, Failure{}},
		{intent("canceled", lastError), []call{create, confirm, intents}, Declined, false, true, lost},
		{intent("failed", ""), []call{create, confirm, intents}, Unknown, true, false, Failure{}}, // is no state of an intent
		{intent("on the moon", ""), []call{create, confirm, intents}, Unknown, true, false, Failure{}},

		{stated("charge", "ch_1", "pending", ""), []call{chargeCall, charges}, Unknown, true, false, Failure{}},
		{stated("charge", "ch_1", "succeeded", ""), []call{chargeCall, charges}, Succeeded, false, true, Failure{}},
		{stated("charge", "ch_1", "failed", `,"failure_code":"expired_card","failure_message":"Old."`), []call{chargeCall, charges},
			Declined, false, true, Failure{Code: "expired_card", Message: "Old."}},

		{stated("refund", "re_1", "pending", ""), []call{refund, refunds}, Unknown, true, false, Failure{}},
		{stated("refund", "re_1", "requires_action", ""), []call{refund, refunds}, Unknown, true, false, Failure{}},
		{stated("refund", "re_1", "succeeded", ""), []call{refund, refunds}, Succeeded, false, true, Failure{}},
		{stated("refund", "re_1", "failed", `,"failure_reason":"lost_or_stolen_card"`), []call{refund, refunds},
			Declined, false, true, Failure{Code: "lost_or_stolen_card"}},
		{stated("refund", "re_1", "canceled", ""), []call{refund, refunds}, Declined, false, true, Failure{}},
	} {
		for _, q := range c.calls {
			a, h := classify(newAsk(q), 200, http.Header{}, []byte(c.body), time.Now())
			if a.Outcome != c.outcome || a.Made() != c.made || a.Object.Final() != c.final || h != answered {
				t.Errorf("%s %s, %s:\n%s, made %v, final %v, health %d", q.method, q.path, c.body, a.Outcome, a.Made(), a.Object.Final(), h)
			}
			if d := cmp.Diff(c.failure, a.Failure); d != "" {
				t.Errorf("%s %s, %s:\nfailure (-want +got):\n%s", q.method, q.path, c.body, d)
			}
			if (a.Outcome == Succeeded) != (a.Reason == "") || a.Object.ID == "" {
				t.Errorf("%s %s, %s:\nreason %q, object %+v", q.method, q.path, c.body, a.Reason, a.Object)
			}
		}
	}
}

// TestRefusalsWithAnIntent is the table of what an error in answer to a confirmation proves, by the intent that it shows.
func TestRefusalsWithAnIntent(t *testing.T) {
	refused := func(typ, code, intent string) string {
		return fmt.Sprintf(`{"error":{"type":%q,"code":%q,"message":"No.","payment_intent":%s}}`, typ, code, intent)
	}
	intent := func(status string) string { return stated("payment_intent", "pi_1", status, lastError) }
	for name, c := range map[string]struct {
		status  int
		body    string
		outcome Outcome
		reason  string
	}{
		"declined by the card":                  {402, refused("card_error", "card_declined", intent("requires_payment_method")), Declined, "card_declined"},
		"wants somebody to act":                 {402, refused("card_error", "authentication_required", intent("requires_payment_method")), Declined, "authentication_required"},
		"declined, the intent's id alone":       {402, refused("card_error", "card_declined", `"pi_1"`), Declined, "card_declined"},
		"declined, no intent":                   {402, refused("card_error", "card_declined", `null`), Declined, "card_declined"},
		"refused before it was tried":           {400, refused("invalid_request_error", "parameter_unknown", intent("requires_confirmation")), Declined, "parameter_unknown"},
		"too many tries":                        {402, refused("card_error", "card_declined", intent("canceled")), Declined, "card_declined"},
		"confirmed before":                      {400, refused("invalid_request_error", "payment_intent_unexpected_state", intent("succeeded")), Unknown, "is succeeded"},
		"being confirmed":                       {400, refused("invalid_request_error", "payment_intent_unexpected_state", intent("processing")), Unknown, "is processing"},
		"canceled before":                       {400, refused("invalid_request_error", "payment_intent_unexpected_state", intent("canceled")), Unknown, "is canceled"},
		"confirmed before, does not say how":    {400, refused("invalid_request_error", "payment_intent_unexpected_state", `null`), Unknown, "state"},
		"declined, yet succeeded":               {402, refused("card_error", "card_declined", intent("succeeded")), Unknown, "is succeeded"},
		"declined, yet processing":              {402, refused("card_error", "card_declined", intent("processing")), Unknown, "is processing"},
		"declined, yet somebody may act":        {402, refused("card_error", "authentication_required", intent("requires_action")), Unknown, "requires_action"},
		"refused, yet succeeded":                {400, refused("invalid_request_error", "parameter_unknown", intent("succeeded")), Unknown, "is succeeded"},
		"declined, about another intent":        {402, refused("card_error", "card_declined", replace(intent("requires_payment_method"), "pi_1", "pi_2")), Unknown, "another object"},
		"key was used with another request":     {400, refused("idempotency_error", "", `null`), Unknown, "idempotency_error"},
		"another request works on it":           {409, refused("invalid_request_error", "lock_timeout", intent("requires_confirmation")), Unknown, "409"},
		"declined, in a state nobody has named": {402, refused("card_error", "card_declined", intent(strings.Repeat("x", 500))), Unknown, "is xxx"},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := classify(newAsk(confirm), c.status, http.Header{}, []byte(c.body), time.Now())
			if a.Outcome != c.outcome || !strings.Contains(a.Reason, c.reason) || len(a.Reason) > 200 {
				t.Errorf("%s, %q; want %s, %q", a.Outcome, a.Reason, c.outcome, c.reason)
			}
			if a.Object.ID != "" || a.Made() || a.Missing() {
				t.Errorf("what an error mentions is handed out: %+v", a)
			}
		})
	}
}

// A 404 to a look is never a proof, in whatever words it comes; Missing tells the processor's own from a stranger's.
func TestNotFoundProvesNothing(t *testing.T) {
	for body, missing := range map[string]bool{
		invalid: true, wrongURL: true, `{"error":{"message":"not found"}}`: true,
		`{"error":{}}`: false, htmlPage: false, "": false, `{"error":"not found"}`: false,
	} {
		for _, q := range []call{charges, intents, refunds, confirm} {
			a, _ := classify(newAsk(q), 404, http.Header{}, []byte(body), time.Now())
			if a.Outcome != Unknown || a.Missing() != missing || a.Made() {
				t.Errorf("%s %s, %q: %s, missing %v", q.method, q.path, body, a.Outcome, a.Missing())
			}
		}
	}
	if a, _ := classify(newAsk(chargeCall), 404, http.Header{}, []byte(invalid), time.Now()); a.Missing() {
		t.Errorf("a refused charge is missing: %+v", a)
	}
}

// That an object is there proves that the address is the processor's, whatever its state; so does the processor's own refusal.
func TestURLIsRight(t *testing.T) {
	for name, c := range map[string]struct {
		call   call
		status int
		body   string
		right  bool
	}{
		"made":                  {create, 200, stated("payment_intent", "pi_1", "requires_confirmation", ""), true},
		"declined":              {chargeCall, 402, declined, true},
		"listed":                {call{method: "GET", path: "/charges"}, 200, emptyList, true},
		"list refused":          {call{method: "GET", path: "/charges"}, 400, invalid, true},
		"missing":               {charges, 404, invalid, true},
		"unknown path":          {charges, 404, wrongURL, false},
		"probe, missing":        {call{method: "GET", path: "/charges", probe: true}, 404, invalid, false},
		"of a stranger":         {charges, 200, htmlPage, false},
		"answer is another one": {charges, 200, stated("charge", "ch_2", "succeeded", ""), false},
	} {
		a, h := classify(newAsk(c.call), c.status, http.Header{}, []byte(c.body), time.Now())
		if r := (result{Answer: a, health: h, probe: c.call.probe}); r.urlRight() != c.right {
			t.Errorf("%s: %v, %+v", name, r.urlRight(), a)
		}
	}
}
