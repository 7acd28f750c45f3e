package web

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tenderbox/ledger"
)

// RELIABILITY.md, "Hostile input": keys, text, ids, parameters, times, targets, headers.

func TestHostileIdempotencyKeys(t *testing.T) {
	ts := newTestServer(t, nil)
	for name, values := range map[string][]string{
		"empty": {""}, "over 255": {strings.Repeat("k", 256)}, "control": {"a\tb"}, "not ASCII": {"ключ"}, "twice": {"k", "k"}, "DEL": {"a\x7f"}, "CRLF": {"a\r\nX: b"},
	} {
		t.Run(name, func(t *testing.T) {
			ts.t = t
			headers := []string{"key", ts.shop}
			for _, v := range values {
				headers = append(headers, "Idempotency-Key", v)
			}
			ts.ask("POST /api/v1/payments", goodPayment, headers...).is(400, "idempotency_key_invalid")
		})
	}
	first := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Idempotency-Key", strings.Repeat("k", 255)).is(201, "")
	again := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Idempotency-Key", strings.Repeat("k", 255)).is(201, "")
	if again.header.Get("Idempotent-Replayed") != "true" || first.header.Get("Idempotent-Replayed") != "" || again.body != first.body {
		t.Errorf("replay: %v %s", again.header, again.body)
	}
	if len(ts.ledger.payments["shop"]) != 1 {
		t.Errorf("%d payments were taken", len(ts.ledger.payments["shop"]))
	}
}

// INV-22: foreign, unknown and impossible ids give equal bytes.
func TestHostileIDs(t *testing.T) {
	ts := newTestServer(t, nil)
	foreign := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.bar).is(201, "").json["id"].(string)
	want := ts.ask("GET /api/v1/payments/"+foreign, "", "key", ts.shop).is(404, "not_found")
	for _, id := range []string{"pay_00000000000000000000000099", "x", "..", "%2e%2e", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2F", "a%2Fb", "%00", strings.Repeat("a", 4096),
		"pay_%30", "%E2%80%AE", ".", "%5c", "PAY_00000000000000000000000000", "pay_0%0a"} {
		a := ts.ask("GET /api/v1/payments/"+id, "", "key", ts.shop).is(404, "not_found")
		if a.body != want.body {
			t.Errorf("%q: %s differs from %s", id, a.body, want.body)
		}
	}
	for _, id := range []string{"nobody", "..", "SHOP", strings.Repeat("a", 4096)} {
		for _, line := range []string{"GET ", "DELETE "} {
			if id == ".." {
				ts.ask(line+"/api/v1/tenants/"+id, "", "key", operatorToken).is(404, "")
				continue
			}
			ts.ask(line+"/api/v1/tenants/"+id, "", "key", operatorToken).is(404, "tenant_unknown")
		}
	}
}

func TestHostileParameters(t *testing.T) {
	ts := newTestServer(t, nil)
	for range 3 {
		ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(201, "")
		ts.ask("POST /api/v1/payments", goodPayment, "key", ts.bar).is(201, "")
	}
	page := ts.ask("GET /api/v1/payments?limit=1", "", "key", ts.shop).is(200, "")
	cursor := page.json["next_cursor"].(string)
	flipped := []byte(cursor)
	flipped[3] ^= 1
	for query, code := range map[string]string{
		"limit=-1": "limit_invalid", "limit=0": "limit_invalid", "limit=1000000000": "limit_invalid", "limit=abc": "limit_invalid", "limit=1e1": "limit_invalid",
		"limit=101": "limit_invalid", "limit=99999999999999999999": "limit_invalid",
		"limit=1&limit=2": "parameter_duplicate", "limit=1&%6cimit=2": "parameter_duplicate", "nope=1": "parameter_unknown", "Limit=1": "parameter_unknown",
		"cursor=x": "cursor_invalid", "cursor=" + string(flipped): "cursor_invalid", "cursor=" + cursor + "A": "cursor_invalid", "cursor=" + strings.Repeat("A", 9000): "cursor_invalid",
		"limit=%zz": "parameter_invalid", "a;b": "parameter_invalid", "4242424242424242=1": "parameter_unknown",
	} {
		a := ts.ask("GET /api/v1/payments?"+query, "", "key", ts.shop).is(400, code)
		if strings.Contains(a.body, "4242") {
			t.Error("shown back: ", a.body)
		}
	}
	ts.ask("GET /api/v1/payments?cursor="+cursor, "", "key", ts.shop).is(200, "")
	if got := ts.ledger.filter.Cursor; got == "" || strings.Contains(got, cursor) {
		t.Errorf("the ledger was given the cursor %q", got)
	}
	ts.ask("GET /api/v1/payments?cursor="+cursor, "", "key", ts.bar).is(400, "cursor_invalid")
	ts.ask("GET /api/v1/tenants?cursor="+cursor, "", "key", operatorToken).is(400, "cursor_invalid")
}

