package ledger

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"tenderbox/shards"
)

// paid is a payment that was charged.
func (b *testBox) paid(n NewPayment) Payment {
	b.t.Helper()
	p := b.settleNow(b.pay("", n).ID)
	if p.Status != Succeeded {
		b.t.Fatalf("%+v", p)
	}
	return p
}

func (b *testBox) giveBack(p Payment, amount int64) RefundID {
	b.t.Helper()
	return b.refund("", NewRefund{PaymentID: string(p.ID), Amount: amount, Reason: "requested_by_customer", Metadata: map[string]string{"till": "7"}}).ID
}

// Refunds of a charge and of an intent are given back once each, part by part.
func TestRefundsAreSent(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	var form url.Values
	for _, n := range []NewPayment{validPayment(), byMethod()} {
		p := b.paid(n)
		f.set(func(_ http.ResponseWriter, r *http.Request) bool { form = r.PostForm; return false }, nil)
		for _, amount := range []int64{500, 1499} {
			id := b.giveBack(p, amount)
			if err := b.step(string(id)); err != nil {
				t.Fatal(err)
			}
			r := b.refundNow(id)
			if r.Status != RefundDone || r.UpstreamID == nil || r.SettledAt == nil || f.refunds()[string(id)] != 1 {
				t.Fatalf("%+v, %d given back", r, f.refunds()[string(id)])
			}
			if form.Get("reason") != "requested_by_customer" || form.Get("metadata[till]") != "7" || form.Get("metadata[tenderbox_payment]") != string(p.ID) || form.Get("metadata[tenderbox_refund]") != string(id) {
				t.Errorf("sent %v", form)
			}
			if told := b.told(string(id)); fmt.Sprint(told) != "[refund.created refund.succeeded]" {
				t.Errorf("told %v", told)
			}
		}
		f.set(nil, nil)
		if got := b.now(p.ID); got.AmountRefunded != 1999 || got.Status != Succeeded {
			t.Errorf("%+v", got)
		}
	}
	b.sound()
}

// What the processor refuses may be refunded again.
func TestRefusedRefundGivesItsAmountBack(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.paid(validPayment())
	f.byHand(t, "/refunds", url.Values{"charge": {*p.UpstreamID}}) // behind the box's back
	id := b.giveBack(p, 500)
	if err := b.step(string(id)); err != nil {
		t.Fatal(err)
	}
	if r := b.refundNow(id); r.Status != RefundRefused || r.Failure == nil || r.Failure.Code != "charge_already_refunded" {
		t.Fatalf("%+v", r)
	}
	if got := b.now(p.ID); got.AmountRefunded != 0 {
		t.Errorf("%d are refunded", got.AmountRefunded)
	}
	if told := b.told(string(id)); fmt.Sprint(told) != "[refund.created refund.failed]" {
		t.Errorf("told %v", told)
	}
	b.sound()
}

// INV-6 for what is given back: an answer lost, a key forgotten, a crash between seal and send.
func TestRefundIsGivenOnce(t *testing.T) {
	for name, c := range map[string]struct {
		effect bool          // the send took effect, and its answer was lost
		age    time.Duration // of the send when it is settled
	}{
		"lost answer":                {true, 0},
		"lost answer, forgotten key": {true, 25 * time.Hour},
		"cut short":                  {false, 0},
		"cut short, forgotten key":   {false, 25 * time.Hour},
		"lost answer, a year ago":    {true, 365 * 24 * time.Hour},
	} {
		for _, n := range []NewPayment{validPayment(), byMethod()} {
			for _, amount := range []int64{500, 1999} {
				t.Run(fmt.Sprint(name, n.PaymentMethod, amount), func(t *testing.T) {
					f := newFront(t)
					b := openFronted(t, f)
					p := b.paid(n)
					id := b.giveBack(p, amount)
					if c.effect {
						f.losing("POST refunds")
						b.mustWait(string(id))
						f.set(nil, nil)
					} else {
						must(b.sealOnly(string(id)))(t)
					}
					b.pass(f, c.age)
					b = b.reopen(nil)
					b.hear()
					if err := b.step(string(id)); err != nil {
						t.Fatal(err)
					}
					if r := b.refundNow(id); r.Status != RefundDone || f.refunds()[string(id)] != 1 || len(b.sim.Ledger().Refunds) != 1 {
						t.Fatalf("%+v, %d given back", r, len(b.sim.Ledger().Refunds))
					}
					b.sound()
				})
			}
		}
	}
}

