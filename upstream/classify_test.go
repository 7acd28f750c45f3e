package upstream

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const good = `{"id":"ch_1","object":"charge","amount":1999,"currency":"usd","status":"succeeded","paid":true,"captured":true,"created":1700000000,"metadata":{"tenderbox_payment":"pay_1"},"payment_intent":null}`

const (
	declined  = `{"error":{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds","message":"Your card has insufficient funds.","charge":"ch_9"}}`
	invalid   = `{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such token","param":"source"}}`
	wrongURL  = `{"error":{"type":"invalid_request_error","message":"Unrecognized request URL (POST: /charges). Please see https://stripe.com/docs"}}`
	apiError  = `{"error":{"type":"api_error","message":"sorry"}}`
	otherKey  = `{"error":{"type":"idempotency_error","message":"Keys for idempotent requests can only be used with the same parameters."}}`
	inUse     = `{"error":{"type":"idempotency_error","code":"idempotency_key_in_use","message":"in progress"}}`
	limited   = `{"error":{"type":"rate_limit_error","message":"slow down"}}`
	htmlPage  = `<!doctype html><html><body>Welcome to the free Wi-Fi</body></html>`
	emptyList = `{"object":"list","data":[],"has_more":false}`
)

var chargeCall = call{
	method: "POST", path: "/charges", idempotencyKey: "pay_1",
	body: []byte("amount=1999&currency=usd&metadata%5Btenderbox_payment%5D=pay_1&source=tok_visa"),
}

func replace(s string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(s) }

