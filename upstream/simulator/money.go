package simulator

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// amountMax is Stripe's: eight digits.
const amountMax = 99_999_999

// metadataKeysMax is Stripe's limit for one object.
const metadataKeysMax = 50

// declines maps the end of a test token (tok_… or pm_card_…) to what the bank says.
var declines = map[string]struct{ code, declineCode, message string }{
	"chargeDeclined":                  {"card_declined", "generic_decline", "Your card was declined."},
	"chargeDeclinedInsufficientFunds": {"card_declined", "insufficient_funds", "Your card has insufficient funds."},
	"chargeDeclinedLostCard":          {"card_declined", "lost_card", "Your card was declined."},
	"chargeDeclinedStolenCard":        {"card_declined", "stolen_card", "Your card was declined."},
	"chargeDeclinedFraudulent":        {"card_declined", "fraudulent", "Your card was declined."},
	"chargeDeclinedExpiredCard":       {"expired_card", "", "Your card has expired."},
	"chargeDeclinedIncorrectCvc":      {"incorrect_cvc", "", "Your card's security code is incorrect."},
	"chargeDeclinedProcessingError":   {"processing_error", "", "An error occurred while processing your card."},
}

// decline returns what the bank says to a token; ok is false if it pays.
func decline(token string) (f failure, ok bool) {
	name := token[strings.LastIndexByte(token, '_')+1:]
	d, ok := declines[name]
	return failure{Type: "card_error", Code: d.code, DeclineCode: d.declineCode, Message: d.message}, ok
}

func money(p url.Values) (amount int64, currency string, bad *failure) {
	amount, err := strconv.ParseInt(p.Get("amount"), 10, 64)
	if err != nil || amount < 1 {
		f := invalid("amount", "Invalid positive integer")
		f.Code = "parameter_invalid_integer"
		return 0, "", &f
	}
	if amount > amountMax {
		f := invalid("amount", "Amount must be no more than 999,999.99")
		f.Code = "amount_too_large"
		return 0, "", &f
	}
	currency = strings.ToLower(p.Get("currency"))
	if len(currency) != 3 || strings.Trim(currency, "abcdefghijklmnopqrstuvwxyz") != "" {
		f := invalid("currency", "Invalid currency: "+currency)
		return 0, "", &f
	}
	return amount, currency, nil
}

