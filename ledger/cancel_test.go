package ledger

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// cancel cancels a payment that can be.
func (b *testBox) cancel(key IdempotencyKey, id PaymentID) Payment {
	b.t.Helper()
	p, _, err := b.Cancel(b.t.Context(), testTenant, key, string(id))
	if err != nil {
		b.t.Fatalf("cancel %s: %v", id, err)
	}
	return p
}

// told returns the types of the record's events, in order.
func (b *testBox) told(record string) (types []EventType) {
	b.t.Helper()
	f := EventFilter{Limit: eventsMax}
	for {
		page := must(b.Events(b.t.Context(), testTenant, f))(b.t)
		for _, e := range page.Events {
			if e.Subject == record {
				types = append(types, e.Type)
			}
		}
		if f.After = page.Next; !page.More {
			return types
		}
	}
}

// settleNow does what the settler would do with the record's job.
func (b *testBox) settleNow(id PaymentID) Payment {
	b.t.Helper()
	if err := b.settle(b.t.Context(), settleJobOf(id)); err != nil {
		b.t.Fatalf("settle %s: %v", id, err)
	}
	return must(b.Payment(b.t.Context(), testTenant, string(id)))(b.t)
}

func unconfirmed(method string) NewPayment {
	return NewPayment{Amount: 1999, Currency: "usd", PaymentMethod: method, Unconfirmed: true}
}

func TestCancel(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	o := b.order(twoCoffees(b.user(ana()).ID))
	p := b.pay("pay", payFor(&o))
	got := b.cancel("k1", p.ID)
	if got.Status != Canceled || got.Sync.State != Settled || got.SettledAt == nil || got.UpstreamID != nil {
		t.Fatalf("canceled as %+v", got)
	}
	if o = must(b.Order(t.Context(), testTenant, string(o.ID)))(t); o.Status != StatusOpen || o.PaymentID != nil {
		t.Errorf("its order: %+v", o)
	}
	if x := b.Exposed(testTenant); len(x) != 0 {
		t.Errorf("exposure: %v", x)
	}
	if told := b.told(string(p.ID)); fmt.Sprint(told) != "[payment.created payment.canceled]" {
		t.Errorf("told %v", told)
	}
	// Its job, which was waiting, ends by itself and sends nothing.
	if again := b.settleNow(p.ID); again.Status != Canceled || len(b.sim.Ledger().Charges) != 0 {
		t.Errorf("%+v, %d charges", again, len(b.sim.Ledger().Charges))
	}
	// The order can be paid by another payment, or given up.
	b.cancel("", b.pay("again", payFor(&o)).ID)
	if o, err := b.CancelOrder(t.Context(), testTenant, string(o.ID)); err != nil || o.Status != StatusCanceled {
		t.Errorf("%+v, %v", o, err)
	}
	b.sound()
}

// Several requests, each under a key of its own, may have canceled one payment; each key stays that request's, over restarts too.
func TestCancelIsRepeatable(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p, other := b.pay("pay", validPayment()), b.pay("other", validPayment())
	first := b.cancel("k1", p.ID)
	check := func() {
		t.Helper()
		for key, want := range map[IdempotencyKey]bool{"": false, "k1": true, "k2": true} {
			got, replayed, err := b.Cancel(t.Context(), testTenant, key, string(p.ID))
			if err != nil || replayed != want || got.ID != p.ID || *got.SettledAt != *first.SettledAt {
				t.Errorf("key %q: %+v, replayed %v, %v", key, got, replayed, err)
			}
		}
		if _, _, err := b.Cancel(t.Context(), testTenant, "k1", string(other.ID)); code(err) != "idempotency_mismatch" {
			t.Errorf("another payment under the key: %v", err)
		}
		if _, _, err := b.Cancel(t.Context(), testTenant, "pay", string(p.ID)); code(err) != "idempotency_mismatch" {
			t.Errorf("another request under the key: %v", err)
		}
	}
	b.cancel("k2", p.ID)
	check()
	b = b.reopen(nil)
	check()
	if err := b.keys.fill(t.Context(), b.log); err != nil {
		t.Fatal(err)
	}
	check()
	if told := b.told(string(p.ID)); fmt.Sprint(told) != "[payment.created payment.canceled]" {
		t.Errorf("told %v", told)
	}
	b.sound()
}