// TestClassify is the table of what each answer proves (RELIABILITY, faults 9 to 11).
func TestClassify(t *testing.T) {
	intent := call{method: "POST", path: "/payment_intents", body: []byte("amount=1999&currency=usd&payment_method=pm_1")}
	intentAnswer := replace(good, `"charge"`, `"payment_intent"`, `ch_1`, `pi_1`)
	refund := call{method: "POST", path: "/refunds", body: []byte("amount=1999&charge=ch_1")}
	refundAnswer := replace(good, `"object":"charge"`, `"object":"refund","charge":"ch_1"`, `ch_1"`, `re_1"`)
	lookup := call{method: "GET", path: "/charges/ch_1"}
	list := call{method: "GET", path: "/charges?limit=100&created[gte]=1"}
	probe := call{method: "GET", path: "/charges?limit=1", probe: true}

	for _, c := range []struct {
		name    string
		call    call
		status  int
		body    string
		outcome Outcome
		health  health
		reason  string // a part of it
	}{
		{"a charge", chargeCall, 200, good, Succeeded, answered, ""},
		{"a charge, currency in capitals", chargeCall, 200, replace(good, "usd", "USD"), Succeeded, answered, ""},
		{"a plain processor's charge", chargeCall, 200, `{"id":"1","amount":1999,"currency":"usd","status":"succeeded"}`, Succeeded, answered, ""},
		{"an intent", intent, 200, intentAnswer, Succeeded, answered, ""},
		{"a refund", refund, 200, refundAnswer, Succeeded, answered, ""},
		{"unknown members", chargeCall, 200, replace(good, `"paid"`, `"x":[{"y":[[1e400]]}],"paid"`), Succeeded, answered, ""},
		{"an expanded intent", chargeCall, 200, replace(good, `"payment_intent":null`, `"payment_intent":{"id":"pi_1","object":"payment_intent"}`), Succeeded, answered, ""},

		{"another amount", chargeCall, 200, replace(good, "1999", "1998"), Unknown, ailing, "another amount"},
		{"another currency", chargeCall, 200, replace(good, "usd", "eur"), Unknown, ailing, "another currency"},
		{"another payment", chargeCall, 200, replace(good, "pay_1", "pay_2"), Unknown, ailing, "another payment"},
		{"another kind", chargeCall, 200, replace(good, `"charge"`, `"refund"`), Unknown, ailing, "kind"},
		{"an intent for a charge", chargeCall, 200, intentAnswer, Unknown, ailing, "kind"},
		{"no id", chargeCall, 200, replace(good, `"id":"ch_1",`, ``), Unknown, ailing, "id"},
		{"empty id", chargeCall, 200, replace(good, `ch_1`, ``), Unknown, ailing, "id"},
		{"id with a path", chargeCall, 200, replace(good, `ch_1`, `../ch_1`), Unknown, ailing, "id"},
		{"id of 4 KiB", chargeCall, 200, replace(good, `ch_1`, strings.Repeat("a", 4096)), Unknown, ailing, "id"},
		{"no amount", chargeCall, 200, replace(good, `"amount":1999,`, ``), Unknown, ailing, "amount"},
		{"no currency", chargeCall, 200, replace(good, `"currency":"usd",`, ``), Unknown, ailing, "currency"},
		{"look-alike currency", chargeCall, 200, replace(good, `usd`, `uѕd`), Unknown, ailing, "currency"},
		{"no status", chargeCall, 200, replace(good, `"status":"succeeded",`, ``), Unknown, ailing, "status"},
		{"negative amount", chargeCall, 200, replace(good, "1999", "-1999"), Unknown, ailing, "amount"},
		{"not captured", chargeCall, 200, replace(good, `"captured":true`, `"captured":false`), Unknown, ailing, "in full"},
		{"not paid", chargeCall, 200, replace(good, `"paid":true`, `"paid":false`), Unknown, ailing, "in full"},
		{"received in part", intent, 200, replace(intentAnswer, `"paid"`, `"amount_received":1,"paid"`), Unknown, ailing, "in full"},
		{"pending", chargeCall, 200, replace(good, "succeeded", "pending"), Unknown, answered, "is pending"},
		{"processing", intent, 200, replace(intentAnswer, "succeeded", "processing"), Unknown, answered, "is processing"},
		{"requires action", intent, 200, replace(intentAnswer, "succeeded", "requires_action"), Unknown, answered, "requires_action"},
		{"failed with 200", chargeCall, 200, replace(good, `"succeeded"`, `"failed","failure_code":"expired_card"`), Declined, answered, "is failed"},
		{"intent canceled", intent, 200, replace(intentAnswer, "succeeded", "canceled"), Declined, answered, "is canceled"},
		{"charge canceled is no state", chargeCall, 200, replace(good, "succeeded", "canceled"), Unknown, answered, "is canceled"},
		{"error with 200", chargeCall, 200, declined, Unknown, ailing, "error object"},
		{"success and error", chargeCall, 200, replace(good, `"paid"`, `"error":{"type":"card_error"},"paid"`), Unknown, ailing, "error object"},

		{"HTML with 200", chargeCall, 200, htmlPage, Unknown, foreign, "without a JSON object"},
		{"nothing with 200", chargeCall, 200, "", Unknown, foreign, "JSON"},
		{"null", chargeCall, 200, "null", Unknown, foreign, "JSON"},
		{"array", chargeCall, 200, "[" + good + "]", Unknown, foreign, "JSON"},
		{"half an object", chargeCall, 200, good[:len(good)/2], Unknown, foreign, "JSON"},
		{"two objects", chargeCall, 200, good + good, Unknown, foreign, "JSON"},
		{"amount twice", chargeCall, 200, replace(good, `"amount":1999`, `"amount":1,"amount":1999`), Unknown, foreign, "JSON"},
		{"amount as text", chargeCall, 200, replace(good, `1999`, `"1999"`), Unknown, foreign, "JSON"},
		{"amount with a fraction", chargeCall, 200, replace(good, `1999`, `1999.5`), Unknown, foreign, "JSON"},
		{"amount of 400 digits", chargeCall, 200, replace(good, `1999`, strings.Repeat("9", 400)), Unknown, foreign, "JSON"},
		{"AMOUNT is not amount", chargeCall, 200, replace(good, `"amount"`, `"AMOUNT"`), Unknown, ailing, "amount"},
		{"invalid UTF-8", chargeCall, 200, replace(good, `pay_1`, "\xff"), Unknown, foreign, "JSON"},
		{"10,000 levels", chargeCall, 200, replace(good, `null`, strings.Repeat("[", 20000)+strings.Repeat("]", 20000)), Unknown, foreign, "JSON"},

		{"created 201", chargeCall, 201, good, Unknown, ailing, "201"},
		{"no content", chargeCall, 204, "", Unknown, foreign, "204"},
		{"redirect", chargeCall, 302, htmlPage, Unknown, foreign, "redirect"},
		{"permanent redirect with JSON", chargeCall, 308, good, Unknown, foreign, "redirect"},
		{"not modified", chargeCall, 304, "", Unknown, foreign, "redirect"},

		{"declined", chargeCall, 402, declined, Declined, answered, "declined: insufficient_funds"},
		{"invalid request", chargeCall, 400, invalid, Declined, answered, "declined: resource_missing"},
		{"not found", chargeCall, 404, invalid, Declined, answered, "declined"},
		{"a plain processor's decline", chargeCall, 402, `{"error":{"message":"no"}}`, Declined, answered, "declined"},
		{"a plain processor's 400", chargeCall, 400, `{"error":{"message":"no"}}`, Unknown, answered, "400"},
		{"402 of a stranger", chargeCall, 402, htmlPage, Unknown, foreign, "without its error object"},
		{"402 with a charge", chargeCall, 402, good, Unknown, answered, "without its error object"},
		{"402 with an empty error", chargeCall, 402, `{"error":{}}`, Unknown, answered, "402"},
		{"402 with text as error", chargeCall, 402, `{"error":"declined"}`, Unknown, foreign, "without its error object"},
		{"402 api_error", chargeCall, 402, apiError, Unknown, answered, "api_error"},
		{"key with other parameters", chargeCall, 400, otherKey, Unknown, answered, "idempotency_error"},
		{"key in use", chargeCall, 409, inUse, Unknown, answered, "409"},
		{"conflict of any type", chargeCall, 409, invalid, Unknown, answered, "409"},
		{"conflict of a stranger", chargeCall, 409, htmlPage, Unknown, foreign, "409"},
		{"request timeout", chargeCall, 408, invalid, Unknown, answered, "408"},
		{"too early", chargeCall, 425, invalid, Unknown, answered, "425"},
		{"teapot", chargeCall, 418, `{}`, Unknown, answered, "418"},

		{"no such path", chargeCall, 404, wrongURL, Retryable, answered, "nothing at the upstream URL takes charges (404)"},
		{"no such path, code of another", chargeCall, 404, replace(invalid, "resource_missing", "url_invalid"), Retryable, answered, "(404)"},
		{"missing, but not what", chargeCall, 404, replace(invalid, `,"param":"source"`, ""), Retryable, answered, "(404)"},
		{"no such path, plainly", chargeCall, 404, `{"error":{"message":"not found"}}`, Retryable, answered, "(404)"},
		{"no such path, of a web server", chargeCall, 404, "404 page not found\n", Retryable, foreign, "(404)"},
		{"no such path, api_error", chargeCall, 404, apiError, Retryable, answered, "(404)"},
		{"no such method", chargeCall, 405, wrongURL, Retryable, answered, "(405)"},
		{"no such method, in any words", chargeCall, 405, invalid, Retryable, answered, "(405)"},
		{"no such method, no body", chargeCall, 405, "", Retryable, foreign, "(405)"},
		{"no intents there", intent, 404, wrongURL, Retryable, answered, "takes payment_intents"},
		{"no refunds there", refund, 404, wrongURL, Retryable, answered, "takes refunds"},
		{"refund of a missing charge", refund, 404, replace(invalid, `"source"`, `"charge"`), Declined, answered, "resource_missing"},
		{"404 about the card", chargeCall, 404, declined, Declined, answered, "insufficient_funds"},
		{"404 about the idempotency key", chargeCall, 404, otherKey, Unknown, answered, "idempotency_error"},
		{"404 to a confirmation", call{method: "POST", path: "/payment_intents/pi_1/confirm"}, 404, invalid, Declined, answered, "resource_missing"},

		{"unauthorized", chargeCall, 401, invalid, Retryable, answered, "refused the key (401)"},
		{"unauthorized, no body", chargeCall, 401, "", Retryable, foreign, "refused the key"},
		{"forbidden", chargeCall, 403, invalid, Retryable, answered, "refused the key (403)"},
		{"too many", chargeCall, 429, limited, Retryable, answered, "rate limited"},
		{"lock timeout", chargeCall, 429, invalid, Retryable, answered, "rate limited"},
		{"too many, of a proxy", chargeCall, 429, htmlPage, Retryable, foreign, "rate limited"},

		{"500", chargeCall, 500, apiError, Unknown, ailing, "500"},
		{"500 with a charge", chargeCall, 500, good, Unknown, ailing, "500"},
		{"500 that says declined", chargeCall, 500, declined, Unknown, ailing, "500"},
		{"503 of a proxy", chargeCall, 503, htmlPage, Unknown, ailing, "503"},
		{"511", chargeCall, 511, htmlPage, Unknown, foreign, "511"},
		{"999", chargeCall, 999, good, Unknown, ailing, "999"},

		{"looked up", lookup, 200, good, Succeeded, answered, ""},
		{"looked up, another", lookup, 200, replace(good, "ch_1", "ch_2"), Unknown, ailing, "another object"},
		{"looked up, missing", lookup, 404, invalid, Declined, answered, "declined"},
		{"looked up, missing says a stranger", lookup, 404, htmlPage, Unknown, foreign, "404"},
		{"looked up, failed", lookup, 200, replace(good, "succeeded", "failed"), Declined, answered, "is failed"},
		{"confirmed", call{method: "POST", path: "/payment_intents/pi_1/confirm"}, 200, intentAnswer, Succeeded, answered, ""},
		{"confirmed another", call{method: "POST", path: "/payment_intents/pi_2/confirm"}, 200, intentAnswer, Unknown, ailing, "another object"},
		{"canceled", call{method: "POST", path: "/payment_intents/pi_1/cancel"}, 200, replace(intentAnswer, "succeeded", "canceled"), Succeeded, answered, ""},

		{"a list", list, 200, `{"object":"list","data":[` + good + `],"has_more":true}`, Succeeded, answered, ""},
		{"an empty list", list, 200, emptyList, Succeeded, answered, ""},
		{"a list without data", list, 200, `{"object":"list","has_more":false}`, Unknown, ailing, "not a list"},
		{"a list of null", list, 200, `{"object":"list","data":null}`, Unknown, ailing, "not a list"},
		{"an object for a list", list, 200, good, Unknown, ailing, "not a list"},
		{"a list with a stranger", list, 200, `{"object":"list","data":[` + good + `,{}]}`, Unknown, ailing, "entry"},

		{"probed", probe, 200, emptyList, Succeeded, answered, ""},
		{"probed a plain processor", probe, 200, `{"ok":true}`, Succeeded, answered, ""},
		{"probed a portal", probe, 200, htmlPage, Unknown, foreign, "JSON"},
		{"probed a redirecting portal", probe, 302, "", Unknown, foreign, "redirect"},
		{"probed, path unknown there", probe, 404, "404 page not found\n", Unknown, answered, "404"},
		{"probed, method unknown there", probe, 405, "", Unknown, answered, "405"},
		{"probed, not implemented", probe, 501, htmlPage, Unknown, answered, "501"},
		{"probed, ill", probe, 500, apiError, Unknown, ailing, "500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, h := classify(newAsk(c.call), c.status, http.Header{}, []byte(c.body), time.Now())
			if a.Outcome != c.outcome || h != c.health || !strings.Contains(a.Reason, c.reason) || c.reason == "" && a.Reason != "" {
				t.Errorf("%s, health %d, reason %q; want %s, %d, %q", a.Outcome, h, a.Reason, c.outcome, c.health, c.reason)
			}
			if !a.MaybeSent || a.Status != c.status {
				t.Errorf("answered, yet MaybeSent %v, Status %d", a.MaybeSent, a.Status)
			}
			if a.Outcome != Succeeded && a.Outcome != Declined && a.Object.ID != "" && a.Object.Status == "succeeded" {
				t.Errorf("an object that is not believed is handed out: %+v", a.Object)
			}
		})
	}
}

