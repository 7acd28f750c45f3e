package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// payAwaited takes a payment whose client waits for it.
func (b *testBox) payAwaited(key string, p NewPayment) Payment {
	b.t.Helper()
	p.Awaited = true
	return b.pay(key, p)
}

// steps are the sends of a payment, as "step under key".
func (b *testBox) steps(id PaymentID) (steps []string) {
	b.t.Helper()
	for _, a := range must(b.Attempts(b.t.Context(), testTenant, string(id)))(b.t) {
		steps = append(steps, a.Step+" under "+*a.UpstreamKey)
	}
	return steps
}

// A payment whose client waits is sealed in the transaction that takes it and sent at once.
func TestAwaitedGoesPastTheQueue(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	charge := b.payAwaited("k1", NewPayment{Amount: 1999, Currency: "usd", Source: "tok_visa", UserID: "u"})
	intent := b.payAwaited("k2", NewPayment{Amount: 1999, Currency: "usd", PaymentMethod: "pm_card_visa", UserID: "u"})
	declined := b.payAwaited("", NewPayment{Amount: 1999, Currency: "usd", Source: "tok_chargeDeclined", UserID: "u"})
	for p, want := range map[*Payment]Status{&charge: Succeeded, &intent: Succeeded, &declined: Failed} {
		if p.Sync.State != Sending || p.Sync.Attempts != 1 || p.Sync.FirstSentAt == nil {
			t.Errorf("as it was taken: %+v", p.Sync)
		}
		got := must(b.Await(t.Context(), testTenant, p.ID, time.Hour))(t)
		if got.Status != want || got.ID != p.ID {
			t.Errorf("%s is %s, want %s", p.ID, got.Status, want)
		}
		if diff := cmp.Diff(must(b.Payment(t.Context(), testTenant, string(p.ID)))(t), got); diff != "" {
			t.Errorf("is told otherwise than it stands: %s", diff)
		}
	}
	if got, want := b.steps(charge.ID), []string{"charge under " + string(charge.ID)}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := b.steps(intent.ID), []string{"create under " + string(intent.ID), "confirm under " + string(intent.ID) + ":confirm"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, p := range []Payment{charge, intent, declined} {
		if _, err := b.Await(t.Context(), "other", p.ID, time.Hour); code(err) != "not_found" {
			t.Errorf("to another tenant: %v", err)
		}
	}
	b.sound()
}

// What panics before a payment is on its way leaves nothing behind: no place, no lock, no passage.
func TestDirectPanicKeepsNothing(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true}) // nothing else reads the keys that the test takes away
	b.probing()
	b.cut(false)
	kr := b.keyring
	func() {
		defer func() {
			if b.keyring = kr; recover() == nil {
				t.Error("sealing without keys did not panic")
			}
		}()
		b.keyring = nil
		tenant := must(b.tenants.Get(testTenant))(t)
		b.directly(&tenant, "k", &Payment{ID: b.ids.payment(b.clock.now(), 0), Amount: 1, Currency: "usd", Means: BySource}, "tok_visa")
	}()
	mu := b.accountMu(testTenant)
	if n := b.accountOf(testTenant).Pace().InUse; n != 0 || len(b.direct.by) != 0 || !mu.TryLock() {
		t.Fatalf("%d places and %d passages, or the lock, are kept", n, len(b.direct.by))
	}
	mu.Unlock()
}

// A payment that is settled when its journal row is relayed makes no job; one that is still on its way makes one that comes later, and finds it settled.
func TestSettledAwaitedMakesNoJob(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true}) // the test relays
	b.probing()
	b.cut(false)
	relay := func(hurried bool) {
		t.Helper()
		for _, p := range b.parts {
			if _, err := b.relayOnce(t.Context(), p, hurried); err != nil {
				t.Fatal(err)
			}
		}
	}
	settled := b.payAwaited("k1", validPayment())
	b.direct.running.Wait()
	relay(false)
	if j, err := b.jobs.Get(string(testTenant), PaymentsQueue, string(settled.ID)); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("a settled payment's job: %+v, %v", j, err)
	}
	if err := b.sim.SetFaults(simulator.Faults{Hang: 1}); err != nil {
		t.Fatal(err)
	}
	hangs := b.payAwaited("k2", validPayment())
	b.direct.mu.Lock()
	b.direct.by[string(hangs.ID)].began = time.Now().Add(time.Hour) // however slow the machine is
	b.direct.mu.Unlock()
	relay(false) // it is held up
	if j, err := b.jobs.Get(string(testTenant), PaymentsQueue, string(hangs.ID)); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("the job of one that has just begun: %+v, %v", j, err)
	}
	relay(true) // for somebody who waits for the queue
	if j := must(b.jobs.Get(string(testTenant), PaymentsQueue, string(hangs.ID)))(t); j.State != jobs.Delayed {
		t.Errorf("of one on its way: %s", j.State)
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	b.cut(true) // ends what hangs
	b.direct.running.Wait()
	if n := len(b.direct.by); n != 0 {
		t.Errorf("%d are remembered", n)
	}
}

