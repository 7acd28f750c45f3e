package web

import (
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"

	"tenderbox/tenants"
)

// form sends a form with the shop's key, as Stripe's SDKs do. A GET has its parameters in its target.
func (x *till) form(line, form string, headers ...string) answer {
	x.t.Helper()
	headers = append([]string{"key", x.shop}, headers...)
	if form != "" {
		headers = append([]string{"-", "Content-Type", "Content-Type", formType}, headers...)
	}
	return x.ask(line, form, headers...)
}

// refuses checks an error in Stripe's form: what every one of them has, its status, type, code and parameter.
func (a answer) refuses(status int, typ, code, param string) map[string]any {
	a.t.Helper()
	e, ok := a.json["error"].(map[string]any)
	text := func(name string) string { s, _ := e[name].(string); return s }
	if !ok || a.status != status || text("type") != typ || text("code") != code || text("param") != param {
		a.t.Errorf("got %d %s, want %d %s %s %s", a.status, a.body, status, typ, code, param)
	}
	if text("message") == "" || a.header.Get("Content-Type") != jsonType || a.header.Get("Stripe-Should-Retry") == "" || !strings.HasPrefix(a.header.Get("Request-Id"), "req_") {
		a.t.Errorf("not a whole error: %v %s", a.header, a.body)
	}
	return e
}

// ok checks an answer that is none.
func (a answer) ok() map[string]any {
	a.t.Helper()
	if a.status != 200 || !strings.HasPrefix(a.header.Get("Request-Id"), "req_") {
		a.t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	return a.json
}

const goodCharge = "amount=1999&currency=usd&source=tok_visa"

func TestStripeCharge(t *testing.T) {
	x := newTill(t)
	a := x.form("POST /v1/charges", goodCharge+"&description=Two+teas&metadata[till]=3&metadata[empty]=&expand[]=customer&receipt_email=a%40b.example&capture=true",
		"Idempotency-Key", "k", "Stripe-Version", "2022-11-15")
	c := a.ok()
	for member, want := range map[string]any{"object": "charge", "amount": 1999.0, "amount_captured": 1999.0, "amount_refunded": 0.0, "currency": "usd", "status": "succeeded",
		"paid": true, "captured": true, "refunded": false, "description": "Two teas", "payment_intent": nil, "failure_code": nil, "livemode": true} {
		if got, there := c[member]; !there || got != want {
			t.Errorf("%s: %v, want %v", member, got, want)
		}
	}
	if m := c["metadata"].(map[string]any); len(m) != 1 || m["till"] != "3" {
		t.Errorf("metadata: %v", m)
	}
	if a.header.Get("Stripe-Version") != "2022-11-15" || a.header.Get("Idempotency-Key") != "k" || a.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("headers: %v", a.header)
	}
	id := c["id"].(string)
	if b := x.form("GET /v1/charges/"+id+"?expand[]=refunds", ""); b.body != a.body {
		t.Errorf("read back: %s", b.body)
	}
	p := x.ask("GET /api/v1/payments/pay_"+strings.TrimPrefix(id, "ch_"), "", "key", x.shop).is(200, "")
	if p.json["status"] != "succeeded" || p.json["description"] != "Two teas" {
		t.Errorf("the payment: %s", p.body)
	}
	if again := x.form("POST /v1/charges", "metadata[till]=3&description=Two%20teas&source=tok_visa&amount=1999&currency=USD", "Idempotency-Key", "k"); again.body != a.body ||
		again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("replayed: %v %s", again.header, again.body)
	}
	x.form("POST /v1/charges", "amount=2000&currency=usd&source=tok_visa", "Idempotency-Key", "k").refuses(400, "idempotency_error", "", "Idempotency-Key")
	x.form("POST /v1/payment_intents", "amount=1999&currency=usd&payment_method=pm_card_visa&confirm=true", "Idempotency-Key", "k").refuses(400, "idempotency_error", "", "Idempotency-Key")
	x.ask("POST /api/v1/payments", goodPayment, "key", x.shop, "Idempotency-Key", "k").is(422, "idempotency_mismatch")
	x.form("POST /v1/charges", goodCharge, "Idempotency-Key", "").refuses(400, "idempotency_error", "idempotency_key_invalid", "Idempotency-Key")
	if n := len(x.sim.Ledger().Charges); n != 1 {
		t.Errorf("%d effects", n)
	}
}

