package web

import (
	"net/http"

	"tenderbox/ledger"
)

// stripeIntent is a payment as Stripe shows a payment intent.
type stripeIntent struct {
	ID                        string            `json:"id"`
	Object                    string            `json:"object"`
	Amount                    int64             `json:"amount"`
	AmountCapturable          int64             `json:"amount_capturable"`
	AmountDetails             amountDetails     `json:"amount_details"`
	AmountReceived            int64             `json:"amount_received"`
	Application               *string           `json:"application"`
	ApplicationFeeAmount      *int64            `json:"application_fee_amount"`
	AutomaticPaymentMethods   *string           `json:"automatic_payment_methods"`
	CanceledAt                *int64            `json:"canceled_at"`
	CancellationReason        *string           `json:"cancellation_reason"`
	CaptureMethod             string            `json:"capture_method"`
	ClientSecret              *string           `json:"client_secret"`
	ConfirmationMethod        string            `json:"confirmation_method"`
	Created                   int64             `json:"created"`
	Currency                  string            `json:"currency"`
	Customer                  *string           `json:"customer"`
	Description               *string           `json:"description"`
	LastPaymentError          *stripeError      `json:"last_payment_error"`
	LatestCharge              *string           `json:"latest_charge"`
	Livemode                  bool              `json:"livemode"`
	Metadata                  map[string]string `json:"metadata"`
	NextAction                *string           `json:"next_action"`
	OnBehalfOf                *string           `json:"on_behalf_of"`
	PaymentMethod             *string           `json:"payment_method"`
	PaymentMethodOptions      map[string]string `json:"payment_method_options"`
	PaymentMethodTypes        []string          `json:"payment_method_types"`
	Processing                *string           `json:"processing"`
	ReceiptEmail              *string           `json:"receipt_email"`
	Review                    *string           `json:"review"`
	SetupFutureUsage          *string           `json:"setup_future_usage"`
	Shipping                  *string           `json:"shipping"`
	Source                    *string           `json:"source"`
	StatementDescriptor       *string           `json:"statement_descriptor"`
	StatementDescriptorSuffix *string           `json:"statement_descriptor_suffix"`
	Status                    string            `json:"status"`
	TransferData              *string           `json:"transfer_data"`
	TransferGroup             *string           `json:"transfer_group"`
}

type amountDetails struct {
	Tip map[string]int64 `json:"tip"`
}

// Statuses of an intent.
const (
	intentNoMethod   = "requires_payment_method"
	intentToConfirm  = "requires_confirmation"
	intentProcessing = "processing"
	intentSucceeded  = "succeeded"
	intentCanceled   = "canceled"
)

// intentOf is the view of a payment. One that was declined shows as Stripe shows it, waiting for another method; here it is final, and the
// next try is another intent. client_secret is null: it lets a browser confirm, and browsers do not speak to the box.
func intentOf(p *ledger.Payment) *stripeIntent {
	charge := chargeID(p.ID)
	i := &stripeIntent{ID: intentID(p.ID), Object: "payment_intent", Amount: p.Amount, AmountDetails: amountDetails{map[string]int64{}},
		CaptureMethod: "automatic", ConfirmationMethod: "automatic", Created: p.CreatedAt.Unix(), Currency: p.Currency,
		Description: p.Description, LatestCharge: &charge, Livemode: true, Metadata: p.Metadata,
		PaymentMethodOptions: map[string]string{}, PaymentMethodTypes: []string{"card"}, Status: intentProcessing}
	switch p.Status {
	case ledger.RequiresConfirmation:
		i.LatestCharge = nil
		if i.Status = intentToConfirm; p.MethodMissing {
			i.Status = intentNoMethod
		}
	case ledger.Succeeded:
		i.Status, i.AmountReceived = intentSucceeded, p.Amount
	case ledger.Failed:
		i.Status, i.LastPaymentError = intentNoMethod, failureOf(p)
	case ledger.Canceled:
		i.Status, i.LatestCharge = intentCanceled, nil
		if p.SettledAt != nil {
			at := p.SettledAt.Unix()
			i.CanceledAt = &at
		}
	}
	return i
}

// intentRules are the parameters of POST /v1/payment_intents: see chargeRules.
var intentRules = stripeRules{
	"amount": takes, "currency": takes, "payment_method": takes, "confirm": takes, "description": takes, "metadata": takesIn,
	"capture_method":      takesOnly("automatic", "automatic_async"),
	"confirmation_method": takesOnly("automatic", "manual"),

	"setup_future_usage":     cannot(noCustomers),
	"customer":               cannot(noCustomers),
	"customer_account":       cannot(noCustomers),
	"application_fee_amount": cannot(noConnect),
	"on_behalf_of":           cannot(noConnect),
	"transfer_data":          cannot(noConnect),
	"transfer_group":         cannot(noConnect),
	"source":                 cannot("charge a source with POST /v1/charges"),
}

const noCustomers = "it keeps no customers and no methods of theirs"

// confirmRules are the parameters of confirming.
var confirmRules = stripeRules{
	"payment_method":     takes,
	"capture_method":     takesOnly("automatic", "automatic_async"),
	"setup_future_usage": cannot(noCustomers),
}

