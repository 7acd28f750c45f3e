package web

import (
	"slices"
	"strings"
	"testing"

	"tenderbox/ledger"
)

// Only the operator takes lines away and opens breakers: of all accounts, or of a tenant's.
func TestForceLines(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, path := range []string{"link/offline", "link/auto", "breaker/open", "breaker/close"} {
		ts.ask("POST /api/v1/"+path, "", "key", ts.shop).is(403, "operator_only")
		ts.ask("POST /api/v1/"+path, "").is(401, "auth_missing")
		ts.ask("POST /api/v1/"+path, "", "key", operatorToken).is(200, "")
		a := ts.ask("POST /api/v1/"+path, "", "key", operatorToken, "X-Tenant-ID", "shop").is(200, "")
		if !strings.Contains(a.body, `"connectivity":{"state":"unconfigured"`) {
			t.Errorf("the answer does not tell how the line stands: %s", a.body)
		}
	}
	for _, path := range []string{"link/down", "breaker/auto"} {
		ts.ask("POST /api/v1/"+path, "", "key", operatorToken).is(400, "parameter_invalid")
	}
	want := []string{"link offline ", "link offline shop", "link auto ", "link auto shop", "breaker open ", "breaker open shop", "breaker close ", "breaker close shop"}
	if !slices.Equal(ts.ledger.forced, want) {
		t.Errorf("did %q, want %q", ts.ledger.forced, want)
	}
}

// The operator's metrics tell the exposure by tenant, with its age, and how the drain stands.
func TestMetricsOfTheDrain(t *testing.T) {
	ts := newTestServer(t, nil)
	at, eta := ts.now().Add(-90e9), int64(12)
	ts.ledger.exposures = []ledger.Exposure{{Tenant: "shop", Currency: "usd", Count: 3, Amount: 1234, OldestAt: &at}}
	ts.ledger.drain = ledger.Drain{State: ledger.DrainThrottled, PerS: 42.5, EtaS: &eta}
	body := ts.ask("GET /metrics", "", "key", operatorToken).is(200, "").body
	for _, line := range []string{
		`tenderbox_exposure_payments{currency="usd",tenant="shop"} 3`, `tenderbox_exposure_amount{currency="usd",tenant="shop"} 1234`,
		`tenderbox_exposure_oldest_seconds{currency="usd",tenant="shop"} 90`,
		`tenderbox_drain{state="throttled"} 1`, `tenderbox_drain_per_second 42.5`, `tenderbox_drain_eta_seconds 12`,
	} {
		if !strings.Contains(body, line) {
			t.Errorf("no line %q", line)
		}
	}
}
