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
	id       string // of the object named in the path; "" if none is
	list     bool
	cancel   bool
	amount   int64 // 0: not named
	currency string
	payment  string
	probe    bool
}

var kinds = map[string]string{"charges": "charge", "payment_intents": "payment_intent", "refunds": "refund"}

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
	}
	return a
}

// classify says what a whole answer proves. It is pure, total and never guesses; the table of what it
// makes of hostile answers is TestClassify.
func classify(q ask, status int, header http.Header, body []byte, now time.Time) (Answer, health) {
	a := Answer{Outcome: Unknown, MaybeSent: true, Status: status, RequestID: clean(header.Get("Request-Id"), 100)}
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
	declines := false
	switch a.Failure.Type {
	case "card_error", "invalid_request_error":
		declines = true
	case "": // a plainer processor's decline; 402 means nothing else
		declines = status == http.StatusPaymentRequired && (a.Failure.Code != "" || a.Failure.Message != "")
	}
	switch {
	case status == http.StatusConflict:
		a.Reason = "processor says in progress or in conflict (409)"
	case status == http.StatusRequestTimeout || status == http.StatusTooEarly || status == http.StatusMisdirectedRequest:
	case declines:
		a.Outcome, a.Reason = Declined, "declined"
		if code := firstOf(a.Failure.DeclineCode, a.Failure.Code); code != "" {
			a.Reason += ": " + code
		}
	default:
		a.Reason += " " + a.Failure.Type
	}
	return a, h
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
		if w.Object != "list" || w.Data == nil {
			if q.probe {
				a.Outcome = Succeeded
				return a, answered
			}
			return no(ailing, "answer is not a list")
		}
		for _, d := range *w.Data {
			o, problem := d.object(q.kind)
			if problem != "" {
				return no(ailing, "list with an entry whose "+problem)
			}
			a.List = append(a.List, o)
		}
		a.Outcome, a.HasMore = Succeeded, w.HasMore
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
	case o.Status == "succeeded" && w.partial():
		return no(ailing, "answer says succeeded, but not paid in full")
	}
	a.Object = o
	switch {
	case o.Status == "succeeded", q.cancel && o.Status == "canceled":
		a.Outcome = Succeeded
	case o.Status == "failed" && q.kind != "payment_intent", o.Status == "canceled" && q.kind != "charge":
		a.Outcome, a.Reason = Declined, "the "+q.kind+" is "+o.Status
		a.Failure.Code = w.FailureCode.clean()
		a.Failure.Message = w.FailureMessage.clean()
	default:
		a.Reason = "the " + q.kind + " is " + o.Status
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