// A client without an SDK: JSON, a bearer's key, a version; base URL http://box/v1.
func TestStripePlainClient(t *testing.T) {
	x := newTill(t)
	a := x.ask("POST /v1/charges", `{"amount": 1999, "currency": "usd", "source": "tok_visa", "metadata": {"till": "3"}, "description": null}`,
		"key", x.shop, "Stripe-Version", "2022-11-15", "Idempotency-Key", "k")
	id := a.ok()["id"].(string)
	b := x.ask("GET /v1/charges/"+id, "", "key", x.shop, "Stripe-Version", "2022-11-15")
	if b.ok()["status"] != "succeeded" || b.body != a.body {
		t.Errorf("%s", b.body)
	}
	// The form that says the same is the same request.
	if c := x.form("POST /v1/charges", goodCharge+"&metadata[till]=3", "Idempotency-Key", "k"); c.body != a.body {
		t.Errorf("as a form: %s", c.body)
	}
}

func TestStripeDecline(t *testing.T) {
	x := newTill(t)
	decline := "amount=500&currency=usd&source=tok_chargeDeclinedInsufficientFunds"
	a := x.form("POST /v1/charges", decline, "Idempotency-Key", "k")
	e := a.refuses(402, "card_error", "card_declined", "")
	charge := e["charge"].(string)
	if e["decline_code"] != "insufficient_funds" || e["message"] != "Your card has insufficient funds." || a.header.Get("Stripe-Should-Retry") != "false" {
		t.Errorf("%v %s", a.header, a.body)
	}
	c := x.form("GET /v1/charges/"+charge, "").ok()
	outcome, _ := c["outcome"].(map[string]any)
	if c["status"] != "failed" || c["paid"] != false || c["captured"] != false || c["failure_code"] != "card_declined" || outcome["reason"] != "insufficient_funds" {
		t.Errorf("the charge: %v", c)
	}
	again := x.form("POST /v1/charges", decline, "Idempotency-Key", "k")
	if again.body != a.body || again.status != 402 || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("replayed: %d %v %s", again.status, again.header, again.body)
	}
	x.form("POST /v1/refunds", "charge="+charge).refuses(400, "invalid_request_error", "charge_not_refundable", "charge")
}

