package ledger

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// lostCharge is a payment whose charge took effect and whose answer was lost, longer ago than keys are remembered.
func lostCharge(b *testBox, f *front) PaymentID {
	b.t.Helper()
	p := b.pay("", validPayment())
	f.losing("POST charges")
	b.mustWait(string(p.ID))
	f.set(nil, nil)
	if got := b.now(p.ID); got.Sync.State != InDoubt || b.effects()[p.ID] != 1 {
		b.t.Fatalf("lost as %+v, %d effects", got, b.effects()[p.ID])
	}
	return p.ID
}

// INV-6: a charge that took effect is found after its key was forgotten, and not made again.
func TestForgottenKeyIsFound(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := lostCharge(b, f)
	posts := f.count("POST charges")
	b.pass(f, 25*time.Hour)
	p := b.settleNow(id)
	if p.Status != Succeeded || p.Sync.Attempts != 1 || f.count("POST charges") != posts || b.effects()[id] != 1 {
		t.Fatalf("%+v, %d posts, %d effects", p, f.count("POST charges"), b.effects()[id])
	}
	if s := b.story(id, string(id)); fmt.Sprint(s) != "[charge  unknown resolve found]" {
		t.Errorf("%q", s)
	}
	if told := b.told(string(id)); fmt.Sprint(told) != "[payment.created payment.in_doubt payment.succeeded]" {
		t.Errorf("told %v", told)
	}
	b.sound()
}

// A charge that is proved absent is made under a new key, once, with the proof on record.
func TestProvedAbsentIsSentUnderANewKey(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.pay("", validPayment())
	must(b.sealOnly(string(p.ID)))(t) // and cut short
	b.pass(f, 25*time.Hour)
	b = b.reopen(nil)
	b.hear()
	got := b.settleNow(p.ID)
	if got.Status != Succeeded || got.Sync.Attempts != 2 || b.effects()[p.ID] != 1 {
		t.Fatalf("%+v, %d effects", got, b.effects()[p.ID])
	}
	if key := b.sim.Ledger().Charges[0].IdempotencyKey; key != string(p.ID)+":2" {
		t.Errorf("sent under %s", key)
	}
	if s := b.story(p.ID, string(p.ID)); fmt.Sprint(s) != "[charge  resolve absent charge :2 succeeded]" {
		t.Errorf("%q", s)
	}
	b.sound()
}

// Absence is believed only from a list that began well after the last send.
func TestAbsenceTakesTime(t *testing.T) {
	f := newFront(t)
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, sim: f.sim, url: f.url, keyMemory: time.Minute})
	b.hear()
	p := b.pay("", validPayment())
	must(b.sealOnly(string(p.ID)))(t)
	b.pass(f, 2*time.Minute)
	b.mustWait(string(p.ID))
	if got := b.now(p.ID); got.Sync.Attempts != 1 || f.count("POST charges") != 0 {
		t.Fatalf("two minutes after the seal: %+v", got)
	}
	b.pass(f, sentMargin)
	if got := b.settleNow(p.ID); got.Status != Succeeded || got.Sync.Attempts != 2 {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

// A send whose time the processor's clock does not tell is dated by the first look for it.
func TestUndatedSendIsLookedForTwice(t *testing.T) {
	f := newFront(t)
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, sim: f.sim, url: f.url})
	p := b.pay("", validPayment())
	must(b.sealOnly(string(p.ID)))(t) // nobody has heard the processor yet
	f.clock.add(25 * time.Hour)
	b = b.reopen(nil)
	b.hear()
	for range 2 {
		b.mustWait(string(p.ID))
	}
	if f.count("POST charges") != 0 {
		t.Fatal("sent again")
	}
	b.pass(f, sentMargin)
	if got := b.settleNow(p.ID); got.Status != Succeeded || b.effects()[p.ID] != 1 {
		t.Fatalf("%+v", got)
	}
	if s := b.story(p.ID, string(p.ID)); fmt.Sprint(s) != "[charge  resolve undecided resolve absent charge :2 succeeded]" {
		t.Errorf("%q", s)
	}
	b.sound()
}

