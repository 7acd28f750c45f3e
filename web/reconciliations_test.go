package web

import (
	"cmp"
	"context"
	"strings"
	"testing"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// fakeReconciler is a ledger with one comparison, the shop's, which notes what is asked of it.
type fakeReconciler struct {
	fakeLedger
	tenant   tenants.ID
	from, to time.Time
	err      error
}

const oneReconciliation = "rec_01M847VV404WSZWZN764QGRYES"

func (f *fakeReconciler) Zone() *time.Location { return time.FixedZone("box", 3600) }

func (f *fakeReconciler) one() ledger.Reconciliation {
	id, upstream := ledger.PaymentID("pay_1"), "ch_1"
	return ledger.Reconciliation{ID: oneReconciliation, Object: "reconciliation", Status: ledger.Different, From: time.UnixMilli(1795420800000).UTC(), Account: "default",
		Total: 1, Kinds: map[ledger.DifferenceKind]int64{ledger.MissingThere: 1},
		Differences: []ledger.Difference{{Kind: ledger.MissingThere, PaymentID: &id, UpstreamID: &upstream, Ours: &ledger.Side{Amount: 5, Currency: "usd", Status: "succeeded"}}}}
}

func (f *fakeReconciler) Reconcile(_ context.Context, t tenants.ID, from, to time.Time) (ledger.Reconciliation, error) {
	if f.tenant, f.from, f.to = t, from, to; f.err != nil {
		return ledger.Reconciliation{}, f.err
	}
	return f.one(), nil
}

func (f *fakeReconciler) Reconciliation(_ context.Context, t tenants.ID, id string) (ledger.Reconciliation, error) {
	if t != "shop" || id != oneReconciliation {
		return ledger.Reconciliation{}, &ledger.Error{Kind: ledger.NotFound, Code: "not_found"}
	}
	return f.one(), nil
}

func (f *fakeReconciler) Reconciliations(_ context.Context, t tenants.ID, limit int, cursor string) (ledger.ReconciliationPage, error) {
	if t != "shop" {
		return ledger.ReconciliationPage{}, nil
	}
	r := f.one()
	r.Differences = nil
	page := ledger.ReconciliationPage{Data: []ledger.Reconciliation{r}}
	if limit == 1 && cursor == "" {
		page.HasMore, page.NextCursor = true, "behind"
	}
	return page, nil
}

func TestReconcileOverHTTP(t *testing.T) {
	fake := &fakeReconciler{}
	ts := newTestServer(t, func(o *Options) {
		o.Ledger = fake
		o.Now = func() time.Time { return time.Date(2026, 11, 23, 23, 30, 0, 0, time.UTC) } // half past midnight, where the box is
	})
	const path = "/api/v1/reconciliations"
	a := ts.ask("POST "+path, `{}`, "key", ts.shop).is(201, "")
	if !fake.from.IsZero() || !fake.to.IsZero() || fake.tenant != "shop" || a.header.Get("Location") != path+"/"+oneReconciliation {
		t.Errorf("%+v %v", fake, a.header)
	}
	const want = `"differences_total":1,"kinds":{"missing_there":1},"differences":[{"kind":"missing_there","payment_id":"pay_1","refund_id":null,"upstream_id":"ch_1",` +
		`"ours":{"amount":5,"currency":"usd","status":"succeeded"},"theirs":null}]`
	if !strings.Contains(a.body, want) {
		t.Errorf("%s\nwant %s", a.body, want)
	}
	for body, want := range map[string][2]string{
		`{"from":"2026-11-20"}`:                                            {"2026-11-19T23:00:00Z", "2026-11-20T23:00:00Z"},
		`{"from":"2026-11-20","to":"2026-11-21"}`:                          {"2026-11-19T23:00:00Z", "2026-11-21T23:00:00Z"},
		`{"from":"2026-11-20T10:00:00Z","to":"2026-11-20T12:00:00+01:00"}`: {"2026-11-20T10:00:00Z", "2026-11-20T11:00:00Z"},
		`{"from":"2026-03-29","to":"2026-03-29","tz":"Europe/Berlin"}`:     {"2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"},
		`{"from":"2026-09-06","tz":"America/Santiago"}`:                    {"2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"}, // begins at 01:00
		`{"from":"2026-09-05","to":"2026-09-05","tz":"America/Santiago"}`:  {"2026-09-05T04:00:00Z", "2026-09-06T04:00:00Z"},
		`{"from":"2026-11-01","tz":"America/Havana"}`:                      {"2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"}, // two midnights
		`{"tz":"UTC"}`: {"2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"},
	} {
		ts.ask("POST "+path, body, "key", operatorToken, "X-Tenant-ID", "bar").is(201, "")
		if got := [2]string{fake.from.UTC().Format(time.RFC3339), fake.to.UTC().Format(time.RFC3339)}; got != want || fake.tenant != "bar" {
			t.Errorf("%s: %v, want %v, of %s", body, got, want, fake.tenant)
		}
		var asked newReconciliation
		_ = json.Unmarshal([]byte(body), &asked)
		if zone := fake.from.Location().String(); zone != cmp.Or(asked.TZ, "box") {
			t.Errorf("%s: its days are counted in %s", body, zone)
		}
	}
	fake.tenant = ""
	for body, code := range map[string]string{
		`{"from":"yesterday"}`: "time_invalid", `{"to":"2026-11-20"}`: "time_invalid", `{"from":"2026-11-20","to":"x"}`: "time_invalid",
		`{"tz":"Local"}`: "time_zone_invalid", `{"tz":"Mars"}`: "time_zone_invalid", `{"tenant":"bar"}`: "member_unknown",
	} {
		ts.ask("POST "+path, body, "key", ts.shop).is(422, code)
	}
	ts.ask("POST "+path, `{}`).is(401, "auth_missing")
	ts.ask("POST "+path, `{}`, "key", operatorToken).is(400, "tenant_missing")
	ts.ask("POST "+path, `{}`, "key", ts.shop, "X-Tenant-ID", "bar").is(403, "tenant_mismatch")
	ts.ask("POST "+path+"?from=1", `{}`, "key", ts.shop).is(400, "parameter_unknown")
	if fake.tenant != "" {
		t.Errorf("%s was compared", fake.tenant)
	}
	fake.err = &ledger.Error{Kind: ledger.Unavailable, Code: "upstream_unreachable", RetryAfter: 30 * time.Second, Message: "nothing can be compared now: the line to the processor is offline"}
	if a := ts.ask("POST "+path, `{}`, "key", ts.shop).is(503, "upstream_unreachable"); a.header.Get("Retry-After") != "30" || !strings.Contains(a.body, "offline") {
		t.Errorf("%v %s", a.header, a.body)
	}
}

// INV-20, INV-22: a tenant reads its own, and what is another's cannot be told from what is not there.
func TestReconciliationsOverHTTP(t *testing.T) {
	ts := newTestServer(t, func(o *Options) { o.Ledger = &fakeReconciler{} })
	const path = "/api/v1/reconciliations"
	if a := ts.ask("GET "+path+"/"+oneReconciliation, "", "key", ts.shop).is(200, ""); !strings.Contains(a.body, `"payment_id":"pay_1"`) {
		t.Error(a.body)
	}
	list := ts.ask("GET "+path+"?limit=1", "", "key", ts.shop).is(200, "")
	if strings.Contains(list.body, `"differences"`) || list.json["has_more"] != true {
		t.Error(list.body)
	}
	next := list.json["next_cursor"].(string)
	if a := ts.ask("GET "+path+"?limit=1&cursor="+next, "", "key", ts.shop).is(200, ""); a.json["has_more"] != false {
		t.Error(a.body)
	}
	ts.ask("GET "+path+"?cursor="+next, "", "key", ts.bar).is(400, "cursor_invalid")
	ts.ask("GET "+path+"?limit=0", "", "key", ts.shop).is(400, "limit_invalid")
	if a := ts.ask("GET "+path, "", "key", ts.bar).is(200, ""); a.body != `{"data":[],"has_more":false,"next_cursor":null}` {
		t.Error(a.body)
	}
	want := ts.ask("GET "+path+"/x", "", "key", ts.bar).is(404, "not_found").body
	for _, id := range []string{oneReconciliation, "rec_00000000000000000000000000", "..", "%00", strings.Repeat("a", 4096)} {
		if a := ts.ask("GET "+path+"/"+id, "", "key", ts.bar).is(404, "not_found"); a.body != want {
			t.Errorf("%q: %s differs from %s", id, a.body, want)
		}
	}
}
