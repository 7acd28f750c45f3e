package jobs

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound: no job (or schedule) of that id in that queue of that tenant, or none any more.
	ErrNotFound = errors.New("not found")
	// ErrUnknownQueue: the queue neither ships with the box nor is the tenant's own; the text lists those that are.
	ErrUnknownQueue = errors.New("unknown queue")
	// ErrInvalid: a wish breaks a rule; an *InvalidError says which member.
	ErrInvalid = errors.New("not valid")
	// ErrReadOnly: the queue ships with the box, so it cannot be declared; or it is the box's own, so tenants may look, not change.
	ErrReadOnly = errors.New("the queue is the box's own")
	// ErrCursor: the stored cursor is neither where the caller believes nor already there.
	ErrCursor = errors.New("the cursor does not fit")
	// ErrStaleLease: the lease is over; the worker's outcome was not recorded.
	ErrStaleLease = errors.New("the lease is over")
	// ErrDamaged: a record's checksum does not match. Jobs are parked and counted, never run.
	ErrDamaged = errors.New("damaged record")
	// ErrClosed: the engine was closed.
	ErrClosed = errors.New("job engine is closed")
	// ErrDrain: handlers did not end in time; their jobs run again after the next start.
	ErrDrain = errors.New("jobs were still running at the end of the drain")
)

// InvalidError says which member of a wish breaks a rule. errors.Is(err, ErrInvalid) holds.
type InvalidError struct {
	Field   string // as a tenant writes it: "opts.backoff.jitter"; "": the wish as a whole
	Message string
}

func (e *InvalidError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%v: %s", ErrInvalid, e.Message)
	}
	return fmt.Sprintf("%v: %s: %s", ErrInvalid, e.Field, e.Message)
}

func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

func invalid(field, format string, args ...any) error {
	return &InvalidError{field, fmt.Sprintf(format, args...)}
}

// within puts the name of the member that holds it before an invalid member's.
func within(parent string, err error) error {
	var e *InvalidError
	if !errors.As(err, &e) {
		return err
	}
	return &InvalidError{parent + "." + e.Field, e.Message}
}

// JobError is what is wrong with one of several jobs.
type JobError struct {
	Index int // from 0
	Err   error
}

func (e *JobError) Error() string { return fmt.Sprintf("job %d: %v", e.Index, e.Err) }
func (e *JobError) Unwrap() error { return e.Err }

// Refused returns which jobs of a batch an error of Enqueue or EnqueueFrom names, by their index, in order. Of many it
// names the first few.
func Refused(err error) (indexes []int) {
	switch err := err.(type) { //nolint:errorlint // it walks the tree
	case *JobError:
		return []int{err.Index}
	case interface{ Unwrap() []error }:
		for _, err := range err.Unwrap() {
			indexes = append(indexes, Refused(err)...)
		}
		return indexes
	case interface{ Unwrap() error }:
		return Refused(err.Unwrap())
	}
	return nil
}
