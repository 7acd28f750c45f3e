package ledger

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	json "github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// refund makes a refund that must be accepted.
func (b *testBox) refund(key string, n NewRefund) Refund {
	b.t.Helper()
	r, _, err := b.CreateRefund(b.t.Context(), testTenant, IdempotencyKey(key), n)
	if err != nil {
		b.t.Fatalf("refund %s: %v", n.PaymentID, err)
	}
	return r
}

func holdsText(data []byte, text string) bool { return bytes.Contains(data, []byte(text)) }

func TestRefund(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	n := validPayment()
	n.UserID = "ana"
	p := b.settleNow(b.pay("k", n).ID)
	part := b.refund("r1", NewRefund{PaymentID: string(p.ID), Amount: 500, Reason: "requested_by_customer", Metadata: map[string]string{"till": "canary"}})
	if part.Status != RefundPending || part.Sync.State != Queued || part.Amount != 500 || part.Currency != "usd" || part.PaymentID != p.ID || *part.Reason != "requested_by_customer" {
		t.Fatalf("accepted as %+v", part)
	}
	if got := must(b.Refund(t.Context(), testTenant, string(part.ID)))(t); !sameJSON(t, got, part) || *got.UserID != "ana" {
		t.Errorf("read back %+v, was %+v", got, part)
	}
	rest := b.refund("r2", NewRefund{PaymentID: string(p.ID)})
	if rest.Amount != 1499 {
		t.Errorf("the rest is %d", rest.Amount)
	}
	for _, amount := range []int64{0, 1, 1999} {
		_, _, err := b.CreateRefund(t.Context(), testTenant, "", NewRefund{PaymentID: string(p.ID), Amount: amount})
		if code(err) != "refund_exceeds" || !strings.Contains(err.Error(), "0 usd") {
			t.Errorf("%d beyond all: %v", amount, err)
		}
	}
	if got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t); got.AmountRefunded != 1999 || got.Status != Succeeded {
		t.Errorf("%+v", got)
	}
	if told := b.told(string(part.ID)); fmt.Sprint(told) != "[refund.created]" {
		t.Errorf("told %v", told)
	}
	page := must(b.Events(t.Context(), testTenant, EventFilter{Types: []string{"refund.*"}}))(t)
	for _, e := range page.Events {
		var d refundEventData
		if err := json.Unmarshal(e.Data, &d, json.RejectUnknownMembers(true)); err != nil || d.PaymentID != p.ID || d.UserID == nil || *d.UserID != "ana" || holdsText(e.Data, "canary") {
			t.Errorf("%s: %v", e.Data, err)
		}
	}
	if len(page.Events) != 2 {
		t.Errorf("%d events", len(page.Events))
	}
	b.sound()
}

func sameJSON(t *testing.T, a, b any) bool {
	t.Helper()
	x, errX := json.Marshal(a, json.Deterministic(true))
	y, errY := json.Marshal(b, json.Deterministic(true))
	if errX != nil || errY != nil {
		t.Fatal(errX, errY)
	}
	return bytes.Equal(x, y)
}

func TestRefundRefuses(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := b.settleNow(b.pay("k", validPayment()).ID)
	for name, c := range map[string]struct {
		n    NewRefund
		want string
	}{
		"more than was paid":  {NewRefund{Amount: 2000}, "refund_exceeds"},
		"the largest":         {NewRefund{Amount: amountMax}, "refund_exceeds"},
		"beyond the largest":  {NewRefund{Amount: amountMax + 1}, "amount_invalid"},
		"less than nothing":   {NewRefund{Amount: -1}, "amount_invalid"},
		"reason":              {NewRefund{Reason: "4242424242424242"}, "reason_invalid"},
		"card number":         {NewRefund{Metadata: map[string]string{"a": "4242 4242 4242 4242"}}, "card_data_not_allowed"},
		"card's check value":  {NewRefund{Metadata: map[string]string{"cvc": "123"}}, "card_data_not_allowed"},
		"reserved name":       {NewRefund{Metadata: map[string]string{"tenderbox_payment": "x"}}, "metadata_invalid"},
		"long value":          {NewRefund{Metadata: map[string]string{"a": strings.Repeat("x", 501)}}, "metadata_limit"},
		"no payment":          {NewRefund{PaymentID: "x"}, "not_found"},
		"unknown payment":     {NewRefund{PaymentID: "pay_00000000000000000000000000"}, "not_found"},
		"id of something":     {NewRefund{PaymentID: "ord_00000000000000000000000000"}, "not_found"},
		"id in another shape": {NewRefund{PaymentID: strings.ToLower(string(p.ID))}, "not_found"},
	} {
		if c.n.PaymentID == "" {
			c.n.PaymentID = string(p.ID)
		}
		if _, _, err := b.CreateRefund(t.Context(), testTenant, "r", c.n); code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.CreateRefund(t.Context(), "other", "", NewRefund{PaymentID: string(p.ID)}); code(err) != "not_found" {
		t.Errorf("another tenant gives it back: %v", err)
	}
	r := b.refund("r", NewRefund{PaymentID: string(p.ID), Amount: 1})
	if _, err := b.Refund(t.Context(), "other", string(r.ID)); code(err) != "not_found" {
		t.Errorf("another tenant reads it: %v", err)
	}
	if page := must(b.Refunds(t.Context(), "other", RefundFilter{PaymentID: string(p.ID)}))(t); len(page.Data) != 0 {
		t.Errorf("another tenant lists it: %+v", page)
	}
	if got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t); got.AmountRefunded != 1 {
		t.Errorf("%d refunded", got.AmountRefunded)
	}
	b.sound()
}