func TestClassifyFillsTheAnswer(t *testing.T) {
	header := http.Header{
		"Request-Id": {"req_1"}, "Date": {"Tue, 14 Nov 2023 22:13:20 GMT"}, "Retry-After": {"7"},
	}
	a, _ := classify(newAsk(chargeCall), 200, header, []byte(good), time.Now())
	want := Answer{
		Outcome: Succeeded, MaybeSent: true, Status: 200, RequestID: "req_1", RetryAfter: 7 * time.Second,
		Date: time.Unix(1700000000, 0).UTC(),
		Object: Object{Kind: "charge", ID: "ch_1", Status: "succeeded", Amount: 1999, Currency: "usd", Created: 1700000000,
			Metadata: map[string]string{"tenderbox_payment": "pay_1"}},
	}
	if d := cmp.Diff(want, a); d != "" {
		t.Errorf("charge (-want +got):\n%s", d)
	}
	a, _ = classify(newAsk(chargeCall), 402, http.Header{}, []byte(declined), time.Now())
	if d := cmp.Diff(Failure{Type: "card_error", Code: "card_declined", DeclineCode: "insufficient_funds",
		Message: "Your card has insufficient funds.", ObjectID: "ch_9"}, a.Failure); d != "" {
		t.Errorf("failure (-want +got):\n%s", d)
	}
	a, _ = classify(newAsk(call{method: "GET", path: "/charges"}), 200, http.Header{},
		[]byte(`{"object":"list","data":[`+good+`],"has_more":true}`), time.Now())
	if len(a.List) != 1 || a.List[0].ID != "ch_1" || !a.HasMore {
		t.Errorf("list: %+v", a)
	}
}

