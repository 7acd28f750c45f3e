package web

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/store"
	"tenderbox/tenants"
	"tenderbox/upstream"
	"tenderbox/upstream/simulator"
)

// till is a server in front of a real ledger that settles with a processor.
type till struct {
	*testServer
	book *ledger.Ledger
	sim  *simulator.Simulator
}

func newTill(t *testing.T) *till {
	t.Helper()
	dir := t.TempDir()
	x := &till{sim: simulator.New(simulator.Options{})}
	url, err := x.sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.sim.Close() })
	file, err := store.Open(filepath.Join(dir, "jobs.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	var queues []jobs.QueueConfig
	for _, name := range []string{ledger.PaymentsQueue, ledger.NotificationsQueue, ledger.ProcessingQueue, ledger.EmailQueue, ledger.EventsQueue} {
		queues = append(queues, jobs.QueueConfig{Name: name})
	}
	engine, err := jobs.Open(file, jobs.Options{Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	keyring, err := tenants.CreateKeyring(filepath.Join(dir, "shards.key"))
	if err != nil {
		t.Fatal(err)
	}
	accounts := upstream.NewAccounts(upstream.Config{URL: url, Key: "sk_test", Timeout: time.Second, ProbeInterval: 20 * time.Millisecond})
	moved := make(chan struct{}, 1)
	accounts.OnChange(func(*upstream.Account, upstream.Link) {
		select {
		case moved <- struct{}{}:
		default:
		}
	})
	x.testServer = newTestServer(t, func(o *Options) {
		if x.book, err = ledger.Open(t.Context(), ledger.Options{Dir: filepath.Join(dir, "shards"), Keyring: keyring, Tenants: o.Tenants, Jobs: engine, Accounts: accounts}); err != nil {
			t.Fatal(err)
		}
		o.Ledger = x.book
	})
	t.Cleanup(func() { _ = x.book.Close() })
	run, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = accounts.Run(run) })
	wg.Go(func() {
		if err := x.book.Run(run); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	for {
		for _, acc := range accounts.List() {
			if acc.Ready() {
				return x
			}
		}
		select {
		case <-moved:
		case <-t.Context().Done():
			t.Fatal("the line does not come up")
		}
	}
}

// paid takes a payment and returns its id when it is settled.
func (x *till) paid(body string) string {
	x.t.Helper()
	news, leave := x.book.Hear("shop")
	defer leave()
	id := x.ask("POST /api/v1/payments", body, "key", x.shop).is(201, "").json["id"].(string)
	for x.ask("GET /api/v1/payments/"+id, "", "key", x.shop).is(200, "").json["settled_at"] == nil {
		select {
		case <-news:
		case <-x.t.Context().Done():
			x.t.Fatal("not settled")
		}
	}
	return id
}

func TestRefundOverHTTP(t *testing.T) {
	x := newTill(t)
	id := x.paid(goodPayment)
	of := "/api/v1/payments/" + id + "/refunds"
	a := x.ask("POST "+of, `{"amount":500,"reason":"duplicate","metadata":{"till":"2"}}`, "key", x.shop, "Idempotency-Key", "r").is(201, "")
	refund := a.json["id"].(string)
	if a.header.Get("Location") != "/api/v1/refunds/"+refund || a.json["object"] != "refund" || a.json["payment_id"] != id || a.json["amount"] != 500.0 || a.json["currency"] != "usd" {
		t.Errorf("%v %s", a.header, a.body)
	}
	for _, member := range []string{"status", "sync", "upstream_id", "failure", "reason", "metadata", "created_at", "settled_at"} {
		if _, ok := a.json[member]; !ok {
			t.Errorf("the answer lacks %s: %s", member, a.body)
		}
	}
	again := x.ask("POST "+of, `{ "metadata":{"till":"2"}, "reason":"duplicate", "amount":500}`, "key", x.shop, "Idempotency-Key", "r").is(201, "")
	if again.json["id"] != refund || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("repeated: %s", again.body)
	}
	x.ask("POST "+of, `{"amount":501}`, "key", x.shop, "Idempotency-Key", "r").is(422, "idempotency_mismatch")
	if got := x.ask("GET /api/v1/refunds/"+refund, "", "key", x.shop).is(200, ""); got.json["id"] != refund {
		t.Errorf("%s", got.body)
	}
	if p := x.ask("GET /api/v1/payments/"+id, "", "key", x.shop).is(200, ""); p.json["amount_refunded"] != 500.0 {
		t.Errorf("%s", p.body)
	}
	rest := x.ask("POST "+of, `{}`, "key", x.shop).is(201, "")
	if rest.json["amount"] != 1499.0 {
		t.Errorf("the rest: %s", rest.body)
	}
	for path, want := range map[string]int{of: 2, "/api/v1/refunds": 2} {
		first := x.ask("GET "+path+"?limit=1", "", "key", x.shop).is(200, "")
		if first.json["has_more"] != true || objects(first.json["data"])[0]["id"] != rest.json["id"] {
			t.Fatalf("%s: %s", path, first.body)
		}
		cursor := first.json["next_cursor"].(string)
		second := x.ask("GET "+path+"?limit=100&cursor="+cursor, "", "key", x.shop).is(200, "")
		if got := objects(second.json["data"]); len(got) != want-1 || got[0]["id"] != refund {
			t.Errorf("%s: %s", path, second.body)
		}
		x.ask("GET "+path+"?cursor="+cursor, "", "key", x.bar).is(map[bool]int{true: 404, false: 400}[path == of], "")
		x.ask("GET "+path+"?cursor="+cursor+"x", "", "key", x.shop).is(400, "cursor_invalid")
		x.ask("GET "+path+"?limit=0", "", "key", x.shop).is(400, "limit_invalid")
	}
}

// RELIABILITY.md: refund above captured, two racing, of a pending one; cancel after sent.
func TestHostileRefunds(t *testing.T) {
	x := newTill(t)
	id := x.paid(goodPayment)
	of := "/api/v1/payments/" + id + "/refunds"
	for body, want := range map[string]string{
		`{"amount":2000}`: "422 refund_exceeds", `{"amount":0}`: "422 amount_invalid", `{"amount":-0}`: "422 amount_invalid", `{"amount":null}`: "422 amount_invalid",
		`{"amount":-1}`: "422 amount_invalid", `{"amount":1.5}`: "422 amount_invalid", `{"amount":"5"}`: "422 amount_invalid", `{"amount":true}`: "422 amount_invalid",
		`{"amount":9223372036854775808}`: "422 amount_invalid", `{"amount":9223372036854775807}`: "422 amount_invalid", `{"amount":1e2}`: "422 amount_invalid",
		`{"amount":{}}`: "422 amount_invalid", `{"amount":1,"amount":2}`: "400 member_duplicate", `{"amount":1,"Amount":2}`: "422 member_unknown",
		`{"currency":"eur"}`: "422 member_unknown", `{"payment_id":"x"}`: "422 member_unknown", `{"reason":"4242424242424242"}`: "422 reason_invalid",
		`{"reason":null,"amount":2000}`: "422 refund_exceeds", `{"metadata":{"a":"4242424242424242"}}`: "422 card_data_not_allowed",
		`{"metadata":{"cvc":"1"}}`: "422 card_data_not_allowed", `{"cvc":"1"}`: "422 card_data_not_allowed", `{"metadata":{"a":1}}`: "422 member_invalid",
		`[]`: "400 json_invalid", `null`: "400 json_invalid", `{}{}`: "400 json_invalid", ` `: "400 body_missing",
	} {
		a := x.ask("POST "+of, body, "key", x.shop)
		if got := fmt.Sprint(a.status, " ", a.json["code"]); got != want {
			t.Errorf("%s: %s, want %s", body, a.body, want)
		}
		if strings.Contains(a.body, "4242") {
			t.Errorf("shown back: %s", a.body)
		}
	}
	x.ask("POST "+of, "", "key", x.shop).is(415, "") // a body that got lost is not a full refund
	if p := x.ask("GET /api/v1/payments/"+id, "", "key", x.shop); p.json["amount_refunded"] != 0.0 {
		t.Errorf("%s", p.body)
	}

	var wg sync.WaitGroup
	statuses := make([]int, 20)
	for i := range statuses {
		wg.Go(func() { statuses[i] = x.ask("POST "+of, `{"amount":1000}`, "key", x.shop).status })
	}
	wg.Wait()
	taken := 0
	for _, s := range statuses {
		if s == 201 {
			taken++
		} else if s != 422 {
			t.Errorf("a racing refund: %d", s)
		}
	}
	if taken != 1 {
		t.Errorf("%d of 1000 each from 1999", taken)
	}
	x.ask("POST /api/v1/payments/"+id+"/cancel", "", "key", x.shop).is(409, "payment_final")
	if err := x.sim.SetFaults(simulator.Faults{Hang: 1}); err != nil {
		t.Fatal(err)
	}
	sent := x.ask("POST /api/v1/payments", goodPayment, "key", x.shop).is(201, "").json["id"].(string)
	news, leave := x.book.Hear("shop")
	defer leave()
	for { // until it is on the wire
		p := x.ask("GET /api/v1/payments/"+sent, "", "key", x.shop)
		if p.json["sync"].(map[string]any)["state"] != "queued" {
			break
		}
		select {
		case <-news:
		case <-time.After(10 * time.Millisecond):
		}
	}
	x.ask("POST /api/v1/payments/"+sent+"/cancel", "", "key", x.shop).is(409, "payment_sent")
	x.ask("POST /api/v1/payments/"+sent+"/refunds", "{}", "key", x.shop).is(409, "payment_not_settled")
	x.ask("POST /api/v1/payments/"+sent+"/refunds", `{"amount":1}`, "key", x.shop).is(409, "payment_not_settled")
	if err := x.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
}

func TestCancelOverHTTP(t *testing.T) {
	ts, _ := newBookServer(t)
	id := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Idempotency-Key", "pay").is(201, "").json["id"].(string)
	ts.ask("POST /api/v1/payments/"+id+"/refunds", `{"amount":1}`, "key", ts.shop).is(409, "payment_not_settled")
	for _, key := range []string{"", "a,b"} {
		ts.ask("POST /api/v1/payments/"+id+"/cancel", "", "key", ts.shop, "Idempotency-Key", key, "Idempotency-Key", "x").is(400, "idempotency_key_invalid")
	}
	a := ts.ask("POST /api/v1/payments/"+id+"/cancel", "", "key", ts.shop, "Idempotency-Key", "c").is(200, "")
	b := ts.ask("POST /api/v1/payments/"+id+"/cancel", "", "key", ts.shop, "Idempotency-Key", "c").is(200, "")
	if a.json["status"] != "canceled" || a.json["settled_at"] == nil || b.body != a.body || b.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%s, again %v %s", a.body, b.header, b.body)
	}
	ts.ask("POST /api/v1/payments/"+id+"/cancel", "", "key", ts.shop, "Idempotency-Key", "pay").is(422, "idempotency_mismatch")
	if p := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop, "Idempotency-Key", "pay").is(201, ""); p.json["status"] != "canceled" {
		t.Errorf("the payment's request again: %s", p.body)
	}
	void := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(201, "").json["id"].(string)
	r := ts.ask("POST /api/v1/payments/"+void+"/refunds", `{"amount":1999}`, "key", ts.shop, "Prefer", "wait=30").is(201, "")
	if r.json["status"] != "succeeded" || r.json["upstream_id"] != nil || r.header.Get("Preference-Applied") != "" {
		t.Errorf("%v %s", r.header, r.body)
	}
	if list := ts.ask("GET /api/v1/payments?status=canceled", "", "key", ts.shop).is(200, ""); len(objects(list.json["data"])) != 2 {
		t.Errorf("%s", list.body)
	}
	report := ts.ask("GET /api/v1/reports/payments", "", "key", ts.shop).is(200, "")
	if !strings.Contains(report.body, `"rows":[{"currency":"usd","status":"canceled","count":2,"amount":3998,"amount_refunded":0}],"refunds":[]`) {
		t.Errorf("%s", report.body)
	}
}

