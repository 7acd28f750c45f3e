package web

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"tenderbox/ledger"
)

// RELIABILITY.md, "Hostile input", row by row.

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

func TestHostileBodies(t *testing.T) {
	ts := newTestServer(t, nil)
	deep := strings.Repeat(`{"a":`, 10_000)
	with := func(member string) string { return `{"currency":"usd","source":"tok_visa",` + member + `}` }
	for name, c := range map[string]struct {
		body   string
		status int
		code   string
		field  string
	}{
		"spaces":               {"  \n", 400, "body_missing", ""},
		"null":                 {"null", 400, "json_invalid", ""},
		"array":                {"[]", 400, "json_invalid", ""},
		"string":               {`"x"`, 400, "json_invalid", ""},
		"two values":           {goodPayment + goodPayment, 400, "json_invalid", ""},
		"trailing brace":       {goodPayment + "}", 400, "json_invalid", ""},
		"trailing text":        {goodPayment + " x", 400, "json_invalid", ""},
		"cut":                  {goodPayment[:20], 400, "json_invalid", ""},
		"comment":              {"{/*x*/}", 400, "json_invalid", ""},
		"line comment":         {"// x\n" + goodPayment, 400, "json_invalid", ""},
		"NaN":                  {with(`"amount":NaN`), 400, "json_invalid", "amount"},
		"single quotes":        {`{'amount':1}`, 400, "json_invalid", ""},
		"byte order mark":      {"\ufeff" + goodPayment, 400, "json_invalid", ""},
		"UTF-16":               {"{\x00\"\x00a\x00", 400, "json_invalid", ""},
		"duplicate":            {with(`"amount":1,"amount":2`), 400, "member_duplicate", "amount"},
		"duplicate, escaped":   {with(`"amount":1,"\u0061mount":2`), 400, "member_duplicate", "amount"},
		"duplicate inside":     {with(`"amount":1,"metadata":{"a":"1","a":"2"}`), 400, "member_duplicate", "metadata.a"},
		"other case":           {with(`"amount":1,"AMOUNT":2`), 422, "member_unknown", "AMOUNT"},
		"unknown":              {with(`"amount":1,"tip":2`), 422, "member_unknown", "tip"},
		"tenant":               {with(`"amount":1,"tenant":"bar"`), 422, "member_unknown", "tenant"},
		"status":               {with(`"amount":1,"status":"succeeded"`), 422, "member_unknown", "status"},
		"prototype":            {with(`"amount":1,"__proto__":{}`), 422, "member_unknown", "__proto__"},
		"levels":               {deep, 400, "json_too_deep", ""},
		"levels of arrays":     {strings.Repeat("[", 10_000), 400, "json_invalid", ""},
		"levels inside":        {`{"metadata":` + strings.Repeat("[", 10_000), 400, "json_too_deep", ""},
		"card's check value":   {with(`"amount":1,"cvv":"123"`), 422, "card_data_not_allowed", "cvv"},
		"cvc":                  {with(`"amount":1,"cvc":"123"`), 422, "card_data_not_allowed", "cvc"},
		"track2":               {with(`"amount":1,"track2":";4242424242424242=2512"`), 422, "card_data_not_allowed", "track2"},
		"invalid UTF-8":        {with(`"amount":1,"description":"` + "\xff" + `"`), 400, "json_invalid", "description"},
		"overlong UTF-8":       {with(`"amount":1,"description":"` + "\xc0\xaf" + `"`), 400, "json_invalid", "description"},
		"lone surrogate":       {with(`"amount":1,"description":"\ud800"`), 400, "json_invalid", "description"},
		"control character":    {with(`"amount":1,"description":"` + "\x01" + `"`), 400, "json_invalid", "description"},
		"metadata of numbers":  {with(`"amount":1,"metadata":{"a":1}`), 422, "member_invalid", "metadata.a"},
		"metadata of objects":  {with(`"amount":1,"metadata":{"a":{}}`), 422, "member_invalid", "metadata.a"},
		"metadata, an array":   {with(`"amount":1,"metadata":[]`), 422, "member_invalid", "metadata"},
		"currency, a number":   {`{"amount":1,"currency":840}`, 422, "currency_invalid", "currency"},
		"number for a name":    {`{4242424242424242:1}`, 400, "json_invalid", ""},
		"card number, a name":  {with(`"amount":1,"4242424242424242":1`), 422, "member_unknown", "…"},
		"long name":            {with(`"amount":1,"` + strings.Repeat("é", 5000) + `":1`), 422, "member_unknown", strings.Repeat("é", 32) + "…"},
		"amount 0":             {with(`"amount":0`), 422, "amount_invalid", "amount"},
		"amount -1":            {with(`"amount":-1`), 422, "amount_invalid", "amount"},
		"amount -0":            {with(`"amount":-0`), 422, "amount_invalid", "amount"},
		"amount 1.5":           {with(`"amount":1.5`), 422, "amount_invalid", "amount"},
		"amount 1.0":           {with(`"amount":1.0`), 422, "amount_invalid", "amount"},
		"amount 1e2":           {with(`"amount":1e2`), 422, "amount_invalid", "amount"},
		"amount, a string":     {with(`"amount":"100"`), 422, "amount_invalid", "amount"},
		"amount true":          {with(`"amount":true`), 422, "amount_invalid", "amount"},
		"amount null":          {with(`"amount":null`), 422, "amount_invalid", "amount"},
		"amount missing":       {`{"currency":"usd","source":"tok_visa"}`, 422, "amount_invalid", "amount"},
		"amount 2^63":          {with(`"amount":9223372036854775808`), 422, "amount_invalid", "amount"},
		"amount 10^400":        {with(`"amount":1` + strings.Repeat("0", 400)), 422, "amount_invalid", "amount"},
		"amount 1e400":         {with(`"amount":1e400`), 422, "amount_invalid", "amount"},
		"amount 00100":         {with(`"amount":00100`), 400, "json_invalid", ""},
		"amount, an object":    {with(`"amount":{}`), 422, "amount_invalid", "amount"},
		"over 64 KiB":          {with(`"amount":1,"description":"` + strings.Repeat("x", 64<<10) + `"`), 413, "body_too_large", ""},
		"spaces over 64 KiB":   {strings.Repeat(" ", 64<<10) + goodPayment, 413, "body_too_large", ""},
		"as much as there may": {goodPayment + strings.Repeat(" ", 64<<10-len(goodPayment)), 201, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ts.t = t
			before := len(ts.ledger.payments["shop"])
			a := ts.ask("POST /api/v1/payments", c.body, "key", ts.shop).is(c.status, c.code)
			if field, _ := a.json["field"].(string); field != c.field && c.status >= 400 {
				t.Errorf("names %q, want %q", field, c.field)
			}
			if c.status >= 400 && len(ts.ledger.payments["shop"]) != before {
				t.Error("a payment was stored") // INV-3
			}
			if strings.Contains(a.body, "4242") || strings.Contains(ts.log.String(), "4242") {
				t.Error("a card number was shown") // INV-23
			}
		})
	}
	if log := ts.log.String(); log != "" {
		t.Errorf("refusals were logged:\n%s", log)
	}
}

