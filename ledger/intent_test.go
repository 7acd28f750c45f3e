package ledger

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"testing"
	"time"

	"tenderbox/shards"
)

func byMethod() NewPayment {
	return NewPayment{Amount: 1999, Currency: "usd", PaymentMethod: "pm_card_visa"}
}

// An intent is made, kept, and confirmed; one payment is one charge.
func TestIntentTakesTwoSteps(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.settleNow(b.pay("", byMethod()).ID)
	if p.Status != Succeeded || p.Sync.Attempts != 2 || *p.UpstreamID != b.sim.Ledger().Charges[0].PaymentIntent {
		t.Fatalf("%+v", p)
	}
	if s := b.story(p.ID, string(p.ID)); fmt.Sprint(s) != "[create  succeeded confirm :confirm succeeded]" {
		t.Errorf("%q", s)
	}
	declined := byMethod()
	declined.PaymentMethod = "pm_card_chargeDeclined"
	if p := b.settleNow(b.pay("", declined).ID); p.Status != Failed || p.Failure.Code != "card_declined" {
		t.Errorf("declined: %+v", p)
	}
	b.sound()
}

// A crash between the two steps, and one after the confirmation's seal, are gone on from with the intent that was kept.
func TestCrashBetweenCreateAndConfirm(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", byMethod()).ID
	s := must(b.sealOnly(string(id)))(t)
	answer := b.accountOf(testTenant).Post(t.Context(), s.path, s.body, s.key)
	must(b.record(s, &answer, nil))(t)
	p := b.now(id)
	if p.UpstreamID == nil || p.Sync.State != Queued || p.Sync.FirstSentAt != nil {
		t.Fatalf("made, and not confirmed: %+v", p)
	}
	intent := *p.UpstreamID
	b = b.reopen(nil)
	b.hear()
	if s = must(b.sealOnly(string(id)))(t); s.step != confirm {
		t.Fatalf("goes on with %s", s.step)
	}
	b = b.reopen(nil) // nothing was sent
	b.hear()
	if p = b.settleNow(id); p.Status != Succeeded || *p.UpstreamID != intent || b.effects()[id] != 1 || f.count("POST payment_intents") != 1 {
		t.Fatalf("%+v, %d effects", p, b.effects()[id])
	}
	b.sound()
}

// INV-6: a confirmation that took effect and whose answer was lost is found in the intent, whatever the age of its key.
func TestLostConfirmationIsFoundInTheIntent(t *testing.T) {
	for name, age := range map[string]time.Duration{"at once": 0, "key forgotten": 25 * time.Hour, "a year later": 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			id := b.pay("", byMethod()).ID
			f.losing("POST payment_intents/…/confirm")
			b.mustWait(string(id))
			f.set(nil, nil)
			if p := b.now(id); p.Sync.State != InDoubt || b.effects()[id] != 1 {
				t.Fatalf("%+v", p)
			}
			posts := f.count("POST payment_intents/…/confirm")
			b.pass(f, age)
			if p := b.settleNow(id); p.Status != Succeeded || b.effects()[id] != 1 || f.count("POST payment_intents/…/confirm") != posts {
				t.Fatalf("%+v, %d effects", p, b.effects()[id])
			}
			if s := b.story(id, string(id)); fmt.Sprint(s) != "[create  succeeded confirm :confirm unknown poll found]" {
				t.Errorf("%q", s)
			}
			b.sound()
		})
	}
}

// A confirmation that the processor keeps an error for is asked for again under another key: the intent is charged once.
func TestConfirmationWithAReplayedError(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", byMethod()).ID
	f.answering("POST payment_intents/…/confirm", 500, `{"error":{"type":"api_error"}}`)
	b.mustWait(string(id))
	f.set(nil, nil)
	if p := b.settleNow(id); p.Status != Succeeded || b.sim.Ledger().Charges[0].IdempotencyKey != string(id)+":confirm:2" {
		t.Fatalf("%+v", p)
	}
	if s := b.story(id, string(id)); fmt.Sprint(s) != "[create  succeeded confirm :confirm unknown poll absent confirm :confirm:2 succeeded]" {
		t.Errorf("%q", s)
	}
	b.sound()
}

// A 429 to a confirmation changes no key, however often it comes.
func TestThrottledConfirmationKeepsItsKey(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", byMethod()).ID
	f.losing("POST payment_intents/…/confirm") // cut before it is worked on
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if what(r) == "POST payment_intents/…/confirm" {
			panic(http.ErrAbortHandler)
		}
		return false
	}, nil)
	b.mustWait(string(id))
	f.answering("POST payment_intents/…/confirm", 429, `{"error":{"type":"rate_limit_error"}}`)
	b.mustWait(string(id))
	series := func() (n int) {
		s := must(b.loadSend(t.Context(), testTenant, string(id)))(t)
		return s.series
	}
	before := series()
	for range 3 {
		b.pass(f, 2*time.Second) // longer than is waited after a 429 that names no time
		b.mustWait(string(id))
	}
	if got := series(); got != before || before != 2 {
		t.Errorf("series %d, then %d", before, got)
	}
}

// The intent's making is repeated under new keys when its answers are lost: none of them is charged but the one that is kept.
func TestLostIntentsAreNotCharged(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", byMethod()).ID
	f.answering("POST payment_intents", 500, `{"error":{"type":"api_error"}}`)
	for range lookAfter + 1 {
		b.mustWait(string(id))
	}
	if p := b.now(id); p.Sync.State != Queued || b.lastKey(id) != string(id)+":2" {
		t.Errorf("%+v, under %s", p, b.lastKey(id))
	}
	f.losing("POST payment_intents")
	_ = b.accountOf(testTenant).ForceBreaker("close")
	b.mustWait(string(id))
	f.set(nil, nil)
	b.pass(f, 25*time.Hour)
	if p := b.settleNow(id); p.Status != Succeeded || b.effects()[id] != 1 {
		t.Fatalf("%+v", p)
	}
	b.sound()
}

