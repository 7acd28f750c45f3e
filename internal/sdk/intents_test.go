package sdk

import (
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

// intent is a sale by payment method; "": none is named yet.
func intent(amount int64, method string) *stripe.PaymentIntentCreateParams {
	p := &stripe.PaymentIntentCreateParams{Amount: stripe.Int64(amount), Currency: stripe.String("eur")}
	if method != "" {
		p.PaymentMethod = stripe.String(method)
	}
	return p
}

func TestIntentAtOnce(t *testing.T) {
	s := openShop(t)
	c := s.client()
	p := intent(1250, "pm_card_visa")
	p.Confirm = stripe.Bool(true)
	p.AutomaticPaymentMethods = &stripe.PaymentIntentCreateAutomaticPaymentMethodsParams{Enabled: stripe.Bool(true), AllowRedirects: stripe.String("never")}
	p.AddMetadata("order", "7")
	p.AddExpand("latest_charge")
	made := must(c.V1PaymentIntents.Create(t.Context(), p))(t)
	if made.Status != stripe.PaymentIntentStatusSucceeded || made.AmountReceived != 1250 || made.Metadata["order"] != "7" || made.LatestCharge == nil || made.LastPaymentError != nil {
		t.Fatalf("%s", made.LastResponse.RawJSON)
	}
	read := must(c.V1PaymentIntents.Retrieve(t.Context(), made.ID, nil))(t)
	if read.Status != made.Status || read.LatestCharge.ID != made.LatestCharge.ID {
		t.Errorf("read back: %s", read.LastResponse.RawJSON)
	}
	charge := must(c.V1Charges.Retrieve(t.Context(), made.LatestCharge.ID, nil))(t)
	if charge.PaymentIntent == nil || charge.PaymentIntent.ID != made.ID || charge.Amount != 1250 || !charge.Paid {
		t.Errorf("its charge: %s", charge.LastResponse.RawJSON)
	}
	for charge, err := range c.V1Charges.List(t.Context(), &stripe.ChargeListParams{PaymentIntent: &made.ID}).All(t.Context()) {
		if err != nil || charge.ID != made.LatestCharge.ID {
			t.Errorf("its charges: %v, %v", charge, err)
		}
	}
	s.effects(1)
}

func TestIntentInTwoSteps(t *testing.T) {
	s := openShop(t)
	c := s.client()
	made := must(c.V1PaymentIntents.Create(t.Context(), intent(300, "pm_card_visa")))(t)
	if made.Status != stripe.PaymentIntentStatusRequiresConfirmation || made.LatestCharge != nil {
		t.Errorf("%s", made.LastResponse.RawJSON)
	}
	s.effects(0)
	done := must(c.V1PaymentIntents.Confirm(t.Context(), made.ID, &stripe.PaymentIntentConfirmParams{ReturnURL: stripe.String("https://shop.example/done")}))(t)
	if done.Status != stripe.PaymentIntentStatusSucceeded || done.AmountReceived != 300 {
		t.Errorf("%s", done.LastResponse.RawJSON)
	}
	s.effects(1)
	_, err := c.V1PaymentIntents.Confirm(t.Context(), made.ID, nil)
	e := refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodePaymentIntentUnexpectedState, "")
	if e.PaymentIntent == nil || e.PaymentIntent.Status != stripe.PaymentIntentStatusSucceeded {
		t.Errorf("%v", e)
	}

	// The method is named when it is confirmed.
	bare := must(c.V1PaymentIntents.Create(t.Context(), intent(400, "")))(t)
	if bare.Status != stripe.PaymentIntentStatusRequiresPaymentMethod {
		t.Errorf("%s", bare.LastResponse.RawJSON)
	}
	_, err = c.V1PaymentIntents.Confirm(t.Context(), bare.ID, nil)
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeParameterMissing, "payment_method")
	done = must(c.V1PaymentIntents.Confirm(t.Context(), bare.ID, &stripe.PaymentIntentConfirmParams{PaymentMethod: stripe.String("pm_card_visa")}))(t)
	if done.Status != stripe.PaymentIntentStatusSucceeded {
		t.Errorf("%s", done.LastResponse.RawJSON)
	}
	s.effects(2)
}

func TestIntentCanceled(t *testing.T) {
	s := openShop(t)
	c := s.client()
	made := must(c.V1PaymentIntents.Create(t.Context(), intent(300, "pm_card_visa")))(t)
	gone := must(c.V1PaymentIntents.Cancel(t.Context(), made.ID, &stripe.PaymentIntentCancelParams{CancellationReason: stripe.String("abandoned")}))(t)
	if gone.Status != stripe.PaymentIntentStatusCanceled || gone.CanceledAt == 0 {
		t.Errorf("%s", gone.LastResponse.RawJSON)
	}
	_, err := c.V1PaymentIntents.Confirm(t.Context(), made.ID, nil)
	e := refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodePaymentIntentUnexpectedState, "")
	if e.PaymentIntent == nil || e.PaymentIntent.Status != stripe.PaymentIntentStatusCanceled {
		t.Errorf("%v", e)
	}
	paid := intent(300, "pm_card_visa")
	paid.Confirm = stripe.Bool(true)
	done := must(c.V1PaymentIntents.Create(t.Context(), paid))(t)
	_, err = c.V1PaymentIntents.Cancel(t.Context(), done.ID, nil)
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodePaymentIntentUnexpectedState, "")
	s.effects(1)
}

func TestDeclinedIntent(t *testing.T) {
	s := openShop(t)
	c := s.client()
	p := intent(500, "pm_card_chargeDeclinedInsufficientFunds")
	p.Confirm = stripe.Bool(true)
	_, err := c.V1PaymentIntents.Create(t.Context(), p)
	e := refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, stripe.ErrorCodeCardDeclined, "")
	if e.DeclineCode != stripe.DeclineCodeInsufficientFunds || e.PaymentIntent == nil {
		t.Fatalf("%v", e)
	}
	read := must(c.V1PaymentIntents.Retrieve(t.Context(), e.PaymentIntent.ID, nil))(t)
	if read.Status != stripe.PaymentIntentStatusRequiresPaymentMethod || read.LastPaymentError == nil || read.LastPaymentError.DeclineCode != stripe.DeclineCodeInsufficientFunds {
		t.Errorf("%s", read.LastResponse.RawJSON)
	}
	// Somebody must act, and nobody can: a decline, so that no till waits for it.
	p = intent(500, "pm_card_authenticationRequired")
	p.Confirm = stripe.Bool(true)
	_, err = c.V1PaymentIntents.Create(t.Context(), p)
	refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, stripe.ErrorCodeAuthenticationRequired, "")
	s.effects(0)
}