// What nests deep or is large costs no more memory than its buffer.
func TestHostileBodyIsFlat(t *testing.T) {
	ts := newTestServer(t, nil)
	body := `{"metadata":` + strings.Repeat("[", 60_000)
	var before, after runtime.MemStats
	ts.ask("POST /api/v1/payments", body, "key", ts.shop).is(400, "json_too_deep")
	runtime.ReadMemStats(&before)
	const rounds = 50
	for range rounds {
		ts.ask("POST /api/v1/payments", body, "key", ts.shop).is(400, "json_too_deep")
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 256<<10 {
		t.Errorf("%d bytes allocated for each", each)
	}
}

func TestHostileContentTypes(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, headers := range [][]string{
		{"-", "Content-Type"}, {"-", "Content-Type", "Content-Type", "text/plain"}, {"-", "Content-Type", "Content-Type", "application/x-www-form-urlencoded"},
		{"-", "Content-Type", "Content-Type", "application/json; charset=utf-16"}, {"-", "Content-Type", "Content-Type", "application/json; x=y"},
		{"-", "Content-Type", "Content-Type", "application/json;"}, {"Content-Type", "application/json"}, {"-", "Content-Type", "Content-Type", ""},
		{"-", "Content-Type", "Content-Type", "application/jsonx"}, {"-", "Content-Type", "Content-Type", "application/vnd.api+json"},
	} {
		a := ts.ask("POST /api/v1/payments", goodPayment, append(headers, "key", ts.shop)...)
		if headers[len(headers)-1] == "application/json;" && a.status == 201 {
			continue // an empty parameter is none
		}
		a.is(415, "content_type_unsupported")
	}
	for _, encoding := range []string{"gzip", "identity, gzip", "br"} {
		ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Content-Encoding", encoding).is(415, "content_encoding_unsupported")
	}
	ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "-", "Content-Type", "Content-Type", "Application/JSON; Charset=UTF-8", "Content-Encoding", "identity").is(201, "")
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v1/payments", nil)
	r.Host = "127.0.0.1"
	r.Header.Set("Authorization", "Bearer "+ts.shop)
	r.Header.Set("Content-Type", "application/json")
	ts.serve(r).is(400, "body_missing")
}

