package web

import (
	"net/http"
	"strings"

	"tenderbox/ledger"
)

// stripeError is an error in Stripe's form. Type is what SDKs branch on first, then Code; a code that Stripe has no word for
// is the box's own.
type stripeError struct {
	status int
	retry  bool // whether an SDK should repeat the request by itself

	Type          string        `json:"type"`
	Code          string        `json:"code,omitzero"`
	DeclineCode   string        `json:"decline_code,omitzero"`
	Message       string        `json:"message"`
	Param         string        `json:"param,omitzero"`
	Charge        string        `json:"charge,omitzero"`
	PaymentIntent *stripeIntent `json:"payment_intent,omitzero"`

	problem *Problem // what it was made of; nil: nothing
}

func (e *stripeError) Error() string { return e.Type + ": " + e.Message }

// Stripe's types of errors.
const (
	invalidRequest   = "invalid_request_error"
	cardError        = "card_error"
	idempotencyError = "idempotency_error"
	rateLimitError   = "rate_limit_error"
	apiError         = "api_error"
)

// stripeNames are the refusals for which Stripe has words of its own. A status of 0 keeps the problem's.
var stripeNames = map[string]struct {
	status    int
	typ, code string
	param     string // "": the problem's field
	message   string // "": the problem's
}{
	"idempotency_mismatch": {http.StatusBadRequest, idempotencyError, "", "",
		"Keys for idempotent requests can only be used with the same parameters, and on the same path, that they were first used with. Use another key for another request."},
	"idempotency_key_in_use": {http.StatusConflict, idempotencyError, "idempotency_key_in_use", "", ""},
	codeKeyInvalid:           {http.StatusBadRequest, idempotencyError, codeKeyInvalid, "", ""},
	"rate_limited":           {0, rateLimitError, "rate_limit", "", ""},
	"amount_invalid":         {0, invalidRequest, "parameter_invalid_integer", "amount", ""},
	"source_missing":         {0, invalidRequest, "parameter_missing", "", ""},
	"payment_method_missing": {0, invalidRequest, "parameter_missing", "", ""},
	"refund_exceeds":         {0, invalidRequest, "amount_too_large", "amount", ""},
	"payment_not_settled":    {0, invalidRequest, "charge_not_refundable", "charge", ""},
	"payment_sent":           {0, invalidRequest, "payment_intent_unexpected_state", "", ""},
	"payment_final":          {0, invalidRequest, "charge_not_refundable", "charge", ""}, // of a refund; an intent's: orUnexpected
	// A till's "offline decline": the sale is not made, and another means of payment, cash for one, is the answer. A client that
	// saw a mistake in its own request, or a conflict that goes away, would do the wrong thing.
	"offline_limit": {http.StatusPaymentRequired, cardError, "card_declined", "", ""},
}

// stripeErrorOf explains any error in Stripe's form.
func (s *Server) stripeErrorOf(x *exchange, err error) *stripeError {
	if e, ok := err.(*stripeError); ok { //nolint:errorlint // ours, and never wrapped
		return e
	}
	return stripeErrorFrom(s.fail(x, err))
}

func stripeErrorFrom(p *Problem) *stripeError {
	e := &stripeError{status: p.Status, Type: invalidRequest, Code: p.Code, Message: p.Detail, Param: p.Field, problem: p}
	if name, ok := stripeNames[p.Code]; ok {
		e.Type, e.Code = name.typ, name.code
		if name.status != 0 {
			e.status = name.status
		}
		if name.param != "" {
			e.Param = name.param
		}
		if name.message != "" {
			e.Message = name.message
		}
		if p.Code == "offline_limit" {
			e.DeclineCode = p.Code
		}
	}
	switch {
	case e.status >= http.StatusInternalServerError:
		e.Type = apiError
		// A full disk is not cleared within the seconds that an SDK gives it.
		e.retry = e.status != http.StatusInsufficientStorage
	case e.status == http.StatusTooManyRequests:
		e.Type, e.retry = rateLimitError, true
	case p.Code == "idempotency_key_in_use":
		e.retry = true
	case e.status == http.StatusConflict, e.status == http.StatusUnprocessableEntity,
		e.status == http.StatusGone, e.status == http.StatusPreconditionFailed:
		e.status = http.StatusBadRequest // Stripe knows one status for what a request cannot have
	}
	return e
}

// missing is Stripe's answer for what does not exist, is another's, or is no id at all: 404 where the path names it, 400 where a parameter
// does.
func missing(kind, param, id string) *stripeError {
	status := http.StatusBadRequest
	if param == "id" || param == "intent" {
		status = http.StatusNotFound
	}
	return &stripeError{status: status, Type: invalidRequest, Code: "resource_missing", Param: param,
		Message: "No such " + kind + ": '" + shown(id) + "'"}
}

// shown is an id as it was asked for, if it is one: their digits are no card's.
func shown(id string) string {
	if _, ulid, _ := strings.Cut(id, "_"); len(id) <= clipMax {
		if _, ok := ledger.ParsePaymentID(paymentPrefix + ulid); ok {
			return id
		}
	}
	return clip(id)
}

// orMissing names what was looked for if the error says that it is not there.
func orMissing(err error, kind, param, id string) error {
	if err == nil {
		return nil
	}
	if p, known := explain(err, false); known && p.Status == http.StatusNotFound {
		return missing(kind, param, id)
	}
	return err
}

// declined is what a client is told of a payment that failed while it waited, nil if it did not.
func declined(p *ledger.Payment) *stripeError {
	if p.Status != ledger.Failed {
		return nil
	}
	e := failureOf(p)
	e.status = http.StatusPaymentRequired
	if p.Means == ledger.ByMethod {
		e.PaymentIntent = intentOf(p)
	}
	return e
}

// failureOf is the processor's no.
func failureOf(p *ledger.Payment) *stripeError {
	e := &stripeError{Type: cardError, Code: "card_declined", Message: "The payment was declined.", Charge: chargeID(p.ID)}
	if f := p.Failure; f != nil {
		e.DeclineCode = f.DeclineCode
		if f.Code != "" {
			e.Code = f.Code
		}
		if f.Message != "" {
			e.Message = f.Message
		}
	}
	return e
}

// stripeFailure answers with an error.
func (x *exchange) stripeFailure(e *stripeError) {
	h := x.Header()
	if e.problem != nil {
		e.problem.setHeaders(h)
	}
	h["Stripe-Should-Retry"] = stripeRetry[e.retry]
	_ = x.answer(e.status, struct {
		Error *stripeError `json:"error"`
	}{e}) // what it returns is for handlers
}

// stripeProblem answers with a problem of before a route: of admission, host, path, credential, or of a panic.
func (x *exchange) stripeProblem(p *Problem) {
	if p == errNotFound {
		x.stripeFailure(unknownURL(x.r))
		return
	}
	x.stripeFailure(stripeErrorFrom(p))
}

var stripeRetry = map[bool][]string{true: {"true"}, false: {"false"}}

// unknownURL is what Stripe says to a path that is none.
func unknownURL(r *http.Request) *stripeError {
	return &stripeError{status: http.StatusNotFound, Type: invalidRequest, Code: "url_unknown",
		Message: "Unrecognized request URL (" + clip(r.Method) + ": " + clip(strings.ToValidUTF8(r.URL.Path, "")) + "). docs/STRIPE.md lists what the box serves of Stripe's API."}
}