// INV-22: foreign, unknown and impossible ids give equal bytes on every route that takes one.
func TestHostileRefundIDs(t *testing.T) {
	ts, _ := newBookServer(t)
	theirs := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.bar).is(201, "").json["id"].(string)
	refund := ts.ask("POST /api/v1/payments/"+ts.ask("POST /api/v1/payments", goodPayment, "key", ts.bar).json["id"].(string)+"/refunds", `{}`, "key", ts.bar).is(201, "").json["id"].(string)
	want := ts.ask("GET /api/v1/payments/x", "", "key", ts.shop).is(404, "not_found").body
	payments := []string{theirs, "pay_00000000000000000000000099", "x", "re_00000000000000000000000000", strings.ToLower(theirs), "%00", "..", strings.Repeat("a", 4096)}
	for _, id := range payments {
		for line, body := range map[string]string{"GET /api/v1/payments/%s/refunds": "", "POST /api/v1/payments/%s/refunds": `{"amount":1}`, "POST /api/v1/payments/%s/cancel": ""} {
			if a := ts.ask(fmt.Sprintf(strings.ReplaceAll(line, "%s", "%[1]s"), id), body, "key", ts.shop).is(404, "not_found"); a.body != want {
				t.Errorf("%s %q: %s differs from %s", line, id, a.body, want)
			}
		}
	}
	for _, id := range []string{refund, "re_00000000000000000000000099", "x", theirs, strings.ToLower(refund), "%00", "..", strings.Repeat("a", 4096)} {
		if a := ts.ask("GET /api/v1/refunds/"+id, "", "key", ts.shop).is(404, "not_found"); a.body != want {
			t.Errorf("%q: %s differs from %s", id, a.body, want)
		}
	}
	if p := ts.ask("GET /api/v1/payments/"+theirs, "", "key", ts.bar).is(200, ""); p.json["status"] != "pending" {
		t.Errorf("another tenant canceled it: %s", p.body)
	}
}

