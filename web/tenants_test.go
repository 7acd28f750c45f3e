package web

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

func TestTenantLife(t *testing.T) {
	ts := newTestServer(t, nil)
	made := ts.ask("POST /api/v1/tenants", `{"id":"pier-7","domains":["Pier.Example."],"offline":{"usd":{"max_amount":5000,"max_age_h":4}},
		"upstream":{"account":"pier","url":"https://pay.example/v1/","key":"sk_live_canary"},"rate_limit":{"per_second":50}}`, "key", operatorToken).is(201, "")
	key := made.json["api_key"].(string)
	if !strings.HasPrefix(key, made.json["key_prefix"].(string)) || made.header.Get("Location") != "/api/v1/tenants/pier-7" {
		t.Errorf("made: %s", made.body)
	}
	ts.ask("POST /api/v1/payments", goodPayment, "key", key, "Host", "pier.example").is(201, "")

	read := ts.ask("GET /api/v1/tenants/pier-7", "", "key", operatorToken).is(200, "")
	if strings.Contains(read.body, key) || strings.Contains(read.body, "canary") {
		t.Errorf("a secret is shown: %s", read.body)
	}
	want := `{"id":"pier-7","object":"tenant","domains":["pier.example"],"disabled":false,"offline":{"usd":{"max_amount":5000,"max_age_h":4}},` +
		`"upstream":{"account":"pier","url":"https://pay.example/v1"},"rate_limit":{"per_second":50},`
	if !strings.HasPrefix(read.body, want) {
		t.Errorf("read %s\nwant %s…", read.body, want)
	}

	ts.ask("DELETE /api/v1/tenants/pier-7", "", "key", operatorToken).is(409, "tenant_enabled")
	ts.ask("PATCH /api/v1/tenants/pier-7", `{"disabled":true}`, "key", operatorToken).is(200, "")
	ts.ledger.exposed = map[tenants.ID]map[string]ledger.Sum{"pier-7": {"usd": {Count: 1, Amount: 1999}}}
	ts.ask("DELETE /api/v1/tenants/pier-7", "", "key", operatorToken).is(409, "tenant_unsettled")
	ts.ledger.exposed = nil
	if gone := ts.ask("DELETE /api/v1/tenants/pier-7", "", "key", operatorToken); gone.status != 204 || gone.body != "" {
		t.Errorf("removed: %d %s", gone.status, gone.body)
	}
	ts.ask("GET /api/v1/tenants/pier-7", "", "key", operatorToken).is(404, "tenant_unknown")
	ts.ask("GET /api/v1/payments", "", "key", key).is(401, "auth_invalid")
	ts.ask("POST /api/v1/tenants", `{"id":"pier-7"}`, "key", operatorToken).is(409, "tenant_exists")
}

