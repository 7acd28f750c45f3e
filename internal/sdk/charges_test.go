package sdk

import (
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

// sale is what a till asks for.
func sale(amount int64, token string) *stripe.ChargeCreateParams {
	return &stripe.ChargeCreateParams{Amount: stripe.Int64(amount), Currency: stripe.String("usd"), Source: &stripe.PaymentSourceSourceParams{Token: stripe.String(token)}}
}

func TestCharge(t *testing.T) {
	s := openShop(t)
	c := s.client()
	p := sale(1999, "tok_visa")
	p.Description, p.ReceiptEmail = stripe.String("Two teas"), stripe.String("guest@example.com")
	p.AddMetadata("till", "3")
	p.AddExpand("balance_transaction")
	p.AddExpand("customer")
	made := must(c.V1Charges.Create(t.Context(), p))(t)
	if made.Status != stripe.ChargeStatusSucceeded || !made.Paid || !made.Captured || made.Amount != 1999 || made.AmountCaptured != 1999 || made.Refunded ||
		made.Currency != stripe.CurrencyUSD || made.Description != "Two teas" || made.Metadata["till"] != "3" || len(made.Metadata) != 1 ||
		made.Outcome == nil || made.Outcome.Type != "authorized" || made.PaymentIntent != nil || made.BalanceTransaction != nil || made.Customer != nil {
		t.Errorf("%s", made.LastResponse.RawJSON)
	}
	if made.LastResponse.IdempotencyKey == "" || replayed(made.LastResponse) || made.LastResponse.RequestID == "" {
		t.Errorf("the SDK's own key, or the request's id: %v", made.LastResponse.Header)
	}
	read := must(c.V1Charges.Retrieve(t.Context(), made.ID, &stripe.ChargeRetrieveParams{Expand: stripe.StringSlice([]string{"refunds"})}))(t)
	if string(read.LastResponse.RawJSON) != string(made.LastResponse.RawJSON) {
		t.Errorf("read back: %s", read.LastResponse.RawJSON)
	}
	must(c.V1Charges.Create(t.Context(), sale(100, "tok_visa")))(t)
	var amounts []int64
	for charge, err := range c.V1Charges.List(t.Context(), &stripe.ChargeListParams{}).All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		amounts = append(amounts, charge.Amount)
	}
	if len(amounts) != 2 || amounts[0] != 100 || amounts[1] != 1999 {
		t.Errorf("newest first: %v", amounts)
	}
	s.effects(2)
}

func TestDeclinedCharge(t *testing.T) {
	s := openShop(t)
	c := s.client()
	for token, want := range map[string]struct {
		code    stripe.ErrorCode
		decline stripe.DeclineCode
	}{
		"tok_chargeDeclined":                  {stripe.ErrorCodeCardDeclined, stripe.DeclineCodeGenericDecline},
		"tok_chargeDeclinedInsufficientFunds": {stripe.ErrorCodeCardDeclined, stripe.DeclineCodeInsufficientFunds},
		"tok_chargeDeclinedExpiredCard":       {stripe.ErrorCodeExpiredCard, ""},
		"tok_chargeDeclinedIncorrectCvc":      {stripe.ErrorCodeIncorrectCVC, ""},
	} {
		t.Run(token, func(t *testing.T) {
			p := sale(500, token)
			p.SetIdempotencyKey(token)
			_, err := c.V1Charges.Create(t.Context(), p)
			e := refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, want.code, "")
			if card, ok := e.Err.(*stripe.CardError); !ok || e.DeclineCode != want.decline || card.DeclineCode != want.decline {
				t.Errorf("%v", e)
			}
			charge := must(c.V1Charges.Retrieve(t.Context(), e.ChargeID, nil))(t)
			if charge.Status != stripe.ChargeStatusFailed || charge.Paid || charge.FailureCode != string(want.code) || charge.FailureMessage != e.Msg {
				t.Errorf("%s", charge.LastResponse.RawJSON)
			}
			_, err = c.V1Charges.Create(t.Context(), p)
			again := refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, want.code, "")
			if again.ChargeID != e.ChargeID || !replayed(again.LastResponse) {
				t.Errorf("repeated: %v", again)
			}
		})
	}
	s.effects(0)
}