func TestHostileTimes(t *testing.T) {
	ts := newTestServer(t, func(o *Options) {
		o.Now = func() time.Time { return time.Date(2026, 11, 23, 23, 30, 0, 0, time.UTC) }
	})
	for query, code := range map[string]string{
		"from=2026-11-24&to=2026-11-22":   "time_range_invalid",
		"from=10000-01-01":                "time_invalid",
		"from=10000-01-01T00:00:00Z":      "time_invalid",
		"from=0001-01-01":                 "time_invalid",
		"to=9999-12-31":                   "time_invalid",
		"from=yesterday":                  "time_invalid",
		"from=2026-02-30":                 "time_invalid",
		"from=2026-11-23T00:00:00":        "time_invalid",
		"from=1795420800":                 "time_invalid",
		"from=2026-11-23&from=2026-11-24": "parameter_duplicate",
		"tz=Local":                        "time_zone_invalid",
		"tz=../../etc/passwd":             "time_zone_invalid",
		"tz=/etc/localtime":               "time_zone_invalid",
		"tz=Mars/Olympus":                 "time_zone_invalid",
		"tz=" + strings.Repeat("A", 9000): "time_zone_invalid",
		"from=" + url.QueryEscape("2026-11-23T00:00:00Z") + "&to=" + "2026-11-23T00:00:00Z": "time_range_invalid",
	} {
		ts.ask("GET /api/v1/reports/payments?"+query, "", "key", ts.shop).is(400, code)
	}
	for query, want := range map[string][2]string{
		"":                                    {"2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"},
		"tz=Europe/Berlin":                    {"2026-11-23T23:00:00Z", "2026-11-24T23:00:00Z"},
		"from=2026-11-20&tz=Europe/Berlin":    {"2026-11-19T23:00:00Z", "2026-11-20T23:00:00Z"},
		"from=2026-10-25&tz=Europe/Berlin":    {"2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"}, // the day the clocks go back has 25 hours
		"from=2026-09-06&tz=America/Santiago": {"2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"}, // begins at 01:00
		"from=2026-09-05&to=2026-09-05&tz=America/Santiago":          {"2026-09-05T04:00:00Z", "2026-09-06T04:00:00Z"},
		"from=2026-03-08T06:00:00Z&tz=America/Havana":                {"2026-03-08T06:00:00Z", "2026-03-09T04:00:00Z"},
		"from=2021-10-28&tz=Asia/Amman":                              {"2021-10-27T21:00:00Z", "2021-10-28T21:00:00Z"},
		"from=2026-11-20&to=2026-11-21":                              {"2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z"},
		"from=2026-11-20T06:00:00%2B02:00&to=2026-11-20T05:00:00.5Z": {"2026-11-20T04:00:00Z", "2026-11-20T05:00:00.5Z"},
	} {
		a := ts.ask("GET /api/v1/reports/payments?"+query, "", "key", ts.shop).is(200, "")
		if a.json["from"] != want[0] || a.json["to"] != want[1] {
			t.Errorf("%s: %v to %v, want %v", query, a.json["from"], a.json["to"], want)
		}
		asked, _ := url.ParseQuery(query)
		if zone := ts.ledger.report.from.Location().String(); zone != cmp.Or(asked.Get("tz"), "UTC") {
			t.Errorf("%s: its days are counted in %s", query, zone)
		}
	}
}