// What the queue would not have leased at once waits in it, whoever waits for it.
func TestAwaitedWaitsWhereTheQueueDoes(t *testing.T) {
	queue := func(b *testBox, tenant string) {
		b.t.Helper()
		if err := b.jobs.Pause(b.t.Context(), tenant, PaymentsQueue); err != nil {
			b.t.Fatal(err)
		}
	}
	for name, block := range map[string]func(b *testBox){
		"all are paused": func(b *testBox) { queue(b, "") },
		"the tenant is":  func(b *testBox) { queue(b, string(testTenant)) },
		"its account is being changed": func(b *testBox) {
			mu := b.accountMu(testTenant)
			mu.Lock()
			b.t.Cleanup(mu.Unlock)
		},
		"the line is down": func(b *testBox) { b.cut(true) },
		"a limit is set": func(b *testBox) {
			must(0, b.jobs.Limit(b.t.Context(), PaymentsQueue, jobs.Limits{TenantActive: 1}))(b.t)
		},
		"no place is free": func(b *testBox) { must(b.accountOf(testTenant).Enter(b.t.Context()))(b.t) },
		"too many are sent": func(b *testBox) {
			b.direct.mu.Lock()
			defer b.direct.mu.Unlock()
			for i := range directMax {
				b.direct.by[fmt.Sprint(i)] = &passage{over: true}
			}
		},
		"it is looked up first": func(b *testBox) {
			for _, p := range b.parts {
				p.epochs.Store(&[]epoch{{n: firstEpoch + 1}})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := openBox(t, t.TempDir(), testOptions{pace: 1})
			b.cut(false)
			block(b)
			p := b.payAwaited("k", validPayment())
			if p.Sync.State != Queued || p.Sync.Attempts != 0 || p.Sync.FirstSentAt != nil {
				t.Errorf("%+v", p.Sync)
			}
			if b.direct.holds(string(p.ID)) {
				t.Error("it is held")
			}
		})
	}
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	if p := b.pay("k", validPayment()); p.Sync.Attempts != 0 {
		t.Errorf("nobody waits: %+v", p.Sync)
	}
}

// An older payment of the tenant that waits goes first.
func TestAwaitedOvertakesNobody(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(true)
	moved := b.jobs.Watch(t.Context(), "", PaymentsQueue)
	older := b.pay("", validPayment())
	<-moved
	if b.jobs.Clear(string(testTenant), PaymentsQueue) {
		t.Fatalf("the queue is clear, with %s in it", older.ID)
	}
	b.cut(false)
	b.settled(older.ID)
}

// What one attempt does not settle is settled by its job: the same bytes under the same key, once.
func TestAwaitedIsTakenOverByItsJob(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	if err := b.sim.SetFaults(simulator.Faults{DropAfterEffect: 1}); err != nil {
		t.Fatal(err)
	}
	moved := b.jobs.Watch(t.Context(), "", PaymentsQueue)
	p := b.payAwaited("k", validPayment())
	b.until(p.ID, func(p Payment) bool { return p.Sync.State == InDoubt })
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	if first := <-moved; first.State != jobs.Delayed {
		t.Errorf("its job began %s", first.State)
	}
	b.due()
	if got := b.settled(p.ID); got.Status != Succeeded || got.Sync.Attempts < 2 {
		t.Errorf("%+v", got)
	}
	for _, step := range b.steps(p.ID) {
		if step != "charge under "+string(p.ID) {
			t.Errorf("sent as %s", step)
		}
	}
	if n := b.effects()[p.ID]; n != 1 {
		t.Errorf("%d effects", n)
	}
	b.sound()
}