func TestTenantChanges(t *testing.T) {
	ts := newTestServer(t, nil)
	change := func(body string) answer {
		t.Helper()
		return ts.ask("PATCH /api/v1/tenants/bar", body, "key", operatorToken)
	}
	a := change(`{"offline":{"usd":{"max_total":100},"eur":{}},"rate_limit":{"per_second":1,"burst":5}}`).is(200, "")
	if fmt.Sprint(a.json["offline"]) != "map[eur:map[] usd:map[max_total:100]]" {
		t.Errorf("offline: %v", a.json["offline"])
	}
	a = change(`{"offline":{}}`).is(200, "") // every currency is refused offline
	if a.json["offline"] == nil || len(a.json["offline"].(map[string]any)) != 0 || a.json["rate_limit"] == nil {
		t.Errorf("offline: %s", a.body)
	}
	a = change(`{"offline":null,"rate_limit":null}`).is(200, "")
	if a.json["offline"] != nil || a.json["rate_limit"] != nil {
		t.Errorf("taken away: %s", a.body)
	}
	a = change(`{"domains":["a.example","b.example"]}`).is(200, "")
	ts.ask("GET /healthz", "", "Host", "a.example").is(200, "")
	change(`{"domains":null}`).is(200, "")
	ts.ask("GET /healthz", "", "Host", "a.example").is(421, "host_not_allowed")
	change(`{}`).is(200, "")

	// Another account only when nothing can be with the present one; another key of the same account at any time.
	change(`{"upstream":{"account":"x","url":"https://p.example","key":"k1"}}`).is(200, "")
	ts.ledger.account = &ledger.Error{Kind: ledger.Conflict, Code: "upstream_account_in_use", Message: "m"}
	change(`{"upstream":{"account":"x","url":"https://p.example/","key":"k2"}}`).is(200, "")
	change(`{"upstream":{"account":"x","url":"https://p.example"}}`).is(200, "")
	bar, err := ts.tenants.Get("bar")
	if err != nil || bar.Upstream.Key != "k2" {
		t.Errorf("the key was not kept: %v %v", bar.Upstream, err)
	}
	for _, body := range []string{`{"upstream":{"account":"y","url":"https://p.example","key":"k"}}`, `{"upstream":{"account":"x","url":"https://q.example","key":"k"}}`, `{"upstream":null}`} {
		change(body).is(409, "upstream_account_in_use")
	}
	ts.ledger.account = nil
	change(`{"upstream":{"account":"y","url":"https://p.example"}}`).is(422, "tenant_setting_invalid") // another account needs its key
	ts.ask("PATCH /api/v1/tenants/shop", `{"upstream":{"account":"x","url":"https://p.example","key":"k"}}`, "key", operatorToken).is(409, "upstream_account_used")
	change(`{"upstream":null}`).is(200, "")
	ts.ask("PATCH /api/v1/tenants/shop", `{"upstream":{"account":"x","url":"https://p.example","key":"k"}}`, "key", operatorToken).is(200, "")
}

func TestHostileTenants(t *testing.T) {
	ts := newTestServer(t, nil)
	for body, want := range map[string]string{
		`{}`:            "422 tenant_setting_invalid id",
		`{"id":""}`:     "422 tenant_setting_invalid id",
		`{"id":"../b"}`: "422 tenant_setting_invalid id",
		`{"id":"Shop"}`: "422 tenant_setting_invalid id",
		`{"id":"-a"}`:   "422 tenant_setting_invalid id",
		`{"id":"` + strings.Repeat("a", 64) + `"}`: "422 tenant_setting_invalid id",
		`{"id":1}`:      "422 member_invalid id",
		`{"id":"shop"}`: "409 tenant_exists ",
		`{"id":"new","domains":["pay.shop.example"]}`:                                         "409 domain_used ",
		`{"id":"new","domains":["127.0.0.1"]}`:                                                "422 tenant_setting_invalid domains",
		`{"id":"new","domains":["localhost"]}`:                                                "422 tenant_setting_invalid domains",
		`{"id":"new","domains":["shop.box.example"]}`:                                         "422 tenant_setting_invalid domains",
		`{"id":"new","domains":["http://x.example"]}`:                                         "422 tenant_setting_invalid domains",
		`{"id":"new","domains":["x.example:80"]}`:                                             "422 tenant_setting_invalid domains",
		`{"id":"new","domains":["p\u0430y.example"]}`:                                         "422 tenant_setting_invalid domains",
		`{"id":"new","domains":["a.example","A.example"]}`:                                    "422 tenant_setting_invalid domains",
		`{"id":"new","domains":"a.example"}`:                                                  "422 member_invalid domains",
		`{"id":"new","offline":{"USD":{}}}`:                                                   "422 tenant_setting_invalid offline",
		`{"id":"new","offline":{"usd":{"max_total":-1}}}`:                                     "422 tenant_setting_invalid offline.usd.max_total",
		`{"id":"new","offline":{"usd":{"max_total":1.5}}}`:                                    "422 member_invalid offline.usd.max_total",
		`{"id":"new","offline":{"usd":{"max_amount":9223372036854775807}}}`:                   "422 tenant_setting_invalid offline.usd.max_amount",
		`{"id":"new","offline":{"usd":{"max":1}}}`:                                            "422 member_unknown offline.usd.max",
		`{"id":"new","upstream":{"account":"a","url":"file:///etc/passwd","key":"k"}}`:        "422 tenant_setting_invalid upstream.url",
		`{"id":"new","upstream":{"account":"a","url":"https://u:p@x.example","key":"k"}}`:     "422 tenant_setting_invalid upstream.url",
		`{"id":"new","upstream":{"account":"a","url":"https://x.example?a=b","key":"k"}}`:     "422 tenant_setting_invalid upstream.url",
		`{"id":"new","upstream":{"account":"a","url":"https://x.example","key":"k\r\nX: y"}}`: "422 tenant_setting_invalid upstream.key",
		`{"id":"new","upstream":{"account":"a\nb","url":"https://x.example","key":"k"}}`:      "422 tenant_setting_invalid upstream.account",
		`{"id":"new","upstream":{"account":"","url":"https://x.example","key":"k"}}`:          "422 tenant_setting_invalid upstream.account",
		`{"id":"new","rate_limit":{"per_second":0}}`:                                          "422 tenant_setting_invalid rate_limit.per_second",
		`{"id":"new","api_key":"tbk_mine"}`:                                                   "422 member_unknown api_key",
		`{"id":"new","disabled":true}`:                                                        "422 member_unknown disabled",
	} {
		a := ts.ask("POST /api/v1/tenants", body, "key", operatorToken)
		field, _ := a.json["field"].(string)
		if got := fmt.Sprintf("%d %v %s", a.status, a.json["code"], field); got != want {
			t.Errorf("%s\n got %s\nwant %s", body, got, want)
		}
	}
	if n := len(ts.tenants.List()); n != 2 {
		t.Errorf("%d tenants, want the two", n)
	}
}

