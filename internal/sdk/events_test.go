package sdk

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

// What a program reads that missed a webhook: the changes, with the objects as they were.
func TestEvents(t *testing.T) {
	s := openShop(t)
	c := s.client()
	charge := must(c.V1Charges.Create(t.Context(), sale(1000, "tok_visa")))(t)
	_, err := c.V1Charges.Create(t.Context(), sale(500, "tok_chargeDeclined"))
	refusal(t, err, http.StatusPaymentRequired, stripe.ErrorTypeCard, stripe.ErrorCodeCardDeclined, "")
	refund := must(c.V1Refunds.Create(t.Context(), &stripe.RefundCreateParams{Charge: &charge.ID}))(t)
	seen := map[stripe.EventType]*stripe.Event{}
	for e, err := range c.V1Events.List(t.Context(), &stripe.EventListParams{Types: stripe.StringSlice([]string{"charge.succeeded", "refund.*"}), ListParams: stripe.ListParams{Limit: stripe.Int64(1)}}).All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.Type] = e
	}
	if len(seen) != 3 || seen[stripe.EventTypeRefundCreated] == nil || seen[stripe.EventTypeRefundUpdated] == nil || seen[stripe.EventTypeChargeSucceeded] == nil {
		t.Fatalf("%v", seen)
	}
	var was stripe.Charge
	if err := json.Unmarshal(seen[stripe.EventTypeChargeSucceeded].Data.Raw, &was); err != nil || was.ID != charge.ID || was.Status != stripe.ChargeStatusSucceeded || was.AmountRefunded != 0 {
		t.Errorf("%v %+v", err, was)
	}
	e := must(c.V1Events.Retrieve(t.Context(), seen[stripe.EventTypeRefundUpdated].ID, nil))(t)
	if e.GetObjectValue("id") != refund.ID || e.GetObjectValue("status") != "succeeded" || e.APIVersion != stripe.APIVersion {
		t.Errorf("%s", e.LastResponse.RawJSON)
	}
	_, err = c.V1Events.Retrieve(t.Context(), "evt_1", nil)
	refusal(t, err, http.StatusNotFound, stripe.ErrorTypeInvalidRequest, stripe.ErrorCodeResourceMissing, "id")
}