// A list that cannot be read proves nothing: nothing is sent, and in the end a person is asked.
func TestUndecidedIsReviewedInTheEnd(t *testing.T) {
	for name, answer := range map[string]struct {
		status int
		body   string
	}{
		"address that knows no charges": {404, `{"error":{"type":"invalid_request_error","message":"Unrecognized request URL"}}`},
		"error":                         {500, `{"error":{"type":"api_error"}}`},
		"garbage":                       {200, `<html>`},
		"list that is none":             {200, `{"object":"list"}`},
		"more on an empty page":         {200, `{"object":"list","data":[],"has_more":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			p := b.pay("", validPayment())
			must(b.sealOnly(string(p.ID)))(t)
			b.pass(f, 25*time.Hour)
			f.answering("GET charges", answer.status, answer.body)
			for i := range looksMin + 5 {
				b.lookups.forgetAll()
				_ = b.accountOf(testTenant).ForceBreaker("close")
				if err := b.step(string(p.ID)); err == nil {
					break
				}
				if got := b.now(p.ID); got.Sync.State != Sending && got.Sync.State != Queued {
					t.Fatalf("look %d: %+v", i, got)
				}
				f.clock.add(2 * time.Hour)
			}
			got := b.now(p.ID)
			if got.Sync.State != Review || got.Sync.Attempts != 1 || f.count("POST charges") != 0 {
				t.Fatalf("%+v, %d posts", got, f.count("POST charges"))
			}
			if s := b.story(p.ID, string(p.ID)); fmt.Sprint(s) != "[charge  resolve undecided resolve undecided]" {
				t.Errorf("%q", s)
			}
			b.sound()
		})
	}
}

// forgetAll makes the next look read anew, as one that comes later does.
func (k *lookups) forgetAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, sh := range k.by {
		sh.last = nil
	}
}

// Two successes for one payment are a person's to look at.
func TestChargedTwiceIsReviewed(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := lostCharge(b, f)
	f.byHand(t, "/charges", marked(string(id), "1999"))
	b.pass(f, 25*time.Hour)
	if err := b.step(string(id)); err != nil {
		t.Fatal(err)
	}
	if p := b.now(id); p.Sync.State != Review {
		t.Fatalf("%+v", p)
	}
	if !slices.ContainsFunc(b.alarms.of(testTenant), func(a Alarm) bool { return a.Code == "payment_charged_twice" }) {
		t.Errorf("alarms %+v", b.alarms.of(testTenant))
	}
	b.sound()
}

// What bears the payment's mark and has another amount is not adopted, and nothing is sent beside it.
func TestFoundWithAnotherAmountIsReviewed(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.pay("", validPayment())
	must(b.sealOnly(string(p.ID)))(t)
	f.byHand(t, "/charges", marked(string(p.ID), "5"))
	b.pass(f, 25*time.Hour)
	if err := b.step(string(p.ID)); err != nil {
		t.Fatal(err)
	}
	if got := b.now(p.ID); got.Sync.State != Review || f.count("POST charges") != 0 {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

// A processor that keeps an error under the key answers it for a day; the charge that took effect is found much earlier.
func TestReplayedErrorIsLookedUpEarly(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.pay("", validPayment())
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if what(r) != "POST charges" {
			return false
		}
		if b.effects()[p.ID] == 0 {
			f.byHand(t, "/charges", marked(string(p.ID), "1999"))
		}
		w.WriteHeader(500)
		fmt.Fprint(w, `{"error":{"type":"api_error"}}`)
		return true
	}, nil)
	for range lookAfter {
		b.mustWait(string(p.ID))
	}
	got := b.settleNow(p.ID)
	if got.Status != Succeeded || got.Sync.Attempts != lookAfter || b.effects()[p.ID] != 1 {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

// An early look that finds nothing proves nothing: the same bytes go out under the same key.
func TestEarlyLookKeepsTheKey(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.pay("", validPayment())
	f.answering("POST charges", 500, `{"error":{"type":"api_error"}}`)
	for range lookAfter + 2 {
		b.mustWait(string(p.ID))
	}
	f.set(nil, nil)
	_ = b.accountOf(testTenant).ForceBreaker("close")
	if got := b.settleNow(p.ID); got.Status != Succeeded || b.sim.Ledger().Charges[0].IdempotencyKey != string(p.ID) {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

// Thousands in doubt are served by one reading of the list.
func TestOneSweepServesMany(t *testing.T) {
	const n = 1000
	f := newFront(t)
	b := openFronted(t, f)
	var ids []PaymentID
	for range n {
		ids = append(ids, b.pay("", validPayment()).ID)
	}
	for i, id := range ids {
		if s := must(b.sealOnly(string(id)))(t); i%2 == 0 { // took effect, answer lost; the other half never left
			f.byHand(t, s.path, must(url.ParseQuery(string(s.body)))(t))
		}
	}
	b.pass(f, 25*time.Hour)
	b = b.reopen(func(o *testOptions) { o.idle = false })
	for _, id := range ids {
		b.settled(id)
	}
	if pages, most := f.count("pages"), n/2/sweepPageSize+1; pages > most {
		t.Errorf("%d pages for %d payments, want at most %d", pages, n, most)
	}
	effects := b.effects()
	for _, id := range ids {
		if effects[id] != 1 {
			t.Errorf("%s: %d effects", id, effects[id])
		}
	}
	b.sound()
}

// sweepPageSize is how many objects a page of the processor's list holds.
const sweepPageSize = 100

// After the API key was rotated, a list proves something only if a charge made with the old key is seen with the new one.
func TestRotatedKeyNeedsAWitness(t *testing.T) {
	for name, c := range map[string]struct {
		paid, other bool // a charge was made with the old key; the new key is another account's
		want        SyncState
	}{
		"same account, with a witness":   {true, false, Settled},
		"another account":                {true, true, Review},
		"no witness":                     {false, false, Review},
		"another account and no witness": {false, true, Review},
	} {
		t.Run(name, func(t *testing.T) {
			f, g := newFront(t), newFront(t)
			g.sim = simulator.New(simulator.Options{Now: f.clock.now})
			f.set(func(w http.ResponseWriter, r *http.Request) bool {
				if c.other && r.Header.Get("Authorization") == "Bearer sk_new" {
					g.ServeHTTP(w, r)
					return true
				}
				return false
			}, nil)
			b := openFronted(t, f)
			b.setUpstream(testTenant, &tenants.Upstream{URL: f.url, Account: "a", Key: "sk_old"})
			b.hear()
			if c.paid {
				b.settleNow(b.pay("", validPayment()).ID)
			}
			p := b.pay("", validPayment())
			must(b.sealOnly(string(p.ID)))(t)
			b.setUpstream(testTenant, &tenants.Upstream{URL: f.url, Account: "a", Key: "sk_new"})
			b.pass(f, 25*time.Hour)
			posts := f.count("POST charges")
			if err := b.step(string(p.ID)); err != nil {
				t.Fatal(err)
			}
			got := b.now(p.ID)
			if got.Sync.State != c.want || c.want == Review && f.count("POST charges") != posts {
				t.Fatalf("%+v, %d posts more", got, f.count("POST charges")-posts)
			}
			b.sound()
		})
	}
}

// afterRestore marks the record as one that a box before this one may have sent.
func (b *testBox) afterRestore(id string, how int) {
	b.t.Helper()
	s := must(b.loadSend(b.t.Context(), testTenant, id))(b.t)
	err := b.update(b.t.Context(), s, func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE `+string(s.table)+` SET resolve_first = ? WHERE tenant = ? AND id = ?`, how, string(testTenant), id)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// After a restore, a payment that the box before has charged is found; one that it has not is sent under its first key.
func TestFormerBoxsPaymentsAreLookedUpFirst(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	charged, unsent := b.pay("", validPayment()), b.pay("", validPayment())
	f.byHand(t, "/charges", marked(string(charged.ID), "1999"))
	for _, p := range []Payment{charged, unsent} {
		b.afterRestore(string(p.ID), 1)
	}
	if _, err := b.sealOnly(string(unsent.ID)); err == nil {
		t.Fatal("sealed before it was looked up")
	}
	if p := b.settleNow(charged.ID); p.Status != Succeeded || p.Sync.Attempts != 0 {
		t.Errorf("charged before: %+v", p)
	}
	b.mustWait(string(unsent.ID)) // what the box before has sent may still be under way
	b.pass(f, formerMargin+time.Second)
	if p := b.settleNow(unsent.ID); p.Status != Succeeded || p.Sync.Attempts != 1 {
		t.Errorf("unsent: %+v", p)
	}
	if s := b.story(unsent.ID, string(unsent.ID)); fmt.Sprint(s) != "[resolve absent charge  succeeded]" {
		t.Errorf("%q", s)
	}
	if got := f.count("POST charges"); got != 1 {
		t.Errorf("%d posts", got)
	}
	b.sound()
}

// A request that is repeated after a restore, which lost its payment, is found by the client's key.
func TestLostPaymentIsFoundByItsKey(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	form := marked("pay_00000000000000000000000000", "1999")
	form.Set("metadata["+markKey+"]", b.keys.upstreamHash(testTenant, "k"))
	f.byHand(t, "/charges", form)
	b.pass(f, time.Hour)
	p := b.pay("k", validPayment())
	b.afterRestore(string(p.ID), 2)
	if got := b.settleNow(p.ID); got.Status != Succeeded || got.Sync.Attempts != 0 || len(b.sim.Ledger().Charges) != 1 {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

// What bears the client's key and is another payment's that the box knows is not taken for this one's.
func TestKeyUsedAgainIsAnotherPayment(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	first := b.pay("", validPayment())
	form := marked(string(first.ID), "1999")
	form.Set("metadata["+markKey+"]", b.keys.upstreamHash(testTenant, "k"))
	f.byHand(t, "/charges", form)
	p := b.pay("k", validPayment())
	b.afterRestore(string(p.ID), 2)
	b.lookups.since(place{b.accountOf(testTenant), "/charges"})
	b.pass(f, time.Hour)
	if got := b.settleNow(p.ID); got.Status != Succeeded || got.Sync.Attempts != 1 || b.effects()[p.ID] != 1 {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

// INV-28: a crash between any two steps of a record's way changes nothing of what it comes to.
func TestCrashBetweenAllSteps(t *testing.T) {
	for name, prepare := range map[string]func(b *testBox, f *front) string{
		"charge, answer lost": func(b *testBox, f *front) string { return string(lostCharge(b, f)) },
		"charge, cut short": func(b *testBox, _ *front) string {
			return must(b.sealOnly(string(b.pay("", validPayment()).ID)))(b.t).id
		},
		"intent": func(b *testBox, _ *front) string { return string(b.pay("", byMethod()).ID) },
		"intent, made and cut short": func(b *testBox, _ *front) string {
			return must(b.sealOnly(string(b.pay("", byMethod()).ID)))(b.t).id
		},
		"intent, confirmation's answer lost": func(b *testBox, f *front) string {
			id := string(b.pay("", byMethod()).ID)
			f.losing("POST payment_intents/…/confirm")
			b.mustWait(id)
			f.set(nil, nil)
			return id
		},
		"refund, answer lost": func(b *testBox, f *front) string {
			id := string(b.giveBack(b.paid(validPayment()), 500))
			f.losing("POST refunds")
			b.mustWait(id)
			f.set(nil, nil)
			return id
		},
		"refund, cut short": func(b *testBox, f *front) string {
			return must(b.sealOnly(string(b.giveBack(b.paid(byMethod()), 500))))(b.t).id
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			id := prepare(b, f)
			b.pass(f, 25*time.Hour)
			for n := 0; ; n++ {
				b = b.reopen(nil)
				b.hear()
				what, err := b.advance(t.Context(), testTenant, id, rest)
				if what == transmitNow {
					what, err = b.advance(t.Context(), testTenant, id, what)
				}
				if err != nil || n > stepsMax {
					t.Fatalf("step %d: %v", n, err)
				}
				if what == rest {
					break
				}
			}
			l := b.sim.Ledger()
			if strings.HasPrefix(id, refundPrefix) {
				if r := b.refundNow(RefundID(id)); r.Status != RefundDone || len(l.Refunds) != 1 {
					t.Fatalf("%+v, %d refunds", r, len(l.Refunds))
				}
			} else if p := b.now(PaymentID(id)); p.Status != Succeeded || len(l.Charges) != 1 {
				t.Fatalf("%+v, %d charges", p, len(l.Charges))
			}
			b.sound()
		})
	}
}