func TestTenantList(t *testing.T) {
	ts := newTestServer(t, nil)
	for i := range 25 {
		ts.ask("POST /api/v1/tenants", fmt.Sprintf(`{"id":"t%02d"}`, i), "key", operatorToken).is(201, "")
	}
	var seen []string
	cursor := ""
	for {
		a := ts.ask("GET /api/v1/tenants?limit=10"+cursor, "", "key", operatorToken).is(200, "")
		for _, v := range a.json["data"].([]any) {
			seen = append(seen, v.(map[string]any)["id"].(string))
		}
		if a.json["has_more"] == false {
			break
		}
		cursor = "&cursor=" + a.json["next_cursor"].(string)
		if len(seen) == 10 { // what comes and goes meanwhile moves nobody
			ts.ask("POST /api/v1/tenants", `{"id":"late"}`, "key", operatorToken).is(201, "")
			ts.ask("PATCH /api/v1/tenants/"+seen[9], `{"disabled":true}`, "key", operatorToken).is(200, "")
			ts.ask("DELETE /api/v1/tenants/"+seen[9], "", "key", operatorToken)
		}
	}
	if len(seen) != 27 || len(slices.Compact(slices.Sorted(slices.Values(seen)))) != 27 {
		t.Errorf("%d tenants listed: %v", len(seen), seen)
	}
}

func TestRateLimit(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	ts := newTestServer(t, func(o *Options) { o.Now = func() time.Time { return now } })
	ts.ask("PATCH /api/v1/tenants/shop", `{"rate_limit":{"per_second":2,"burst":3}}`, "key", operatorToken).is(200, "")
	for range 3 {
		ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(200, "")
	}
	if a := ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(429, "rate_limited"); a.header.Get("Retry-After") != "1" {
		t.Error("429 without Retry-After")
	}
	ts.ask("GET /api/v1/payments", "", "key", ts.bar).is(200, "")
	now = now.Add(time.Second)
	ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(200, "")
	ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(200, "")
	ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(429, "rate_limited")
	ts.ask("PATCH /api/v1/tenants/shop", `{"rate_limit":null}`, "key", operatorToken).is(200, "")
	ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(200, "")
}

