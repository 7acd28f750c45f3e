package ledger

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// noon is when the tests begin: midnight is far.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// openReconciled opens an idle box, at noon, in front of a processor.
func openReconciled(t *testing.T) (*testBox, *front) {
	f := newFront(t)
	f.clock.set(noon)
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, zone: time.UTC, sim: f.sim, url: f.url})
	b.hear()
	return b, f
}

// rowsWritten counts what stands in the journals.
func (b *testBox) rowsWritten() (n uint64) {
	for _, p := range b.parts {
		n += p.journal.currentHead().seq
	}
	return n
}

// compared compares the day of the tests, and holds that nothing but reading was done.
func (b *testBox) compared(f *front, t tenants.ID) Reconciliation {
	b.t.Helper()
	rows, posts, theirs := b.rowsWritten(), f.posts(), b.sim.Ledger()
	r := must(b.Reconcile(b.t.Context(), t, noon.Add(-12*time.Hour), noon.Add(12*time.Hour)))(b.t)
	if b.rowsWritten() != rows || f.posts() != posts || !reflect.DeepEqual(b.sim.Ledger(), theirs) {
		b.t.Errorf("it was not only looked at: %d rows, %d posts more", b.rowsWritten()-rows, f.posts()-posts)
	}
	kept := must(b.Reconciliation(b.t.Context(), t, string(r.ID)))(b.t)
	if !reflect.DeepEqual(kept, r) {
		b.t.Errorf("kept %+v\nsaid %+v", kept, r)
	}
	return r
}

// posts counts the requests that could change something.
func (f *front) posts() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for what, times := range f.asked {
		if strings.HasPrefix(what, http.MethodPost) {
			n += times
		}
	}
	return n
}

// brief is a difference in words.
func (d *Difference) brief() string {
	text := string(d.Kind)
	for _, id := range []*string{(*string)(d.PaymentID), (*string)(d.RefundID), d.UpstreamID} {
		if id != nil {
			text += " " + *id
		} else {
			text += " -"
		}
	}
	for _, s := range []*Side{d.Ours, d.Theirs} {
		if s != nil {
			text += fmt.Sprintf(" %d %s %s", s.Amount, s.Currency, s.Status)
		} else {
			text += " -"
		}
	}
	return text
}

func briefs(r *Reconciliation) []string {
	var all []string
	for i := range r.Differences {
		all = append(all, r.Differences[i].brief())
	}
	return all
}

// byHandID makes an object at the processor and returns its id.
func (f *front) byHandID(t *testing.T, path string, form url.Values) string {
	t.Helper()
	f.byHand(t, path, form)
	l := f.sim.Ledger()
	if path == "/refunds" {
		return l.Refunds[len(l.Refunds)-1].ID
	}
	return l.Charges[len(l.Charges)-1].ID
}

