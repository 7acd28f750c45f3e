package web

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	json "github.com/go-json-experiment/json"
)

// RELIABILITY.md, "Hostile input": what a body may hold.

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

// Whatever a body holds, it is decoded or refused as the client's mistake, and what is decoded means the same when written again.
func FuzzDecodeObject(f *testing.F) {
	for _, s := range []string{goodPayment, "", "{}", "null", `{"a":1}`, `{"amount":1e400}`, `{"metadata":{"a":"\ud800"}}`, `{"amount":1,"amount":2}`, strings.Repeat("[", 99), "{\"\xff\":1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var p newPayment
		err := decodeObject(body, &p)
		var problem *Problem
		if errors.As(err, &problem) {
			if problem.Status != 400 && problem.Status != 422 || len(problem.Field) > clipMax+len("…") {
				t.Errorf("%q: %v", body, problem)
			}
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		written, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var again newPayment
		if err := decodeObject(written, &again); err != nil || again.Amount != p.Amount || again.Source != p.Source || len(again.Metadata) != len(p.Metadata) {
			t.Errorf("%q became %q: %v", body, written, err)
		}
	})
}
