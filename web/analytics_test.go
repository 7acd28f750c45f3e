package web

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// fakeSums answers what a test gives it, and notes what it is asked.
type fakeSums struct {
	mu      sync.Mutex // guards what follows
	rows    map[tenants.ID][]ledger.AnalyticsRow
	err     error
	asked   ledger.AnalyticsQuery
	of      tenants.ID
	rebuilt int
}

func (f *fakeSums) Sums(_ context.Context, t tenants.ID, q ledger.AnalyticsQuery) (ledger.Sums, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.of = q, t
	return ledger.Sums{From: q.From, To: q.To, Rows: f.rows[t], Lag: ledger.Lag{EventsBehind: 3}}, f.err
}

func (f *fakeSums) Rebuild(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rebuilt++
	return f.err
}

func newAnalyticsServer(t *testing.T) (*testServer, *fakeSums) {
	f := &fakeSums{}
	return newTestServer(t, func(o *Options) {
		o.Analytics = f
		o.Now = func() time.Time { return time.Date(2026, 11, 23, 23, 30, 0, 0, time.UTC) }
	}), f
}

func TestAnalyticsOverHTTP(t *testing.T) {
	ts, f := newAnalyticsServer(t)
	start := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	f.rows = map[tenants.ID][]ledger.AnalyticsRow{"shop": {{Start: start, Currency: "eur", Tallies: map[ledger.EventType]ledger.Tally{
		ledger.PaymentCreated: {Count: 3, Amount: 9007199254740993}, ledger.PaymentSucceeded: {Count: 2, Amount: 500}, ledger.RefundSucceeded: {Count: 1, Amount: 200},
		ledger.RefundCreated: {Count: 9, Amount: 900}, ledger.OrderCreated: {Count: 4, Amount: 800}, ledger.UserCreated: {Count: 7}, ledger.UserVerified: {Count: 6},
	}}}}
	zero := `{"count":0,"amount":0}`
	for noun, want := range map[string]string{
		"payments": `{"start":"2026-11-23T09:00:00Z","currency":"eur","created":{"count":3,"amount":9007199254740993},"succeeded":{"count":2,"amount":500},"failed":` + zero +
			`,"canceled":` + zero + `,"refunded":{"count":1,"amount":200}}`,
		"orders": `{"start":"2026-11-23T09:00:00Z","currency":"eur","created":{"count":4,"amount":800},"paid":` + zero + `,"completed":` + zero + `,"canceled":` + zero + `}`,
		"users":  `{"start":"2026-11-23T09:00:00Z","created":7,"verified":6}`,
	} {
		a := ts.ask("GET /api/v1/analytics/"+noun+"?bucket=hour&from=2026-11-23T09:00:00Z&to=2026-11-23T10:00:00Z", "", "key", ts.shop).is(200, "")
		whole := `{"bucket":"hour","from":"2026-11-23T09:00:00Z","to":"2026-11-23T10:00:00Z","data":[` + want + `],"lag":{"events_behind":3,"as_of":null}}`
		if strings.TrimSpace(a.body) != whole {
			t.Errorf("%s:\n%s\nwant\n%s", noun, a.body, whole)
		}
		// INV-20: another tenant gets its own, which is nothing.
		if a := ts.ask("GET /api/v1/analytics/"+noun, "", "key", ts.bar).is(200, ""); f.of != "bar" || !strings.Contains(a.body, `"data":[]`) {
			t.Errorf("%s asked as bar: %s was asked for, answered %s", noun, f.of, a.body)
		}
		if f.asked.Bucket != ledger.ByDay || !f.asked.From.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)) || f.asked.To.Sub(f.asked.From) != 24*time.Hour {
			t.Errorf("%s without parameters: %+v", noun, f.asked)
		}
		ts.ask("GET /api/v1/analytics/"+noun+"?from=2026-11-01&to=2026-11-07&tz=Asia/Kolkata", "", "key", operatorToken, "X-Tenant-ID", "shop").is(200, "")
		if f.of != "shop" || f.asked.Zone.String() != "Asia/Kolkata" || f.asked.From.Format(time.RFC3339) != "2026-10-31T18:30:00Z" || f.asked.To.Format(time.RFC3339) != "2026-11-07T18:30:00Z" {
			t.Errorf("%s of a week in India: %s, %+v", noun, f.of, f.asked)
		}
		if len(f.asked.Nouns) == 0 || string(f.asked.Nouns[0])+"s" != noun {
			t.Errorf("%s: asked for %v", noun, f.asked.Nouns)
		}
	}
}

func TestHostileAnalytics(t *testing.T) {
	ts, f := newAnalyticsServer(t)
	for _, noun := range []string{"payments", "orders", "users"} {
		path := "GET /api/v1/analytics/" + noun
		for query, code := range map[string]string{
			"from=10000-01-01": "time_invalid", "from=yesterday": "time_invalid", "to=9999-12-31": "time_invalid", "tz=Local": "time_zone_invalid",
			"tz=../../etc/passwd": "time_zone_invalid", "bucket=day&bucket=hour": "parameter_duplicate", "tenant=bar": "parameter_unknown", "limit=5": "parameter_unknown", "bucket=%zz": "parameter_invalid",
		} {
			ts.ask(path+"?"+query, "", "key", ts.shop).is(400, code)
		}
		ts.ask(path, "").is(401, "auth_missing")
		ts.ask(path, "", "key", "tb_nobody").is(401, "auth_invalid")
		ts.ask(path, "", "key", operatorToken).is(400, "tenant_missing")
		ts.ask(path, "", "key", ts.shop, "X-Tenant-ID", "bar").is(403, "tenant_mismatch")
		ts.ask("POST"+path[3:], "{}", "key", ts.shop).is(405, "method_not_allowed")
	}
	for _, target := range []string{"", "/", "/refunds", "/payments/", "/payments/x", "/..", "/%2e%2e/payments"} {
		ts.ask("GET /api/v1/analytics"+target, "", "key", ts.shop).is(404, "not_found")
	}
	// What the ledger refuses is told as it is; an outage is told without its cause.
	f.err = &ledger.Error{Kind: ledger.Invalid, Code: "bucket_invalid", Field: "bucket", Message: "must be hour or day"}
	if a := ts.ask("GET /api/v1/analytics/payments?bucket=week", "", "key", ts.shop).is(400, "bucket_invalid"); a.json["field"] != "bucket" {
		t.Error(a.body)
	}
	f.err = &ledger.Error{Kind: ledger.Unavailable, Code: "analytics_unavailable", Message: "out of service", Cause: context.DeadlineExceeded, RetryAfter: 10 * time.Second}
	if a := ts.ask("GET /api/v1/analytics/payments", "", "key", ts.shop).is(503, "analytics_unavailable"); a.header.Get("Retry-After") != "10" || strings.Contains(a.body, "deadline") {
		t.Errorf("%v %s", a.header, a.body)
	}
	f.err = nil

	// Counting anew is the operator's.
	ts.ask("POST /api/v1/analytics/rebuild", "", "key", ts.shop).is(403, "operator_only")
	ts.ask("POST /api/v1/analytics/rebuild", "").is(401, "auth_missing")
	if f.rebuilt != 0 {
		t.Error("a tenant had everything counted anew")
	}
	if a := ts.ask("POST /api/v1/analytics/rebuild", "", "key", operatorToken).is(202, ""); a.body != "" || f.rebuilt != 1 {
		t.Errorf("%q, %d times", a.body, f.rebuilt)
	}
}
