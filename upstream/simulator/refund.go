package simulator

import (
	"net/http"
	"net/url"
	"strconv"
)

// Refund is a refund as the API shows it.
type Refund struct {
	ID            string            `json:"id"`
	Object        string            `json:"object"`
	Amount        int64             `json:"amount"`
	Charge        string            `json:"charge"`
	Created       int64             `json:"created"`
	Currency      string            `json:"currency"`
	FailureReason *string           `json:"failure_reason,omitempty"`
	Metadata      map[string]string `json:"metadata"`
	PaymentIntent *string           `json:"payment_intent"`
	Reason        *string           `json:"reason"`
	Status        string            `json:"status"`

	key string // the idempotency key it was made under
}

func (st *state) createRefund(p url.Values, key string) answer {
	c, bad := st.refunded(p)
	if bad != nil {
		return *bad
	}
	left := c.Amount - c.AmountRefunded
	amount := left
	if v := p.Get("amount"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return invalid("amount", "Invalid positive integer").as(http.StatusBadRequest)
		}
		amount = n
	}
	reason := p.Get("reason")
	switch {
	case reason != "" && reason != "duplicate" && reason != "fraudulent" && reason != "requested_by_customer":
		return invalid("reason", "Invalid reason: must be one of duplicate, fraudulent, or requested_by_customer").as(http.StatusBadRequest)
	case c.Status != "succeeded":
		return invalid("charge", "Charge "+c.ID+" cannot be refunded: it is "+c.Status+".").as(http.StatusBadRequest)
	case left == 0:
		f := invalid("charge", "Charge "+c.ID+" has already been refunded.")
		f.Code = "charge_already_refunded"
		return f.as(http.StatusBadRequest)
	case amount > left:
		return invalid("amount", "Refund amount is greater than unrefunded amount on charge.").as(http.StatusBadRequest)
	}
	r := &Refund{
		ID: st.id("re"), Object: "refund", Amount: amount, Charge: c.ID, Created: st.now.Unix(), Currency: c.Currency,
		Metadata: metadata(p), PaymentIntent: c.PaymentIntent, Reason: optional(reason), Status: "succeeded", key: key,
	}
	st.refunds.add(r.ID, r)
	c.AmountRefunded += amount
	c.Refunded = c.AmountRefunded == c.Amount
	end := func(refusal *failure) {
		if r.Status = "succeeded"; refusal != nil {
			r.Status, r.FailureReason = "failed", optional("expired_or_canceled_card")
			c.AmountRefunded -= amount
			c.Refunded = false
		}
	}
	switch name := nameOf(c.token); {
	case name == tokenRefundFail:
		st.open(c.token, end, r.ID)
	case name == tokenPendingRefund, name == tokenPendingFail, st.drawn(st.settling.Pending):
		r.Status = "pending"
		st.open(c.token, end, r.ID)
	}
	return jsonAnswer(http.StatusOK, r)
}

// refunded finds the charge whose money is to be given back.
func (st *state) refunded(p url.Values) (*Charge, *answer) {
	refuse := func(a answer) (*Charge, *answer) { return nil, &a }
	id := p.Get("charge")
	if pi := p.Get("payment_intent"); id == "" && pi != "" {
		i := st.intents.get(pi)
		switch {
		case i == nil:
			return refuse(missing("payment_intent", "payment_intent", pi))
		case i.Status != "succeeded":
			return refuse(invalid("payment_intent", "This PaymentIntent ("+pi+") does not have a successful charge to refund.").as(http.StatusBadRequest))
		}
		id = *i.LatestCharge
	}
	if id == "" {
		f := invalid("charge", "One of the following params should be provided for this request: payment_intent or charge.")
		f.Code = "parameter_missing"
		return refuse(f.as(http.StatusBadRequest))
	}
	c := st.charges.get(id)
	if c == nil {
		return refuse(missing("charge", "charge", id))
	}
	return c, nil
}