// A repeat that is refused because the charge is refunded already tells of the first send's effect: the refund stays in doubt until it is found.
func TestRepeatRefusedAsRefundedIsFound(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.paid(validPayment())
	id := b.giveBack(p, 1999)
	f.losing("POST refunds")
	b.mustWait(string(id))
	f.set(nil, nil)
	f.sim.ForgetAllKeys()
	for range lookAfter {
		if b.step(string(id)) == nil {
			break
		}
	}
	if r := b.refundNow(id); r.Status != RefundDone || len(b.sim.Ledger().Refunds) != 1 {
		t.Fatalf("%+v", r)
	}
	b.sound()
}

// A refund that can never be found out is a person's, and an alarm says so.
func TestRefundInReviewRaisesAnAlarm(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.paid(validPayment())
	id := b.giveBack(p, 500)
	s := must(b.sealOnly(string(id)))(t)
	f.byHand(t, "/refunds", url.Values{"charge": {*p.UpstreamID}, "amount": {"400"}, "metadata[" + markRefund + "]": {s.id}})
	b.pass(f, 25*time.Hour)
	if err := b.step(string(id)); err != nil {
		t.Fatal(err)
	}
	if r := b.refundNow(id); r.Sync.State != Review || r.Status != RefundPending {
		t.Fatalf("%+v", r)
	}
	if !slices.ContainsFunc(b.alarms.of(testTenant), func(a Alarm) bool { return a.Code == "refund_review" }) {
		t.Errorf("alarms %+v", b.alarms.of(testTenant))
	}
	b.sound()
}

// Money goes back to the account that it was paid to: while the tenant has another, the refund waits.
func TestRefundWaitsForItsPaymentsAccount(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.paid(validPayment())
	id := b.giveBack(p, 500)
	s := must(b.loadSend(t.Context(), testTenant, string(id)))(t)
	err := b.update(t.Context(), s, func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE payments SET account = 'another at http://elsewhere' WHERE tenant = ? AND id = ?`, string(testTenant), string(p.ID))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.mustWait(string(id))
	if r := b.refundNow(id); r.Sync.State != Queued || f.count("POST refunds") != 0 {
		t.Fatalf("%+v", r)
	}
	if err := b.ChangeAccount(t.Context(), testTenant, func() error { return nil }); code(err) != "upstream_account_in_use" {
		t.Errorf("the account changes under a refund: %v", err)
	}
}

// A refund that is pending at the processor is asked for until it has an end.
func TestPendingRefundIsPolled(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p := b.paid(validPayment())
	id := b.giveBack(p, 500)
	f.answering("POST refunds", 200, `{"object":"refund","id":"re_1","amount":500,"currency":"usd","status":"pending"}`)
	b.mustWait(string(id))
	f.answering("GET refunds/…", 200, `{"object":"refund","id":"re_1","amount":500,"currency":"usd","status":"pending"}`)
	for range 4 {
		b.mustWait(string(id))
	}
	f.answering("GET refunds/…", 200, `{"object":"refund","id":"re_1","amount":500,"currency":"usd","status":"failed"}`)
	if err := b.step(string(id)); err != nil {
		t.Fatal(err)
	}
	if r := b.refundNow(id); r.Status != RefundRefused || b.now(p.ID).AmountRefunded != 0 || f.count("POST refunds") != 1 {
		t.Fatalf("%+v", r)
	}
	if s := b.story(p.ID, string(id)); fmt.Sprint(s) != "[refund  unknown poll pending poll found]" {
		t.Errorf("%q", s)
	}
	b.sound()
}
