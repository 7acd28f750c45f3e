package ledger

import (
	"fmt"
	"testing"
	"time"

	"tenderbox/upstream/simulator"
)

// INV-7: what has no end at the processor for longer than any means of payment takes is a person's, with what the processor last said.
func TestPendingForTooLongIsReviewed(t *testing.T) {
	for name, long := range map[string]time.Duration{"charge": pendingMax, "payment_intent": pendingMax, "refund": refundPendingMax} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			var payment PaymentID
			var id, object string
			state := func() SyncState { return b.now(payment).Sync.State }
			switch name {
			case "charge":
				payment = b.pay("", validPayment()).ID
				id, object = string(payment), fmt.Sprintf(`{"object":"charge","id":"ch_1","amount":1999,"currency":"usd","status":"pending","created":%d}`, f.clock.now().Unix())
				f.answering("POST charges", 200, object)
				b.mustWait(id)
				f.answering("GET charges/…", 200, object)
			case "payment_intent":
				n := byMethod()
				n.PaymentMethod = "pm_card_processing"
				payment = b.pay("", n).ID
				id = string(payment)
				b.mustWait(id)
				object = fmt.Sprintf(`{"object":"payment_intent","id":%q,"amount":1999,"currency":"usd","status":"processing","created":1}`, *b.now(payment).UpstreamID)
				f.answering("GET payment_intents/…", 200, object)
			case "refund":
				payment = b.paid(validPayment()).ID
				id, object = string(b.giveBack(b.now(payment), 500)), `{"object":"refund","id":"re_1","amount":500,"currency":"usd","status":"pending"}`
				f.answering("POST refunds", 200, object)
				b.mustWait(id)
				f.answering("GET refunds/…", 200, object)
				state = func() SyncState { return b.refundNow(RefundID(id)).Sync.State }
			}
			b.pass(f, long-time.Minute)
			b.mustWait(id)
			if state() != InDoubt {
				t.Fatalf("%s before its time", state())
			}
			// A clock of the box's that jumps ahead is no reason.
			right := f.clock.now()
			b.clock.wall = func() time.Time { return right.AddDate(10, 0, 0) }
			b.mustWait(id)
			if state() != InDoubt {
				t.Fatalf("%s by the box's clock", state())
			}
			b.clock.wall = f.clock.now
			b.pass(f, 2*time.Minute)
			if err := b.step(id); err != nil {
				t.Fatal(err)
			}
			steps := must(b.Attempts(t.Context(), testTenant, string(payment)))(t)
			if last := steps[len(steps)-1]; state() != Review || last.Step != "poll" || *last.Verdict != "pending" || len(last.Evidence) < 10 {
				t.Errorf("%s, %+v", state(), last)
			}
			b.sound()
		})
	}
}

// A person cannot send again what the processor holds and may still take: a charge that was pending for too long.
func TestVerdictResendsNothingThatIsOpen(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	n := validPayment()
	n.Source = "tok_processing"
	if err := f.sim.SetSettling(simulator.Settling{SettlePolls: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	id := b.pay("", n).ID
	b.mustWait(string(id))
	b.pass(f, pendingMax+time.Minute)
	if err := b.step(string(id)); err != nil || b.now(id).Sync.State != Review {
		t.Fatalf("%v, %+v", err, b.now(id))
	}
	again := Verdict{"resend", "", "took too long"}
	for name, prepare := range map[string]func(){
		"upstream_object_open": func() {},
		"upstream_unavailable": func() { f.answering("GET charges/…", 500, `{"error":{"type":"api_error"}}`) },
	} {
		prepare()
		if _, err := b.Resolve(t.Context(), testTenant, string(id), again); code(err) != name {
			t.Errorf("%v, want %s", err, name)
		}
		f.set(nil, nil)
		_ = b.accountOf(testTenant).ForceBreaker("close")
	}
	f.answering("GET charges/…", 200, fmt.Sprintf(`{"object":"charge","id":%q,"amount":1999,"currency":"usd","status":"failed"}`, *b.now(id).UpstreamID))
	if p := must(b.Resolve(t.Context(), testTenant, string(id), again))(t); p.Sync.State != Queued {
		t.Errorf("%+v", p)
	}
	f.set(nil, nil)
	if err := f.sim.SetSettling(simulator.Settling{}); err != nil {
		t.Fatal(err)
	}
	b.finish(f, string(id))
	if p := b.now(id); p.Status != Succeeded || b.lastKey(id) != string(id)+":2" {
		t.Errorf("%+v under %s", p, b.lastKey(id))
	}
}
