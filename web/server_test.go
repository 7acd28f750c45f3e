package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

type otherNouns interface {
	Refunds
	Reviews
	Reconciliations
	Intents
	Users
	Orders
	Events
	History
	Notifications
}

// fakeLedger is a ledger in memory, whose answers a test may replace.
type fakeLedger struct {
	otherNouns // nil: their tests bring their own

	mu       sync.Mutex // guards what follows
	payments map[tenants.ID][]ledger.Payment
	keys     map[string]ledger.PaymentID
	exposed  map[tenants.ID]map[string]ledger.Sum

	exposures []ledger.Exposure
	drain     ledger.Drain
	forced    []string

	pay      func(ctx context.Context, p ledger.NewPayment) error
	await    func(ctx context.Context, d time.Duration)
	status   error
	degraded []string
	notReady bool
	account  error
	report   struct{ from, to time.Time }
	filter   ledger.Filter
}

func (l *fakeLedger) Pay(ctx context.Context, t tenants.ID, key ledger.IdempotencyKey, n ledger.NewPayment) (ledger.Payment, bool, error) {
	if l.pay != nil {
		if err := l.pay(ctx, n); err != nil {
			return ledger.Payment{}, false, err
		}
	}
	if n.Amount < 1 {
		return ledger.Payment{}, false, &ledger.Error{Kind: ledger.Invalid, Code: "amount_invalid", Field: "amount", Message: "too small"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if id, ok := l.keys[string(t)+"/"+string(key)]; ok && key != "" {
		for _, p := range l.payments[t] {
			if p.ID == id {
				return p, true, nil
			}
		}
	}
	p := ledger.Payment{ID: ledger.PaymentID(fmt.Sprintf("pay_%026d", len(l.payments[t]))), Object: "payment", Amount: n.Amount, Currency: n.Currency,
		Status: ledger.Pending, Sync: ledger.Sync{State: ledger.Queued}, Metadata: map[string]string{}, CreatedAt: time.UnixMilli(1795420800000).UTC()}
	if n.Metadata != nil {
		p.Metadata = n.Metadata
	}
	if n.Description != "" {
		p.Description = &n.Description
	}
	if l.payments == nil {
		l.payments, l.keys = map[tenants.ID][]ledger.Payment{}, map[string]ledger.PaymentID{}
	}
	l.payments[t] = append(l.payments[t], p)
	l.keys[string(t)+"/"+string(key)] = p.ID
	return p, false, nil
}

func (l *fakeLedger) Await(ctx context.Context, t tenants.ID, id ledger.PaymentID, d time.Duration) (ledger.Payment, error) {
	if l.await != nil {
		l.await(ctx, d)
	}
	p, err := l.Payment(ctx, t, string(id))
	p.Status = ledger.Succeeded
	return p, err
}

func (l *fakeLedger) Payment(_ context.Context, t tenants.ID, id string) (ledger.Payment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.payments[t] {
		if string(p.ID) == id {
			return p, nil
		}
	}
	return ledger.Payment{}, &ledger.Error{Kind: ledger.NotFound, Code: "not_found", Message: "no such payment"}
}

func (l *fakeLedger) Refund(context.Context, tenants.ID, string) (ledger.Refund, error) {
	return ledger.Refund{}, &ledger.Error{Kind: ledger.NotFound, Code: "not_found", Message: "no such refund"}
}

func (l *fakeLedger) Payments(_ context.Context, t tenants.ID, f ledger.Filter) (ledger.Page, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.filter = f
	all := l.payments[t]
	page := ledger.Page{Data: all[:min(f.Limit, len(all))], HasMore: len(all) > f.Limit}
	if page.HasMore {
		page.NextCursor = "behind-" + string(page.Data[f.Limit-1].ID)
	}
	return page, nil
}

func (l *fakeLedger) Report(_ context.Context, _ tenants.ID, from, to time.Time) (ledger.Report, error) {
	l.report.from, l.report.to = from, to
	if !from.Before(to) {
		return ledger.Report{}, &ledger.Error{Kind: ledger.Invalid, Code: "time_range_invalid", Field: "to", Message: "must be later than from"}
	}
	return ledger.Report{}, nil
}

func (l *fakeLedger) Status(context.Context, tenants.ID) (ledger.Overview, error) {
	return ledger.Overview{Connectivity: ledger.Connectivity{State: "unconfigured"}}, l.status
}
func (l *fakeLedger) Ready() (bool, []string) { return !l.notReady, l.degraded }
func (l *fakeLedger) Shards() []ledger.ShardStatus {
	return []ledger.ShardStatus{{ID: 0}, {ID: 1, Err: errors.New("page 7 is torn")}}
}
func (l *fakeLedger) Exposures(context.Context, tenants.ID) []ledger.Exposure { return l.exposures }
func (l *fakeLedger) Drain(tenants.ID) ledger.Drain                           { return l.drain }
func (l *fakeLedger) ForceLink(t tenants.ID, word string) error {
	l.forced = append(l.forced, "link "+word+" "+string(t))
	return nil
}
func (l *fakeLedger) ForceBreaker(t tenants.ID, word string) error {
	l.forced = append(l.forced, "breaker "+word+" "+string(t))
	return nil
}
func (l *fakeLedger) Exposed(t tenants.ID) map[string]ledger.Sum { return l.exposed[t] }
func (l *fakeLedger) ChangeAccount(_ context.Context, _ tenants.ID, change func() error) error {
	if l.account != nil {
		return l.account
	}
	return change()
}

// operatorToken is the operator's in tests.
const operatorToken = "tbo_0123456789abcdefghijklmnopqrstuvwxyz"

// testServer is a server with two tenants, shop and bar, on a fake ledger.
type testServer struct {
	*Server
	t      testing.TB
	ledger *fakeLedger
	shop   string // API keys
	bar    string
	log    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newTestServer(t testing.TB, edit func(*Options)) *testServer {
	t.Helper()
	kr, err := tenants.CreateKeyring(filepath.Join(t.TempDir(), "box.key"))
	if err != nil {
		t.Fatal(err)
	}
	file, _, err := tenants.OpenFile(filepath.Join(t.TempDir(), "box.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	registry, err := tenants.Open(file, kr, tenants.Options{BaseDomain: "box.example"})
	if err != nil {
		t.Fatal(err)
	}
	ts := &testServer{t: t, ledger: &fakeLedger{}, log: &syncBuffer{}}
	for id, key := range map[tenants.ID]*string{"shop": &ts.shop, "bar": &ts.bar} {
		n := tenants.New{ID: id}
		if id == "shop" {
			n.Domains = []string{"pay.shop.example"}
		}
		if _, *key, err = registry.Add(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := registry.SetOperatorToken(t.Context(), operatorToken); err != nil {
		t.Fatal(err)
	}
	o := Options{Ledger: ts.ledger, Tenants: registry, Logger: slog.New(slog.NewTextHandler(ts.log, nil))}
	if edit != nil {
		edit(&o)
	}
	if ts.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	return ts
}

// ask is a request in short: "METHOD /path", and pairs of header names and values. A header "key" is a bearer's key.
func (ts *testServer) ask(line, body string, headers ...string) answer {
	ts.t.Helper()
	method, target, _ := strings.Cut(line, " ")
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(ts.t.Context(), method, target, in)
	r.Host = "127.0.0.1:8080"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		switch name, value := headers[i], headers[i+1]; name {
		case "key":
			r.Header.Set("Authorization", "Bearer "+value)
		case "Host":
			r.Host = value
		case "-":
			r.Header.Del(value)
		default:
			r.Header.Add(name, value)
		}
	}
	return ts.serve(r)
}

func (ts *testServer) serve(r *http.Request) answer {
	ts.t.Helper()
	w := httptest.NewRecorder()
	ts.ServeHTTP(w, r)
	a := answer{t: ts.t, status: w.Code, header: w.Header(), body: w.Body.String()}
	if strings.Contains(w.Header().Get("Content-Type"), "json") {
		if err := json.Unmarshal(w.Body.Bytes(), &a.json); err != nil {
			ts.t.Fatalf("%d: not JSON: %v: %q", w.Code, err, a.body)
		}
	}
	return a
}

type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   string
	json   map[string]any
}

// is checks status and, for problems, the code and the form.
func (a answer) is(status int, code string) answer {
	a.t.Helper()
	if got := fmt.Sprint(a.json["code"]); a.status != status || (code != "" && got != code) {
		a.t.Errorf("got %d %s, want %d %s: %s", a.status, got, status, code, a.body)
	}
	if status >= 400 {
		if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
			a.t.Errorf("%d has content type %q", status, ct)
		}
		if a.json["status"] != float64(a.status) || a.json["title"] == "" || a.json["detail"] == "" {
			a.t.Errorf("not a whole problem: %s", a.body)
		}
	}
	return a
}

const goodPayment = `{"amount":1999,"currency":"usd","source":"tok_visa"}`

func TestPaymentIsTaken(t *testing.T) {
	ts := newTestServer(t, nil)
	a := ts.ask("POST /api/v1/payments", goodPayment, "key", ts.shop).is(201, "")
	id := a.json["id"].(string)
	if a.header.Get("Location") != "/api/v1/payments/"+id || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("headers: %v", a.header)
	}
	for _, member := range []string{"object", "amount", "currency", "status", "sync", "upstream_id", "failure", "amount_refunded", "order_id", "user_id",
		"description", "metadata", "taken_offline", "created_at", "settled_at"} {
		if _, ok := a.json[member]; !ok {
			t.Errorf("the answer lacks %s: %s", member, a.body)
		}
	}
	if b := ts.ask("GET /api/v1/payments/"+id, "", "key", ts.shop).is(200, ""); b.body != a.body {
		t.Errorf("read back %s, was %s", b.body, a.body)
	}
	list := ts.ask("GET /api/v1/payments", "", "key", ts.shop).is(200, "")
	if list.json["has_more"] != false || list.json["next_cursor"] != nil || len(list.json["data"].([]any)) != 1 {
		t.Errorf("list: %s", list.body)
	}
}
