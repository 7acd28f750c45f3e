package upstream

import (
	"net/http"
	"time"
)

// Outcome is what one exchange with the processor proves about the thing that was asked.
// It says nothing that the bytes do not say: whatever is not proven is Unknown.
type Outcome string

const (
	// Succeeded: the processor answered 200 with an object of the asked kind, with an id, the amount and
	// currency that were sent, and the state `succeeded` (of a cancel: `canceled`). Money moved, once; nothing less is
	// a success, so an intent that was only made is none. A list that was asked for is well-formed.
	Succeeded Outcome = "succeeded"
	// Declined: the processor refused what was posted, in its own error format (card_error, invalid_request_error), and
	// said nothing that contradicts it; or the object is in a state from which no request of ours leads to success: a
	// failed charge or refund, a canceled intent or refund, an intent whose confirmation failed. No money moved.
	// What was not posted cannot be declined: an error in answer to Get is never this. It is said of the request that was answered: of one
	// sent before it under the same key it proves nothing, unless it is Replayed.
	Declined Outcome = "declined"
	// Retryable: this request had no effect, so the same may be sent again. Either nothing left the box
	// (MaybeSent is false) or the processor itself refused to look at it (401, 403, 429; 404 and 405 of an
	// address that does not know the collection).
	Retryable Outcome = "retryable"
	// Unknown: the request may have taken effect. Retry with the same key and bytes, or look it up. If the answer was
	// about an object that is there and has no end yet, Made says so.
	Unknown Outcome = "unknown"
)

// Answer is the typed result of Post or Get; it is filled also when no answer came.
type Answer struct {
	Outcome Outcome
	// Reason is a short English phrase, for logs, status pages and a payment's last error. It never quotes
	// the answer's body, a key or an address.
	Reason string
	// MaybeSent is false only if provably no byte of the request left on any connection: the dial or the
	// TLS handshake failed, or the request was held back here. It covers all tries of one call.
	MaybeSent bool
	// Sends is how many tries of the call may have left, the one that was answered among them. With more than one a refusal is that of a
	// repeat: what became of the tries before it only says if it is Replayed.
	Sends int
	// Replayed: the processor says that this is the answer that it gave before to the same key (Idempotent-Replayed).
	Replayed bool
	// Status is the HTTP status, 0 if no answer came. An answer that was cut keeps its status.
	Status int
	// RequestID is the processor's Request-Id, for its support.
	RequestID string
	// RetryAfter is how long to wait before the next try; zero if nobody said. Already capped.
	RetryAfter time.Duration
	// Object is the object of an answer with status 200; filled only when it was well-formed, of the asked kind, and
	// not another than was asked for. What an error mentions is no answer, and is not here.
	Object Object
	// List and HasMore are the page that a list request was answered with.
	List    []Object
	HasMore bool
	// Failure is the processor's error object, or what its object says of why it failed; the texts are cut and freed of
	// control characters.
	Failure Failure
	// Date is the answer's Date header; zero if absent. It confirms or corrects the local clock.
	Date time.Time
}

// Made reports that the processor holds the object and that nobody knows its end yet: an intent that waits for its
// confirmation (Object.Status says which of the two), is processing or wants somebody to act, a charge or a refund
// that is pending. It is asked for by its id until it has an end, however long that takes.
func (a Answer) Made() bool { return a.Outcome == Unknown && a.Object.ID != "" }

// Missing reports that the processor says, in its own words, that it shows no such object (404). It proves nothing of
// what is there: another account's API key, the test mode's, a copy that lags behind and a deputy answer the same. What
// must be known not to be there is looked for with Sweep.
func (a Answer) Missing() bool {
	return a.Status == http.StatusNotFound && a.Outcome == Unknown && a.Failure != Failure{}
}

// Object is what charges, payment intents and refunds have in common.
type Object struct {
	Kind          string // charge, payment_intent, refund
	ID            string
	Status        string // in the processor's words
	Amount        int64  // minor units
	Currency      string
	Created       int64 // Unix seconds, the processor's clock
	Metadata      map[string]string
	Charge        string // a refund's charge, an intent's latest
	PaymentIntent string // a charge's or refund's intent
}

// Final reports whether the state is one that the processor does not leave any more. `requires_payment_method` is not: it is
// where intents begin, and where a failed confirmation puts them back.
func (o Object) Final() bool {
	switch o.Status {
	case stateSucceeded:
		return true
	case stateFailed:
		return o.Kind != kindIntent
	case stateCanceled:
		return o.Kind != kindCharge
	}
	return false
}

// Failure is why something failed, in the processor's words.
type Failure struct {
	Type        string // card_error, invalid_request_error, idempotency_error, api_error, …; "" where only an object tells
	Code        string // of a failed refund: its failure_reason
	DeclineCode string
	Message     string
	Param       string
	ObjectID    string // the failed charge or intent, where the processor made one
}

// The kinds of objects, and those of their states that decide something.
const (
	kindCharge = "charge"
	kindIntent = "payment_intent"
	kindRefund = "refund"

	stateSucceeded      = "succeeded"
	stateFailed         = "failed"
	stateCanceled       = "canceled"
	stateNeedsMethod    = "requires_payment_method"
	stateNeedsConfirmed = "requires_confirmation"
)
