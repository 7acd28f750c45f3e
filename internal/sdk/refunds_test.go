package sdk

import (
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

func TestRefunds(t *testing.T) {
	s := openShop(t)
	c := s.client()
	charge := must(c.V1Charges.Create(t.Context(), sale(1000, "tok_visa")))(t)
	p := &stripe.RefundCreateParams{Charge: &charge.ID, Amount: stripe.Int64(300), Reason: stripe.String("requested_by_customer")}
	p.AddMetadata("clerk", "9")
	p.AddExpand("charge")
	part := must(c.V1Refunds.Create(t.Context(), p))(t)
	if part.Status != stripe.RefundStatusSucceeded || part.Amount != 300 || part.Charge == nil || part.Charge.ID != charge.ID || part.PaymentIntent != nil ||
		part.Reason != stripe.RefundReasonRequestedByCustomer || part.Metadata["clerk"] != "9" {
		t.Errorf("%s", part.LastResponse.RawJSON)
	}
	charge = must(c.V1Charges.Retrieve(t.Context(), charge.ID, nil))(t)
	if charge.AmountRefunded != 300 || charge.Refunded {
		t.Errorf("%s", charge.LastResponse.RawJSON)
	}
	_, err := c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &charge.ID, Amount: stripe.Int64(701)})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeAmountTooLarge, "amount")
	rest := must(c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &charge.ID}))(t)
	if rest.Status != stripe.RefundStatusSucceeded || rest.Amount != 700 {
		t.Errorf("%s", rest.LastResponse.RawJSON)
	}
	charge = must(c.V1Charges.Retrieve(t.Context(), charge.ID, nil))(t)
	if charge.AmountRefunded != 1000 || !charge.Refunded || charge.Status != stripe.ChargeStatusSucceeded {
		t.Errorf("%s", charge.LastResponse.RawJSON)
	}
	_, err = c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &charge.ID})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeChargeAlreadyRefunded, "charge")

	paid := intent(500, "pm_card_visa")
	paid.Confirm = stripe.Bool(true)
	pi := must(c.V1PaymentIntents.Create(t.Context(), paid))(t)
	all := must(c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{PaymentIntent: &pi.ID}))(t)
	if all.Amount != 500 || all.PaymentIntent == nil || all.PaymentIntent.ID != pi.ID || all.Charge.ID != pi.LatestCharge.ID {
		t.Errorf("%s", all.LastResponse.RawJSON)
	}
	if read := must(c.V1Refunds.Retrieve(t.Context(), all.ID, nil))(t); string(read.LastResponse.RawJSON) != string(all.LastResponse.RawJSON) {
		t.Errorf("read back: %s", read.LastResponse.RawJSON)
	}
	ids := func(p *stripe.RefundListParams) (ids []string) {
		for r, err := range c.V1Refunds.List(t.Context(), p).All(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, r.ID)
		}
		return ids
	}
	same(t, ids(&stripe.RefundListParams{}), all.ID, rest.ID, part.ID)
	same(t, ids(&stripe.RefundListParams{Charge: &charge.ID}), rest.ID, part.ID)
	same(t, ids(&stripe.RefundListParams{PaymentIntent: &pi.ID}), all.ID)
	if n := len(s.processor.Ledger().Refunds); n != 3 {
		t.Errorf("%d refunds took effect, want 3", n)
	}
}

func TestRefundsRefused(t *testing.T) {
	s := openShop(t)
	c := s.client()
	_, err := c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: stripe.String("ch_1")})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeResourceMissing, "charge")
	_, err = c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeParameterMissing, "charge")
	charge := must(c.V1Charges.Create(t.Context(), sale(1000, "tok_visa")))(t)
	_, err = c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &charge.ID, Reason: stripe.String("because")})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, "reason_invalid", "reason")
	_, err = c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &charge.ID, ReverseTransfer: stripe.Bool(true)})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, "parameter_unsupported", "reverse_transfer")
	_, err = c.V1Charges.Create(t.Context(), sale(1000, "tok_chargeDeclined"))
	declined := refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, stripe.ErrorCodeCardDeclined, "")
	_, err = c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &declined.ChargeID})
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, "charge_not_refundable", "charge")
	if n := len(s.processor.Ledger().Refunds); n != 0 {
		t.Errorf("%d refunds took effect, want none", n)
	}
}