// Its job, if it comes early, leaves alone what is on its way.
func TestAwaitedIsNotSentByItsJobToo(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	id := b.ids.payment(b.clock.now(), 0)
	if !b.direct.begin(testTenant, id) {
		t.Fatal("not begun")
	}
	if err := b.settle(t.Context(), settleJobOf(id)); !isSnooze(err) {
		t.Errorf("the job of a payment on its way: %v", err)
	}
	b.direct.end(id, 0)
	if err := b.settle(t.Context(), settleJobOf(id)); isSnooze(err) {
		t.Error("it is left alone for ever")
	}
}

func isSnooze(err error) bool { return err != nil && err.Error() == jobs.Snooze(unsentPause).Error() }

// Whose client has gone, or has waited long enough, is settled all the same, and nobody is told of a payment that is none.
func TestAwaitedOutlastsItsClient(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	if err := b.sim.SetFaults(simulator.Faults{Hang: 1}); err != nil {
		t.Fatal(err)
	}
	p := b.payAwaited("k", validPayment())
	if got := must(b.Await(t.Context(), testTenant, p.ID, time.Nanosecond))(t); got.ID != p.ID || got.Status != Pending {
		t.Errorf("after its time: %+v", got)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if got, err := b.Await(gone, testTenant, p.ID, time.Hour); err == nil && got.ID != p.ID {
		t.Errorf("its client has gone: %+v", got)
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	b.cut(true) // ends what hangs
	b.until(p.ID, func(p Payment) bool { return p.Sync.State != Sending })
	b.cut(false)
	if got := b.settled(p.ID); got.Status != Succeeded {
		t.Errorf("%+v", got)
	}
}

// A stop waits for what is on its way, and lets nothing else go.
func TestStopWaitsForTheAwaited(t *testing.T) {
	sim := simulator.New(simulator.Options{Latency: 100 * time.Millisecond})
	url := must(sim.Start("127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = sim.Close() })
	b := openBox(t, t.TempDir(), testOptions{sim: sim, url: url})
	b.cut(false)
	p := b.payAwaited("k", validPayment())
	b.stop()
	if b.direct.begin(testTenant, "late") {
		t.Error("one more went after the stop")
	}
	b = b.reopen(func(o *testOptions) { o.idle = true })
	if got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t); got.Status != Succeeded || got.Sync.Attempts != 1 {
		t.Errorf("%+v", got)
	}
}

// The relay and the answer may come in either order; a payment is forgotten when both have.
func TestPassageEnds(t *testing.T) {
	e := &Event{Type: PaymentCreated, Tenant: tenants.ID("t"), Subject: "pay_1", Data: []byte("{}")}
	for name, c := range map[string]struct {
		early, settled bool
		after          time.Duration
		jobs           int
		delay          time.Duration
	}{
		"relayed first, settled":  {early: true, settled: true, jobs: 1, delay: time.Second},
		"relayed first, in doubt": {early: true, jobs: 1, delay: time.Second},
		"settled, then relayed":   {settled: true},
		"in doubt, then relayed":  {jobs: 1, delay: time.Second},
		"put off, then relayed":   {after: 7 * time.Second, jobs: 1, delay: 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirect()
			if !d.begin("t", "pay_1") {
				t.Fatal("not begun")
			}
			var got []jobs.NewJob
			d.by["pay_1"].began = time.Now().Add(time.Hour) // however slow the machine is
			if !d.unrelayed() || !d.holdsUp(e) {
				t.Error("its row need not gather")
			}
			if d.by["pay_1"].began = time.Now().Add(-directGather); d.holdsUp(e) {
				t.Error("its row is held up for too long")
			}
			if c.early {
				got = d.relayed(e, settleJob(e))
			}
			if !d.holds("pay_1") || d.unrelayed() == c.early {
				t.Error("not held on its way, or its row gathers when it was relayed")
			}
			if c.settled {
				d.settle(&Payment{ID: "pay_1"})
			}
			d.end("pay_1", c.after)
			if d.holdsUp(e) {
				t.Error("its row is held up for nothing")
			}
			if !c.early {
				got = d.relayed(e, settleJob(e))
			}
			if len(got) != c.jobs || len(got) == 1 && got[0].Delay != c.delay {
				t.Errorf("%+v", got)
			}
			if len(d.by) != 0 || d.holds("pay_1") || d.unrelayed() {
				t.Error("not forgotten")
			}
			if again := d.relayed(e, settleJob(e)); len(again) != 1 || again[0].Delay != 0 { // the queue's file did not take the batch
				t.Errorf("derived again: %+v", again)
			}
		})
	}
}
