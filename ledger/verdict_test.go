package ledger

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tenderbox/tenants"
)

// inReview is a payment that a person has to decide about: there is a charge of another amount for it.
func inReview(b *testBox, f *front, n NewPayment) PaymentID {
	b.t.Helper()
	p := b.pay("", n)
	must(b.sealOnly(string(p.ID)))(b.t)
	b.setReview(string(p.ID))
	return p.ID
}

// setReview gives a record to a person, as the resolver does when it cannot find out.
func (b *testBox) setReview(id string) {
	b.t.Helper()
	s := must(b.loadSend(b.t.Context(), testTenant, id))(b.t)
	if err := b.review(s, &finding{kind: kindResolve, account: s.account, began: b.clock.now(), result: resultUndecided}, "test"); err != nil {
		b.t.Fatal(err)
	}
}

func TestVerdictRefuses(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	f.byHand(t, "/charges", marked("", "5"))
	f.byHand(t, "/charges", marked("pay_00000000000000000000000000", "1999"))
	charges := b.sim.Ledger().Charges
	declined := validPayment()
	declined.Source = "tok_chargeDeclined"
	id, open := string(inReview(b, f, validPayment())), string(b.pay("", validPayment()).ID)
	settled := string(b.paid(validPayment()).ID)
	euros := marked("", "1999")
	euros.Set("currency", "eur")
	f.byHand(t, "/charges", euros)
	inEuros := b.sim.Ledger().Charges[3].ID
	for name, c := range map[string]struct {
		id   string
		v    Verdict
		want string
	}{
		"no verdict":          {id, Verdict{"", "", "x"}, "verdict_invalid"},
		"another verdict":     {id, Verdict{"paid", "", "x"}, "verdict_invalid"},
		"no reason":           {id, Verdict{"failed", "", ""}, "reason_missing"},
		"card as reason":      {id, Verdict{"failed", "", "4242 4242 4242 4242"}, "card_data_not_allowed"},
		"long reason":         {id, Verdict{"failed", "", strings.Repeat("x", descriptionMax+1)}, "text_too_long"},
		"no object":           {id, Verdict{"succeeded", "", "x"}, "upstream_id_missing"},
		"object of a failure": {id, Verdict{"failed", "ch_1", "x"}, "upstream_id_invalid"},
		"object of a resend":  {id, Verdict{"resend", "ch_1", "x"}, "upstream_id_invalid"},
		"object not there":    {id, Verdict{"succeeded", "ch_none", "x"}, "upstream_object_missing"},
		"object as a path":    {id, Verdict{"succeeded", "../charges", "x"}, "upstream_object_missing"},
		"another amount":      {id, Verdict{"succeeded", charges[0].ID, "x"}, "upstream_object_differs"},
		"another payment's":   {id, Verdict{"succeeded", charges[1].ID, "x"}, "upstream_object_differs"},
		"another currency":    {id, Verdict{"succeeded", inEuros, "x"}, "upstream_object_differs"},
		"not in review":       {open, Verdict{"failed", "", "x"}, "not_in_review"},
		"settled":             {settled, Verdict{"failed", "", "x"}, "not_in_review"},
		"no payment":          {"pay_00000000000000000000000000", Verdict{"failed", "", "x"}, "not_found"},
		"no id":               {"x", Verdict{"failed", "", "x"}, "not_found"},
		"a refund's":          {"re_00000000000000000000000000", Verdict{"failed", "", "x"}, "not_found"},
	} {
		if _, err := b.Resolve(t.Context(), testTenant, c.id, c.v); code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resolve(t.Context(), "other", id, Verdict{"failed", "", "x"}); code(err) != "not_found" {
		t.Errorf("another tenant decides: %v", err)
	}
	if _, err := b.Attempts(t.Context(), "other", id); code(err) != "not_found" {
		t.Errorf("another tenant reads the attempts: %v", err)
	}
	if err := f.sim.Cut(true); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resolve(t.Context(), testTenant, id, Verdict{"succeeded", "ch_1", "x"}); code(err) != "upstream_unavailable" {
		t.Errorf("without a line: %v", err)
	}
	if p := b.now(PaymentID(id)); p.Sync.State != Review {
		t.Errorf("%+v", p)
	}
	b.sound()
}

func TestVerdictOnAPayment(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)

	found := inReview(b, f, validPayment())
	f.byHand(t, "/charges", marked(string(found), "1999"))
	object := b.sim.Ledger().Charges[0].ID
	p := must(b.Resolve(t.Context(), testTenant, string(found), Verdict{"succeeded", object, "seen in the dashboard"}))(t)
	if p.Status != Succeeded || *p.UpstreamID != object {
		t.Errorf("%+v", p)
	}
	steps := must(b.Attempts(t.Context(), testTenant, string(found)))(t)
	if last := steps[len(steps)-1]; last.Step != "verdict" || *last.Verdict != "succeeded" || *last.Reason != "seen in the dashboard" || last.N != 3 {
		t.Errorf("%+v", last)
	}
	if told := b.told(string(found)); fmt.Sprint(told) != "[payment.created payment.review payment.succeeded]" {
		t.Errorf("told %v", told)
	}

	lost := inReview(b, f, validPayment())
	p = must(b.Resolve(t.Context(), testTenant, string(lost), Verdict{"failed", "", "the bank says no"}))(t)
	if p.Status != Failed || p.Failure.Code != "failed_by_verdict" || strings.Contains(p.Failure.Message, "bank") {
		t.Errorf("%+v", p)
	}
	if _, err := b.Resolve(t.Context(), testTenant, string(lost), Verdict{"resend", "", "no, it says yes"}); code(err) != "not_in_review" {
		t.Errorf("a final state changes: %v", err)
	}

	again := inReview(b, f, validPayment())
	p = must(b.Resolve(t.Context(), testTenant, string(again), Verdict{"resend", "", "not in the dashboard"}))(t)
	if p.Status != Pending || p.Sync.State != Queued || p.Sync.FirstSentAt != nil {
		t.Errorf("%+v", p)
	}
	if _, err := b.jobs.Get(string(testTenant), PaymentsQueue, string(again)); err != nil {
		t.Errorf("no job for it: %v", err)
	}
	if p = b.settleNow(again); p.Status != Succeeded || b.lastKey(again) != string(again)+":2" || b.effects()[again] != 1 {
		t.Errorf("%+v under %s", p, b.lastKey(again))
	}
	// The queue's jobs of an idle box are not derived; those that are due end by themselves.
	b = b.reopen(func(o *testOptions) { o.idle = false })
	b.sound()
}

