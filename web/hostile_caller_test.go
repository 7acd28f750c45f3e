package web

import (
	"encoding/base64"
	"strings"
	"testing"
)

// RELIABILITY.md, "Hostile input": who is calling, and from where.

func TestHostileCredentials(t *testing.T) {
	ts := newTestServer(t, nil)
	wrong := ts.shop[:len(ts.shop)-1] + "a"
	if wrong == ts.shop {
		wrong = ts.shop[:len(ts.shop)-1] + "b"
	}
	for name, c := range map[string]struct {
		headers []string
		target  string
		status  int
		code    string
	}{
		"none":                  {nil, "", 401, "auth_missing"},
		"empty":                 {[]string{"Authorization", ""}, "", 401, "auth_missing"},
		"in the query":          {nil, "?api_key=" + ts.shop, 401, "auth_missing"},
		"scheme alone":          {[]string{"Authorization", "Bearer"}, "", 401, "auth_invalid"},
		"no scheme":             {[]string{"Authorization", ts.shop}, "", 401, "auth_invalid"},
		"other scheme":          {[]string{"Authorization", "Digest " + ts.shop}, "", 401, "auth_invalid"},
		"unknown":               {[]string{"key", "tbk_" + strings.Repeat("z", 56)}, "", 401, "auth_invalid"},
		"wrong secret":          {[]string{"key", wrong}, "", 401, "auth_invalid"},
		"short":                 {[]string{"key", ts.shop[:20]}, "", 401, "auth_invalid"},
		"long":                  {[]string{"key", strings.Repeat("k", 10_000)}, "", 401, "auth_invalid"},
		"a megabyte":            {[]string{"key", strings.Repeat("k", 1<<20)}, "", 431, "header_too_large"},
		"not ASCII":             {[]string{"key", "tbk_ключ"}, "", 401, "auth_invalid"},
		"control character":     {[]string{"key", "tbk_\x01"}, "", 401, "auth_invalid"},
		"space inside":          {[]string{"key", ts.shop + " x"}, "", 401, "auth_invalid"},
		"basic, not base64":     {[]string{"Authorization", "Basic ###"}, "", 401, "auth_invalid"},
		"basic, no colon":       {[]string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(ts.shop))}, "", 401, "auth_invalid"},
		"basic, key as pw":      {[]string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+ts.shop))}, "", 401, "auth_invalid"},
		"two":                   {[]string{"key", ts.shop, "Authorization", "Bearer " + ts.shop}, "", 400, "header_duplicate"},
		"two in one":            {[]string{"Authorization", "Bearer " + ts.shop + ", Bearer " + ts.shop}, "", 400, "header_duplicate"},
		"two tenants":           {[]string{"key", ts.shop, "X-Tenant-ID", "shop", "X-Tenant-ID", "shop"}, "", 400, "header_duplicate"},
		"two tenants in one":    {[]string{"key", ts.shop, "X-Tenant-ID", "shop,bar"}, "", 400, "header_duplicate"},
		"other tenant":          {[]string{"key", ts.shop, "X-Tenant-ID", "bar"}, "", 403, "tenant_mismatch"},
		"no such tenant":        {[]string{"key", ts.shop, "X-Tenant-ID", "nobody"}, "", 403, "tenant_mismatch"},
		"other subdomain":       {[]string{"key", ts.bar, "Host", "shop.box.example"}, "", 403, "tenant_mismatch"},
		"other domain":          {[]string{"key", ts.bar, "Host", "pay.shop.example"}, "", 403, "tenant_mismatch"},
		"operator, no tenant":   {[]string{"key", operatorToken}, "", 400, "tenant_missing"},
		"operator, unknown":     {[]string{"key", operatorToken, "X-Tenant-ID", "nobody"}, "", 404, "tenant_unknown"},
		"tenant ../b":           {[]string{"key", ts.shop, "X-Tenant-ID", "../b"}, "", 400, "tenant_invalid"},
		"tenant in upper case":  {[]string{"key", ts.shop, "X-Tenant-ID", "SHOP"}, "", 400, "tenant_invalid"},
		"tenant with space":     {[]string{"key", ts.shop, "X-Tenant-ID", "sh op"}, "", 400, "tenant_invalid"},
		"tenant *":              {[]string{"key", ts.shop, "X-Tenant-ID", "*"}, "", 400, "tenant_invalid"},
		"tenant >":              {[]string{"key", ts.shop, "X-Tenant-ID", ">"}, "", 400, "tenant_invalid"},
		"tenant %2f":            {[]string{"key", ts.shop, "X-Tenant-ID", "%2f"}, "", 400, "tenant_invalid"},
		"tenant empty":          {[]string{"key", ts.shop, "X-Tenant-ID", ""}, "", 400, "tenant_invalid"},
		"operator's unreadable": {[]string{"key", operatorToken, "X-Tenant-ID", "\u202e"}, "", 400, "tenant_invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			ts.t = t
			a := ts.ask("GET /api/v1/payments"+c.target, "", c.headers...).is(c.status, c.code)
			if c.status == 401 && a.header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
			if strings.Contains(a.body, ts.shop) || strings.Contains(ts.log.String(), ts.shop) {
				t.Error("the key was shown")
			}
		})
	}
}

