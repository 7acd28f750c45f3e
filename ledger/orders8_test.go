package ledger

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// Eight orders are taken without a line. While the backlog drains, eleven answers get lost after their charge took effect, the box is
// killed between the tries, and the tills repeat their requests. A drain that sends a repeat under a fresh key has charged such a backlog
// 19 times.
func Test8OrdersWere19Charges(t *testing.T) {
	for name, c := range map[string]struct {
		freshKeys bool
		charges   int
	}{
		"the box's keys":             {false, 8},
		"a fresh key for every send": {true, 19}, // what the scenario does to who has no keys: it would show it
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			ana := b.user(ana()).ID
			var orders []Order
			pays := map[string]NewPayment{} // by the till's idempotency key
			lost := map[string]int{}        // answers to lose, by payment
			for i := range 8 {
				o := b.order(twoCoffees(ana))
				orders = append(orders, o)
				till := fmt.Sprint("till-", i)
				pays[till] = payFor(&o)
				lost[string(b.pay(till, pays[till]).ID)] = 1 + (9-i)/7 // two of the first three, one of the others
			}
			sends := 0
			cut := false
			f.set(func(_ http.ResponseWriter, r *http.Request) bool {
				if what(r) != "POST charges" {
					return false
				}
				sends++
				id := r.PostForm.Get("metadata[" + markPayment + "]")
				cut = lost[id] > 0
				lost[id]--
				if c.freshKeys {
					r.Header.Del("Idempotency-Key")
				}
				return false
			}, func(r *http.Request) bool { return what(r) == "POST charges" && cut })

			for range 3 {
				for till, p := range pays {
					id := b.pay(till, p).ID // the till asks again
					_ = b.step(string(id))
				}
				b = b.reopen(nil)
				b.pass(f, time.Minute)
			}
			if sends != 19 {
				t.Errorf("%d sends, want 19", sends)
			}
			if n := len(f.sim.Ledger().Charges); n != c.charges {
				t.Errorf("8 orders became %d charges, want %d", n, c.charges)
			}
			for _, o := range orders {
				if got := must(b.Order(t.Context(), testTenant, string(o.ID)))(t); got.Status != StatusPaid {
					t.Errorf("order %s is %s", o.ID, got.Status)
				}
			}
			if c.freshKeys {
				return
			}
			for id, n := range b.effects() {
				if n != 1 {
					t.Errorf("%s was charged %d times", id, n)
				}
			}
			b.sound()
		})
	}
}