func TestFailureTextsAreTamed(t *testing.T) {
	body := `{"error":{"type":"card_error","message":"a\u0000b\r\nc\u202e` + strings.Repeat("x", 1000) + `","code":"\u001b[31m","charge":"../x"}}`
	a, _ := classify(newAsk(chargeCall), 402, http.Header{"Request-Id": {"r\x00" + strings.Repeat("y", 500)}}, []byte(body), time.Now())
	if len(a.Failure.Message) > textLengthMax || strings.ContainsAny(a.Failure.Message+a.Failure.Code+a.RequestID, "\x00\r\n\x1b\u202e") {
		t.Errorf("texts: %q %q %q", a.Failure.Message, a.Failure.Code, a.RequestID)
	}
	if len(a.RequestID) > 100 || a.Failure.ObjectID != "" {
		t.Errorf("request id %q, object %q", a.RequestID, a.Failure.ObjectID)
	}
	if a.Outcome != Declined || strings.Contains(a.Reason, "\x1b") {
		t.Errorf("%s %q", a.Outcome, a.Reason)
	}
}

// Compressed answers were not asked for and are not opened: a bomb stays small.
func TestCompressedIsUnknown(t *testing.T) {
	a, h := classify(newAsk(chargeCall), 200, http.Header{"Content-Encoding": {"gzip"}}, []byte(good), time.Now())
	if a.Outcome != Unknown || h != foreign {
		t.Errorf("%s %d", a.Outcome, h)
	}
	if a, _ := classify(newAsk(chargeCall), 200, http.Header{"Content-Encoding": {"identity"}}, []byte(good), time.Now()); a.Outcome != Succeeded {
		t.Errorf("identity: %s", a.Outcome)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC) // a box whose clock is wrong
	const date = "Tue, 14 Nov 2023 22:13:20 GMT"
	for _, c := range []struct {
		value string
		want  time.Duration // for a 429
	}{
		{"", retryAfterMin},
		{"0", retryAfterMin},
		{"-1", retryAfterMin},
		{"-0", retryAfterMin},
		{"3", 3 * time.Second},
		{" 3 ", 3 * time.Second},
		{"1000000000000", retryAfterMax},
		{strings.Repeat("9", 40), retryAfterMax},
		{"-" + strings.Repeat("9", 40), retryAfterMin},
		{"1.5", retryAfterMin},
		{"soon", retryAfterMin},
		{"+5", retryAfterMin},
		{"-", retryAfterMin},
		{"Tue, 14 Nov 2023 22:13:50 GMT", 30 * time.Second},
		{"Tue, 14 Nov 2023 22:13:00 GMT", retryAfterMin},
		{"Fri, 31 Dec 9999 23:59:59 GMT", retryAfterMax},
		{"Tuesday, 14-Nov-23 22:13:50 GMT", 30 * time.Second},
		{"Tue Nov 14 22:13:50 2023", 30 * time.Second},
	} {
		header := http.Header{"Date": {date}}
		if c.value != "" {
			header.Set("Retry-After", c.value)
		}
		a, _ := classify(newAsk(chargeCall), 429, header, []byte(limited), now)
		if a.RetryAfter != c.want || a.Outcome != Retryable {
			t.Errorf("Retry-After %q: %s %v, want %v", c.value, a.Outcome, a.RetryAfter, c.want)
		}
	}
}

