package ledger

import (
	"errors"
	"fmt"
	"time"

	"tenderbox/shards"
)

// Kind says what sort of refusal an [Error] is; the HTTP layer maps each kind
// to one status.
type Kind string

const (
	Invalid     Kind = "invalid"     // the request can never succeed as it is
	NotFound    Kind = "not_found"   // no such record for this tenant
	Gone        Kind = "gone"        // it was there; the message says where to begin
	Conflict    Kind = "conflict"    // the present state forbids it
	Stale       Kind = "stale"       // the record is not the version that the caller changes
	Mismatch    Kind = "mismatch"    // an idempotency key that was used for another request
	Unavailable Kind = "unavailable" // repeat with the same key: nothing, or exactly one thing, happened
	Full        Kind = "full"        // no room on the disk
)

// Error is a refusal that is safe to show to the caller. Cause, if any, is for
// the log alone.
type Error struct {
	Kind       Kind
	Code       string // stable, part of the outward interface
	Message    string
	Field      string        // the member at fault, "" when none
	RetryAfter time.Duration // 0: not worth repeating, or at once
	Rule       *BrokenRule   // of the offline policy; nil: it is about something else
	Cause      error
}

// BrokenRule is the rule of the offline policy that refuses a payment: minor units, payments or hours.
type BrokenRule struct {
	Name    string // max_amount, max_total, max_count, max_age_h; currency: it is not taken offline
	Stands  int64  // what is there: the payment's amount for max_amount, else what is outstanding without it
	Allowed int64
}

func (e *Error) Error() string {
	if e.Field != "" {
		return fmt.Sprintf("%s: %s: %s", e.Code, e.Field, e.Message)
	}
	return e.Code + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// retryAfterDefault is what a refused caller is told to wait when nothing
// better is known: long enough for a group commit or the reopening of a file.
const retryAfterDefault = time.Second

func invalid(code, field, message string) *Error {
	return &Error{Kind: Invalid, Code: code, Field: field, Message: message}
}

func notFound(what string) *Error {
	return &Error{Kind: NotFound, Code: "not_found", Message: "no such " + what}
}

// unavailable puts an error of a shard into words for the caller.
func unavailable(err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	e := &Error{Kind: Unavailable, Code: "unavailable", RetryAfter: retryAfterDefault, Cause: err,
		Message: "the box could not store this now; repeat the request with the same Idempotency-Key"}
	switch {
	case errors.Is(err, shards.ErrUnavailable):
		e.Code, e.Message = "shard_unavailable", "the file that holds this record is out of service; the operator has been alarmed"
	case errors.Is(err, shards.ErrUnknown):
		e.Code, e.Message = "outcome_unknown", "the disk did not confirm the write; repeat the request with the same Idempotency-Key"
	case errors.Is(err, shards.ErrOverloaded):
		e.Code, e.Message = "overloaded", "more requests wait for the disk than the box admits"
	case errors.Is(err, shards.ErrFull):
		e.Kind, e.Code, e.Message = Full, "disk_full", "the disk is full; nothing was stored"
		e.RetryAfter = time.Minute
	}
	return e
}
