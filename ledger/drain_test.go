package ledger

import (
	"testing"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// After an outage the oldest payments of each tenant go first, those that were tried and put off among them, and tenants take turns,
// though one of them has far more.
func TestDrainIsInOrder(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{pace: 1})
	small := tenants.ID("small")
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: small}); err != nil {
		t.Fatal(err)
	}
	const many, few, putOff = 200, 40, 3
	if err := b.sim.SetFaults(simulator.Faults{Error503: 1}); err != nil {
		t.Fatal(err)
	}
	place := map[PaymentID]int{} // by age within its tenant
	first := make([]PaymentID, 0, putOff)
	take := func(tenant tenants.ID, i int) PaymentID {
		p, _, err := b.Pay(t.Context(), tenant, "", NewPayment{Amount: 1000, Currency: "usd", Source: "tok_visa"})
		if err != nil {
			t.Fatal(err)
		}
		place[p.ID] = i
		return p.ID
	}
	for i := range putOff {
		first = append(first, take(testTenant, i))
	}
	for _, id := range first {
		b.until(id, func(p Payment) bool { return p.Sync.Attempts > 0 })
	}
	b.cut(true)
	// Journals are relayed side by side: what was taken within a few milliseconds may overtake each other on its way into the queue.
	const together = 10
	queued := b.jobs.Watch(t.Context(), "", PaymentsQueue)
	for i, taken := 0, 0; i < many; i++ {
		if i >= putOff {
			take(testTenant, i)
			taken++
		}
		if i < few {
			take(small, i)
			taken++
		}
		for i%together == together-1 && taken > 0 {
			if move := <-queued; move.State == jobs.Waiting {
				taken--
			}
		}
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	b.cut(false)
	b.settledAll(testTenant, small)

	// What is in hand at a time may overtake each other: a place or two, and those that wait for one.
	const inHand = 2 + 1 + 4 + 2 + 2*together
	next := map[tenants.ID]int{}
	for n, c := range b.sim.Ledger().Charges {
		id := PaymentID(c.Metadata["tenderbox_payment"])
		tenant := small
		if _, err := b.Payment(t.Context(), testTenant, string(id)); err == nil {
			tenant = testTenant
		}
		if off := place[id] - next[tenant]; off > inHand || off < -inHand {
			t.Errorf("charge %d is payment %d of %s, when %d was next", n, place[id], tenant, next[tenant])
		}
		next[tenant]++
		if ahead := next[testTenant] - next[small]; next[small] < few && (ahead > putOff+inHand || ahead < -inHand) {
			t.Errorf("after charge %d the tenants have had %v turns", n, next)
		}
	}
	if next[testTenant] != many || next[small] != few {
		t.Errorf("%v were charged", next)
	}
}

// settledAll waits until nothing of the tenants is outstanding.
func (b *testBox) settledAll(ts ...tenants.ID) {
	b.t.Helper()
	for _, id := range ts {
		news, leave := b.Hear(id)
		defer leave()
		for len(b.Exposed(id)) > 0 {
			select {
			case <-news:
			case <-b.t.Context().Done():
				b.t.Fatalf("outstanding: %v; %+v", b.Exposed(id), b.jobs.TenantStats(string(id)))
			}
		}
	}
}