// Waiting is asked of the ledger as long as the client wishes, and its answer is the refund's as it then is.
func TestRefundIsWaitedFor(t *testing.T) {
	fake := &fakeReviews{}
	ts := newTestServer(t, func(o *Options) { o.Ledger = fake })
	a := ts.ask("POST /api/v1/payments/pay_1/refunds", `{"amount":5}`, "key", ts.shop, "Prefer", "wait=99").is(201, "")
	if fake.waited != waitMax || a.json["status"] != "succeeded" || a.header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("waited %v: %v %s", fake.waited, a.header, a.body)
	}
	if fake.waited = 0; ts.ask("POST /api/v1/payments/pay_1/refunds", `{"amount":5}`, "key", ts.shop).is(201, "").json["status"] != "pending" || fake.waited != 0 {
		t.Error("waited unasked")
	}
}

// fakeReviews is a ledger whose refunds and reviews tell what they were asked.
type fakeReviews struct {
	fakeLedger
	waited  time.Duration
	tenant  tenants.ID
	id      string
	verdict ledger.Verdict
}

func (f *fakeReviews) CreateRefund(_ context.Context, _ tenants.ID, _ ledger.IdempotencyKey, n ledger.NewRefund) (ledger.Refund, bool, error) {
	return ledger.Refund{ID: "re_1", PaymentID: ledger.PaymentID(n.PaymentID), Amount: n.Amount, Status: ledger.RefundPending}, false, nil
}

