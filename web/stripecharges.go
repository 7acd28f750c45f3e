package web

import (
	"net/http"

	"tenderbox/ledger"
)

// stripeCharge is a payment as Stripe shows a charge. Members that the box has nothing for are null, as Stripe's are.
type stripeCharge struct {
	ID                   string            `json:"id"`
	Object               string            `json:"object"`
	Amount               int64             `json:"amount"`
	AmountCaptured       int64             `json:"amount_captured"`
	AmountRefunded       int64             `json:"amount_refunded"`
	Application          *string           `json:"application"`
	ApplicationFee       *string           `json:"application_fee"`
	ApplicationFeeAmount *int64            `json:"application_fee_amount"`
	BalanceTransaction   *string           `json:"balance_transaction"`
	BillingDetails       billingDetails    `json:"billing_details"`
	Captured             bool              `json:"captured"`
	Created              int64             `json:"created"`
	Currency             string            `json:"currency"`
	Customer             *string           `json:"customer"`
	Description          *string           `json:"description"`
	Disputed             bool              `json:"disputed"`
	FailureCode          *string           `json:"failure_code"`
	FailureMessage       *string           `json:"failure_message"`
	FraudDetails         map[string]string `json:"fraud_details"`
	Invoice              *string           `json:"invoice"`
	Livemode             bool              `json:"livemode"`
	Metadata             map[string]string `json:"metadata"`
	OnBehalfOf           *string           `json:"on_behalf_of"`
	Outcome              *chargeOutcome    `json:"outcome"`
	Paid                 bool              `json:"paid"`
	PaymentIntent        *string           `json:"payment_intent"`
	PaymentMethod        *string           `json:"payment_method"`
	PaymentMethodDetails *string           `json:"payment_method_details"`
	ReceiptEmail         *string           `json:"receipt_email"`
	ReceiptNumber        *string           `json:"receipt_number"`
	ReceiptURL           *string           `json:"receipt_url"`
	Refunded             bool              `json:"refunded"`
	Review               *string           `json:"review"`
	Shipping             *string           `json:"shipping"`
	Source               *string           `json:"source"`
	SourceTransfer       *string           `json:"source_transfer"`
	StatementDescriptor  *string           `json:"statement_descriptor"`
	StatementSuffix      *string           `json:"statement_descriptor_suffix"`
	Status               string            `json:"status"`
	TransferData         *string           `json:"transfer_data"`
	TransferGroup        *string           `json:"transfer_group"`
}

// billingDetails are never kept: they are a person's.
type billingDetails struct {
	Address struct {
		City       *string `json:"city"`
		Country    *string `json:"country"`
		Line1      *string `json:"line1"`
		Line2      *string `json:"line2"`
		PostalCode *string `json:"postal_code"`
		State      *string `json:"state"`
	} `json:"address"`
	Email *string `json:"email"`
	Name  *string `json:"name"`
	Phone *string `json:"phone"`
}

// chargeOutcome is what became of it; null while nobody knows.
type chargeOutcome struct {
	NetworkStatus string  `json:"network_status"`
	Reason        *string `json:"reason"`
	SellerMessage string  `json:"seller_message"`
	Type          string  `json:"type"`
}

// Statuses of a charge.
const (
	chargePending   = "pending"
	chargeSucceeded = "succeeded"
	chargeFailed    = "failed"
)

// canceledCode is the failure of a charge that was given up before it left the box: Stripe has no status for it.
const canceledCode = "canceled"

// chargeOf is the view of a payment. livemode is always true: the box does not know whether its processor plays, and a sale that is
// taken for a test is the worse mistake.
func chargeOf(p *ledger.Payment) *stripeCharge {
	c := &stripeCharge{ID: chargeID(p.ID), Object: "charge", Amount: p.Amount, AmountRefunded: p.AmountRefunded, Captured: true,
		Created: p.CreatedAt.Unix(), Currency: p.Currency, Description: p.Description, FraudDetails: map[string]string{}, Livemode: true,
		Metadata: p.Metadata, Status: chargePending}
	if p.Means == ledger.ByMethod {
		id := intentID(p.ID)
		c.PaymentIntent = &id
	}
	switch p.Status {
	case ledger.Succeeded:
		c.Status, c.Paid, c.AmountCaptured, c.Refunded = chargeSucceeded, true, p.Amount, p.AmountRefunded == p.Amount
		c.Outcome = &chargeOutcome{NetworkStatus: "approved_by_network", SellerMessage: "Payment complete.", Type: "authorized"}
	case ledger.Failed:
		f := failureOf(p)
		c.Status, c.Captured, c.FailureCode, c.FailureMessage = chargeFailed, false, &f.Code, &f.Message
		c.Outcome = &chargeOutcome{NetworkStatus: "declined_by_network", SellerMessage: f.Message, Type: "issuer_declined"}
		if f.DeclineCode != "" {
			c.Outcome.Reason = &f.DeclineCode
		}
	case ledger.Canceled:
		code, message := canceledCode, "The payment was given up before it was sent. No money has moved."
		c.Status, c.Captured, c.FailureCode, c.FailureMessage = chargeFailed, false, &code, &message
	}
	return c
}