func init() {
	for _, rules := range []stripeRules{intentRules, confirmRules} {
		for _, name := range []string{"expand", "automatic_payment_methods", "error_on_requires_action", "off_session", "payment_method_types", "receipt_email",
			"return_url", "shipping", "statement_descriptor", "statement_descriptor_suffix", "radar_options", "use_stripe_sdk"} {
			rules[name] = ignores
		}
		for name, why := range map[string]string{
			"payment_method_data":    "name a payment_method of your processor",
			"payment_method_options": "they change how and when money is taken",
			"confirmation_token":     "name a payment_method of your processor",
			"mandate":                noMandates, "mandate_data": noMandates,
			"amount_details": "it takes an amount as it is",
		} {
			rules[name] = cannot(why)
		}
	}
}

const noMandates = "it keeps no mandates"

func (s *Server) stripeCreateIntent(x *exchange, _ string) error {
	key, err := x.stripeKey()
	if err != nil {
		return err
	}
	ps, err := x.params(intentRules)
	if err != nil {
		return err
	}
	n := ledger.NewPayment{Surface: "stripe.intent"}
	if err := ps.money(&n); err != nil {
		return err
	}
	confirm, err := ps.boolean("confirm")
	if err != nil {
		return err
	}
	n.Unconfirmed, n.Awaited = !confirm, confirm
	if _, named := ps.get("payment_method"); named || confirm {
		if n.PaymentMethod, err = ps.required("payment_method"); err != nil {
			return err
		}
	}
	p, replayed, err := s.ledger.Pay(x.r.Context(), x.caller.Tenant, key, n)
	return answerPayment(x, p, replayed, err, intentOf)
}

// intent reads the payment that an intent's id stands for.
func (x *exchange) intent(id string) (ledger.Payment, error) {
	p, err := x.payment(id, intentPrefix, paymentPrefix)
	if err == nil && p.Means != ledger.ByMethod {
		err = errNotFound
	}
	return p, orMissing(err, "payment_intent", "intent", id)
}

func (s *Server) stripeGetIntent(x *exchange, id string) error {
	if _, err := x.params(stripeRules{"expand": ignores, "client_secret": ignores}); err != nil {
		return err
	}
	p, err := x.intent(id)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, intentOf(&p))
}

var intentListRules = listRules(nil)

func (s *Server) stripeListIntents(x *exchange, _ string) error {
	ps, err := x.params(intentListRules)
	if err != nil {
		return err
	}
	q, err := ps.page("payment_intent", func(id string) (string, bool) { return paymentNamed(id, intentPrefix, paymentPrefix) })
	if err != nil {
		return err
	}
	f := q.filter()
	f.Means = ledger.ByMethod
	return answerPayments(x, f, "/payment_intents", intentOf)
}

func (s *Server) stripeConfirmIntent(x *exchange, id string) error {
	key, err := x.stripeKey()
	if err != nil {
		return err
	}
	ps, err := x.params(confirmRules)
	if err != nil {
		return err
	}
	method := ""
	if _, named := ps.get("payment_method"); named {
		if method, err = ps.required("payment_method"); err != nil {
			return err
		}
	}
	was, err := x.intent(id)
	if err != nil {
		return err
	}
	p, replayed, err := s.ledger.Confirm(x.r.Context(), x.caller.Tenant, key, string(was.ID), method)
	if err == nil && !replayed && was.Status.Final() && was.Status != ledger.Canceled {
		return unexpectedState("confirm", &was) // the ledger leaves it as it is; to confirm twice is a mistake at Stripe's
	}
	return answerPayment(x, p, replayed, s.orUnexpected(err, "confirm", &was), intentOf)
}

var cancelRules = stripeRules{"cancellation_reason": takesOnly("duplicate", "fraudulent", "requested_by_customer", "abandoned"), "expand": ignores}

func (s *Server) stripeCancelIntent(x *exchange, id string) error {
	key, err := x.stripeKey()
	if err != nil {
		return err
	}
	if _, err := x.params(cancelRules); err != nil {
		return err
	}
	was, err := x.intent(id)
	if err != nil {
		return err
	}
	p, replayed, err := s.ledger.Cancel(x.r.Context(), x.caller.Tenant, key, string(was.ID))
	if err != nil {
		return s.orUnexpected(err, "cancel", &was)
	}
	x.replayed(replayed)
	return x.answer(http.StatusOK, intentOf(&p))
}

// orUnexpected puts a state that forbids an act into Stripe's words.
func (s *Server) orUnexpected(err error, act string, was *ledger.Payment) error {
	p, known := (*Problem)(nil), false
	if err != nil {
		p, known = explain(err, true)
	}
	if known && (p.Code == "payment_final" || p.Code == "payment_sent") {
		e := unexpectedState(act, was)
		e.Message += " " + p.Detail
		return e
	}
	return err
}

func unexpectedState(act string, was *ledger.Payment) *stripeError {
	i := intentOf(was)
	return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "payment_intent_unexpected_state", PaymentIntent: i,
		Message: "You cannot " + act + " this PaymentIntent because it has a status of " + i.Status + "."}
}
