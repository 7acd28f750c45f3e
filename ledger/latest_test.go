package ledger

import (
	"slices"
	"strings"
	"testing"

	"tenderbox/tenants"
)

// The latest events are those that the whole log has, from the newest; pages in both directions leave none out; another tenant's are never
// among them.
func TestLatestEvents(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	onToken := NewPayment{Amount: 1999, Currency: "usd", Source: "tok_visa"}
	for range 9 {
		b.settled(b.pay("", onToken).ID)
	}
	if _, _, err := b.Pay(t.Context(), "other", "", onToken); err != nil {
		t.Fatal(err)
	}
	p := NewPayment{Amount: 1999, Currency: "usd", PaymentMethod: "pm_card_visa"}
	intent := b.settled(b.pay("", p).ID)

	kinds := []EventKind{{PaymentCreated, BySource}, {PaymentCreated, ByMethod}, {Type: PaymentSucceeded}}
	log, _ := b.readAll(testTenant, EventFilter{Types: []string{"payment.created", "payment.succeeded"}})
	var want []EventID
	for _, e := range log {
		want = append(want, e.ID)
	}
	slices.SortFunc(want, func(a, b EventID) int { return strings.Compare(string(b), string(a)) })
	if len(want) != 20 {
		t.Fatalf("%d events of 10 payments", len(want))
	}
	read := func(f LatestFilter) (got []EventID, more bool) {
		t.Helper()
		events, more, err := b.LatestEvents(t.Context(), testTenant, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Tenant != testTenant || e.Shard != b.set.Shard(e.Slot).ID() || len(e.Data) == 0 {
				t.Errorf("not whole: %+v", e)
			}
			got = append(got, e.ID)
		}
		return got, more
	}
	for _, c := range []struct {
		f    LatestFilter
		want []EventID
		more bool
	}{
		{LatestFilter{}, want, false},
		{LatestFilter{Limit: 7}, want[:7], true},
		{LatestFilter{Limit: 7, Older: want[6]}, want[7:14], true},
		{LatestFilter{Limit: 7, Older: want[13]}, want[14:], false},
		{LatestFilter{Limit: 5, Newer: want[10]}, want[5:10], true},
		{LatestFilter{Limit: 5, Newer: want[5]}, want[:5], false},
		{LatestFilter{From: log[0].OccurredAt, To: log[len(log)-1].OccurredAt.AddDate(1, 0, 0)}, want, false},
		{LatestFilter{To: log[0].OccurredAt.AddDate(-1, 0, 0)}, nil, false},
	} {
		c.f.Kinds = kinds
		if got, more := read(c.f); !slices.Equal(got, c.want) || more != c.more {
			t.Errorf("%+v: %v %v\nwant %v %v", c.f, got, more, c.want, c.more)
		}
	}
	for means, n := range map[Means]int{ByMethod: 1, BySource: 9} {
		events, _, err := b.LatestEvents(t.Context(), testTenant, LatestFilter{Kinds: []EventKind{{PaymentSucceeded, means}}})
		if err != nil || len(events) != n {
			t.Errorf("%s: %d events, want %d; %v", means, len(events), n, err)
		}
		if means == ByMethod && len(events) == 1 && events[0].Subject != string(intent.ID) {
			t.Errorf("of %s, want %s", events[0].Subject, intent.ID)
		}
	}
	if got, _ := read(LatestFilter{}); got != nil {
		t.Errorf("no kinds: %v", got)
	}
	for _, f := range []LatestFilter{{Limit: 101}, {Older: "evt_x"}, {Newer: EventID(intent.ID)}} {
		f.Kinds = kinds
		if _, _, err := b.LatestEvents(t.Context(), testTenant, f); err == nil {
			t.Errorf("%+v was not refused", f)
		}
	}
}