func TestHostileTargets(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, target := range []string{"/", "//", "/api", "/api/v1", "/api/v1/", "/api/v1/payments/", "//api/v1/payments", "/api//v1/payments", "/api/./v1/payments",
		"/api/v1/./payments", "/api/v1/x/../payments", "/api/v1/payments/..", "/api%2fv1/payments", "/api/v1%2fpayments", "/api/v1/payments%2f", "/%61pi/v1/payments",
		"/API/v1/payments", "/api/v1/Payments", "/api/v1/payments/x/y", "/metrics/", "/healthz/", "/docs/", "/openapi.yaml", "/openapi", "/schemas/Payment.json",
		"/api/v1/users/", "/api/v1/orders/", "/api/v1/events/", "/api/v1/events/x", "/api/v1/webhooks", "/api/v1/queues", "/api/v1/breaker", "/console/", "/api/v1/refunds/x",
		"/api/v1/tenants//rotate-key", "/favicon.ico", "/debug/pprof/", "/api/v1/payments\\x", "/api/v1/payments/%"} {
		r := &http.Request{Method: "GET", Host: "127.0.0.1", Header: http.Header{"Authorization": {"Bearer " + ts.shop}}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			continue // net/http answers those with 400
		}
		r.URL = u
		r.RequestURI = target
		a := ts.serve(r.WithContext(t.Context()))
		switch {
		case a.status == 405 && strings.HasSuffix(target, "rotate-key"):
		case a.status == 404:
			a.is(404, "not_found")
		default:
			t.Errorf("%s: %d %s", target, a.status, a.body)
		}
	}
	for _, method := range []string{"TRACE", "OPTIONS", "HEAD", "PUT", "PATCH", "DELETE", "PROPFIND", "get", "G3T", "PRI"} {
		a := ts.ask(method+" /api/v1/payments", "", "key", ts.shop)
		if a.status != 405 || (method != "HEAD" && a.json["code"] != "method_not_allowed") {
			t.Errorf("%s: %d %s", method, a.status, a.body)
		}
		if allow := a.header.Get("Allow"); !strings.Contains(allow, "GET") || !strings.Contains(allow, "POST") {
			t.Errorf("%s: Allow is %q", method, allow)
		}
	}
	for _, target := range []string{"", "*", "127.0.0.1:443"} {
		r := &http.Request{Method: "CONNECT", Host: "127.0.0.1", Header: http.Header{}, URL: &url.URL{Path: target}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
		ts.serve(r.WithContext(t.Context())).is(404, "not_found")
	}
}

func TestHostileHeaders(t *testing.T) {
	ts := newTestServer(t, nil)
	var many []string
	for range 200 {
		many = append(many, "X-Many", "x")
	}
	ts.ask("GET /healthz", "", many...).is(431, "header_too_large")
	ts.ask("GET /healthz", "", "X-Long", strings.Repeat("x", 17<<10)).is(431, "header_too_large")
	ts.ask("GET /healthz", "", "Upgrade", "websocket", "Connection", "Upgrade").is(400, "upgrade_unsupported")
	ts.ask("GET /healthz", "", "Upgrade", "h2c").is(400, "upgrade_unsupported")
	for _, prefer := range []string{"wait=-1", "wait=abc", "wait", "wait=", "wait=99999999999999999999", "wait=1e9", ";;;,,,===", "respond-async"} {
		ts.ledger.await = func(context.Context, time.Duration) { t.Error("waited for ", prefer) }
		ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Prefer", prefer).is(201, "")
	}
}

// What the ledger refuses has one status for each kind.
func TestRefusals(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, c := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{&ledger.Error{Kind: ledger.Invalid, Code: "currency_invalid", Field: "currency", Message: "m"}, 422, "currency_invalid", ""},
		{&ledger.Error{Kind: ledger.Conflict, Code: "offline_limit", Message: "m"}, 409, "offline_limit", ""},
		{&ledger.Error{Kind: ledger.Conflict, Code: "idempotency_key_in_use", Message: "m", RetryAfter: 1500 * time.Millisecond}, 409, "idempotency_key_in_use", "2"},
		{&ledger.Error{Kind: ledger.Mismatch, Code: "idempotency_mismatch", Message: "m"}, 422, "idempotency_mismatch", ""},
		{&ledger.Error{Kind: ledger.Unavailable, Code: "shard_unavailable", Message: "m"}, 503, "shard_unavailable", "1"},
		{&ledger.Error{Kind: ledger.Full, Code: "disk_full", Message: "m", RetryAfter: time.Minute}, 507, "disk_full", "60"},
		{&ledger.Error{Kind: ledger.NotFound, Code: "not_found", Message: "m"}, 404, "not_found", ""},
	} {
		ts.ledger.pay = func(context.Context, ledger.NewPayment) error { return c.err }
		a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(c.status, c.code)
		if got := a.header.Get("Retry-After"); got != c.retry {
			t.Errorf("%s: Retry-After is %q, want %q", c.code, got, c.retry)
		}
	}
	ts.ledger.pay = func(context.Context, ledger.NewPayment) error {
		return &ledger.Error{Kind: ledger.Conflict, Code: "offline_limit", Message: "m", Rule: &ledger.BrokenRule{Name: "max_count", Allowed: 3}}
	}
	limit := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(409, "offline_limit")
	if !strings.Contains(limit.body, `"rule":"max_count","stands":0,"allowed":3`) {
		t.Errorf("the refusal does not say which rule: %s", limit.body)
	}
	if log := ts.log.String(); log != "" {
		t.Errorf("foreseen refusals were logged:\n%s", log)
	}
	ts.ledger.pay = func(context.Context, ledger.NewPayment) error { return errors.New("the secret cause") }
	a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(500, "internal")
	if strings.Contains(a.body, "secret") || !strings.Contains(ts.log.String(), "the secret cause") {
		t.Errorf("the cause belongs to the log alone: %s\n%s", a.body, ts.log)
	}
}
