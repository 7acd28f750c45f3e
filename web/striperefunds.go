package web

import (
	"net/http"
	"strings"
	"time"

	"tenderbox/ledger"
)

// stripeRefund is a refund in Stripe's shape.
type stripeRefund struct {
	ID                     string            `json:"id"`
	Object                 string            `json:"object"`
	Amount                 int64             `json:"amount"`
	BalanceTransaction     *string           `json:"balance_transaction"`
	Charge                 string            `json:"charge"`
	Created                int64             `json:"created"`
	Currency               string            `json:"currency"`
	FailureReason          string            `json:"failure_reason,omitzero"`
	Metadata               map[string]string `json:"metadata"`
	PaymentIntent          *string           `json:"payment_intent"`
	Reason                 *string           `json:"reason"`
	ReceiptNumber          *string           `json:"receipt_number"`
	SourceTransferReversal *string           `json:"source_transfer_reversal"`
	Status                 string            `json:"status"`
	TransferReversal       *string           `json:"transfer_reversal"`
}

func refundOf(r *ledger.Refund) *stripeRefund {
	v := &stripeRefund{ID: string(r.ID), Object: "refund", Amount: r.Amount, Charge: chargeID(r.PaymentID), Created: r.CreatedAt.Unix(),
		Currency: r.Currency, Metadata: r.Metadata, Reason: r.Reason, Status: string(r.Status)}
	if r.Means == ledger.ByMethod {
		id := intentID(r.PaymentID)
		v.PaymentIntent = &id
	}
	if r.Status == ledger.RefundRefused {
		v.FailureReason = "unknown" // Stripe's word for what is none of its own
	}
	return v
}

var refundRules = stripeRules{
	"charge": takes, "payment_intent": takes, "amount": takes, "reason": takes, "metadata": takesIn,
	"expand": ignores, "instructions_email": ignores,

	"refund_application_fee": cannot(noConnect),
	"reverse_transfer":       cannot(noConnect),
	"customer":               cannot(noCustomers),
	"origin":                 cannot(noCustomers),
	"currency":               cannot("a refund is in the currency of its charge"),
}

func (s *Server) stripeCreateRefund(x *exchange, _ string) error {
	key, err := x.stripeKey()
	if err != nil {
		return err
	}
	ps, err := x.params(refundRules)
	if err != nil {
		return err
	}
	n := ledger.NewRefund{Surface: "stripe"}
	if _, found := ps.get("amount"); found {
		if n.Amount, err = ps.amount(); err != nil {
			return err
		}
	}
	if n.Reason, err = ps.text("reason"); err != nil {
		return err
	}
	if n.Metadata, err = ps.metadata(); err != nil {
		return err
	}
	p, err := x.paymentOf(ps)
	if err != nil {
		return err
	}
	n.PaymentID = string(p.ID)
	r, replayed, err := s.ledger.CreateRefund(x.r.Context(), x.caller.Tenant, key, n)
	if err != nil {
		return orAlreadyRefunded(err, &p)
	}
	x.replayed(replayed)
	if r.Status == ledger.RefundPending {
		x.await(func(d time.Duration) {
			if settled, err := s.ledger.AwaitRefund(x.r.Context(), x.caller.Tenant, r.ID, d); err == nil {
				r = settled
			}
		})
	}
	return x.answer(http.StatusOK, refundOf(&r))
}

// orAlreadyRefunded tells a charge of which nothing is left from one of which too little is: clients take the first for done.
func orAlreadyRefunded(err error, was *ledger.Payment) error {
	if p, known := explain(err, false); known && p.Code == "refund_exceeds" && was.AmountRefunded == was.Amount {
		return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "charge_already_refunded", Param: "charge",
			Message: "Charge " + chargeID(was.ID) + " has already been refunded."}
	}
	return err
}

// paymentOf reads the payment that charge or payment_intent names.
func (x *exchange) paymentOf(ps stripeParams) (ledger.Payment, error) {
	charge, hasCharge := ps.get("charge")
	intent, hasIntent := ps.get("payment_intent")
	switch {
	case hasCharge && hasIntent && chargePrefix+strings.TrimPrefix(intent.text, intentPrefix) != charge.text:
		return ledger.Payment{}, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameters_exclusive", Param: "charge",
			Message: "charge is not the charge of payment_intent; name one of them."}
	case hasCharge:
		p, err := x.payment(charge.text, chargePrefix, paymentPrefix)
		return p, orMissing(err, "charge", "charge", charge.text)
	case hasIntent:
		p, err := x.payment(intent.text, intentPrefix, paymentPrefix)
		if err == nil && p.Means != ledger.ByMethod {
			err = errNotFound
		}
		return p, orMissing(err, "payment_intent", "payment_intent", intent.text)
	}
	return ledger.Payment{}, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_missing", Param: "charge",
		Message: "One of the following params should be provided for this request: payment_intent or charge."}
}

func (s *Server) stripeGetRefund(x *exchange, id string) error {
	if _, err := x.params(readRules); err != nil {
		return err
	}
	r, err := s.ledger.Refund(x.r.Context(), x.caller.Tenant, id)
	if err != nil {
		return orMissing(err, "refund", "id", id)
	}
	return x.answer(http.StatusOK, refundOf(&r))
}

var refundListRules = listRules(stripeRules{"charge": takes, "payment_intent": takes})

func (s *Server) stripeListRefunds(x *exchange, _ string) error {
	ps, err := x.params(refundListRules)
	if err != nil {
		return err
	}
	q, err := ps.page("refund", func(id string) (string, bool) { own, ok := ledger.ParseRefundID(id); return string(own), ok })
	if err != nil {
		return err
	}
	f := ledger.RefundFilter{Limit: q.limit, Older: ledger.RefundID(q.older), Newer: ledger.RefundID(q.newer), From: q.from, To: q.to}
	_, byCharge := ps.get("charge")
	if _, byIntent := ps.get("payment_intent"); byCharge || byIntent {
		p, err := x.paymentOf(ps)
		if err != nil {
			return err
		}
		f.PaymentID = string(p.ID)
	}
	page, err := s.ledger.Refunds(x.r.Context(), x.caller.Tenant, f)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, stripeListOf("/refunds", page.Data, page.HasMore, refundOf))
}