func TestHostileText(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, text := range []string{"\u202e", "e\u0301\u0301\u0301", "😀", "'; DROP TABLE payments;--", "<script>alert(1)</script>", "=cmd()", "a\\u000d\\u000ab"} {
		a := ts.ask("POST /api/v1/payments", `{"amount":1,"currency":"usd","source":"t","description":"`+text+`"}`, "key", ts.shop).is(201, "")
		got := ts.ask("GET /api/v1/payments/"+a.json["id"].(string), "", "key", ts.shop).is(200, "")
		if want := strings.ReplaceAll(text, "\\u000d\\u000a", "\r\n"); got.json["description"] != want {
			t.Errorf("%q came back as %q", want, got.json["description"])
		}
		if got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Error("a browser might read this as a page")
		}
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
		"":                                 {"2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"},
		"tz=Europe/Berlin":                 {"2026-11-23T23:00:00Z", "2026-11-24T23:00:00Z"},
		"from=2026-11-20&tz=Europe/Berlin": {"2026-11-19T23:00:00Z", "2026-11-20T23:00:00Z"},
		"from=2026-10-25&tz=Europe/Berlin": {"2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"}, // the day the clocks go back has 25 hours
		"from=2026-11-20&to=2026-11-21":    {"2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z"},
		"from=2026-11-20T06:00:00%2B02:00&to=2026-11-20T05:00:00.5Z": {"2026-11-20T04:00:00Z", "2026-11-20T05:00:00.5Z"},
	} {
		a := ts.ask("GET /api/v1/reports/payments?"+query, "", "key", ts.shop).is(200, "")
		if a.json["from"] != want[0] || a.json["to"] != want[1] {
			t.Errorf("%s: %v to %v, want %v", query, a.json["from"], a.json["to"], want)
		}
	}
}

func TestHostileTargets(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, target := range []string{"/", "//", "/api", "/api/v1", "/api/v1/", "/api/v1/payments/", "//api/v1/payments", "/api//v1/payments", "/api/./v1/payments",
		"/api/v1/./payments", "/api/v1/x/../payments", "/api/v1/payments/..", "/api%2fv1/payments", "/api/v1%2fpayments", "/api/v1/payments%2f", "/%61pi/v1/payments",
		"/API/v1/payments", "/api/v1/Payments", "/api/v1/payments/x/y", "/metrics/", "/healthz/", "/docs/", "/openapi.yaml", "/openapi", "/schemas/Payment.json",
		"/api/v1/users", "/api/v1/orders", "/api/v1/events", "/api/v1/webhooks", "/api/v1/queues", "/api/v1/breaker/open", "/v1/charges", "/console/", "/api/v1/refunds/x",
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

// A body that fails on its way is the client's fault, whatever the failure.
func TestHostileReads(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{errors.New("malformed chunked encoding"), 400, "body_unreadable"},
		{http.ErrBodyReadAfterClose, 400, "body_unreadable"},
		{&http.MaxBytesError{Limit: 1}, 413, "body_too_large"},
		{timeoutError{}, 408, "body_timeout"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v1/payments", &brokenReader{r: bytes.NewReader([]byte(goodPayment)), err: c.err})
		r.Host = "127.0.0.1"
		r.Header = http.Header{"Authorization": {"Bearer " + ts.shop}, "Content-Type": {"application/json"}}
		ts.serve(r).is(c.status, c.code)
	}
	if n := len(ts.ledger.payments["shop"]); n != 0 {
		t.Errorf("%d payments were stored", n)
	}
}

type brokenReader struct {
	r   *bytes.Reader
	err error
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if n, err := b.r.Read(p); err == nil {
		return n, nil
	}
	return 0, b.err
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

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
	if log := ts.log.String(); log != "" {
		t.Errorf("foreseen refusals were logged:\n%s", log)
	}
	ts.ledger.pay = func(context.Context, ledger.NewPayment) error { return errors.New("the secret cause") }
	a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(500, "internal")
	if strings.Contains(a.body, "secret") || !strings.Contains(ts.log.String(), "the secret cause") {
		t.Errorf("the cause belongs to the log alone: %s\n%s", a.body, ts.log)
	}
}