func TestStatusAndProbes(t *testing.T) {
	ts := newTestServer(t, nil)
	ts.ask("GET /api/v1/status", "", "key", ts.shop).is(200, "")
	ts.ask("GET /api/v1/status", "", "key", operatorToken).is(200, "")
	ts.ask("GET /api/v1/status", "", "key", operatorToken, "X-Tenant-ID", "nobody").is(404, "tenant_unknown")
	ts.ask("GET /api/v1/status", "").is(401, "auth_missing")
	shards := ts.ask("GET /api/v1/shards", "", "key", operatorToken).is(200, "")
	if !strings.Contains(shards.body, `"state":"isolated","error":"page 7 is torn"`) {
		t.Errorf("shards: %s", shards.body)
	}
	ts.ledger.degraded = []string{"shard_isolated"}
	if a := ts.ask("GET /readyz", "").is(200, ""); fmt.Sprint(a.json["degraded"]) != "[shard_isolated]" {
		t.Errorf("readyz: %s", a.body)
	}
	ts.ledger.notReady = true
	if a := ts.ask("GET /readyz", ""); a.status != 503 || a.json["ready"] != false {
		t.Errorf("readyz: %d %s", a.status, a.body)
	}
	ts.ask("GET /healthz", "").is(200, "")
	ts.ledger.status = errors.New("torn")
	ts.ask("GET /api/v1/status", "", "key", ts.shop).is(500, "internal")
	m := ts.ask("GET /metrics", "", "key", operatorToken)
	for _, want := range []string{`tenderbox_ready 0`, `tenderbox_shard_up{shard="1"} 0`, `tenderbox_http_request_seconds_bucket{route="GET /healthz",le="+Inf"} 1`, "go_goroutines"} {
		if !strings.Contains(m.body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(m.body, "shop") {
		t.Error("metrics name a tenant")
	}
}

func TestDescription(t *testing.T) {
	ts := newTestServer(t, func(o *Options) { o.Version = "1.2.3" })
	spec := ts.ask("GET /openapi.json", "").is(200, "")
	paths := spec.json["paths"].(map[string]any)
	want := []string{"/api/v1/breaker/{word}", "/api/v1/events", "/api/v1/events/stream", "/api/v1/link/{word}", "/api/v1/notifications", "/api/v1/notifications/{id}/read", "/api/v1/orders", "/api/v1/orders/{id}", "/api/v1/orders/{id}/cancel", "/api/v1/orders/{id}/complete", "/api/v1/payments", "/api/v1/payments/{id}", "/api/v1/payments/{id}/attempts", "/api/v1/payments/{id}/cancel", "/api/v1/payments/{id}/refunds", "/api/v1/payments/{id}/resolve", "/api/v1/reconciliations", "/api/v1/reconciliations/{id}", "/api/v1/refunds", "/api/v1/refunds/{id}", "/api/v1/refunds/{id}/resolve", "/api/v1/reports/payments", "/api/v1/shards", "/api/v1/status", "/api/v1/tenants", "/api/v1/tenants/{id}", "/api/v1/tenants/{id}/rotate-key", "/api/v1/users", "/api/v1/users/{id}", "/api/v1/users/{id}/profile", "/api/v1/users/{id}/verify", "/healthz", "/readyz"}
	var got []string
	for p := range paths {
		got = append(got, p)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("described: %v", got)
	}
	docs := ts.ask("GET /docs", "").is(200, "")
	for _, s := range append(want, "Idempotency-Key", "payment_method", "1.2.3") {
		if !strings.Contains(docs.body, s) {
			t.Errorf("docs lack %s", s)
		}
	}
	if at := strings.Index(docs.body, `<a href="#create-payment">`); at < 0 || at > strings.Index(docs.body, `<h2 id="create-payment">`) {
		t.Error("docs have no list of contents")
	}
	if strings.Contains(docs.body, "<script") || strings.Contains(docs.body, "http://") || strings.Contains(docs.body, "https://") ||
		!strings.Contains(docs.header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Error("the page needs something from outside")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	ts := newTestServer(t, nil)
	_, err := New(Options{Ledger: ts.ledger, Tenants: ts.tenants, AllowHosts: []string{"http://x"}, AllowOrigins: []string{"x", "https://X.example", "https://x.example/p"}})
	for _, want := range []string{`allow-host: "http://x"`, `allow-origin: "x"`, `allow-origin: "https://X.example"`, `allow-origin: "https://x.example/p"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell of %s", err, want)
		}
	}
}