func (f *fakeReviews) AwaitRefund(_ context.Context, _ tenants.ID, id ledger.RefundID, d time.Duration) (ledger.Refund, error) {
	f.waited = d
	return ledger.Refund{ID: id, Status: ledger.RefundDone}, nil
}

func (f *fakeReviews) Attempts(_ context.Context, t tenants.ID, id string) ([]ledger.Attempt, error) {
	if id != "pay_1" || t != "shop" {
		return nil, &ledger.Error{Kind: ledger.NotFound, Code: "not_found", Message: "no such payment"}
	}
	key, verdict, sent, status := "pay_1", "succeeded", true, 200
	at := time.UnixMilli(1795420800000).UTC()
	return []ledger.Attempt{{N: 1, Record: "pay_1", Step: "charge", At: at, EndedAt: &at, UpstreamKey: &key, Account: "default", MaybeSent: &sent, HTTPStatus: &status,
		Verdict: &verdict, Evidence: jsontext.Value(`{"id":"ch_1"}`)}, {N: 2, Record: "pay_1", Step: "poll", At: at}}, nil
}

func (f *fakeReviews) Resolve(_ context.Context, t tenants.ID, id string, v ledger.Verdict) (ledger.Payment, error) {
	f.tenant, f.id, f.verdict = t, id, v
	if v.Reason == "" {
		return ledger.Payment{}, &ledger.Error{Kind: ledger.Invalid, Code: "reason_missing", Field: "reason", Message: "say how it is known"}
	}
	return ledger.Payment{ID: ledger.PaymentID(id), Status: ledger.Succeeded}, nil
}

