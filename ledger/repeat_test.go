package ledger

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/upstream/simulator"
)

// losingFirst cuts the answer to the first request of that kind; the request takes effect.
func (f *front) losingFirst(kind string) {
	lost := false
	f.set(nil, func(r *http.Request) bool {
		was := lost
		lost = lost || what(r) == kind
		return !was && lost
	})
}

// cuttingFirst lets the first request of that kind take effect, and cuts its answer short: it is not tried again within the call.
func (f *front) cuttingFirst(kind string) {
	cut := false
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if cut || what(r) != kind {
			return false
		}
		cut = true
		answer := httptest.NewRecorder()
		body := strings.NewReader(r.PostForm.Encode())
		inner := httptest.NewRequest(r.Method, r.URL.Path, body)
		inner.Header = r.Header
		f.sim.ServeHTTP(answer, inner)
		w.Header().Set("Date", f.clock.now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:10])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
}

// finish settles the record in a few steps, with time for what was sent to be worked off.
func (b *testBox) finish(f *front, id string) {
	b.t.Helper()
	for range 5 {
		if b.step(id) == nil {
			return
		}
		b.pass(f, time.Minute)
	}
	b.t.Fatalf("%s is not settled", id)
}

// INV-6: a processor that forgot the key early refuses the repeat of what it has charged or given back. What took effect is found.
func TestRefusedRepeatOfWhatTookEffect(t *testing.T) {
	for name, c := range map[string]struct {
		n    NewPayment
		kind string // of the request whose answer is lost
		lose func(f *front, kind string)
	}{
		"charge":                        {validPayment(), "POST charges", (*front).losing},
		"charge, one send":              {validPayment(), "POST charges", (*front).cuttingFirst},
		"charge, within a call":         {validPayment(), "POST charges", (*front).losingFirst},
		"confirmation, within a call":   {byMethod(), "POST payment_intents/…/confirm", (*front).losingFirst},
		"refund":                        {validPayment(), "POST refunds", (*front).losing},
		"refund, one send":              {validPayment(), "POST refunds", (*front).cuttingFirst},
		"refund, within a call":         {byMethod(), "POST refunds", (*front).losingFirst},
		"charge that is pending":        {func() NewPayment { n := validPayment(); n.Source = "tok_processing"; return n }(), "POST charges", (*front).losing},
		"charge that the bank declines": {func() NewPayment { n := validPayment(); n.Source = "tok_processingFail"; return n }(), "POST charges", (*front).losing},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			var payment PaymentID
			var id string
			if c.kind == "POST refunds" {
				p := b.paid(c.n)
				payment, id = p.ID, string(b.giveBack(p, 500))
			} else {
				payment = b.pay("", c.n).ID
				id = string(payment)
			}
			c.lose(f, c.kind)
			within := strings.HasSuffix(name, "within a call")
			if within {
				_ = f.sim.SetFaults(simulator.Faults{DeclineRepeat: 1})
			}
			b.mustWait(id)
			f.set(nil, nil)
			_ = f.sim.SetFaults(simulator.Faults{DeclineRepeat: 1})
			b.finish(f, id)
			if f.sim.Fired()["decline_repeat"] == 0 {
				t.Error("no repeat was refused")
			}
			want := Succeeded
			if name == "charge that the bank declines" {
				want = Failed
			}
			if r := RefundID(id); c.kind == "POST refunds" {
				if got := b.refundNow(r); got.Status != RefundDone || f.refunds()[id] != 1 {
					t.Errorf("%+v, given back %d times", got, f.refunds()[id])
				}
			} else if p := b.now(payment); p.Status != want || want == Succeeded && b.effects()[payment] != 1 {
				t.Errorf("%+v, %d effects, %q", p, b.effects()[payment], b.story(payment, id))
			}
			b.sound()
		})
	}
}

// A replayed refusal is the first answer only if there was one send before: here it is that to a repeat, whose own answer was lost.
func TestReplayedRefusalOfARepeat(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := lostCharge(b, f)
	_ = f.sim.SetFaults(simulator.Faults{DeclineRepeat: 1})
	f.losing("POST charges")
	b.mustWait(string(id)) // refused, and nobody hears of it
	f.set(nil, nil)
	_ = f.sim.SetFaults(simulator.Faults{})
	b.finish(f, string(id))
	if p := b.now(id); p.Status != Succeeded || b.effects()[id] != 1 {
		t.Fatalf("%+v, %d effects, %q", p, b.effects()[id], b.story(id, string(id)))
	}
	b.sound()
}

// A refusal that is replayed to the one repeat is what the first send was answered: it is final at once.
func TestReplayedRefusalIsFinal(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	n := validPayment()
	n.Source = "tok_chargeDeclinedInsufficientFunds"
	id := b.pay("", n).ID
	f.cuttingFirst("POST charges")
	b.mustWait(string(id))
	f.set(nil, nil)
	if p := b.settleNow(id); p.Status != Failed || p.Failure.DeclineCode != "insufficient_funds" {
		t.Fatalf("%+v", p)
	}
	if s := b.story(id, string(id)); fmt.Sprint(s) != "[charge  unknown charge  declined]" {
		t.Errorf("%q", s)
	}
	b.sound()
}