// What may have left, what is final, and what is not there is not canceled, and nothing of it changes.
func TestCancelRefuses(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	paid, declined, sealed, doubtful := b.pay("1", validPayment()), validPayment(), b.pay("3", validPayment()), b.pay("4", validPayment())
	b.settleNow(paid.ID)
	declined.Source = "tok_chargeDeclined"
	no := b.settleNow(b.pay("2", declined).ID)
	must(b.sealOnly(string(sealed.ID)))(t)
	if err := b.sim.SetFaults(simulator.Faults{DropAfterEffect: 1}); err != nil {
		t.Fatal(err)
	}
	if err := b.settle(t.Context(), settleJobOf(doubtful.ID)); err == nil {
		t.Fatal("no answer, and no doubt")
	}
	for id, want := range map[PaymentID]string{paid.ID: "payment_final", no.ID: "payment_final", sealed.ID: "payment_sent", doubtful.ID: "payment_sent",
		"pay_00000000000000000000000000": "not_found", "x": "not_found", "": "not_found"} {
		before, _ := b.Payment(t.Context(), testTenant, string(id))
		if _, _, err := b.Cancel(t.Context(), testTenant, "k", string(id)); code(err) != want {
			t.Errorf("%s, %s: %v, want %s", before.Status, before.Sync.State, err, want)
		}
		if after, _ := b.Payment(t.Context(), testTenant, string(id)); after.Status != before.Status || after.Sync.State != before.Sync.State {
			t.Errorf("%+v became %+v", before, after)
		}
	}
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	mine := b.pay("5", validPayment())
	if _, _, err := b.Cancel(t.Context(), "other", "", string(mine.ID)); code(err) != "not_found" {
		t.Errorf("another tenant cancels it: %v", err)
	}
	// A send that is known to have had no effect is none: the payment is as unsent as before.
	if err := b.sim.SetFaults(simulator.Faults{Error429: 1}); err != nil {
		t.Fatal(err)
	}
	if err := b.settle(t.Context(), settleJobOf(mine.ID)); err == nil {
		t.Fatal("429 completed the job")
	}
	if p := b.cancel("", mine.ID); p.Status != Canceled || p.Sync.Attempts != 1 {
		t.Errorf("%+v", p)
	}
}

// INV-6: sender and canceler meet many times. A payment is canceled and had no effect, or is charged once; never both.
func TestCancelRacesWithTheSender(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	b.accountOf(testTenant)
	won := map[Status]int{}
	for i := range 150 {
		p := b.pay(fmt.Sprint("k", i), validPayment())
		var wg sync.WaitGroup
		var refused, failed error
		start := make(chan struct{})
		wg.Go(func() {
			<-start
			failed = b.settle(t.Context(), settleJobOf(p.ID))
		})
		wg.Go(func() {
			<-start
			if i%3 > 0 { // the sender reads before it seals: leave it a little time
				_, _ = b.Payment(t.Context(), testTenant, string(p.ID))
			}
			if i%2 == 0 {
				_, _, refused = b.Cancel(t.Context(), testTenant, "", string(p.ID))
			} else {
				_, _, refused = b.CreateRefund(t.Context(), testTenant, "", NewRefund{PaymentID: string(p.ID)})
			}
		})
		close(start)
		wg.Wait()
		if failed != nil {
			t.Fatal(failed)
		}
		got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t)
		won[got.Status]++
		switch c := code(refused); {
		case got.Status == Canceled && refused == nil && b.effects()[p.ID] == 0:
		case got.Status == Succeeded && (c == "payment_sent" || c == "payment_final" || c == "payment_not_settled") && b.effects()[p.ID] == 1:
		case got.Status == Succeeded && refused == nil && i%2 == 1 && got.AmountRefunded == got.Amount && b.effects()[p.ID] == 1: // it came late, and is a refund
		default:
			t.Errorf("%s with %d effects; canceling: %v", got.Status, b.effects()[p.ID], refused)
		}
	}
	if won[Canceled] == 0 || won[Succeeded] == 0 {
		t.Errorf("no race: %v", won)
	}
	if x := b.Exposed(testTenant); len(x) != 0 {
		t.Errorf("exposure: %v", x)
	}
	b.sound()
}