// A day of everything that a till does is equal, whatever else the account holds.
func TestReconcileEqual(t *testing.T) {
	b, f := openReconciled(t)
	byCharge, byIntent := b.paid(validPayment()), b.paid(byMethod())
	for _, p := range []Payment{byCharge, byIntent} {
		r := b.giveBack(p, 500)
		if err := b.step(string(r)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []NewPayment{{Amount: 5, Currency: "usd", Source: "tok_chargeDeclined"}, {Amount: 5, Currency: "usd", PaymentMethod: "pm_card_chargeDeclined"}} {
		if p := b.settleNow(b.pay("", n).ID); p.Status != Failed {
			t.Fatalf("%+v", p)
		}
	}
	b.refund("", NewRefund{PaymentID: string(b.pay("", validPayment()).ID)}) // canceled
	b.pay("", validPayment())                                                // waits
	foreign := f.byHandID(t, "/charges", url.Values{"amount": {"77"}, "currency": {"usd"}, "source": {"tok_visa"}})
	f.byHand(t, "/payment_intents", url.Values{"amount": {"78"}, "currency": {"usd"}, "payment_method": {"pm_card_visa"}, "confirm": {"true"}})
	f.byHand(t, "/refunds", url.Values{"charge": {foreign}})
	f.byHand(t, "/charges", marked("pay_nonsense", "79"))
	b.pass(f, time.Hour)
	r := b.compared(f, testTenant)
	if r.Status != Equal || r.Reason != nil || r.Payments != 2 || r.Refunds != 2 || r.Foreign != 4 || r.Open != 0 || r.Total != 0 || r.Objects != 6 {
		t.Errorf("%+v", r)
	}
	if r.Account != b.accountOf(testTenant).Name() || !r.To.Equal(noon.Add(time.Hour)) || r.Day != nil {
		t.Errorf("%+v", r)
	}
	b.sound()
}

// Each kind of difference, made for real.
func TestReconcileDifferences(t *testing.T) {
	unknown := string(newIDs().payment(noon, 7))
	lost := string(newIDs().refund(noon, 7))
	own := func(b *testBox, form url.Values) url.Values {
		form.Set("metadata["+markOwner+"]", b.keys.ownerMark(testTenant))
		return form
	}
	alter := func(b *testBox, id string, a simulator.Altered) {
		b.t.Helper()
		if err := b.sim.Alter(id, a); err != nil {
			b.t.Fatal(err)
		}
	}
	refunded := func(b *testBox, p Payment) Refund {
		b.t.Helper()
		id := b.giveBack(p, 500)
		if err := b.step(string(id)); err != nil {
			b.t.Fatal(err)
		}
		return b.refundNow(id)
	}
	for name, make := range map[string]func(b *testBox, f *front) []string{
		"charge that the ledger does not know": func(b *testBox, f *front) []string {
			id := f.byHandID(t, "/charges", own(b, marked(unknown, "1234")))
			return []string{"missing_here " + unknown + " - " + id + " - 1234 usd succeeded"}
		},
		"charge of an older program": func(b *testBox, f *front) []string {
			id := f.byHandID(t, "/charges", marked(unknown, "1234"))
			return []string{"missing_here " + unknown + " - " + id + " - 1234 usd succeeded"}
		},
		"intent that the ledger does not know": func(b *testBox, f *front) []string {
			form := own(b, marked(unknown, "1234"))
			form.Set("payment_method", "pm_card_visa")
			form.Set("confirm", "true")
			form.Del("source")
			f.byHand(t, "/payment_intents", form)
			return []string{"missing_here " + unknown + " - " + b.sim.Ledger().Charges[1].PaymentIntent + " - 1234 usd succeeded"}
		},
		"refund that the ledger does not know": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			id := f.byHandID(t, "/refunds", own(b, url.Values{"charge": {*p.UpstreamID}, "amount": {"9"},
				"metadata[" + markPayment + "]": {string(p.ID)}, "metadata[" + markRefund + "]": {lost}}))
			return []string{"missing_here " + string(p.ID) + " " + lost + " " + id + " - 9 usd succeeded"}
		},
		"charge that the processor does not know": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			alter(b, *p.UpstreamID, simulator.Altered{Gone: true})
			return []string{"missing_there " + string(p.ID) + " - " + *p.UpstreamID + " 1999 usd succeeded -"}
		},
		"intent that the processor does not know": func(b *testBox, f *front) []string {
			p := b.paid(byMethod())
			alter(b, *p.UpstreamID, simulator.Altered{Gone: true})
			alter(b, b.sim.Ledger().Charges[1].ID, simulator.Altered{Gone: true})
			return []string{"missing_there " + string(p.ID) + " - " + *p.UpstreamID + " 1999 usd succeeded -"}
		},
		"refund that the processor does not know": func(b *testBox, f *front) []string {
			r := refunded(b, b.paid(validPayment()))
			alter(b, *r.UpstreamID, simulator.Altered{Gone: true})
			return []string{"missing_there " + string(r.PaymentID) + " " + string(r.ID) + " " + *r.UpstreamID + " 500 usd succeeded -"}
		},
		"amount of a charge": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			alter(b, *p.UpstreamID, simulator.Altered{Amount: 1998})
			return []string{"amount " + string(p.ID) + " - " + *p.UpstreamID + " 1999 usd succeeded 1998 usd succeeded"}
		},
		"amount of a refund": func(b *testBox, f *front) []string {
			r := refunded(b, b.paid(byMethod()))
			alter(b, *r.UpstreamID, simulator.Altered{Amount: 50})
			return []string{"amount " + string(r.PaymentID) + " " + string(r.ID) + " " + *r.UpstreamID + " 500 usd succeeded 50 usd succeeded"}
		},
		"currency": func(b *testBox, f *front) []string {
			p := b.paid(byMethod())
			alter(b, *p.UpstreamID, simulator.Altered{Currency: "eur"})
			return []string{"currency " + string(p.ID) + " - " + *p.UpstreamID + " 1999 usd succeeded 1999 eur succeeded"}
		},
		"success that is none there": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			alter(b, *p.UpstreamID, simulator.Altered{Status: "failed"})
			return []string{"status " + string(p.ID) + " - " + *p.UpstreamID + " 1999 usd succeeded 1999 usd failed"}
		},
		"intent that is canceled there": func(b *testBox, f *front) []string {
			p := b.paid(byMethod())
			alter(b, *p.UpstreamID, simulator.Altered{Status: "canceled"})
			return []string{"status " + string(p.ID) + " - " + *p.UpstreamID + " 1999 usd succeeded 1999 usd canceled"}
		},
		"refusal that is none there": func(b *testBox, f *front) []string {
			p := b.settleNow(b.pay("", NewPayment{Amount: 1999, Currency: "usd", Source: "tok_chargeDeclined"}).ID)
			id := f.byHandID(t, "/charges", marked(string(p.ID), "1999"))
			return []string{"status " + string(p.ID) + " - " + id + " 1999 usd failed 1999 usd succeeded"}
		},
		"success of what was never sent": func(b *testBox, f *front) []string {
			p := b.pay("", validPayment())
			id := f.byHandID(t, "/charges", marked(string(p.ID), "1999"))
			return []string{"status " + string(p.ID) + " - " + id + " 1999 usd pending 1999 usd succeeded"}
		},
		"refund at the processor's desk": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			id := f.byHandID(t, "/refunds", url.Values{"charge": {*p.UpstreamID}, "amount": {"300"}})
			return []string{"refunded " + string(p.ID) + " - " + id + " - 300 usd succeeded"}
		},
		"refund at the desk of an intent": func(b *testBox, f *front) []string {
			p := b.paid(byMethod())
			id := f.byHandID(t, "/refunds", url.Values{"payment_intent": {*p.UpstreamID}})
			return []string{"refunded " + string(p.ID) + " - " + id + " - 1999 usd succeeded"}
		},
		"refund at the desk of an old charge": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			f.clock.set(noon.Add(20 * time.Hour)) // the next day; the charge is far from the span
			return []string{"refunded " + string(p.ID) + " - " + f.byHandID(t, "/refunds", url.Values{"charge": {*p.UpstreamID}}) + " - 1999 usd succeeded"}
		},
		"second charge": func(b *testBox, f *front) []string {
			p := b.paid(validPayment())
			id := f.byHandID(t, "/charges", marked(string(p.ID), "1999"))
			return []string{"duplicate " + string(p.ID) + " - " + id + " 1999 usd succeeded 1999 usd succeeded"}
		},
		"second charge, of an intent": func(b *testBox, f *front) []string {
			p := b.paid(byMethod())
			id := f.byHandID(t, "/charges", marked(string(p.ID), "1999"))
			return []string{"duplicate " + string(p.ID) + " - " + id + " 1999 usd succeeded 1999 usd succeeded"}
		},
		"second refund": func(b *testBox, f *front) []string {
			r := refunded(b, b.paid(validPayment()))
			id := f.byHandID(t, "/refunds", url.Values{"charge": {b.sim.Ledger().Charges[1].ID}, "amount": {"500"},
				"metadata[" + markPayment + "]": {string(r.PaymentID)}, "metadata[" + markRefund + "]": {string(r.ID)}})
			return []string{"duplicate " + string(r.PaymentID) + " " + string(r.ID) + " " + id + " 500 usd succeeded 500 usd succeeded"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, f := openReconciled(t)
			b.paid(validPayment()) // equal, and in nobody's way
			before := f.clock.now()
			want := make(b, f)
			from := noon.Add(-time.Hour)
			if now := f.clock.now(); now.After(before) {
				from = now.Add(-time.Hour)
			}
			b.pass(f, time.Hour)
			rows := b.rowsWritten()
			r := must(b.Reconcile(t.Context(), testTenant, from, f.clock.now()))(t)
			if got := briefs(&r); r.Status != Different || !reflect.DeepEqual(got, want) || r.Total != 1 || r.Kinds[r.Differences[0].Kind] != 1 {
				t.Errorf("%+v\n got %q\nwant %q", r, got, want)
			}
			if b.rowsWritten() != rows {
				t.Error("something was written")
			}
		})
	}
}

