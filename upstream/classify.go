package upstream

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// metadataPayment is the member by which a payment is recognised in the processor's objects. An answer that
// carries another payment's is not the answer to this one.
const metadataPayment = "tenderbox_payment"

// ask is what an answer is held against: all that the request itself says about what must come back.
type ask struct {
	method   string
	kind     string // charge, payment_intent, refund; "" if the path is none of the known collections
	id       string // of the object named in the path, to look at or to act on; "" if none is
	list     bool
	cancel   bool
	amount   int64 // 0: not named
	currency string
	payment  string
	probe    bool
	tokens   []string // sources and payment methods in it
}

var kinds = map[string]string{"charges": kindCharge, "payment_intents": kindIntent, "refunds": kindRefund}

func newAsk(c call) ask {
	a := ask{method: c.method, probe: c.probe}
	path, _, _ := strings.Cut(c.path, "?")
	parts := strings.Split(strings.Trim(path, "/"), "/")
	a.kind = kinds[parts[0]]
	if len(parts) > 1 {
		a.id = parts[1]
	}
	a.cancel = len(parts) > 2 && parts[2] == "cancel"
	a.list = c.method == http.MethodGet && len(parts) == 1
	if form, err := url.ParseQuery(string(c.body)); err == nil && c.method == http.MethodPost {
		a.amount, _ = strconv.ParseInt(form.Get("amount"), 10, 64)
		a.currency = strings.ToLower(form.Get("currency"))
		a.payment = form.Get("metadata[" + metadataPayment + "]")
		for _, member := range []string{"source", "payment_method"} {
			if token := form.Get(member); token != "" {
				a.tokens = append(a.tokens, token)
			}
		}
	}
	return a
}

// classify says what a whole answer proves. It is pure, total and never guesses; the table of what it
// makes of hostile answers is TestClassify.
func classify(q ask, status int, header http.Header, body []byte, now time.Time) (Answer, health) {
	a := Answer{Outcome: Unknown, MaybeSent: true, Status: status, RequestID: clean(header.Get("Request-Id"), 100),
		Replayed: header.Get("Idempotent-Replayed") == "true"}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		a.Date = date
	}
	if d, ok := parseRetryAfter(header, now); ok {
		a.RetryAfter = d
	}
	w, err := decode(header, body)
	ours := err == nil
	if ours && w.Error != nil {
		a.Failure = w.Error.failure()
	}
	h := foreign
	if ours {
		h = answered
	}
	switch {
	case status == http.StatusOK:
		return classifyObject(q, a, w, err)
	case status < 400 && status >= 300:
		a.Reason = "redirect, not followed"
		return a, foreign
	case status < 400:
		a.Reason = "status " + strconv.Itoa(status) + " instead of 200"
		if ours {
			h = ailing
		}
		return a, h
	case status >= 500:
		a.Reason = "processor answered " + strconv.Itoa(status)
		if q.probe && status == http.StatusNotImplemented {
			return a, answered
		}
		if status == http.StatusNetworkAuthenticationRequired {
			return a, foreign // a captive portal that says what it is (RFC 6585)
		}
		return a, ailing
	case status == http.StatusTooManyRequests:
		a.Outcome, a.Reason = Retryable, "rate limited by the processor"
		a.RetryAfter = max(a.RetryAfter, retryAfterMin)
		return a, h
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		a.Outcome, a.Reason = Retryable, "processor refused the key ("+strconv.Itoa(status)+")"
		return a, h
	case collectionUnknown(q, a):
		a.Outcome, a.Reason = Retryable, "nothing at the upstream URL takes "+q.kind+"s ("+strconv.Itoa(status)+")"
		return a, h
	}
	// Other 4xx.
	if q.probe && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed) {
		h = answered // a processor need not know the probe's path
	}
	a.Reason = "processor answered " + strconv.Itoa(status)
	if !ours || w.Error == nil {
		a.Reason += " without its error object"
		return a, h
	}
	switch {
	case status == http.StatusConflict:
		a.Reason = "processor says in progress or in conflict (409)"
	case status == http.StatusRequestTimeout || status == http.StatusTooEarly || status == http.StatusMisdirectedRequest:
	case q.id != "" && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed):
		a.Reason = "the processor does not show the " + q.kind + " (" + strconv.Itoa(status) + ")"
	case q.method != http.MethodPost || !w.Error.declines(status):
		a.Reason += " " + a.Failure.Type
	case q.kind == kindIntent && q.id != "" && w.Error.PaymentIntent.id() != "" && w.Error.PaymentIntent.id() != q.id:
		a.Reason = "refusal is about another object"
		return a, ailing
	case !w.Error.believable():
		a.Reason = "refused, but " + firstOf(w.Error.PaymentIntent.state("the payment_intent is "), "for the payment_intent's state")
	default:
		a.Outcome, a.Reason = Declined, "declined"
		if code := firstOf(a.Failure.DeclineCode, a.Failure.Code); code != "" {
			a.Reason += ": " + code
		}
	}
	return a, h
}

