package ledger

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"tenderbox/upstream/simulator"
)

func twoCoffees(user UserID) NewOrder {
	return NewOrder{UserID: string(user), Currency: "EUR", Items: []Item{{"coffee", "Coffee", 2, 350}, {"cake", "Cake", 1, 420}}}
}

func (b *testBox) order(n NewOrder) Order {
	b.t.Helper()
	o, _, err := b.CreateOrder(b.t.Context(), testTenant, "", n)
	if err != nil {
		b.t.Fatal(err)
	}
	return o
}

func payFor(o *Order) NewPayment {
	return NewPayment{Amount: o.Amount, Currency: o.Currency, Source: "tok_visa", OrderID: string(o.ID)}
}

func TestOrderIsPaidAndCompleted(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(true)
	o := b.order(twoCoffees(b.user(ana()).ID))
	if o.Amount != 1120 || o.Currency != "eur" || o.Status != StatusOpen {
		t.Fatalf("%+v", o)
	}
	if _, err := b.CompleteOrder(t.Context(), testTenant, string(o.ID)); code(err) != "order_state" {
		t.Errorf("an unpaid order is completed: %v", err)
	}
	p := b.pay("k", payFor(&o))
	if p.UserID == nil || *p.UserID != string(o.UserID) || *p.OrderID != string(o.ID) {
		t.Fatalf("the payment: %+v", p)
	}
	if _, _, err := b.Pay(t.Context(), testTenant, "k2", payFor(&o)); code(err) != "order_payment_pending" {
		t.Errorf("a second payment of the order: %v", err)
	}
	if _, err := b.CancelOrder(t.Context(), testTenant, string(o.ID)); code(err) != "order_payment_pending" {
		t.Errorf("canceled with its payment on the way: %v", err)
	}
	b.cut(false)
	b.settled(p.ID)
	paid := must(b.Order(t.Context(), testTenant, string(o.ID)))(t)
	if paid.Status != StatusPaid || paid.PaymentID == nil || *paid.PaymentID != p.ID || paid.PaidAt == nil {
		t.Fatalf("after its payment: %+v", paid)
	}
	if _, err := b.CancelOrder(t.Context(), testTenant, string(o.ID)); code(err) != "order_state" {
		t.Errorf("a paid order is canceled: %v", err)
	}
	done := must(b.CompleteOrder(t.Context(), testTenant, string(o.ID)))(t)
	again := must(b.CompleteOrder(t.Context(), testTenant, string(o.ID)))(t)
	if done.Status != StatusCompleted || *again.CompletedAt != *done.CompletedAt {
		t.Errorf("completed twice: %+v, %+v", done, again)
	}
	if got := must(b.Payments(t.Context(), testTenant, Filter{Order: string(o.ID)}))(t); len(got.Data) != 1 || got.Data[0].ID != p.ID {
		t.Errorf("the order's payments: %+v", got)
	}
	b.sound() // its events are part of the audit
}

func TestDeclinedOrderTakesAnotherPayment(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	o := b.order(twoCoffees(b.user(ana()).ID))
	bad := payFor(&o)
	bad.Source = "tok_chargeDeclined"
	if p := b.settled(b.pay("k1", bad).ID); p.Status != Failed {
		t.Fatalf("%+v", p)
	}
	p := b.settled(b.pay("k2", payFor(&o)).ID)
	if got := must(b.Order(t.Context(), testTenant, string(o.ID)))(t); got.Status != StatusPaid || *got.PaymentID != p.ID {
		t.Errorf("%+v", got)
	}
	b.sound()
}