// chargeRules are the parameters of POST /v1/charges. What would change to whom, when or how much money goes is refused; what a client
// sets for its own convenience is accepted without effect. docs/STRIPE.md holds the table.
var chargeRules = stripeRules{
	"amount": takes, "currency": takes, "source": takes, "description": takes, "metadata": takesIn,
	"capture": takesOnly("true"),
	"expand":  ignores, "receipt_email": ignores, "statement_descriptor": ignores, "statement_descriptor_suffix": ignores,
	"shipping": ignores, "radar_options": ignores,

	"customer":               cannot("it keeps no customers; charge a token as source"),
	"card":                   cannot("name a token as source"),
	"application_fee":        cannot(noConnect),
	"application_fee_amount": cannot(noConnect),
	"destination":            cannot(noConnect),
	"on_behalf_of":           cannot(noConnect),
	"transfer_data":          cannot(noConnect),
	"transfer_group":         cannot(noConnect),
}

const noConnect = "it settles with one account, and divides nothing"

func (s *Server) stripeCreateCharge(x *exchange, _ string) error {
	key, err := x.stripeKey()
	if err != nil {
		return err
	}
	ps, err := x.params(chargeRules)
	if err != nil {
		return err
	}
	n := ledger.NewPayment{Surface: "stripe.charge", Awaited: true}
	if err := ps.money(&n); err != nil {
		return err
	}
	if _, ok := ps.get("source"); !ok {
		return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_missing", Param: "source", Message: "Must provide source."}
	}
	if n.Source, err = ps.required("source"); err != nil {
		return err
	}
	p, replayed, err := s.ledger.Pay(x.r.Context(), x.caller.Tenant, key, n)
	return answerPayment(x, p, replayed, err, chargeOf)
}

// answerPayment waits for the outcome of a payment on its way, and answers with a view of it.
func answerPayment[V any](x *exchange, p ledger.Payment, replayed bool, err error, view func(*ledger.Payment) V) error {
	if err != nil {
		return err
	}
	x.replayed(replayed)
	p = x.awaitPayment(p)
	if no := declined(&p); no != nil {
		return no
	}
	return x.answer(http.StatusOK, view(&p))
}

// money reads what charges and intents have in common.
func (ps stripeParams) money(n *ledger.NewPayment) (err error) {
	if n.Amount, err = ps.amount(); err != nil {
		return err
	}
	if n.Currency, err = ps.required("currency"); err != nil {
		return err
	}
	if n.Description, err = ps.text("description"); err != nil {
		return err
	}
	n.Metadata, err = ps.metadata()
	return err
}

// readRules are the parameters of reading one object.
var readRules = stripeRules{"expand": ignores}

func (s *Server) stripeGetCharge(x *exchange, id string) error {
	if _, err := x.params(readRules); err != nil {
		return err
	}
	p, err := x.payment(id, chargePrefix, paymentPrefix)
	if err == nil && p.Status == ledger.RequiresConfirmation { // nothing is charged yet
		err = errNotFound
	}
	if err != nil {
		return orMissing(err, "charge", "id", id)
	}
	return x.answer(http.StatusOK, chargeOf(&p))
}

var chargeListRules = listRules(stripeRules{"payment_intent": takes})

func (s *Server) stripeListCharges(x *exchange, _ string) error {
	ps, err := x.params(chargeListRules)
	if err != nil {
		return err
	}
	q, err := ps.page("charge", func(id string) (string, bool) { return paymentNamed(id, chargePrefix, paymentPrefix) })
	if err != nil {
		return err
	}
	if p, ok := ps.get("payment_intent"); ok {
		return s.stripeChargesOf(x, p.text)
	}
	f := q.filter()
	f.Confirmed = true
	return answerPayments(x, f, "/charges", chargeOf)
}

// answerPayments answers with a list of payments' views.
func answerPayments[V any](x *exchange, f ledger.Filter, path string, view func(*ledger.Payment) V) error {
	page, err := x.s.ledger.Payments(x.r.Context(), x.caller.Tenant, f)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, stripeListOf(path, page.Data, page.HasMore, view))
}

// stripeChargesOf lists an intent's charges: one, or none yet. Other filters have nothing to choose from.
func (s *Server) stripeChargesOf(x *exchange, intent string) error {
	p, err := x.payment(intent, intentPrefix)
	if err == nil && p.Means != ledger.ByMethod {
		err = errNotFound
	}
	if err != nil {
		return orMissing(err, "payment_intent", "payment_intent", intent)
	}
	var all []ledger.Payment
	if p.Status != ledger.RequiresConfirmation {
		all = append(all, p)
	}
	return x.answer(http.StatusOK, stripeListOf("/charges", all, false, chargeOf))
}

// filter is the ledger's question for a page of payments.
func (q *stripePage) filter() ledger.Filter {
	return ledger.Filter{Limit: q.limit, Older: ledger.PaymentID(q.older), Newer: ledger.PaymentID(q.newer), From: q.from, To: q.to}
}