func (f *fakeReviews) ResolveRefund(_ context.Context, t tenants.ID, id string, v ledger.Verdict) (ledger.Refund, error) {
	f.tenant, f.id, f.verdict = t, id, v
	return ledger.Refund{ID: ledger.RefundID(id), Status: ledger.RefundDone}, nil
}

func TestAttemptsOverHTTP(t *testing.T) {
	ts := newTestServer(t, func(o *Options) { o.Ledger = &fakeReviews{} })
	a := ts.ask("GET /api/v1/payments/pay_1/attempts", "", "key", ts.shop).is(200, "")
	const want = `{"data":[{"n":1,"record":"pay_1","step":"charge","at":"2026-11-23T08:00:00Z","ended_at":"2026-11-23T08:00:00Z","upstream_key":"pay_1","request_hash":null,` +
		`"account":"default","maybe_sent":true,"http_status":200,"upstream_request_id":null,"verdict":"succeeded","reason":null,"evidence":{"id":"ch_1"}},` +
		`{"n":2,"record":"pay_1","step":"poll","at":"2026-11-23T08:00:00Z","ended_at":null,"upstream_key":null,"request_hash":null,"account":"","maybe_sent":null,` +
		`"http_status":null,"upstream_request_id":null,"verdict":null,"reason":null,"evidence":null}]}`
	if a.body != want {
		t.Errorf("%s\nwant %s", a.body, want)
	}
	ts.ask("GET /api/v1/payments/pay_1/attempts", "", "key", ts.bar).is(404, "not_found")
	ts.ask("GET /api/v1/payments/pay_1/attempts?x=1", "", "key", ts.shop).is(400, "parameter_unknown")
}

// A verdict is the operator's, for the tenant that it names.
func TestResolveOverHTTP(t *testing.T) {
	fake := &fakeReviews{}
	ts := newTestServer(t, func(o *Options) { o.Ledger = fake })
	const body = `{"verdict":"succeeded","upstream_id":"ch_1","reason":"seen in the dashboard"}`
	for _, path := range []string{"/api/v1/payments/pay_1/resolve", "/api/v1/refunds/re_1/resolve"} {
		ts.ask("POST "+path, body).is(401, "auth_missing")
		ts.ask("POST "+path, body, "key", ts.shop).is(403, "operator_only")
		ts.ask("POST "+path, body, "key", operatorToken).is(400, "tenant_missing")
		ts.ask("POST "+path, body, "key", operatorToken, "X-Tenant-ID", "nobody").is(404, "tenant_unknown")
		ts.ask("POST "+path, `{"verdict":"succeeded","status":"x"}`, "key", operatorToken, "X-Tenant-ID", "shop").is(422, "member_unknown")
		if fake.id != "" {
			t.Fatalf("%s was asked", path)
		}
		ts.ask("POST "+path, body, "key", operatorToken, "X-Tenant-ID", "shop").is(200, "")
		if fake.tenant != "shop" || !strings.Contains(path, fake.id) || fake.verdict != (ledger.Verdict{Verdict: "succeeded", UpstreamID: "ch_1", Reason: "seen in the dashboard"}) {
			t.Errorf("%s: asked %+v", path, fake)
		}
		fake.id = ""
	}
	ts.ask("POST /api/v1/payments/pay_1/resolve", `{"verdict":"failed"}`, "key", operatorToken, "X-Tenant-ID", "shop").is(422, "reason_missing")
}
