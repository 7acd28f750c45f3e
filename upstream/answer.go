package upstream

import "time"

// Outcome is what one exchange with the processor proves about the thing that was asked.
// It says nothing that the bytes do not say: whatever is not proven is Unknown.
type Outcome string

const (
	// Succeeded: the processor answered 200 with an object of the asked kind, with an id, the amount and
	// currency that were sent, and a state that is its success. A list that was asked for is well-formed.
	Succeeded Outcome = "succeeded"
	// Declined: the processor refused, in its own error format (card_error, invalid_request_error), or the
	// object is in a final state that is not its success. Of a lookup: there is no such object (Status 404).
	Declined Outcome = "declined"
	// Retryable: this request had no effect, so the same may be sent again. Either nothing left the box
	// (MaybeSent is false) or the processor itself refused to look at it (401, 403, 429; 404 and 405 of an
	// address that does not know the collection).
	Retryable Outcome = "retryable"
	// Unknown: the request may have taken effect. Retry with the same key and bytes, or look it up.
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
	// Status is the HTTP status, 0 if no answer came. An answer that was cut keeps its status.
	Status int
	// RequestID is the processor's Request-Id, for its support.
	RequestID string
	// RetryAfter is how long to wait before the next try; zero if nobody said. Already capped.
	RetryAfter time.Duration
	// Object is the object of the answer; filled only when it was well-formed and of the asked kind.
	Object Object
	// List and HasMore are the page that a list request was answered with.
	List    []Object
	HasMore bool
	// Failure is the processor's error object; its texts are cut and freed of control characters.
	Failure Failure
	// Date is the answer's Date header; zero if absent. It confirms or corrects the local clock.
	Date time.Time
}

// Object is what charges, payment intents and refunds have in common.
type Object struct {
	Kind          string // charge, payment_intent, refund
	ID            string
	Status        string
	Amount        int64 // minor units
	Currency      string
	Created       int64 // Unix seconds, the processor's clock
	Metadata      map[string]string
	Charge        string // a refund's charge
	PaymentIntent string // a charge's or refund's intent
}

// Failure is the processor's error object.
type Failure struct {
	Type        string // card_error, invalid_request_error, idempotency_error, api_error, …
	Code        string
	DeclineCode string
	Message     string
	Param       string
	ObjectID    string // the failed charge or intent, where the processor made one
}