// However many pay at once, one does.
func TestOneOfManyPaysTheOrder(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	o := b.order(twoCoffees(b.user(ana()).ID))
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[string]int{}
	for i := range 30 {
		wg.Go(func() {
			_, _, err := b.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint(i)), payFor(&o))
			mu.Lock()
			codes[code(err)]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if codes["<nil>"] != 1 || codes["order_payment_pending"] != 29 {
		t.Error(codes)
	}
	b.sound()
}

// INV-6: orders are paid, given up and handed over by many at once, with cards that are declined and answers that get lost: none is
// charged for twice, and none is canceled that was paid.
func TestOrdersAreFoughtOver(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 4))
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	u := b.user(ana())
	var orders []Order
	for range 8 {
		orders = append(orders, b.order(twoCoffees(u.ID)))
	}
	if err := b.sim.SetFaults(simulator.Faults{DropAfterEffect: 0.2, Error503: 0.1}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for i := range 30 {
		var wg sync.WaitGroup
		for range 10 {
			o, what := orders[random.IntN(len(orders))], random.IntN(12)
			wg.Go(func() {
				var err error
				p := payFor(&o)
				switch {
				case what < 5:
					p.Source = "tok_chargeDeclined"
					fallthrough
				case what < 9:
					var got Payment
					if got, _, err = b.Pay(ctx, testTenant, IdempotencyKey(fmt.Sprint(i, what, o.ID)), p); err == nil && what%2 == 0 {
						_, err = b.Await(ctx, testTenant, got.ID, 100*time.Millisecond)
					}
				case what < 10 && i > 20:
					_, err = b.CancelOrder(ctx, testTenant, string(o.ID))
				default:
					_, err = b.CompleteOrder(ctx, testTenant, string(o.ID))
				}
				if c := code(err); err != nil && c != "order_payment_pending" && c != "order_state" && c != "idempotency_key_in_use" {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	_ = b.sim.SetFaults(simulator.Faults{})
	for len(b.Exposed("")) > 0 && ctx.Err() == nil {
		b.due()
		_ = newPoke().wait(ctx, 20*time.Millisecond)
	}
	charges := map[string]int{}
	for _, c := range b.sim.Ledger().Charges {
		p := must(b.Payment(ctx, testTenant, c.Metadata["tenderbox_payment"]))(t)
		if p.Status == Succeeded {
			charges[*p.OrderID]++
		}
	}
	for _, was := range orders {
		o := must(b.Order(ctx, testTenant, string(was.ID)))(t)
		want := 0
		if o.PaidAt != nil {
			want = 1
		}
		if n := charges[string(o.ID)]; n != want {
			t.Errorf("%s is %s, and has %d charges", o.ID, o.Status, n)
		}
	}
	t.Log(charges)
	b.sound()
}

func TestOrderRefusals(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	u := b.user(ana())
	change := func(f func(*NewOrder)) NewOrder { n := twoCoffees(u.ID); f(&n); return n }
	for name, c := range map[string]struct {
		n    NewOrder
		code string
	}{
		"no user":      {change(func(n *NewOrder) { n.UserID = "" }), "user_missing"},
		"unknown user": {change(func(n *NewOrder) { n.UserID = "nobody" }), "user_unknown"},
		"no items":     {change(func(n *NewOrder) { n.Items = nil }), "items_invalid"},
		"no sku":       {change(func(n *NewOrder) { n.Items[1].SKU = "" }), "items_invalid"},
		"quantity 0":   {change(func(n *NewOrder) { n.Items[0].Quantity = 0 }), "quantity_invalid"},
		"negative":     {change(func(n *NewOrder) { n.Items[0].UnitAmount = -1 }), "amount_invalid"},
		"overflow":     {change(func(n *NewOrder) { n.Items[0].Quantity, n.Items[0].UnitAmount = quantityMax, amountMax }), "amount_invalid"},
		"nothing":      {change(func(n *NewOrder) { n.Items = []Item{{"free", "", 1, 0}} }), "amount_invalid"},
		"currency":     {change(func(n *NewOrder) { n.Currency = "XXX" }), "currency_invalid"},
		"card":         {change(func(n *NewOrder) { n.Items[0].Name = "4242424242424242" }), "card_data_not_allowed"},
	} {
		if _, _, err := b.CreateOrder(t.Context(), testTenant, "", c.n); code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	o := b.order(twoCoffees(u.ID))
	for want, p := range map[string]NewPayment{
		"order_amount_mismatch": func() NewPayment { p := payFor(&o); p.Amount--; return p }(),
		"order_user_mismatch":   func() NewPayment { p := payFor(&o); p.UserID = "another"; return p }(),
		"order_unknown":         func() NewPayment { p := payFor(&o); p.OrderID = string(b.ids.order(b.clock.now(), 3)); return p }(),
		"order_state": func() NewPayment {
			c := b.order(twoCoffees(u.ID))
			must(b.CancelOrder(t.Context(), testTenant, string(c.ID)))(t)
			return payFor(&c)
		}(),
	} {
		if _, _, err := b.Pay(t.Context(), testTenant, "", p); code(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, id := range []string{"", "ord_", "nonsense", "pay_01ARZ3NDEKTSV4RRFFQ69G5FAV"} {
		if _, err := b.Order(t.Context(), testTenant, id); code(err) != "not_found" {
			t.Errorf("order %q: %v", id, err)
		}
	}
	if got := b.Exposed(testTenant); len(got) != 0 {
		t.Errorf("refused payments left an exposure: %v", got)
	}
	b.sound()
}

func TestOrdersAreListed(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	a, c := b.user(NewUser{ID: "a", Email: "a@example.org"}), b.user(NewUser{ID: "c", Email: "c@example.org"})
	var all []OrderID
	for i := range 12 {
		u := a.ID
		if i%3 == 0 {
			u = c.ID
		}
		all = append(all, b.order(twoCoffees(u)).ID)
	}
	must(b.CancelOrder(t.Context(), testTenant, string(all[0])))(t)
	seen := map[OrderID]bool{}
	for f := (OrderFilter{Limit: 5}); ; {
		page := must(b.Orders(t.Context(), testTenant, f))(t)
		for _, o := range page.Data {
			seen[o.ID] = true
		}
		if f.Cursor = page.NextCursor; !page.HasMore {
			break
		}
	}
	if len(seen) != 12 {
		t.Errorf("%d of 12 orders listed", len(seen))
	}
	if p := must(b.Orders(t.Context(), testTenant, OrderFilter{UserID: "c", Status: StatusOpen}))(t); len(p.Data) != 3 {
		t.Errorf("%d open orders of c, want 3", len(p.Data))
	}
	if p := must(b.Orders(t.Context(), "other", OrderFilter{}))(t); len(p.Data) != 0 {
		t.Errorf("another tenant sees %d orders", len(p.Data))
	}
}
