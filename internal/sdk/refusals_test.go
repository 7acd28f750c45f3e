package sdk

import (
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

func TestWhoIsCalling(t *testing.T) {
	s := openShop(t)
	for name, key := range map[string]string{"wrong": "sk_test_wrong", "none": ""} {
		t.Run(name, func(t *testing.T) {
			c := s.clientOf(key)
			_, err := c.V1Charges.Create(t.Context(), sale(100, "tok_visa"))
			e := refusal(t, err, http.StatusUnauthorized, stripe.ErrorTypeInvalidRequest, "auth_invalid", "")
			if _, ok := e.Err.(*stripe.InvalidRequestError); !ok {
				t.Errorf("%T", e.Err)
			}
		})
	}
	c := s.client()
	_, err := c.V1Charges.Retrieve(t.Context(), "ch_123", nil)
	refusal(t, err, http.StatusNotFound, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeResourceMissing, "id")
	_, err = c.V1PaymentIntents.Retrieve(t.Context(), "pi_123", nil)
	refusal(t, err, http.StatusNotFound, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeResourceMissing, "intent")
	_, err = c.V1Customers.Create(t.Context(), &stripe.CustomerCreateParams{Email: stripe.String("guest@example.com")})
	refusal(t, err, http.StatusNotFound, stripe.ErrorTypeInvalidRequest, "url_unknown", "")
	p := sale(100, "tok_visa")
	p.SetStripeAccount("acct_1")
	_, err = c.V1Charges.Create(t.Context(), p)
	refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, "account_invalid", "Stripe-Account")
	s.effects(0)
}

// What would change where the money goes, or when, is refused; what the box has never heard of is, too.
func TestParametersRefused(t *testing.T) {
	s := openShop(t)
	c := s.client()
	for name, x := range map[string]struct {
		set   func(*stripe.ChargeCreateParams)
		code  stripe.ErrorCode
		param string
	}{
		"unknown":      {func(p *stripe.ChargeCreateParams) { p.AddExtra("tip", "5") }, stripe.ErrorCodeParameterUnknown, "tip"},
		"unknown, in":  {func(p *stripe.ChargeCreateParams) { p.AddExtra("tip[amount]", "5") }, stripe.ErrorCodeParameterUnknown, "tip"},
		"later":        {func(p *stripe.ChargeCreateParams) { p.Capture = stripe.Bool(false) }, "parameter_unsupported", "capture"},
		"customer":     {func(p *stripe.ChargeCreateParams) { p.Customer = stripe.String("cus_1") }, "parameter_unsupported", "customer"},
		"fee":          {func(p *stripe.ChargeCreateParams) { p.ApplicationFeeAmount = stripe.Int64(1) }, "parameter_unsupported", "application_fee_amount"},
		"no amount":    {func(p *stripe.ChargeCreateParams) { p.Amount = nil }, stripe.ErrorCodeParameterMissing, "amount"},
		"no currency":  {func(p *stripe.ChargeCreateParams) { p.Currency = nil }, stripe.ErrorCodeParameterMissing, "currency"},
		"no source":    {func(p *stripe.ChargeCreateParams) { p.Source = nil }, stripe.ErrorCodeParameterMissing, "source"},
		"nothing":      {func(p *stripe.ChargeCreateParams) { p.Amount = stripe.Int64(0) }, stripe.ErrorCodeParameterInvalidInteger, "amount"},
		"less":         {func(p *stripe.ChargeCreateParams) { p.Amount = stripe.Int64(-5) }, stripe.ErrorCodeParameterInvalidInteger, "amount"},
		"card":         {func(p *stripe.ChargeCreateParams) { p.Source = card() }, "card_data_not_allowed", "source[number]"},
		"card in text": {func(p *stripe.ChargeCreateParams) { p.Description = stripe.String("4242 4242 4242 4242") }, "card_data_not_allowed", "description"},
	} {
		t.Run(name, func(t *testing.T) {
			p := sale(100, "tok_visa")
			x.set(p)
			_, err := c.V1Charges.Create(t.Context(), p)
			e := refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, x.code, x.param)
			if e.LastResponse.Header.Get("Stripe-Should-Retry") != "false" {
				t.Errorf("%v", e.LastResponse.Header)
			}
		})
	}
	for charge, err := range c.V1Charges.List(t.Context(), &stripe.ChargeListParams{Customer: stripe.String("cus_1")}).All(t.Context()) {
		if err == nil {
			t.Fatalf("a charge of a filter that there is not: %v", charge)
		}
		refusal(t, err, http.StatusBadRequest, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeParameterUnknown, "customer")
		break // the iterator repeats its error
	}
	s.effects(0)
}

func card() *stripe.PaymentSourceSourceParams {
	return &stripe.PaymentSourceSourceParams{Card: &stripe.CardParams{Number: stripe.String("4242424242424242"), ExpMonth: stripe.String("12"), ExpYear: stripe.String("2030"), CVC: stripe.String("123")}}
}