func TestUnconfirmed(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	p := b.pay("k", unconfirmed(""))
	if p.Status != RequiresConfirmation || p.Sync.State != Queued || p.Means != ByMethod {
		t.Fatalf("made as %+v", p)
	}
	if got := must(b.Await(t.Context(), testTenant, p.ID, time.Hour))(t); got.Status != RequiresConfirmation {
		t.Errorf("waited for: %+v", got)
	}
	if x := b.Exposed(testTenant); len(x) != 0 {
		t.Errorf("exposure before it is confirmed: %v", x)
	}
	if _, found, err := b.oldestOpen(t.Context(), testTenant); found || err != nil {
		t.Errorf("it counts as open: %v", err)
	}
	if _, _, err := b.Confirm(t.Context(), testTenant, "c", string(p.ID), ""); code(err) != "payment_method_missing" {
		t.Errorf("confirmed without a method: %v", err)
	}
	if _, _, err := b.Confirm(t.Context(), testTenant, "c", string(p.ID), "4242 4242 4242 4242"); code(err) != "card_data_not_allowed" {
		t.Errorf("a card number: %v", err)
	}
	got, replayed, err := b.Confirm(t.Context(), testTenant, "c", string(p.ID), "pm_card_visa")
	if err != nil || replayed || got.Status == RequiresConfirmation {
		t.Fatalf("%+v, %v", got, err)
	}
	if done := b.settled(p.ID); done.Status != Succeeded {
		t.Errorf("%+v", done)
	}
	for _, key := range []IdempotencyKey{"c", "", "d"} {
		got, replayed, err := b.Confirm(t.Context(), testTenant, key, string(p.ID), "pm_card_visa")
		if err != nil || replayed != (key == "c") || got.Status != Succeeded {
			t.Errorf("confirmed again with %q: %+v, %v, %v", key, got, replayed, err)
		}
	}
	if told := b.told(string(p.ID)); fmt.Sprint(told) != "[payment.created payment.confirmed payment.succeeded]" {
		t.Errorf("told %v", told)
	}
	if n := len(b.sim.Ledger().Charges); n != 1 {
		t.Errorf("%d charges", n)
	}

	// What it was made with stays, and what it is given up with is final.
	q := b.pay("q", unconfirmed("pm_card_visa"))
	if got := must3(b.Confirm(t.Context(), testTenant, "", string(q.ID), ""))(t); got.Status != Pending && got.Status != Succeeded {
		t.Errorf("%+v", got)
	}
	b.settled(q.ID)
	r := b.pay("r", unconfirmed(""))
	b.cancel("", r.ID)
	if _, _, err := b.Confirm(t.Context(), testTenant, "", string(r.ID), "pm_card_visa"); code(err) != "payment_final" {
		t.Errorf("a canceled one is confirmed: %v", err)
	}
	if _, _, err := b.Confirm(t.Context(), testTenant, "", string(b.pay("s", validPayment()).ID), ""); code(err) != "payment_not_intent" {
		t.Errorf("a charge is confirmed: %v", err)
	}
	for _, id := range []string{"", "x", "pay_00000000000000000000000000"} {
		if _, _, err := b.Confirm(t.Context(), testTenant, "", id, ""); code(err) != "not_found" {
			t.Errorf("%q: %v", id, err)
		}
	}
	if x := b.Exposed(testTenant)["usd"]; x.Count < 0 || x.Count > 1 {
		t.Errorf("exposure: %v", x)
	}
	b.sound()
}

func must3[T any](v T, _ bool, err error) func(testing.TB) T { return must(v, err) }

// A source is charged in one step, which nobody confirms.
func TestUnconfirmedHasNoSource(t *testing.T) {
	p := validPayment()
	p.Unconfirmed = true
	if err := p.validate(); code(err) != "source_unconfirmed" {
		t.Error(err)
	}
}

// Equal requests by other surfaces, or for another kind of payment, are other requests.
func TestSurfaceIsPartOfTheMeaning(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := NewPayment{Amount: 1999, Currency: "usd", PaymentMethod: "pm_card_visa"}
	b.pay("k", p)
	for name, change := range map[string]func(*NewPayment){
		"surface":     func(p *NewPayment) { p.Surface = "stripe" },
		"unconfirmed": func(p *NewPayment) { p.Unconfirmed = true },
	} {
		q := p
		change(&q)
		if _, _, err := b.Pay(t.Context(), testTenant, "k", q); code(err) != "idempotency_mismatch" {
			t.Errorf("another %s under the key: %v", name, err)
		}
	}
}