func TestRevokedAndDisabled(t *testing.T) {
	ts := newTestServer(t, nil)
	old := ts.shop
	a := ts.ask("POST /api/v1/tenants/shop/rotate-key", "", "key", operatorToken).is(200, "")
	ts.ask("GET /api/v1/payments", "", "key", old).is(401, "auth_invalid")
	ts.shop = a.json["api_key"].(string)
	ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(200, "")
	ts.ask("PATCH /api/v1/tenants/shop", `{"disabled":true}`, "key", operatorToken).is(200, "")
	ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(403, "tenant_disabled")
	// The operator can still reach the tenant's settings over the tenant's own name.
	ts.ask("PATCH /api/v1/tenants/shop", `{"disabled":false}`, "key", operatorToken, "Host", "pay.shop.example").is(200, "")
	ts.ask("GET /api/v1/payments", "", "key", ts.shop, "Host", "pay.shop.example").is(200, "")
}

func TestOperatorsRoutesAreTheOperators(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, line := range []string{"GET /api/v1/tenants", "POST /api/v1/tenants", "GET /api/v1/tenants/shop", "PATCH /api/v1/tenants/shop",
		"DELETE /api/v1/tenants/shop", "POST /api/v1/tenants/shop/rotate-key", "GET /api/v1/shards", "GET /metrics"} {
		ts.ask(line, "", "key", ts.shop).is(403, "operator_only")
		ts.ask(line, "").is(401, "auth_missing")
		ts.ask(line, "", "key", "tbo_"+strings.Repeat("x", 40)).is(401, "auth_invalid")
	}
}

func TestHostileHosts(t *testing.T) {
	ts := newTestServer(t, func(o *Options) { o.AllowHosts = []string{"Till.Local"} })
	for host, want := range map[string]int{
		"evil.example": 421, "127.0.0.1.evil.example": 421, "": 421, "localhost.evil.example": 421, "box.example.evil.example": 421, "evilbox.example": 421,
		"a.b.box.example": 421, "2130706433": 421, "0x7f.1": 421, "127.1": 421, "[::1": 421, "[::1]x": 421, "[evil.example]": 421, "::1": 421,
		"127.0.0.1:http": 421, "evil.example@127.0.0.1": 421, "127.0.0.1/evil.example": 421, "127.0.0.1, evil.example": 421, "box..example": 421, ".": 421, "..": 421,
		"127.0.0.1:99999999": 421, "\u0131p.example": 421, strings.Repeat("a.", 200) + "box.example": 421, "-.box.example": 421,
		"127.0.0.1": 200, "127.0.0.1:8080": 200, "10.1.2.3": 200, "[::1]:8080": 200, "[::1]": 200, "localhost": 200, "LOCALHOST:1": 200, "app.localhost": 200,
		"box.example": 200, "box.example.:80": 200, "BOX.example": 200, "shop.box.example": 200, "pay.shop.example:443": 200, "till.local": 200,
	} {
		t.Run(host, func(t *testing.T) {
			ts.t = t
			a := ts.ask("GET /healthz", "", "Host", host)
			if want == 421 {
				a.is(421, "host_not_allowed")
			} else {
				a.is(want, "")
			}
		})
	}
}

func TestCrossSite(t *testing.T) {
	ts := newTestServer(t, func(o *Options) { o.AllowOrigins = []string{"https://till.example"} })
	for name, c := range map[string]struct {
		headers []string
		status  int
	}{
		"foreign origin":        {[]string{"Origin", "https://evil.example"}, 403},
		"null origin":           {[]string{"Origin", "null"}, 403},
		"fetch metadata":        {[]string{"Sec-Fetch-Site", "cross-site"}, 403},
		"same site, other host": {[]string{"Sec-Fetch-Site", "same-site"}, 403},
		"no browser":            {nil, 201},
		"same origin":           {[]string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:8080"}, 201},
		"trusted":               {[]string{"Sec-Fetch-Site", "cross-site", "Origin", "https://till.example"}, 201},
	} {
		t.Run(name, func(t *testing.T) {
			ts.t = t
			a := ts.ask("POST /api/v1/payments", goodPayment, append(c.headers, "key", ts.shop)...)
			if c.status == 403 {
				a.is(403, "cross_origin")
			} else {
				a.is(c.status, "")
			}
		})
	}
	preflight := ts.ask("OPTIONS /api/v1/payments", "", "Origin", "https://till.example", "Access-Control-Request-Method", "POST").is(204, "")
	if preflight.header.Get("Access-Control-Allow-Origin") != "https://till.example" || !strings.Contains(preflight.header.Get("Access-Control-Allow-Headers"), "Idempotency-Key") {
		t.Errorf("preflight: %v", preflight.header)
	}
	foreign := ts.ask("OPTIONS /api/v1/payments", "", "Origin", "https://evil.example", "Access-Control-Request-Method", "POST").is(405, "method_not_allowed")
	if foreign.header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a foreign site was let in")
	}
	// A name that its owner points at the box comes with its own Host, and is stopped there.
	ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Host", "evil.example", "Origin", "http://evil.example", "Sec-Fetch-Site", "same-origin").is(421, "host_not_allowed")
}