func TestStripeParameters(t *testing.T) {
	x := newTill(t)
	invalid := "invalid_request_error"
	for name, c := range map[string]struct {
		path, form, code, param string
	}{
		"unknown":              {"charges", goodCharge + "&tip=5", "parameter_unknown", "tip"},
		"two unknown":          {"charges", goodCharge + "&tip=5&gift[a]=1", "parameter_unknown", "gift"},
		"other case":           {"charges", goodCharge + "&Amount=5", "parameter_unknown", "Amount"},
		"prototype":            {"charges", goodCharge + "&__proto__[a]=5", "parameter_unknown", "__proto__"},
		"missing amount":       {"charges", "currency=usd&source=tok_visa", "parameter_missing", "amount"},
		"missing currency":     {"charges", "amount=1&source=tok_visa", "parameter_missing", "currency"},
		"missing source":       {"charges", "amount=1&currency=usd", "parameter_missing", "source"},
		"empty source":         {"charges", "amount=1&currency=usd&source=", "parameter_invalid_empty", "source"},
		"nothing":              {"charges", "", "parameter_missing", "amount"},
		"amount 0":             {"charges", "amount=0&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount -1":            {"charges", "amount=-1&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount 1.5":           {"charges", "amount=1.5&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount 1e2":           {"charges", "amount=1e2&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount 007":           {"charges", "amount=007&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount +1":            {"charges", "amount=%2B1&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount 2^63":          {"charges", "amount=9223372036854775808&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount 10^400":        {"charges", "amount=1" + strings.Repeat("0", 400) + "&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount, much":         {"charges", "amount=1000000000000&currency=usd&source=tok_visa", "parameter_invalid_integer", "amount"},
		"amount, nested":       {"charges", goodCharge[12:] + "&amount[a]=1", "parameter_invalid", "amount"},
		"currency":             {"charges", "amount=1&currency=XXX&source=tok_visa", "currency_invalid", "currency"},
		"captured later":       {"charges", goodCharge + "&capture=false", "parameter_unsupported", "capture"},
		"customer":             {"charges", goodCharge + "&customer=cus_1", "parameter_unsupported", "customer"},
		"fee":                  {"charges", goodCharge + "&application_fee_amount=1", "parameter_unsupported", "application_fee_amount"},
		"transfer":             {"charges", goodCharge + "&transfer_data[destination]=acct_1", "parameter_unsupported", "transfer_data"},
		"card number":          {"charges", "amount=1&currency=usd&source[object]=card&source[number]=4242424242424242&source[cvc]=123", "card_data_not_allowed", "source[number]"},
		"card number in text":  {"charges", goodCharge + "&description=4242+4242+4242+4242", "card_data_not_allowed", "description"},
		"card number as token": {"charges", "amount=1&currency=usd&source=4242424242424242", "card_data_not_allowed", "source"},
		"card number, kept":    {"charges", goodCharge + "&metadata[a]=4242424242424242", "card_data_not_allowed", "metadata"},
		"check value":          {"charges", goodCharge + "&cvc=123", "card_data_not_allowed", "cvc"},
		"card in an intent": {"payment_intents", "amount=1&currency=usd&payment_method_data[card][number]=4242424242424242",
			"card_data_not_allowed", "payment_method_data[card][number]"},
		"metadata, a text":     {"charges", goodCharge + "&metadata=a", "parameter_invalid_hash", "metadata"},
		"metadata, nested":     {"charges", goodCharge + "&metadata[a][b]=c", "parameter_invalid_hash", "metadata"},
		"metadata, a list":     {"charges", goodCharge + "&metadata[]=c", "parameter_invalid_hash", "metadata"},
		"metadata, long key":   {"charges", goodCharge + "&metadata[" + strings.Repeat("k", 41) + "]=c", "metadata_limit", "metadata"},
		"metadata, long value": {"charges", goodCharge + "&metadata[k]=" + strings.Repeat("v", 501), "metadata_limit", "metadata"},
		"metadata, many keys":  {"charges", goodCharge + many("&metadata[k%d]=v", 51), "metadata_limit", "metadata"},
		"metadata, the box's":  {"charges", goodCharge + "&metadata[tenderbox_payment]=v", "metadata_invalid", "metadata"},
		"duplicate":            {"charges", goodCharge + "&amount=1", "parameter_duplicate", "amount"},
		"duplicate, escaped":   {"charges", goodCharge + "&%61mount=1", "parameter_duplicate", "amount"},
		"duplicate, nested":    {"charges", goodCharge + "&metadata[a]=1&metadata%5Ba%5D=2", "parameter_duplicate", "metadata[a]"},
		"bad escape":           {"charges", goodCharge + "&description=%zz", "form_invalid", ""},
		"NUL":                  {"charges", goodCharge + "&description=a%00b", "form_invalid", ""},
		"NUL in a name":        {"charges", goodCharge + "&a%00b=1", "form_invalid", ""},
		"invalid UTF-8":        {"charges", goodCharge + "&description=%ff", "form_invalid", ""},
		"open bracket":         {"charges", goodCharge + "&metadata[a=1", "form_invalid", ""},
		"close bracket":        {"charges", goodCharge + "&metadata]=1", "form_invalid", ""},
		"text behind bracket":  {"charges", goodCharge + "&metadata[a]b=1", "form_invalid", ""},
		"bracket in bracket":   {"charges", goodCharge + "&metadata[a[b]]=1", "form_invalid", ""},
		"no name":              {"charges", goodCharge + "&=1", "form_invalid", ""},
		"no base":              {"charges", goodCharge + "&[a]=1", "form_invalid", ""},
		"levels":               {"charges", goodCharge + "&metadata" + strings.Repeat("[a]", 10000) + "=1", "form_invalid", ""},
		"many parameters":      {"charges", goodCharge + many("&expand[]=a%d", 200), "form_invalid", ""},
		"intent captured later": {"payment_intents", "amount=1&currency=usd&capture_method=manual",
			"parameter_unsupported", "capture_method"},
		"intent for later": {"payment_intents", "amount=1&currency=usd&setup_future_usage=off_session",
			"parameter_unsupported", "setup_future_usage"},
		"intent without method": {"payment_intents", "amount=1&currency=usd&confirm=true", "parameter_missing", "payment_method"},
		"intent, confirm":       {"payment_intents", "amount=1&currency=usd&confirm=yes", "parameter_invalid", "confirm"},
		"refund of nothing":     {"refunds", "amount=1", "parameter_missing", "charge"},
		"refund, reason":        {"refunds", "charge=ch_1&reason=because", "resource_missing", "charge"},
	} {
		t.Run(name, func(t *testing.T) {
			x.t, x.testServer.t = t, t
			before := len(x.all("shop"))
			if a := x.form("POST /v1/"+c.path, c.form); c.code != "" {
				a.refuses(400, invalid, c.code, c.param)
			} else if a.status != 400 {
				t.Errorf("%d %s", a.status, a.body)
			} else if strings.Contains(a.body, "4242") {
				t.Error("a card number was shown")
			}
			if len(x.all("shop")) != before {
				t.Error("a payment was stored") // INV-3
			}
		})
	}
	if log := x.log.String(); log != "" {
		t.Errorf("the log: %s", log)
	}
}

func many(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// all lists a tenant's charges, as its own client would.
func (x *till) all(t tenants.ID) []map[string]any {
	x.t.Helper()
	key := map[tenants.ID]string{"shop": x.shop, "bar": x.bar}[t]
	a := x.ask("GET /v1/charges?limit=100", "", "key", key)
	return objects(a.ok()["data"])
}

func TestStripeJSON(t *testing.T) {
	x := newTill(t)
	deep := `{"a":` + strings.Repeat(`{"a":`, 10_000)
	with := func(member string) string { return `{"currency":"usd","source":"tok_visa",` + member + `}` }
	for name, c := range map[string]struct {
		body        string
		status      int
		code, param string
	}{
		"null":               {"null", 400, "json_invalid", ""},
		"array":              {"[]", 400, "json_invalid", ""},
		"two values":         {"{}{}", 400, "json_invalid", ""},
		"duplicate":          {with(`"amount":1,"amount":2`), 400, "member_duplicate", "amount"},
		"duplicate inside":   {with(`"amount":1,"metadata":{"a":"1","a":"2"}`), 400, "member_duplicate", "metadata.a"},
		"levels":             {deep, 400, "json_too_deep", ""},
		"levels of ours":     {with(`"amount":1,"metadata":{"a":{"b":{"c":{"d":{"e":{"f":{"g":"h"}}}}}}}`), 400, "form_invalid", ""},
		"unknown":            {with(`"amount":1,"tip":2`), 400, "parameter_unknown", "tip"},
		"bracket in a name":  {with(`"amount":1,"metadata[a]":"2"`), 400, "form_invalid", ""},
		"amount, a text":     {with(`"amount":"100"`), 400, "parameter_invalid_integer", "amount"},
		"amount 1.0":         {with(`"amount":1.0`), 400, "parameter_invalid_integer", "amount"},
		"amount 1e2":         {with(`"amount":1e2`), 400, "parameter_invalid_integer", "amount"},
		"amount true":        {with(`"amount":true`), 400, "parameter_invalid_integer", "amount"},
		"amount null":        {with(`"amount":null`), 400, "parameter_missing", "amount"},
		"amount, an object":  {with(`"amount":{"a":1}`), 400, "parameter_invalid", "amount"},
		"currency, a number": {`{"amount":1,"currency":840,"source":"tok_visa"}`, 400, "parameter_invalid_string", "currency"},
		"source, a card":     {`{"amount":1,"currency":"usd","source":{"number":"4242424242424242"}}`, 400, "card_data_not_allowed", "source[number]"},
		"metadata of bools":  {with(`"amount":1,"metadata":{"a":true}`), 400, "parameter_invalid_hash", "metadata"},
		"invalid UTF-8":      {with(`"amount":1,"description":"` + "\xff" + `"`), 400, "json_invalid", "description"},
		"NUL":                {with(`"amount":1,"description":"a\u0000"`), 400, "form_invalid", ""},
		"over 64 KiB":        {with(`"amount":1,"description":"` + strings.Repeat("x", 64<<10) + `"`), 413, "body_too_large", ""},
		"many values":        {with(`"amount":1,"expand":[` + strings.Repeat(`"a",`, 300) + `"b"]`), 400, "form_invalid", ""},
	} {
		t.Run(name, func(t *testing.T) {
			x.t, x.testServer.t = t, t
			x.ask("POST /v1/charges", c.body, "key", x.shop).refuses(c.status, "invalid_request_error", c.code, c.param)
			if len(x.all("shop")) != 0 {
				t.Error("a payment was stored")
			}
		})
	}
}

// What is refused before a route is reached, or a handler, has Stripe's form below /v1 too, and no other form elsewhere.
func TestStripeFormOfRefusals(t *testing.T) {
	x := newTill(t)
	key := []string{"key", x.shop}
	form := []string{"-", "Content-Type", "Content-Type", formType}
	for name, c := range map[string]struct {
		line, body  string
		headers     []string
		status      int
		code, param string
	}{
		"no key":             {"GET /v1/charges", "", nil, 401, "auth_missing", ""},
		"bad key":            {"GET /v1/charges", "", []string{"key", "sk_test_no"}, 401, "auth_invalid", ""},
		"other tenant":       {"GET /v1/charges", "", append(key, "X-Tenant-ID", "bar"), 403, "tenant_mismatch", ""},
		"operator, nobody's": {"GET /v1/charges", "", []string{"key", operatorToken}, 400, "tenant_missing", "X-Tenant-ID"},
		"no route":           {"GET /v1/customers", "", key, 404, "url_unknown", ""},
		"no route, no key":   {"GET /v1/customers", "", nil, 404, "url_unknown", ""},
		"the top":            {"GET /v1", "", key, 404, "url_unknown", ""},
		"slashes":            {"GET /v1//charges", "", key, 404, "url_unknown", ""},
		"trailing slash":     {"GET /v1/charges/", "", key, 404, "url_unknown", ""},
		"other method":       {"DELETE /v1/charges", "", key, 405, "method_not_allowed", ""},
		"foreign host":       {"GET /v1/charges", "", append(key, "Host", "evil.example"), 421, "host_not_allowed", "Host"},
		"cross-site":         {"POST /v1/charges", goodCharge, append(key, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"), 403, "cross_origin", "Origin"},
		"text":               {"POST /v1/charges", goodCharge, append(key, "-", "Content-Type", "Content-Type", "text/plain"), 415, "content_type_unsupported", "Content-Type"},
		"multipart":          {"POST /v1/charges", goodCharge, append(key, "-", "Content-Type", "Content-Type", "multipart/form-data; boundary=a"), 415, "content_type_unsupported", "Content-Type"},
		"other charset":      {"POST /v1/charges", goodCharge, append(key, "-", "Content-Type", "Content-Type", formType+"; charset=utf-16"), 415, "content_type_unsupported", "Content-Type"},
		"no type":            {"POST /v1/charges", goodCharge, append(key, "-", "Content-Type"), 415, "content_type_unsupported", "Content-Type"},
		"gzip":               {"POST /v1/charges", goodCharge, append(append(key, form...), "Content-Encoding", "gzip"), 415, "content_encoding_unsupported", "Content-Encoding"},
		"huge":               {"POST /v1/charges", goodCharge + "&description=" + strings.Repeat("x", 64<<10), append(key, form...), 413, "body_too_large", ""},
		"query and body":     {"POST /v1/charges?amount=5", goodCharge, append(key, form...), 400, "form_invalid", ""},
		"another account":    {"POST /v1/charges", goodCharge, append(append(key, form...), "Stripe-Account", "acct_1"), 400, "account_invalid", "Stripe-Account"},
	} {
		t.Run(name, func(t *testing.T) {
			x.t, x.testServer.t = t, t
			x.ask(c.line, c.body, c.headers...).refuses(c.status, "invalid_request_error", c.code, c.param)
		})
	}
	x.t, x.testServer.t = t, t
	x.ask("GET /v1x/charges", "", key...).is(404, "not_found")
	if a := x.ask("GET /api/v1/payments", "", key...); a.header.Get("Request-Id") != "" {
		t.Errorf("headers of the surface elsewhere: %v", a.header)
	}
	if len(x.all("shop")) != 0 {
		t.Error("a payment was stored")
	}
}

// INV-22: what is another's and what does not exist cannot be told apart.
func TestStripeForeignIDs(t *testing.T) {
	x := newTill(t)
	charge := x.form("POST /v1/charges", goodCharge).ok()["id"].(string)
	intent := x.form("POST /v1/payment_intents", "amount=5&currency=usd&payment_method=pm_card_visa&confirm=true").ok()["id"].(string)
	refund := x.form("POST /v1/refunds", "charge="+charge+"&amount=5").ok()["id"].(string)
	for id, path := range map[string]string{charge: "charges", intent: "payment_intents", refund: "refunds"} {
		prefix, _, _ := strings.Cut(id, "_")
		unknown := prefix + "_01KAVZZZZZZZZZZZZZZZZZZZZZ"
		kind := strings.TrimSuffix(path, "s")
		param := map[string]string{"payment_intents": "intent"}[path]
		if param == "" {
			param = "id"
		}
		bodies := map[string]bool{}
		for _, asked := range []string{id, unknown} {
			a := x.ask("GET /v1/"+path+"/"+asked, "", "key", x.bar)
			a.refuses(404, "invalid_request_error", "resource_missing", param)
			if !strings.Contains(a.body, "No such "+kind+": '"+asked+"'") {
				t.Errorf("%s", a.body)
			}
			bodies[strings.ReplaceAll(a.body, asked, "ID")] = true
		}
		if len(bodies) != 1 {
			t.Errorf("%s: %v", path, bodies)
		}
		for _, asked := range []string{"x", strings.ToLower(id), url.PathEscape("../../etc/passwd"), strings.Repeat("9", 4000), "pay_" + charge} {
			if a := x.ask("GET /v1/"+path+"/"+asked, "", "key", x.shop); a.status != 404 || strings.Contains(a.body, "999999999999") {
				t.Errorf("%s: %d %s", asked, a.status, a.body)
			}
		}
	}
	x.ask("POST /v1/refunds", "charge="+charge, "key", x.bar, "-", "Content-Type", "Content-Type", formType).refuses(400, "invalid_request_error", "resource_missing", "charge")
	x.ask("POST /v1/payment_intents/"+intent+"/cancel", "", "key", x.bar).refuses(404, "invalid_request_error", "resource_missing", "intent")
	if got := x.all("bar"); len(got) != 0 {
		t.Errorf("bar sees %v", got)
	}
	// A charge is no intent, though both are payments.
	x.form("GET /v1/payment_intents/pi_"+strings.TrimPrefix(charge, "ch_"), "").refuses(404, "invalid_request_error", "resource_missing", "intent")
	if c := x.form("GET /v1/charges/ch_"+strings.TrimPrefix(intent, "pi_"), "").ok(); c["payment_intent"] != intent {
		t.Errorf("the intent's charge: %v", c)
	}
}

func TestStripeLists(t *testing.T) {
	x := newTill(t)
	var ids []string
	for i := range 7 {
		ids = append(ids, x.form("POST /v1/charges", fmt.Sprintf("amount=%d&currency=usd&source=tok_visa", 100+i)).ok()["id"].(string))
	}
	slices.Sort(ids)
	slices.Reverse(ids)                                              // newest first
	x.form("POST /v1/payment_intents", "amount=5&currency=usd").ok() // charges nothing yet
	page := func(query string) (got []string, more bool) {
		t.Helper()
		l := x.form("GET /v1/charges?"+query, "").ok()
		if l["object"] != "list" || l["url"] != "/v1/charges" {
			t.Errorf("%v", l)
		}
		for _, c := range objects(l["data"]) {
			got = append(got, c["id"].(string))
		}
		return got, l["has_more"].(bool)
	}
	created := x.all("shop")[0]["created"].(float64)
	for _, c := range []struct {
		query string
		want  []string
		more  bool
	}{
		{"", ids, false},
		{"limit=7", ids, false},
		{"limit=3", ids[:3], true},
		{"limit=3&starting_after=" + ids[2], ids[3:6], true},
		{"limit=3&starting_after=" + ids[5], ids[6:], false},
		{"limit=3&starting_after=" + ids[6], nil, false},
		{"limit=3&ending_before=" + ids[6], ids[3:6], true},
		{"limit=3&ending_before=" + ids[3], ids[:3], false},
		{"limit=2&ending_before=" + ids[1], ids[:1], false},
		{"ending_before=" + ids[0], nil, false},
		{fmt.Sprintf("created[gt]=%.0f", created), nil, false},
		{fmt.Sprintf("created[gte]=%.0f&limit=1", created), ids[:1], true},
		{fmt.Sprintf("created[lte]=%.0f&limit=100&expand[]=data.customer", created), ids, false},
		{"created[lt]=1000", nil, false},
		{"created=1000", nil, false},
		{"created[gte]=1000&created[lt]=1001", nil, false},
	} {
		got, more := page(c.query)
		if strings.Contains(c.query, "created[gte]") && len(c.want) == 1 {
			more = true // another second may have begun meanwhile
		}
		if !slices.Equal(got, c.want) || more != c.more {
			t.Errorf("%s: %v %v, want %v %v", c.query, got, more, c.want, c.more)
		}
	}
	for query, param := range map[string]string{
		"limit=0": "limit", "limit=101": "limit", "limit=-1": "limit", "limit=abc": "limit", "limit=1e1": "limit",
		"created=abc": "created", "created[gte]=-1": "created[gte]", "created[gte]=253402300800": "created[gte]",
		"starting_after=" + ids[0] + "&ending_before=" + ids[1]: "ending_before",
	} {
		a := x.form("GET /v1/charges?"+query, "")
		e, _ := a.json["error"].(map[string]any)
		if a.status != 400 || e["param"] != param {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
	for query, param := range map[string]string{"customer=cus_1": "customer", "created[ge]=5": "created[ge]", "status=paid": "status"} {
		x.form("GET /v1/charges?"+query, "").refuses(400, "invalid_request_error", "parameter_unknown", param)
	}
	for _, id := range []string{"ch_x", "re_x", "", strings.ToLower(ids[0])} {
		x.form("GET /v1/charges?starting_after="+id, "").refuses(400, "invalid_request_error", "resource_missing", "starting_after")
	}
	x.form("GET /v1/charges?limit=1&limit=2", "").refuses(400, "invalid_request_error", "parameter_duplicate", "limit")
}

// Deep, long and many: no memory is built for what is refused.
func TestStripeHostileFormsAreCheap(t *testing.T) {
	x := newTill(t)
	forms := []string{
		goodCharge + "&" + strings.Repeat("[", 60_000),
		goodCharge + "&metadata" + strings.Repeat("[a]", 20_000) + "=1",
		goodCharge + strings.Repeat("&a=b", 15_000),
		strings.Repeat("&", 65_000),
		strings.Repeat("%", 65_000),
		goodCharge + "&" + strings.Repeat("x", 60_000) + "=1",
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const rounds = 50
	for range rounds {
		for _, f := range forms {
			if a := x.form("POST /v1/charges", f); a.status != 400 || len(a.body) > 1000 {
				t.Fatalf("%d %.200s", a.status, a.body)
			}
		}
	}
	runtime.ReadMemStats(&after)
	// The test's own request costs its 64 KiB twice.
	if per := (after.TotalAlloc - before.TotalAlloc) / uint64(rounds*len(forms)); per > 600<<10 {
		t.Errorf("%d KiB a request", per>>10)
	}
}