// The offline policy is asked when an intent is confirmed: before, nothing was taken.
func TestOfflinePolicyAtConfirmation(t *testing.T) {
	limits := map[string]tenants.OfflineLimit{"usd": {MaxTotal: 2 * 1999, MaxCount: 2}}
	b := openBox(t, t.TempDir(), testOptions{idle: true, offline: limits}) // not run: never online
	var ids []PaymentID
	for i := range 20 {
		ids = append(ids, b.pay(fmt.Sprint(i), unconfirmed("pm_card_visa")).ID)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	confirmed := map[PaymentID]bool{}
	for i := range 100 { // each several times, at once
		id := ids[i%len(ids)]
		wg.Go(func() {
			p, _, err := b.Confirm(t.Context(), testTenant, "", string(id), "")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && p.Status == Pending && p.TakenOffline:
				confirmed[id] = true
			case code(err) != "offline_limit":
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	wg.Wait()
	check := func(want Sum) {
		t.Helper()
		if x := b.Exposed(testTenant)["usd"]; x != want {
			t.Errorf("exposure %+v, want %+v", x, want)
		}
	}
	if len(confirmed) != 2 {
		t.Errorf("%d confirmed, 2 allowed", len(confirmed))
	}
	check(Sum{2, 2 * 1999})
	b = b.reopen(nil)
	check(Sum{2, 2 * 1999})
	for id := range confirmed {
		b.cancel("", id)
		break
	}
	check(Sum{1, 1999})
	for _, id := range ids { // those that count for nothing free nothing
		if !confirmed[id] {
			b.cancel("", id)
		}
	}
	check(Sum{1, 1999})
	b = b.reopen(nil)
	check(Sum{1, 1999})
	b.sound()
}

// An intent that nobody confirmed gets no job, not from the sweep and not when the queue was lost.
func TestUnconfirmedIsNotQueued(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	waits := b.pay("1", unconfirmed("pm_card_visa"))
	goes := b.pay("2", unconfirmed("pm_card_visa"))
	must3(b.Confirm(t.Context(), testTenant, "", string(goes.ID), ""))(t)
	b.stop()
	if err := os.Remove(filepath.Join(b.dir, "jobs.db")); err != nil {
		t.Fatal(err)
	}
	b = b.reopen(func(o *testOptions) { o.idle = false })
	b.settled(goes.ID)
	for _, sh := range b.set.All() {
		if err := b.requeueOpen(t.Context(), sh); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.jobs.Get(string(testTenant), PaymentsQueue, string(waits.ID)); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("it has a job: %v", err)
	}
	if p := must(b.Payment(t.Context(), testTenant, string(waits.ID)))(t); p.Status != RequiresConfirmation || len(b.sim.Ledger().Charges) != 1 {
		t.Errorf("%+v, %d charges", p, len(b.sim.Ledger().Charges))
	}
	b.sound()
}

// Neither metadata nor description nor method is told.
func TestConfirmedEventTellsNoSecret(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	n := unconfirmed("pm_canary_1")
	n.Metadata = map[string]string{"canary_2": "canary_3"}
	p := b.pay("k", n)
	must3(b.Confirm(t.Context(), testTenant, "", string(p.ID), "pm_canary_4"))(t)
	b.cancel("", p.ID)
	page := must(b.Events(t.Context(), testTenant, EventFilter{Limit: 10}))(t)
	if len(page.Events) != 3 {
		t.Fatalf("%d events", len(page.Events))
	}
	for _, e := range page.Events {
		var d eventData
		if err := json.Unmarshal(e.Data, &d, json.RejectUnknownMembers(true)); err != nil || d.ID != p.ID || d.Amount != 1999 {
			t.Errorf("%s: %s: %v", e.Type, e.Data, err)
		}
		if holdsText(e.Data, "canary") {
			t.Errorf("%s tells %s", e.Type, e.Data)
		}
	}
	b.sound()
}

// Random cancels, confirmations, refunds and restarts, with the settler running; what is charged in the end is what was neither canceled nor declined.
func TestGivingUpModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 5))
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	var ids []PaymentID
	for i := range 200 {
		switch n := random.IntN(20); {
		case n < 6:
			ids = append(ids, b.pay(fmt.Sprint(i), validPayment()).ID)
		case n < 9:
			ids = append(ids, b.pay(fmt.Sprint(i), unconfirmed([]string{"", "pm_card_visa"}[n%2])).ID)
		case n == 9:
			if err := b.sim.Cut(random.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
		case n == 10:
			b = b.reopen(nil)
		case len(ids) == 0:
		default:
			id := string(ids[random.IntN(len(ids))])
			var err error
			if n < 15 {
				_, _, err = b.Cancel(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("c", i)), id)
			} else {
				_, _, err = b.Confirm(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("c", i)), id, []string{"", "pm_card_visa"}[n%2])
			}
			switch code(err) {
			case "<nil>", "payment_final", "payment_sent", "payment_method_missing", "payment_not_intent":
			default:
				t.Fatalf("%s: %v", id, err)
			}
		}
	}
	if err := b.sim.Cut(false); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		p := b.until(id, func(p Payment) bool { b.due(); return p.Status != Pending })
		if want := map[Status]int{Succeeded: 1}[p.Status]; b.effects()[id] != want {
			t.Errorf("%s is %s, with %d effects", id, p.Status, b.effects()[id])
		}
	}
	if x := b.Exposed(""); len(x) != 0 {
		t.Errorf("exposure after quiet: %v", x)
	}
	b.sound()
}