// What another tenant has left at the account, before tenants were named there, is not told to the one that has it to itself now.
func TestReconcileFormerTenant(t *testing.T) {
	b, f := openReconciled(t)
	const former = tenants.ID("former")
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: former}); err != nil {
		t.Fatal(err)
	}
	his, _, err := b.Pay(t.Context(), former, "", validPayment())
	if err != nil {
		t.Fatal(err)
	}
	f.byHand(t, "/charges", marked(string(his.ID), "1999"))
	b.setUpstream(former, &tenants.Upstream{URL: f.url, Account: "his", Key: "sk_his"})
	b.pass(f, time.Hour)
	if r := b.compared(f, testTenant); r.Status != Equal || r.Foreign != 0 || r.Objects != 0 {
		t.Errorf("%+v %q", r, briefs(&r))
	}
}

// What is on its way is no difference; what waits for a person is.
func TestReconcileUnsettled(t *testing.T) {
	b, f := openReconciled(t)
	id := lostCharge(b, f)
	b.pass(f, time.Hour)
	if r := b.compared(f, testTenant); r.Status != Equal || r.Open != 1 {
		t.Errorf("in doubt: %+v", r)
	}
	review(t, b, string(id))
	r := b.compared(f, testTenant)
	want := []string{"status " + string(id) + " - " + b.sim.Ledger().Charges[0].ID + " 1999 usd pending 1999 usd succeeded"}
	if got := briefs(&r); r.Open != 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("in review: %+v\n%q", r, got)
	}
	b.sound()
}