// Whoever sends an intent again sends the same intent: it is charged once, though its confirmation took effect.
func TestVerdictResendsTheSameIntent(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", byMethod()).ID
	f.losing("POST payment_intents/…/confirm")
	b.mustWait(string(id))
	f.set(nil, nil)
	b.setReview(string(id))
	must(b.Resolve(t.Context(), testTenant, string(id), Verdict{"resend", "", "mistaken"}))(t)
	for range 3 {
		if b.step(string(id)) == nil {
			break
		}
	}
	if p := b.now(id); p.Status != Succeeded || b.effects()[id] != 1 || f.count("POST payment_intents") != 1 {
		t.Fatalf("%+v, %d effects", p, b.effects()[id])
	}
	b = b.reopen(func(o *testOptions) { o.idle = false })
	b.sound()
}

func TestVerdictOnARefund(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	p, other := b.paid(validPayment()), b.paid(validPayment())
	review := func() RefundID {
		id := b.giveBack(p, 500)
		must(b.sealOnly(string(id)))(t)
		b.setReview(string(id))
		return id
	}
	found, second, no, again := review(), RefundID(""), RefundID(""), RefundID("")
	f.byHand(t, "/refunds", map[string][]string{"charge": {*p.UpstreamID}, "amount": {"500"}})
	f.byHand(t, "/refunds", map[string][]string{"charge": {*other.UpstreamID}, "amount": {"500"}})
	mine, theirs := b.sim.Ledger().Refunds[0].ID, b.sim.Ledger().Refunds[1].ID
	if _, err := b.ResolveRefund(t.Context(), testTenant, string(found), Verdict{"succeeded", theirs, "x"}); code(err) != "upstream_object_differs" {
		t.Errorf("another charge's refund: %v", err)
	}
	r := must(b.ResolveRefund(t.Context(), testTenant, string(found), Verdict{"succeeded", mine, "made by hand"}))(t)
	if r.Status != RefundDone || *r.UpstreamID != mine {
		t.Errorf("%+v", r)
	}
	second = review()
	if _, err := b.ResolveRefund(t.Context(), testTenant, string(second), Verdict{"succeeded", mine, "x"}); code(err) != "upstream_object_differs" {
		t.Errorf("one of the processor's for two of ours: %v", err)
	}
	no = second
	if r = must(b.ResolveRefund(t.Context(), testTenant, string(no), Verdict{"failed", "", "not made"}))(t); r.Status != RefundRefused || b.now(p.ID).AmountRefunded != 500 {
		t.Errorf("%+v, %d refunded", r, b.now(p.ID).AmountRefunded)
	}
	if slices.ContainsFunc(b.alarms.of(testTenant), func(a Alarm) bool { return a.Code == "refund_review" }) {
		t.Errorf("alarms %+v", b.alarms.of(testTenant))
	}
	again = review()
	must(b.ResolveRefund(t.Context(), testTenant, string(again), Verdict{"resend", "", "not made"}))(t)
	if err := b.step(string(again)); err != nil {
		t.Fatal(err)
	}
	if r = b.refundNow(again); r.Status != RefundDone || f.refunds()[string(again)] != 1 || b.now(p.ID).AmountRefunded != 1000 {
		t.Errorf("%+v", r)
	}
	if _, err := b.ResolveRefund(t.Context(), testTenant, string(again), Verdict{"failed", "", "x"}); code(err) != "not_in_review" {
		t.Errorf("a final state changes: %v", err)
	}
	b = b.reopen(func(o *testOptions) { o.idle = false })
	b.sound()
}