// Whatever the payment's state, a refund of it is refused or cancels it, and nothing in between.
func TestRefundOfAnUnsettledPayment(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	refused := func(name string, id PaymentID, amount int64, want string) {
		t.Helper()
		before, _ := b.Payment(t.Context(), testTenant, string(id))
		if _, _, err := b.CreateRefund(t.Context(), testTenant, "", NewRefund{PaymentID: string(id), Amount: amount}); code(err) != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
		if after, _ := b.Payment(t.Context(), testTenant, string(id)); !sameJSON(t, before, after) {
			t.Errorf("%s: %+v became %+v", name, before, after)
		}
	}
	queued := b.pay("1", validPayment())
	refused("part of an unsent one", queued.ID, 1, "payment_not_settled")
	refused("more than an unsent one", queued.ID, 2000, "refund_exceeds")
	void := b.refund("void", NewRefund{PaymentID: string(queued.ID), Amount: 1999})
	if void.Status != RefundDone || void.Sync.State != Settled || void.SettledAt == nil || void.UpstreamID != nil {
		t.Errorf("an unsent one: %+v", void)
	}
	if p := must(b.Payment(t.Context(), testTenant, string(queued.ID)))(t); p.Status != Canceled || p.AmountRefunded != 0 {
		t.Errorf("its payment: %+v", p)
	}
	if again, replayed, err := b.CreateRefund(t.Context(), testTenant, "void", NewRefund{PaymentID: string(queued.ID), Amount: 1999}); err != nil || !replayed || !sameJSON(t, again, void) {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	refused("a canceled one", queued.ID, 0, "payment_final")
	if told := fmt.Sprint(b.told(string(queued.ID)), b.told(string(void.ID))); told != "[payment.created payment.canceled] []" {
		t.Errorf("told %s", told)
	}
	if got := b.refund("", NewRefund{PaymentID: string(b.pay("2", unconfirmed("")).ID)}); got.Status != RefundDone || got.Amount != 1999 {
		t.Errorf("an unconfirmed one: %+v", got)
	}
	sealed := b.pay("3", validPayment())
	must(b.sealOnly(string(sealed.ID)))(t)
	refused("a sealed one", sealed.ID, 0, "payment_not_settled")
	refused("part of a sealed one", sealed.ID, 5, "payment_not_settled")
	doubtful := b.pay("4", validPayment())
	if err := b.sim.SetFaults(simulator.Faults{DropAfterEffect: 1}); err != nil {
		t.Fatal(err)
	}
	_ = b.settle(t.Context(), settleJobOf(doubtful.ID))
	refused("one in doubt", doubtful.ID, 0, "payment_not_settled")
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	n := validPayment()
	n.Source = "tok_chargeDeclined"
	refused("a declined one", b.settleNow(b.pay("5", n).ID).ID, 0, "payment_final")
	restored := b.pay("6", validPayment()) // another copy of the folder may have sent it
	if err := b.shardOf(restored.ID).Update(t.Context(), func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE payments SET resolve_first = 1 WHERE tenant = ? AND id = ?`, string(testTenant), string(restored.ID))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	refused("one to be looked up first", restored.ID, 0, "payment_not_settled")
	if _, _, err := b.Cancel(t.Context(), testTenant, "", string(restored.ID)); code(err) != "payment_sent" {
		t.Errorf("one to be looked up first is canceled: %v", err)
	}
	b.sound()
}

// INV-10: however many refunds race, no more is given back than was taken.
func TestRefundsNeverExceed(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	n := validPayment()
	n.Amount = 2000
	p := b.settleNow(b.pay("k", n).ID)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[string]int{}
	for i := range 100 {
		wg.Go(func() {
			_, _, err := b.CreateRefund(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("r", i)), NewRefund{PaymentID: string(p.ID), Amount: 200})
			mu.Lock()
			defer mu.Unlock()
			codes[code(err)]++
		})
	}
	wg.Wait()
	if codes["<nil>"] != 10 || codes["refund_exceeds"] != 90 {
		t.Error(codes)
	}
	if got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t); got.AmountRefunded != 2000 {
		t.Errorf("%d refunded", got.AmountRefunded)
	}
	b.sound()
}

func TestRefundIsRepeatable(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := b.settleNow(b.pay("k", validPayment()).ID)
	n := NewRefund{PaymentID: string(p.ID), Amount: 300, Metadata: map[string]string{"a": "b"}}
	first := b.refund("r", n)
	check := func() {
		t.Helper()
		if again, replayed, err := b.CreateRefund(t.Context(), testTenant, "r", n); err != nil || !replayed || !sameJSON(t, again, first) {
			t.Errorf("repeated: %+v, %v, %v", again, replayed, err)
		}
		for name, change := range map[string]func(*NewRefund){
			"amount":   func(n *NewRefund) { n.Amount = 301 },
			"all":      func(n *NewRefund) { n.Amount = 0 },
			"reason":   func(n *NewRefund) { n.Reason = "duplicate" },
			"metadata": func(n *NewRefund) { n.Metadata = nil },
			"surface":  func(n *NewRefund) { n.Surface = "stripe" },
		} {
			o := n
			change(&o)
			if _, _, err := b.CreateRefund(t.Context(), testTenant, "r", o); code(err) != "idempotency_mismatch" {
				t.Errorf("another %s under the key: %v", name, err)
			}
		}
		if _, _, err := b.CreateRefund(t.Context(), testTenant, "k", n); code(err) != "idempotency_mismatch" {
			t.Errorf("under the payment's key: %v", err)
		}
	}
	check()
	b = b.reopen(nil)
	check()
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[RefundID]bool{}
	for range 50 {
		wg.Go(func() {
			r, _, err := b.CreateRefund(t.Context(), testTenant, "same", NewRefund{PaymentID: string(p.ID), Amount: 100})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ids[r.ID] = true
			} else if code(err) != "idempotency_key_in_use" {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t); len(ids) != 1 || got.AmountRefunded != 400 {
		t.Errorf("%d refunds, %d refunded", len(ids), got.AmountRefunded)
	}
	b.sound()
}

// A key is kept for a week after its refund was settled, and as long as it is not. What only the box's own clock dates, such as what
// never left, is kept a week longer: the clock may have been wrong.
func TestRefundsKeyIsKept(t *testing.T) {
	clock := &manualClock{at: time.Now()}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	p := b.settleNow(b.pay("pay", validPayment()).ID)
	n := NewRefund{PaymentID: string(p.ID), Amount: 100}
	r := b.refund("open", n)
	void := NewRefund{PaymentID: string(b.pay("unsent", validPayment()).ID)}
	b.refund("void", void)
	other := b.pay("other", validPayment())
	b.cancel("cancel", other.ID)
	for _, left := range []int{5, 1} {
		clock.add(8 * 24 * time.Hour)
		for _, sh := range b.set.All() {
			if err := b.keys.prune(t.Context(), sh, clock.now().Add(-keyRetention)); err != nil {
				t.Fatal(err)
			}
		}
		if again, replayed, err := b.CreateRefund(t.Context(), testTenant, "open", n); err != nil || !replayed || again.ID != r.ID {
			t.Errorf("of an unsettled one: %+v, %v", again, err)
		}
		if b.keys.size() != left {
			t.Errorf("%d keys are kept, want %d", b.keys.size(), left)
		}
	}
	b.sound()
}

func TestListRefunds(t *testing.T) {
	clock := &manualClock{at: time.Now()}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	var want, ofFirst []RefundID // newest first
	var first PaymentID
	for i := range 3 {
		p := b.settleNow(b.pay(fmt.Sprint(i), validPayment()).ID)
		if i == 0 {
			first = p.ID
		}
		for j := range 9 {
			clock.add(time.Second)
			r := b.refund("", NewRefund{PaymentID: string(p.ID), Amount: int64(j + 1)})
			want = append([]RefundID{r.ID}, want...)
			if i == 0 {
				ofFirst = append([]RefundID{r.ID}, ofFirst...)
			}
		}
	}
	list := func(f RefundFilter) (got []RefundID) {
		t.Helper()
		for {
			page := must(b.Refunds(t.Context(), testTenant, f))(t)
			for _, r := range page.Data {
				got = append(got, r.ID)
			}
			if f.Cursor = page.NextCursor; !page.HasMore {
				return got
			}
		}
	}
	if got := list(RefundFilter{Limit: 4}); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v\nwant %v", got, want)
	}
	if got := list(RefundFilter{Limit: 4, PaymentID: string(first)}); fmt.Sprint(got) != fmt.Sprint(ofFirst) {
		t.Errorf("listed %v\nwant %v", got, ofFirst)
	}
	if got := list(RefundFilter{PaymentID: "x"}); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for _, f := range []RefundFilter{{Limit: -1}, {Limit: 101}, {Cursor: "x"}} {
		if _, err := b.Refunds(t.Context(), testTenant, f); err == nil {
			t.Errorf("%+v accepted", f)
		}
	}
	b.sound()
}

// Refunds count on the day on which they are made, and those that canceled a payment on none.
func TestReportOfRefunds(t *testing.T) {
	clock := &manualClock{at: time.Now()}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	from := clock.now()
	p := b.settleNow(b.pay("1", validPayment()).ID)
	b.refund("", NewRefund{PaymentID: string(p.ID), Amount: 100})
	clock.add(24 * time.Hour)
	b.refund("", NewRefund{PaymentID: string(p.ID), Amount: 300})
	b.refund("", NewRefund{PaymentID: string(p.ID), Amount: 200})
	b.refund("", NewRefund{PaymentID: string(b.pay("2", validPayment()).ID)})
	first := must(b.Report(t.Context(), testTenant, from, from.Add(12*time.Hour)))(t)
	if !slices.Equal(first.Payments, []ReportRow{{"usd", Succeeded, 1, 1999, 600}}) || !slices.Equal(first.Refunds, []RefundRow{{"usd", RefundPending, 1, 100}}) {
		t.Errorf("the first day: %+v", first)
	}
	second := must(b.Report(t.Context(), testTenant, from.Add(12*time.Hour), from.Add(36*time.Hour)))(t)
	if !slices.Equal(second.Payments, []ReportRow{{"usd", Canceled, 1, 1999, 0}}) || !slices.Equal(second.Refunds, []RefundRow{{"usd", RefundPending, 2, 500}}) {
		t.Errorf("the second day: %+v", second)
	}
}

// With the line down a refund is accepted, and who waits for it is answered at once.
func TestRefundWithTheLineDown(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{offline: map[string]tenants.OfflineLimit{}}) // takes no payment offline
	b.cut(false)
	p := b.settled(b.pay("k", validPayment()).ID)
	b.cut(true)
	r := b.refund("r", NewRefund{PaymentID: string(p.ID)})
	if got := must(b.AwaitRefund(t.Context(), testTenant, r.ID, time.Hour))(t); got.Status != RefundPending || got.ID != r.ID {
		t.Errorf("%+v", got)
	}
	if _, err := b.AwaitRefund(t.Context(), testTenant, "x", time.Hour); code(err) != "not_found" {
		t.Errorf("of no id: %v", err)
	}
}

// Any sequence of refunds, payments given up and restarts keeps the books balanced.
func TestRefundSums(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	rapid.Check(t, func(rt *rapid.T) {
		type entry struct {
			id      PaymentID
			amount  int64
			left    int64
			settled bool
			over    bool // canceled
		}
		var book []*entry
		rt.Repeat(map[string]func(*rapid.T){
			"pay": func(rt *rapid.T) {
				n := validPayment()
				n.Amount = rapid.Int64Range(1, 50).Draw(rt, "amount")
				e := &entry{id: b.pay("", n).ID, amount: n.Amount, left: n.Amount, settled: rapid.Bool().Draw(rt, "settled")}
				if e.settled {
					b.settleNow(e.id)
				}
				book = append(book, e)
			},
			"refund": func(rt *rapid.T) {
				if len(book) == 0 {
					rt.Skip("nothing paid")
				}
				e := rapid.SampledFrom(book).Draw(rt, "payment")
				amount := rapid.Int64Range(0, 60).Draw(rt, "amount")
				r, _, err := b.CreateRefund(t.Context(), testTenant, "", NewRefund{PaymentID: string(e.id), Amount: amount})
				if amount == 0 {
					amount = e.left
				}
				want := "<nil>"
				switch {
				case e.over:
					want = "payment_final"
				case amount > e.left, e.left == 0:
					want = "refund_exceeds"
				case e.settled:
					e.left -= amount
				case amount == e.amount:
					e.over = true
				default:
					want = "payment_not_settled"
				}
				if code(err) != want || (err == nil && (r.Amount != amount || (r.Status == RefundDone) != e.over)) {
					rt.Fatalf("%d of %+v: %+v, %v, want %s", amount, *e, r, err, want)
				}
			},
			"": func(rt *rapid.T) {
				for _, e := range book {
					p := must(b.Payment(t.Context(), testTenant, string(e.id)))(t)
					want := e.amount - e.left
					if p.AmountRefunded != want || (p.Status == Canceled) != e.over {
						rt.Fatalf("%+v: %d refunded, want %d", p, p.AmountRefunded, want)
					}
				}
			},
		})
	})
	b.sound()
}