// Whatever comes, success needs proof: no mutation of bytes and status yields a success for another amount.
func TestClassifyNeverGuesses(t *testing.T) {
	seeds := []string{good, declined, invalid, wrongURL, otherKey, inUse, limited, htmlPage, emptyList, apiError, "", "null"}
	rapid.Check(t, func(t *rapid.T) {
		body := []byte(rapid.SampledFrom(seeds).Draw(t, "seed"))
		for range rapid.IntRange(0, 4).Draw(t, "changes") {
			if len(body) == 0 {
				break
			}
			at := rapid.IntRange(0, len(body)-1).Draw(t, "at")
			body[at] = rapid.Byte().Draw(t, "byte")
		}
		status := rapid.SampledFrom([]int{0, 100, 200, 201, 204, 302, 400, 401, 402, 404, 405, 409, 429, 500, 503, 511}).Draw(t, "status")
		a, h := classify(newAsk(chargeCall), status, http.Header{}, body, time.Now())
		switch a.Outcome {
		case Succeeded:
			o := a.Object
			if status != 200 || o.ID == "" || o.Amount != 1999 || o.Currency != "usd" || o.Status != "succeeded" || h != answered {
				t.Fatalf("success from %d %q: %+v", status, body, a)
			}
		case Declined:
			if status != 200 && (status < 400 || status > 499 || status == 401 || status == 403 || status == 409 || status == 429) {
				t.Fatalf("decline from %d %q", status, body)
			}
		case Retryable:
			if status != 401 && status != 403 && status != 404 && status != 405 && status != 429 {
				t.Fatalf("retryable from %d %q", status, body)
			}
		case Unknown:
		default:
			t.Fatalf("outcome %q", a.Outcome)
		}
	})
}

func FuzzClassify(f *testing.F) {
	for _, s := range []string{good, declined, invalid, otherKey, htmlPage, emptyList, "", "{", "\x1f\x8b"} {
		f.Add(200, []byte(s))
		f.Add(402, []byte(s))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a, _ := classify(newAsk(chargeCall), status, http.Header{}, body, time.Unix(0, 0))
		if a.Outcome == Succeeded && (a.Object.Amount != 1999 || a.Object.Currency != "usd" || a.Object.ID == "") {
			t.Fatalf("success from %d %q", status, body)
		}
	})
}