// lastKey is the upstream key of the latest send.
func (b *testBox) lastKey(id PaymentID) (key string) {
	b.t.Helper()
	for _, a := range must(b.Attempts(b.t.Context(), testTenant, string(id)))(b.t) {
		if a.UpstreamKey != nil {
			key = *a.UpstreamKey
		}
	}
	return key
}

// A processing intent is asked for until it has an end, and the asking leaves few rows.
func TestProcessingIsPolledToItsEnd(t *testing.T) {
	for end, want := range map[string]Status{"succeeded": Succeeded, "canceled": Failed, "requires_payment_method": Failed} {
		t.Run(end, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			id := b.pay("", byMethod()).ID
			status := "processing"
			f.set(func(w http.ResponseWriter, r *http.Request) bool {
				if what(r) != "POST payment_intents/…/confirm" && what(r) != "GET payment_intents/…" {
					return false
				}
				fmt.Fprintf(w, `{"object":"payment_intent","id":%q,"amount":1999,"currency":"usd","status":%q}`, *b.now(id).UpstreamID, status)
				return true
			}, nil)
			for range 10 {
				b.mustWait(string(id))
			}
			if p := b.now(id); p.Sync.State != InDoubt || p.Status != Pending {
				t.Fatalf("%+v", p)
			}
			f.clock.add(10 * 24 * time.Hour) // as slow as a bank
			b.mustWait(string(id))
			status = end
			if p := b.settleNow(id); p.Status != want {
				t.Fatalf("%+v", p)
			}
			if s := b.story(id, string(id)); fmt.Sprint(s) != "[create  succeeded confirm :confirm unknown poll pending poll found]" {
				t.Errorf("%q", s)
			}
			b.sound()
		})
	}
}

// A charge that is pending is asked for by its id, and a 404 to that is no answer.
func TestPendingChargeIsPolled(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", validPayment()).ID
	f.answering("POST charges", 200, `{"object":"charge","id":"ch_1","amount":1999,"currency":"usd","status":"pending"}`)
	b.mustWait(string(id))
	f.set(nil, nil)
	for range 3 {
		b.mustWait(string(id)) // the simulator knows of no ch_1
	}
	if p := b.now(id); p.Sync.State != InDoubt || f.count("POST charges") != 1 || *p.UpstreamID != "ch_1" {
		t.Fatalf("%+v, %d posts", p, f.count("POST charges"))
	}
	f.answering("GET charges/…", 200, `{"object":"charge","id":"ch_1","amount":1999,"currency":"usd","status":"succeeded"}`)
	b.pass(f, 40*24*time.Hour)
	if p := b.settleNow(id); p.Status != Succeeded || *p.UpstreamID != "ch_1" {
		t.Fatalf("%+v", p)
	}
	if s := b.story(id, string(id)); fmt.Sprint(s) != "[charge  unknown poll undecided poll found]" {
		t.Errorf("%q", s)
	}
	b.sound()
}

// What a program of before the two steps has sealed asks for the money at once: it is a charge, and not made anew when its key is old.
func TestIntentSealedByAnOlderProgram(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", byMethod()).ID
	s := must(b.sealOnly(string(id)))(t)
	s.body = append(s.body, "&confirm=true"...)
	answer := b.accountOf(testTenant).Post(t.Context(), s.path, s.body, s.key)
	if answer.Object.Status != "succeeded" {
		t.Fatalf("%+v", answer)
	}
	hash := sha256.Sum256(s.body)
	err := b.update(t.Context(), s, func(tx *shards.Tx) error {
		if _, err := tx.Exec(`UPDATE sends SET body = ?, body_hash = ? WHERE tenant = ? AND record = ?`,
			b.keyring.Seal(sendRecord(testTenant, s.id, s.key), s.body), hash[:], string(testTenant), s.id); err != nil {
			return err
		}
		_, err := tx.Exec(`UPDATE attempts SET step = NULL WHERE tenant = ? AND record = ?`, string(testTenant), s.id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.pass(f, 25*time.Hour)
	if p := b.settleNow(id); p.Status != Succeeded || b.effects()[id] != 1 || f.count("POST payment_intents") != 1 {
		t.Fatalf("%+v, %d effects", p, b.effects()[id])
	}
	b.sound()
}

// One answer that names another amount may be garbled; a second one is the processor's word, and a person's affair.
func TestPolledAmountIsAskedForTwice(t *testing.T) {
	for _, garbled := range []bool{true, false} {
		f := newFront(t)
		b := openFronted(t, f)
		id := b.pay("", validPayment()).ID
		f.answering("POST charges", 200, `{"object":"charge","id":"ch_1","amount":1999,"currency":"usd","status":"pending"}`)
		b.mustWait(string(id))
		f.answering("GET charges/…", 200, `{"object":"charge","id":"ch_1","amount":2000,"currency":"usd","status":"succeeded"}`)
		b.mustWait(string(id))
		if garbled {
			f.answering("GET charges/…", 200, `{"object":"charge","id":"ch_1","amount":1999,"currency":"usd","status":"succeeded"}`)
		}
		if err := b.step(string(id)); err != nil {
			t.Fatal(err)
		}
		if p := b.now(id); garbled != (p.Status == Succeeded) || garbled == (p.Sync.State == Review) {
			t.Errorf("garbled once %v: %s, %s", garbled, p.Status, p.Sync.State)
		}
		b.sound()
	}
}
