package ledger

import (
	"testing"
	"testing/synctest"
	"time"

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

// The status tells how the drain stands, and how long it takes.
func TestDrainIsTold(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(true)
	look := func() Overview {
		t.Helper()
		return must(b.Status(t.Context(), testTenant))(t)
	}
	for range 20 {
		b.pay("", validPayment())
	}
	if s := look(); s.Drain.State != DrainIdle || s.Drain.EtaS != nil || s.Backlog.EtaS != nil || s.Backlog.Count != 20 {
		t.Errorf("without a line: %+v, %+v", s.Drain, s.Backlog)
	}
	if err := b.jobs.Pause(t.Context(), "", PaymentsQueue); err != nil {
		t.Fatal(err)
	}
	b.cut(false)
	if s := look(); s.Drain.State != DrainPaused || s.Drain.EtaS != nil {
		t.Errorf("paused: %+v", s.Drain)
	}
	b.pulse.settled(testTenant, 10) // as if ten had just been settled
	if err := b.sim.SetFaults(simulator.Faults{Hang: 1}); err != nil {
		t.Fatal(err)
	}
	if err := b.jobs.Resume(t.Context(), "", PaymentsQueue); err != nil {
		t.Fatal(err)
	}
	s := look()
	if s.Drain.State != DrainRunning || s.Drain.PerS <= 0 || s.Drain.EtaS == nil || *s.Drain.EtaS < 2 || *s.Drain.EtaS > 20 || *s.Backlog.EtaS != *s.Drain.EtaS {
		t.Errorf("draining: %+v", s.Drain)
	}
	if box := must(b.Status(t.Context(), ""))(t); box.Drain.PerS <= 0 || box.Drain.EtaS == nil || len(box.Exposure) != 1 ||
		box.Exposure[0].Tenant != testTenant || box.Exposure[0].OldestAt == nil {
		t.Errorf("the operator sees %+v, %+v", box.Drain, box.Exposure)
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
}

// A pulse counts the last ten seconds, each tenant's and all together, from a run's beginning.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse()
		want := func(shop, box float64) {
			t.Helper()
			if s, b := p.perSecond("shop"), p.perSecond(""); s != shop || b != box {
				t.Errorf("after %v: %v and %v a second, want %v and %v", time.Since(p.start), s, b, shop, box)
			}
		}
		want(0, 0)
		time.Sleep(time.Hour)
		p.settled("shop", 10)
		p.settled("bar", 30)
		want(10, 40)
		time.Sleep(time.Second)
		p.settled("shop", 20)
		want(15, 30)
		time.Sleep(8 * time.Second)
		want(3, 6)
		time.Sleep(time.Second) // the first second has left
		want(2, 2)
		time.Sleep(time.Second)
		want(0, 0)
		if p.perSecond("bar"); len(p.tenants) != 0 {
			t.Errorf("still holds %v", p.tenants)
		}
	})
}
