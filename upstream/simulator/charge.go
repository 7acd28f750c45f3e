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

// Charge is a charge as the API shows it.
type Charge struct {
	ID             string            `json:"id"`
	Object         string            `json:"object"`
	Amount         int64             `json:"amount"`
	AmountRefunded int64             `json:"amount_refunded"`
	Captured       bool              `json:"captured"`
	Created        int64             `json:"created"`
	Currency       string            `json:"currency"`
	Description    *string           `json:"description"`
	FailureCode    *string           `json:"failure_code"`
	FailureMessage *string           `json:"failure_message"`
	Livemode       bool              `json:"livemode"`
	Metadata       map[string]string `json:"metadata"`
	Paid           bool              `json:"paid"`
	PaymentIntent  *string           `json:"payment_intent"`
	Refunded       bool              `json:"refunded"`
	Status         string            `json:"status"`

	key   string // the idempotency key it was made under
	token string // what was charged, which decides how refunds end
}

func (c *Charge) succeed() { c.Status, c.Paid, c.Captured = "succeeded", true, true }

func (c *Charge) fail(f failure) {
	c.Status, c.Paid, c.Captured = "failed", false, false
	c.FailureCode, c.FailureMessage = optional(f.Code), optional(f.Message)
}

// charge records a charge on a token. It succeeded or is pending; f is the bank's refusal, with the failed charge recorded too.
func (st *state) charge(token, key string, c Charge) (made *Charge, f *failure) {
	c.ID, c.Object, c.Created, c.key, c.token = st.id("ch"), "charge", st.now.Unix(), key, token
	st.charges.add(c.ID, &c)
	switch what, refusal := st.fate(token); what {
	case pays:
		c.succeed()
	case processes:
		c.Status = "pending"
	default:
		c.fail(refusal)
		refusal.Charge = c.ID
		return &c, &refusal
	}
	return &c, nil
}

func (st *state) createCharge(p url.Values, key string) answer {
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
	c, f := st.charge(source, key, Charge{
		Amount: amount, Currency: currency, Description: optional(p.Get("description")), Metadata: metadata(p),
	})
	if f != nil {
		return f.as(http.StatusPaymentRequired)
	}
	if c.Status == "pending" {
		st.open(source, func(refusal *failure) {
			if refusal != nil {
				c.fail(*refusal)
			} else {
				c.succeed()
			}
		}, c.ID)
	}
	return jsonAnswer(http.StatusOK, c)
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