// A repeat that is refused where the first send never arrived fails as it was refused, once the list has shown that nothing is there; and is
// never sent again, also over a restart.
func TestRefusedRepeatOfNothing(t *testing.T) {
	for name, recorded := range map[string]bool{"the processor keeps the refused charge": true, "and keeps none": false} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			n := validPayment()
			n.Source = "tok_chargeDeclinedInsufficientFunds"
			id := b.pay("", n).ID
			must(b.sealOnly(string(id)))(t) // and cut short
			if !recorded {
				f.answering("POST charges", 402, `{"error":{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds","message":"No."}}`)
			}
			b.mustWait(string(id))
			f.set(nil, nil)
			if p := b.now(id); p.Sync.State != InDoubt || p.Status != Pending {
				t.Fatalf("believed: %+v", p)
			}
			b.mustWait(string(id)) // what was sent first may still be under way
			b = b.reopen(nil)
			b.hear()
			if _, err := b.sealOnly(string(id)); err == nil {
				t.Error("sealed before it was looked up")
			}
			b.mustWait(string(id)) // this process has just begun to look
			b.pass(f, time.Minute)
			if p := b.settleNow(id); p.Status != Failed || p.Failure.Code != "card_declined" || p.Failure.DeclineCode != "insufficient_funds" || f.count("POST charges") != 1 {
				t.Fatalf("%+v, %d posts", p, f.count("POST charges"))
			}
			want := "[charge  charge  declined resolve absent]"
			if recorded {
				want = "[charge  charge  declined resolve found]"
			}
			if s := b.story(id, string(id)); fmt.Sprint(s) != want {
				t.Errorf("%q", s)
			}
			b.sound()
		})
	}
}

// A refused repeat whose list cannot be read is a person's in the end, and is not sent again meanwhile.
func TestRefusedRepeatWithoutAList(t *testing.T) {
	f := newFront(t)
	b := openFronted(t, f)
	id := b.pay("", validPayment()).ID
	must(b.sealOnly(string(id)))(t)
	f.answering("POST charges", 402, `{"error":{"type":"card_error","code":"card_declined","message":"No."}}`)
	b.mustWait(string(id))
	f.answering("GET charges", 200, `{"object":"list","data":[],"has_more":true}`)
	for range looksMin + 5 {
		b.lookups.forgetAll()
		if b.step(string(id)) == nil {
			break
		}
		f.clock.add(2 * time.Hour)
	}
	if p := b.now(id); p.Sync.State != Review || f.count("POST charges") != 1 {
		t.Fatalf("%+v, %d posts", p, f.count("POST charges"))
	}
	b.sound()
}

// A success that is seen in a list which breaks off is not taken before the list was read whole: a second one may stand behind the break. If it never
// can be, the success counts, and an alarm says what is not known.
func TestSuccessInAPartOfTheList(t *testing.T) {
	for name, c := range map[string]struct {
		twice, mended bool
		want          SyncState
	}{
		"mended, one":          {false, true, Settled},
		"mended, two":          {true, true, Review},
		"never whole, and one": {false, false, Settled},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			id := lostCharge(b, f)
			if c.twice {
				f.clock.add(time.Minute)
				f.byHand(t, "/charges", marked(string(id), "1999"))
			}
			newest := b.sim.Ledger().Charges[len(b.sim.Ledger().Charges)-1]
			b.pass(f, 25*time.Hour)
			f.answering("GET charges", 200, fmt.Sprintf(`{"object":"list","has_more":true,"data":[{"id":%q,"object":"charge","amount":1999,"currency":"usd","status":"succeeded",
				"created":%d,"metadata":{"tenderbox_payment":%q}},{"id":"ch_x","created":0}]}`, newest.ID, newest.Created, id))
			for range wholeTries - 1 {
				b.lookups.forgetAll()
				b.mustWait(string(id))
				if p := b.now(id); p.Status != Pending {
					t.Fatalf("taken: %+v", p)
				}
			}
			b.lookups.forgetAll()
			if c.mended {
				f.set(nil, nil)
			}
			if err := b.step(string(id)); err != nil {
				t.Fatal(err)
			}
			p := b.now(id)
			incomplete := slices.ContainsFunc(b.alarms.of(testTenant), func(a Alarm) bool { return a.Code == "upstream_list_incomplete" })
			if p.Sync.State != c.want || incomplete == c.mended {
				t.Errorf("%+v, alarms %+v", p, b.alarms.of(testTenant))
			}
			if !c.mended {
				f.set(nil, nil)
				b.lookups.forgetAll()
				lost := lostCharge(b, f)
				b.pass(f, 25*time.Hour)
				b.settleNow(lost)
				if len(b.alarms.of(testTenant)) != 0 {
					t.Errorf("alarms %+v", b.alarms.of(testTenant))
				}
			}
			b.sound()
		})
	}
}