// Every step of a payment and of its refunds is listed, with what proves it.
func TestAttemptsTellAll(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := lostCharge(b, f)
	b.pass(f, 25*time.Hour)
	p := b.settleNow(id)
	f.clock.add(time.Second)
	r := b.giveBack(p, 500)
	if err := b.step(string(r)); err != nil {
		t.Fatal(err)
	}
	steps := must(b.Attempts(t.Context(), testTenant, string(id)))(t)
	if len(steps) != 3 {
		t.Fatalf("%d steps", len(steps))
	}
	sent, look, back := steps[0], steps[1], steps[2]
	if sent.N != 1 || sent.Step != "charge" || sent.RequestHash == nil || len(*sent.RequestHash) != 64 || !*sent.MaybeSent || *sent.Verdict != "unknown" || string(sent.Evidence) != "null" || sent.EndedAt == nil {
		t.Errorf("%+v", sent)
	}
	if look.N != 2 || look.Step != "resolve" || look.UpstreamKey != nil || look.RequestHash != nil || *look.Verdict != "found" || !strings.Contains(string(look.Evidence), *p.UpstreamID) {
		t.Errorf("%+v", look)
	}
	if back.N != 1 || back.Record != string(r) || back.Step != "refund" || *back.HTTPStatus != 200 || back.RequestID == nil {
		t.Errorf("%+v", back)
	}
	b.sound()
}

// One object of the processor's settles one payment, whoever names it for how many, and in whichever files they stand.
func TestVerdictNamesAnObjectOnce(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	f.byHand(t, "/charges", marked("", "1999"))
	object := b.sim.Ledger().Charges[0].ID
	var ids []PaymentID
	files := map[int]bool{}
	for range 12 {
		id := inReview(b, f, validPayment())
		ids = append(ids, id)
		files[b.shardOf(id).ID()] = true
	}
	if len(files) < 2 {
		t.Fatalf("all in one file")
	}
	var taken atomic.Int64
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			_, err := b.Resolve(t.Context(), testTenant, string(id), Verdict{"succeeded", object, "x"})
			if err == nil {
				taken.Add(1)
			} else if code(err) != "upstream_object_differs" || !strings.Contains(err.Error(), "already") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("it settles %d payments", n)
	}
	b.sound()
}

// What moved once settles one payment, by whichever of its names: an intent, or the charge that belongs to it.
func TestVerdictNamesAnIntentOrItsCharge(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	for range 2 {
		f.byHand(t, "/payment_intents", url.Values{"amount": {"1999"}, "currency": {"usd"}, "payment_method": {"pm_card_visa"}, "confirm": {"true"}})
	}
	first, second := b.sim.Ledger().Charges[0], b.sim.Ledger().Charges[1]
	intent := func() string {
		id := b.pay("", byMethod()).ID
		f.losing("POST payment_intents/…/confirm")
		b.mustWait(string(id))
		f.set(nil, nil)
		b.setReview(string(id))
		return string(id)
	}
	charge := func() string { return string(inReview(b, f, validPayment())) }
	must(b.Resolve(t.Context(), testTenant, charge(), Verdict{"succeeded", first.ID, "x"}))(t)
	if _, err := b.Resolve(t.Context(), testTenant, intent(), Verdict{"succeeded", first.PaymentIntent, "x"}); code(err) != "upstream_object_differs" {
		t.Errorf("the intent of a charge: %v", err)
	}
	must(b.Resolve(t.Context(), testTenant, intent(), Verdict{"succeeded", second.PaymentIntent, "x"}))(t)
	if _, err := b.Resolve(t.Context(), testTenant, charge(), Verdict{"succeeded", second.ID, "x"}); code(err) != "upstream_object_differs" {
		t.Errorf("the charge of an intent: %v", err)
	}
	b.sound()
}

// The processor's account may be several tenants', and none of them is told of another's payment.
func TestVerdictNamesAnotherTenantsObject(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	theirs := must(b.payAs("other", validPayment()))(t)
	s := must(b.loadSend(t.Context(), "other", string(theirs.ID)))(t)
	acc := must(b.accountFor(s))(t)
	if err := b.seal(t.Context(), acc, s); err != nil {
		t.Fatal(err)
	}
	f.byHand(t, "/charges", marked("", "1999"))
	object := b.sim.Ledger().Charges[0].ID
	if err := b.review(must(b.loadSend(t.Context(), "other", string(theirs.ID)))(t), &finding{kind: kindResolve, account: s.account, began: b.clock.now(), result: resultUndecided}, "test"); err != nil {
		t.Fatal(err)
	}
	must(b.Resolve(t.Context(), "other", string(theirs.ID), Verdict{"succeeded", object, "x"}))(t)
	id := inReview(b, f, validPayment())
	_, err := b.Resolve(t.Context(), testTenant, string(id), Verdict{"succeeded", object, "x"})
	if code(err) != "upstream_object_differs" || strings.Contains(err.Error(), string(theirs.ID)) {
		t.Errorf("%v", err)
	}
}

func (b *testBox) payAs(t tenants.ID, n NewPayment) (Payment, error) {
	p, _, err := b.Pay(b.t.Context(), t, "", n)
	return p, err
}
