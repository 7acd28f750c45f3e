package simulator

import (
	"net/http"
	"net/url"
	"strings"
)

// Intent is a payment intent as the API shows it.
type Intent struct {
	ID                 string            `json:"id"`
	Object             string            `json:"object"`
	Amount             int64             `json:"amount"`
	AmountReceived     int64             `json:"amount_received"`
	CancellationReason *string           `json:"cancellation_reason"`
	Created            int64             `json:"created"`
	Currency           string            `json:"currency"`
	Description        *string           `json:"description"`
	LastPaymentError   *failure          `json:"last_payment_error"`
	LatestCharge       *string           `json:"latest_charge"`
	Livemode           bool              `json:"livemode"`
	Metadata           map[string]string `json:"metadata"`
	NextAction         *nextAction       `json:"next_action"`
	PaymentMethod      *string           `json:"payment_method"`
	PaymentMethodTypes []string          `json:"payment_method_types"`
	Status             string            `json:"status"`
}

type nextAction struct {
	Type string `json:"type"`
}

func (st *state) createIntent(p url.Values, key string) answer {
	amount, currency, bad := money(p)
	if bad != nil {
		return bad.as(http.StatusBadRequest)
	}
	method, confirm := p.Get("payment_method"), p.Get("confirm") == "true"
	switch {
	case confirm && method == "":
		f := invalid("payment_method", "A payment method is needed to confirm.")
		f.Code = "parameter_missing"
		return f.as(http.StatusBadRequest)
	case !confirm && p.Has("error_on_requires_action"):
		return invalid("error_on_requires_action", "You may only use error_on_requires_action with confirm=true.").as(http.StatusBadRequest)
	}
	i := &Intent{
		ID: st.id("pi"), Object: "payment_intent", Amount: amount, Currency: currency, Created: st.now.Unix(),
		Description: optional(p.Get("description")), Metadata: metadata(p), PaymentMethod: optional(method),
		PaymentMethodTypes: p["payment_method_types[]"], Status: "requires_payment_method",
	}
	if len(i.PaymentMethodTypes) == 0 {
		i.PaymentMethodTypes = []string{"card"}
	}
	if method != "" {
		i.Status = "requires_confirmation"
	}
	st.intents.add(i.ID, i)
	if !confirm {
		return jsonAnswer(http.StatusOK, i)
	}
	return st.confirm(i, p, key)
}

// confirm charges an intent, once: whatever key a second confirmation comes under, it is refused for the intent's state.
func (st *state) confirm(i *Intent, p url.Values, key string) answer {
	method := p.Get("payment_method")
	if method == "" && i.PaymentMethod != nil {
		method = *i.PaymentMethod
	}
	switch i.Status {
	case "requires_confirmation", "requires_action", "requires_payment_method":
		if method == "" {
			return i.unexpected("You cannot confirm this PaymentIntent because it's missing a payment method.")
		}
	case "succeeded":
		return i.unexpected("You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.")
	default:
		return i.unexpected("This PaymentIntent could not be confirmed because it has a status of " + i.Status + ".")
	}
	if nameOf(method) == tokenAction {
		return i.wantAction(method, p.Get("error_on_requires_action") == "true")
	}
	c, f := st.charge(method, key, Charge{
		Amount: i.Amount, Currency: i.Currency, Description: i.Description, Metadata: i.Metadata, PaymentIntent: &i.ID,
	})
	i.LatestCharge, i.PaymentMethod, i.NextAction, i.LastPaymentError = &c.ID, &method, nil, nil
	switch {
	case f != nil:
		return i.refuse(*f)
	case c.Status == "pending":
		i.Status = "processing"
		st.open(method, func(refusal *failure) {
			if refusal != nil {
				c.fail(*refusal)
				refusal.Charge = c.ID
				i.refuse(*refusal)
				return
			}
			c.succeed()
			i.succeed()
		}, i.ID, c.ID)
	default:
		i.succeed()
	}
	return jsonAnswer(http.StatusOK, i)
}

func (i *Intent) succeed() { i.Status, i.AmountReceived = "succeeded", i.Amount }

// refuse puts the intent back to where another payment method may be tried, and returns what the client gets.
func (i *Intent) refuse(f failure) answer {
	i.Status, i.PaymentMethod, i.NextAction = "requires_payment_method", nil, nil
	stored := f
	i.LastPaymentError = &stored
	f.PaymentIntent = i
	return f.as(http.StatusPaymentRequired)
}

// wantAction waits for the person who pays, or fails where the client said that there is none.
func (i *Intent) wantAction(method string, fail bool) answer {
	if fail {
		return i.refuse(failure{Type: "card_error", Code: "authentication_required", DeclineCode: "authentication_not_handled",
			Message: "This payment required an authentication action to complete, but `error_on_requires_action` was set."})
	}
	i.Status, i.PaymentMethod, i.NextAction, i.LastPaymentError = "requires_action", &method, &nextAction{"use_stripe_sdk"}, nil
	return jsonAnswer(http.StatusOK, i)
}

func (i *Intent) cancel(p url.Values) answer {
	if !strings.HasPrefix(i.Status, "requires_") {
		return i.unexpected("You cannot cancel this PaymentIntent because it has a status of " + i.Status + ".")
	}
	i.Status, i.NextAction, i.CancellationReason = "canceled", nil, optional(p.Get("cancellation_reason"))
	return jsonAnswer(http.StatusOK, i)
}

func (i *Intent) unexpected(message string) answer {
	f := invalid("", message)
	f.Code = "payment_intent_unexpected_state"
	f.PaymentIntent = i
	return f.as(http.StatusBadRequest)
}