// review gives the record to a person.
func review(t *testing.T, b *testBox, id string) {
	t.Helper()
	s := must(b.loadSend(t.Context(), testTenant, id))(t)
	if err := b.review(s, &finding{kind: kindResolve, account: "a", began: b.clock.now(), result: resultUndecided}, "for a person"); err != nil {
		t.Fatal(err)
	}
}

// A list that was not read whole proves nothing missing, and says why; what it showed stands.
func TestReconcileIncomplete(t *testing.T) {
	for name, c := range map[string]struct {
		kind, body string
		status     int
		after      string
		reason     string
	}{
		"asked to wait":          {"GET charges", `{"error":{"type":"rate_limit_error"}}`, 429, "120", "/charges could not be read whole"},
		"error":                  {"GET payment_intents", `{"error":{"type":"api_error"}}`, 500, "", "/payment_intents could not be read whole"},
		"key that may not":       {"GET refunds", `{"error":{"type":"invalid_request_error"}}`, 403, "", "/refunds could not be read whole"},
		"no such list":           {"GET refunds", `{"error":{"type":"invalid_request_error","message":"Unrecognized request URL"}}`, 404, "", "/refunds could not be read whole"},
		"more on an empty page":  {"GET charges", `{"object":"list","data":[],"has_more":true}`, 200, "", "nothing on its page"},
		"cut":                    {"GET charges", "", 0, "", "/charges could not be read whole"},
		"object not asked for":   {"GET charges/…", `{"error":{"type":"api_error"}}`, 500, "", "could not be asked for"},
		"404 of somebody else's": {"GET charges/…", `<html>`, 404, "", "could not be asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			b, f := openReconciled(t)
			p, altered := b.paid(validPayment()), b.paid(byMethod())
			for id, a := range map[string]simulator.Altered{*p.UpstreamID: {Gone: true}, *altered.UpstreamID: {Amount: 1}} {
				if err := b.sim.Alter(id, a); err != nil {
					t.Fatal(err)
				}
			}
			b.pass(f, time.Hour)
			f.set(func(w http.ResponseWriter, r *http.Request) bool {
				if what(r) != c.kind || r.URL.Query().Get("limit") == "1" {
					return false
				}
				if c.status == 0 {
					panic(http.ErrAbortHandler)
				}
				w.Header().Set("Date", f.clock.now().UTC().Format(http.TimeFormat))
				w.Header().Set("Content-Type", "application/json")
				if c.after != "" {
					w.Header().Set("Retry-After", c.after)
				}
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
				return true
			}, nil)
			r := b.compared(f, testTenant)
			if r.Status != Incomplete || r.Reason == nil || !strings.Contains(*r.Reason, c.reason) || r.Kinds[MissingThere] != 0 {
				t.Fatalf("%+v %s", r, *r.Reason)
			}
			if seen := c.kind != "GET refunds" && c.kind != "GET payment_intents"; (r.Kinds[OtherAmount] == 1) != seen {
				t.Errorf("what the lists showed: %q", briefs(&r))
			}
			f.set(nil, nil)
			if c.status == http.StatusForbidden {
				return // held until a probe is let in
			}
			b.pass(f, time.Hour)
			_ = b.accountOf(testTenant).ForceBreaker("close")
			if r := b.compared(f, testTenant); r.Status != Different || r.Kinds[MissingThere] != 1 || r.Total != 2 {
				t.Errorf("whole: %+v", r)
			}
		})
	}
}

