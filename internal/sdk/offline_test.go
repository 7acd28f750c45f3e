package sdk

import (
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

// The line is taken away by word: sales are taken, and settled when it is back, once each.
func TestOfflineByWord(t *testing.T) {
	s := openShop(t)
	c := s.client()
	before := must(c.V1Charges.Create(t.Context(), sale(100, "tok_visa")))(t)
	s.link("offline")

	charge := must(c.V1Charges.Create(t.Context(), sale(700, "tok_visa")))(t)
	if charge.Status != stripe.ChargeStatusPending || charge.Paid || charge.AmountCaptured != 0 || charge.Outcome != nil || charge.FailureCode != "" {
		t.Errorf("%s", charge.LastResponse.RawJSON)
	}
	p := intent(800, "pm_card_visa")
	p.Confirm = stripe.Bool(true)
	pi := must(c.V1PaymentIntents.Create(t.Context(), p))(t)
	if pi.Status != stripe.PaymentIntentStatusProcessing || pi.AmountReceived != 0 {
		t.Errorf("%s", pi.LastResponse.RawJSON)
	}
	// Nobody knows yet that this one will be declined.
	bad := must(c.V1Charges.Create(t.Context(), sale(900, "tok_chargeDeclined")))(t)
	if bad.Status != stripe.ChargeStatusPending {
		t.Errorf("%s", bad.LastResponse.RawJSON)
	}
	// A refund of what is settled waits; one of what was not sent undoes it, and no money moves.
	refund := must(c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &before.ID, Amount: stripe.Int64(40)}))(t)
	if refund.Status != stripe.RefundStatusPending {
		t.Errorf("%s", refund.LastResponse.RawJSON)
	}
	unsent := must(c.V1Charges.Create(t.Context(), sale(600, "tok_visa")))(t)
	_, err := c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &unsent.ID, Amount: stripe.Int64(1)})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, "charge_not_refundable", "charge")
	undone := must(c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &unsent.ID}))(t)
	if undone.Status != stripe.RefundStatusSucceeded || undone.Amount != 600 {
		t.Errorf("%s", undone.LastResponse.RawJSON)
	}
	unsent = must(c.V1Charges.Retrieve(t.Context(), unsent.ID, nil))(t)
	if unsent.Status != stripe.ChargeStatusFailed || unsent.FailureCode != "canceled" || unsent.Paid {
		t.Errorf("%s", unsent.LastResponse.RawJSON)
	}
	// An intent may be given up as long as it has not left.
	q := intent(50, "pm_card_visa")
	q.Confirm = stripe.Bool(true)
	given := must(c.V1PaymentIntents.Create(t.Context(), q))(t)
	if given = must(c.V1PaymentIntents.Cancel(t.Context(), given.ID, nil))(t); given.Status != stripe.PaymentIntentStatusCanceled {
		t.Errorf("%s", given.LastResponse.RawJSON)
	}
	s.effects(1)

	s.link("auto")
	s.wait(func() bool {
		return must(c.V1Charges.Retrieve(t.Context(), charge.ID, nil))(t).Status == stripe.ChargeStatusSucceeded
	})
	s.wait(func() bool {
		return must(c.V1PaymentIntents.Retrieve(t.Context(), pi.ID, nil))(t).Status == stripe.PaymentIntentStatusSucceeded
	})
	s.wait(func() bool {
		return must(c.V1Charges.Retrieve(t.Context(), bad.ID, nil))(t).Status == stripe.ChargeStatusFailed
	})
	s.wait(func() bool {
		return must(c.V1Refunds.Retrieve(t.Context(), refund.ID, nil))(t).Status == stripe.RefundStatusSucceeded
	})
	if bad = must(c.V1Charges.Retrieve(t.Context(), bad.ID, nil))(t); bad.FailureCode != "card_declined" || bad.Outcome.Reason != "generic_decline" {
		t.Errorf("%s", bad.LastResponse.RawJSON)
	}
	s.effects(3)
}

// The cable is cut. The first to notice is a client: it is told that its sale is kept, and a repeat is the same sale.
func TestOfflineByCut(t *testing.T) {
	s := openShop(t)
	c := s.client()
	s.processor.Cut()
	p := sale(700, "tok_visa")
	p.SetIdempotencyKey("receipt-1")
	made := must(c.V1Charges.Create(t.Context(), p))(t)
	again := must(c.V1Charges.Create(t.Context(), p))(t)
	if made.Status != stripe.ChargeStatusPending || again.ID != made.ID || !replayed(again.LastResponse) {
		t.Errorf("%s\n%s", made.LastResponse.RawJSON, again.LastResponse.RawJSON)
	}
	s.until("offline")
	if err := s.processor.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.wait(func() bool {
		return must(c.V1Charges.Retrieve(t.Context(), made.ID, nil))(t).Status == stripe.ChargeStatusSucceeded
	})
	settled := must(c.V1Charges.Create(t.Context(), p))(t)
	if settled.ID != made.ID || settled.Status != stripe.ChargeStatusSucceeded || !replayed(settled.LastResponse) {
		t.Errorf("%s", settled.LastResponse.RawJSON)
	}
	s.effects(1)
}

// What is more than the tenant may take offline is a decline, so that a till asks for another means of payment.
func TestOfflineLimit(t *testing.T) {
	s := openShop(t)
	c := s.client()
	status, _, answer := s.ask(http.MethodPatch, "/api/v1/tenants/default", `{"offline": {"usd": {"max_amount": 5000}}}`,
		"Authorization", "Bearer "+s.operator, "Content-Type", "application/json")
	if status != http.StatusOK {
		t.Fatalf("%d %v", status, answer)
	}
	s.link("offline")
	must(c.V1Charges.Create(t.Context(), sale(5000, "tok_visa")))(t)
	_, err := c.V1Charges.Create(t.Context(), sale(5001, "tok_visa"))
	e := refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, stripe.ErrorCodeCardDeclined, "")
	if e.DeclineCode != "offline_limit" || e.ChargeID != "" {
		t.Errorf("%v", e)
	}
}