// declines reports an error that says that what was posted is refused for good.
func (e *wireError) declines(status int) bool {
	switch e.Type {
	case "card_error", "invalid_request_error":
		return true
	case "": // a plainer processor's decline; 402 means nothing else
		return status == http.StatusPaymentRequired && (e.Code.clean() != "" || e.Message.clean() != "")
	}
	return false
}

// codeUnexpectedState is the code of a processor that will not confirm an intent because of where it stands: it may have been
// confirmed before, by this very payment.
const codeUnexpectedState = "payment_intent_unexpected_state"

// believable reports whether a refusal that shows its intent fits the state that it shows: none in which money has
// moved or may move yet.
func (e *wireError) believable() bool {
	if e.Code == codeUnexpectedState {
		return false
	}
	switch e.PaymentIntent.Status {
	case "", stateNeedsMethod, stateNeedsConfirmed, stateCanceled:
		return true
	}
	return false
}

// codeMissing is the code of a processor that looked for something named in the request and did not find it.
const codeMissing = "resource_missing"

// collectionUnknown reports an answer that says that what is at the base URL does not know the collection that was
// posted to: a 404 or 405, in whatever words, that does not speak of the payment itself. Stripe's own for
// that is an invalid_request_error without a code, "Unrecognized request URL (POST: /charges)"; for a source or charge that
// does not exist it names code and param.
func collectionUnknown(q ask, a Answer) bool {
	if q.method != http.MethodPost || q.kind == "" || q.id != "" {
		return false
	}
	switch a.Failure.Type {
	case "card_error", "idempotency_error":
		return false // whoever knows card or key has looked at the payment
	}
	missing := a.Failure.Type == "invalid_request_error" && a.Failure.Code == codeMissing && a.Failure.Param != ""
	return a.Status == http.StatusMethodNotAllowed || a.Status == http.StatusNotFound && !missing
}

// classifyObject judges an answer with status 200.
func classifyObject(q ask, a Answer, w wireObject, err error) (Answer, health) {
	no := func(h health, reason string) (Answer, health) {
		a.Reason = reason
		return a, h
	}
	if err != nil {
		return no(foreign, "200 without a JSON object of the processor")
	}
	if w.Error != nil {
		return no(ailing, "200 with an error object")
	}
	if q.kind == "" {
		a.Outcome = Succeeded
		return a, answered
	}
	if q.list {
		switch {
		case q.probe && (w.Object != "list" || w.Data == nil || w.HasMore == nil):
			a.Outcome = Succeeded
			return a, answered
		case w.Object != "list" || w.Data == nil:
			return no(ailing, "answer is not a list")
		case w.HasMore == nil:
			return no(ailing, "list does not say whether there is more")
		}
		for _, d := range *w.Data {
			o, problem := d.entry(q.kind)
			if problem != "" {
				return no(ailing, "list with an entry whose "+problem)
			}
			a.List = append(a.List, o)
		}
		a.Outcome, a.HasMore = Succeeded, *w.HasMore
		return a, answered
	}
	o, problem := w.object(q.kind)
	switch {
	case problem != "":
		return no(ailing, "answer's "+problem)
	case q.id != "" && o.ID != q.id:
		return no(ailing, "answer is about another object")
	case q.payment != "" && o.Metadata[metadataPayment] != "" && o.Metadata[metadataPayment] != q.payment:
		return no(ailing, "answer is about another payment")
	case q.amount != 0 && o.Amount != q.amount:
		return no(ailing, "answer names another amount")
	case q.currency != "" && o.Currency != q.currency:
		return no(ailing, "answer names another currency")
	case o.Status == stateSucceeded && w.partial():
		return no(ailing, "answer says succeeded, but not paid in full")
	}
	a.Object = o
	if o.Status != stateSucceeded {
		a.Reason = "the " + q.kind + " is " + o.Status
	}
	switch {
	case o.Status == stateSucceeded, q.cancel && o.Status == stateCanceled:
		a.Outcome, a.Reason = Succeeded, ""
	case o.Final():
		a.Outcome, a.Failure = Declined, w.failure()
	case o.Kind == kindIntent && o.Status == stateNeedsMethod && w.LastPaymentError != nil:
		// The confirmation failed and took the payment method away: without another, which is never given it, no
		// confirmation that is still under way can charge it.
		a.Outcome, a.Failure = Declined, w.failure()
	}
	return a, answered
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