// Tenants that share an account see their own alone.
func TestReconcileKeepsTenantsApart(t *testing.T) {
	b, f := openReconciled(t)
	const other = tenants.ID("other")
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: other}); err != nil {
		t.Fatal(err)
	}
	mine := b.paid(validPayment())
	his, _, err := b.Pay(t.Context(), other, "", validPayment())
	if err != nil {
		t.Fatal(err)
	}
	job := settleJobOf(his.ID)
	job.Tenant = string(other)
	if err := b.settle(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	his = must(b.Payment(t.Context(), other, string(his.ID)))(t)
	for i, owner := range []tenants.ID{testTenant, other} {
		if got := b.sim.Ledger().Charges[i].Metadata[markOwner]; got != b.keys.ownerMark(owner) || got == "" || strings.Contains(got, string(owner)) {
			t.Errorf("%s's charge is marked %q", owner, got)
		}
	}
	lostOfHis := string(newIDs().payment(noon, 7))
	form := marked(lostOfHis, "500")
	form.Set("metadata["+markOwner+"]", b.keys.ownerMark(other))
	hisLost := f.byHandID(t, "/charges", form)
	f.byHand(t, "/charges", marked(string(newIDs().payment(noon, 7)), "600")) // whose, nobody can say
	form = marked(string(newIDs().payment(noon, 7)), "700")
	form.Set("metadata["+markOwner+"]", strings.Repeat("0", 32))
	f.byHand(t, "/charges", form) // another box's
	hisDesk := f.byHandID(t, "/refunds", url.Values{"charge": {*his.UpstreamID}, "amount": {"5"}})
	twice := f.byHandID(t, "/charges", marked(string(mine.ID), "1999"))
	b.pass(f, time.Hour)
	for tenant, want := range map[tenants.ID][]string{
		testTenant: {"duplicate " + string(mine.ID) + " - " + twice + " 1999 usd succeeded 1999 usd succeeded"},
		other: {"missing_here " + lostOfHis + " - " + hisLost + " - 500 usd succeeded",
			"refunded " + string(his.ID) + " - " + hisDesk + " - 5 usd succeeded"},
	} {
		r := b.compared(f, tenant)
		if got := briefs(&r); !reflect.DeepEqual(got, want) || r.Foreign != 0 || r.Payments != 1 {
			t.Errorf("%s: %+v\n got %q\nwant %q", tenant, r, got, want)
		}
		stranger := other
		if tenant == other {
			stranger = testTenant
		}
		if _, err := b.Reconciliation(t.Context(), stranger, string(r.ID)); code(err) != "not_found" {
			t.Errorf("%s reads %s's: %v", stranger, tenant, err)
		}
		text := string(must(json.Marshal(r))(t))
		for _, foreign := range map[tenants.ID][]string{testTenant: {string(his.ID), *his.UpstreamID, lostOfHis, hisLost, hisDesk}, other: {string(mine.ID), *mine.UpstreamID, twice}}[tenant] {
			if strings.Contains(text, foreign) {
				t.Errorf("%s is told of %s", tenant, foreign)
			}
		}
	}
}
