package sdk

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

func TestReplayedKeys(t *testing.T) {
	s := openShop(t)
	c := s.client()
	keyed := func(amount int64) *stripe.ChargeCreateParams {
		p := sale(amount, "tok_visa")
		p.SetIdempotencyKey("receipt-1")
		return p
	}
	made := must(c.V1Charges.Create(t.Context(), keyed(1999)))(t)
	again := must(c.V1Charges.Create(t.Context(), keyed(1999)))(t)
	if again.ID != made.ID || !replayed(again.LastResponse) || again.LastResponse.IdempotencyKey != "receipt-1" || replayed(made.LastResponse) {
		t.Errorf("%v\n%s", again.LastResponse.Header, again.LastResponse.RawJSON)
	}
	_, err := c.V1Charges.Create(t.Context(), keyed(2000))
	e := refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeIdempotency, "", "Idempotency-Key")
	if _, ok := e.Err.(*stripe.IdempotencyError); !ok {
		t.Errorf("%T", e.Err)
	}
	other := intent(1999, "pm_card_visa")
	other.SetIdempotencyKey("receipt-1")
	_, err = c.V1PaymentIntents.Create(t.Context(), other)
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeIdempotency, "", "Idempotency-Key")

	back := &stripe.RefundCreateParams{Charge: &made.ID, Amount: stripe.Int64(99)}
	back.SetIdempotencyKey("refund-1")
	refund := must(c.V1Refunds.Create(t.Context(), back))(t)
	if twice := must(c.V1Refunds.Create(t.Context(), back))(t); twice.ID != refund.ID || !replayed(twice.LastResponse) {
		t.Errorf("%s", twice.LastResponse.RawJSON)
	}
	two := must(c.V1PaymentIntents.Create(t.Context(), intent(5, "pm_card_visa")))(t)
	confirm := &stripe.PaymentIntentConfirmParams{}
	confirm.SetIdempotencyKey("confirm-1")
	must(c.V1PaymentIntents.Confirm(t.Context(), two.ID, confirm))(t)
	if twice := must(c.V1PaymentIntents.Confirm(t.Context(), two.ID, confirm))(t); twice.Status != stripe.PaymentIntentStatusSucceeded || !replayed(twice.LastResponse) {
		t.Errorf("%s", twice.LastResponse.RawJSON)
	}
	s.effects(2)
	if n := len(s.processor.Ledger().Refunds); n != 1 {
		t.Errorf("%d refunds took effect, want 1", n)
	}
}

// The answer is lost on its way. The SDK asks again by itself, under the key that it made up, and gets the charge that there is.
func TestLostAnswer(t *testing.T) {
	s := openShop(t)
	box, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	var lost atomic.Int64
	relay := httputil.NewSingleHostReverseProxy(box)
	relay.ModifyResponse = func(*http.Response) error {
		if lost.Add(1) == 1 {
			panic(http.ErrAbortHandler) // the box has answered, and nobody hears it
		}
		return nil
	}
	line := httptest.NewServer(relay)
	defer line.Close()
	s.url = line.URL
	made := must(s.client().V1Charges.Create(t.Context(), sale(1999, "tok_visa")))(t)
	if made.Status != stripe.ChargeStatusSucceeded || !replayed(made.LastResponse) || lost.Load() != 2 {
		t.Errorf("after %d tries: %v\n%s", lost.Load(), made.LastResponse.Header, made.LastResponse.RawJSON)
	}
	s.effects(1)
}

// Many tills, one receipt. Who comes while the first is being stored is told to come again: Node's SDK does by itself, stripe-go leaves it to its
// caller. Rounds go on until somebody was told so.
func TestKeyInUse(t *testing.T) {
	s := openShop(t)
	c := s.client()
	const tills, roundsMax = 32, 50
	rounds, refused := 0, 0
	for ; refused == 0 && rounds < roundsMax; rounds++ {
		p := func() *stripe.ChargeCreateParams {
			p := sale(1999, "tok_visa")
			p.SetIdempotencyKey("receipt-" + string(rune('A'+rounds)))
			return p
		}
		var mu sync.Mutex // guards what follows
		ids := map[string]int{}
		var errs []error
		var clients sync.WaitGroup
		for range tills {
			clients.Go(func() {
				charge, err := c.V1Charges.Create(t.Context(), p())
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, err)
					return
				}
				ids[charge.ID]++
			})
		}
		clients.Wait()
		refused += len(errs)
		for _, err := range errs {
			e := refusal(t, err, http.StatusConflict, stripe.ErrorTypeIdempotency, stripe.ErrorCodeIdempotencyKeyInUse, "")
			if e.LastResponse.Header.Get("Retry-After") == "" || e.LastResponse.Header.Get("Stripe-Should-Retry") != "true" {
				t.Errorf("%v", e.LastResponse.Header)
			}
		}
		last := must(c.V1Charges.Create(t.Context(), p()))(t)
		if ids[last.ID]++; len(ids) != 1 || !replayed(last.LastResponse) {
			t.Errorf("charges of one key: %v", ids)
		}
	}
	t.Logf("%d of %d told to come again, in %d rounds", refused, rounds*tills, rounds)
	if refused == 0 {
		t.Error("nobody came while a key was in use")
	}
	s.effects(rounds)
}