func metadata(p url.Values) map[string]string {
	m := map[string]string{}
	for name, values := range p {
		if k, ok := strings.CutPrefix(name, "metadata["); ok && strings.HasSuffix(k, "]") {
			m[strings.TrimSuffix(k, "]")] = values[0]
		}
	}
	return m
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// charge records a charge on token; f is the bank's refusal, with the failed charge recorded too.
func (st *state) charge(token, key string, now int64, c Charge) (*Charge, *failure) {
	c.ID, c.Object, c.Created, c.key = st.id("ch"), "charge", now, key
	c.Status, c.Paid, c.Captured = "succeeded", true, true
	f, declined := decline(token)
	if declined {
		c.Status, c.Paid, c.Captured = "failed", false, false
		c.FailureCode, c.FailureMessage = optional(f.Code), optional(f.Message)
		f.Charge = c.ID
	}
	st.charges.add(c.ID, &c)
	if declined {
		return &c, &f
	}
	return &c, nil
}

func (st *state) createCharge(p url.Values, key string, now int64) answer {
	amount, currency, bad := money(p)
	if bad != nil {
		return bad.as(http.StatusBadRequest)
	}
	source := p.Get("source")
	if source == "" {
		f := invalid("source", "Must provide source or customer.")
		f.Code = "parameter_missing"
		return f.as(http.StatusBadRequest)
	}
	c, f := st.charge(source, key, now, Charge{
		Amount: amount, Currency: currency, Description: optional(p.Get("description")), Metadata: metadata(p),
	})
	if f != nil {
		return f.as(http.StatusPaymentRequired)
	}
	return jsonAnswer(http.StatusOK, c)
}

func (st *state) createIntent(p url.Values, key string, now int64) answer {
	amount, currency, bad := money(p)
	if bad != nil {
		return bad.as(http.StatusBadRequest)
	}
	method, confirm := p.Get("payment_method"), p.Get("confirm") == "true"
	if confirm && method == "" {
		f := invalid("payment_method", "A payment method is needed to confirm.")
		f.Code = "parameter_missing"
		return f.as(http.StatusBadRequest)
	}
	i := &Intent{
		ID: st.id("pi"), Object: "payment_intent", Amount: amount, Currency: currency, Created: now,
		Description: optional(p.Get("description")), Metadata: metadata(p), PaymentMethod: optional(method),
		Status: "requires_payment_method",
	}
	if method != "" {
		i.Status = "requires_confirmation"
	}
	st.intents.add(i.ID, i)
	if !confirm {
		return jsonAnswer(http.StatusOK, i)
	}
	return st.confirm(i, method, key, now)
}

// confirm charges an intent.
func (st *state) confirm(i *Intent, method, key string, now int64) answer {
	if method == "" && i.PaymentMethod != nil {
		method = *i.PaymentMethod
	}
	if i.Status != "requires_confirmation" && i.Status != "requires_payment_method" || method == "" {
		return i.unexpected("confirm")
	}
	c, f := st.charge(method, key, now, Charge{
		Amount: i.Amount, Currency: i.Currency, Description: i.Description, Metadata: i.Metadata, PaymentIntent: &i.ID,
	})
	i.LatestCharge = &c.ID
	if f != nil {
		i.Status, i.PaymentMethod = "requires_payment_method", nil
		f.PaymentIntent = i
		return f.as(http.StatusPaymentRequired)
	}
	i.Status, i.PaymentMethod, i.AmountReceived = "succeeded", &method, i.Amount
	return jsonAnswer(http.StatusOK, i)
}

func (i *Intent) cancel() answer {
	if i.Status == "succeeded" || i.Status == "canceled" {
		return i.unexpected("cancel")
	}
	i.Status = "canceled"
	return jsonAnswer(http.StatusOK, i)
}

func (i *Intent) unexpected(act string) answer {
	f := invalid("", "This PaymentIntent could not be "+act+"ed because it has a status of "+i.Status+".")
	f.Code = "payment_intent_unexpected_state"
	f.PaymentIntent = i
	return f.as(http.StatusBadRequest)
}

func (st *state) createRefund(p url.Values, key string, now int64) answer {
	id := p.Get("charge")
	if pi := p.Get("payment_intent"); id == "" && pi != "" {
		i := st.intents.get(pi)
		if i == nil || i.LatestCharge == nil {
			return missing("payment_intent", pi)
		}
		id = *i.LatestCharge
	}
	if id == "" {
		f := invalid("charge", "One of the following params should be provided for this request: payment_intent or charge.")
		f.Code = "parameter_missing"
		return f.as(http.StatusBadRequest)
	}
	c := st.charges.get(id)
	if c == nil {
		return missing("charge", id)
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
	switch {
	case c.Status != "succeeded":
		f := invalid("charge", "This charge cannot be refunded, as it was not successful.")
		return f.as(http.StatusBadRequest)
	case left == 0:
		f := invalid("charge", "Charge "+id+" has already been refunded.")
		f.Code = "charge_already_refunded"
		return f.as(http.StatusBadRequest)
	case amount > left:
		return invalid("amount", "Refund amount is greater than unrefunded amount on charge.").as(http.StatusBadRequest)
	}
	c.AmountRefunded += amount
	c.Refunded = c.AmountRefunded == c.Amount
	r := &Refund{
		ID: st.id("re"), Object: "refund", Amount: amount, Charge: id, Created: now, Currency: c.Currency,
		Metadata: metadata(p), PaymentIntent: c.PaymentIntent, Status: "succeeded", key: key,
	}
	st.refunds.add(r.ID, r)
	return jsonAnswer(http.StatusOK, r)
}
