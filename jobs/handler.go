package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Handler does one attempt of a job and returns its wish: nil or Done(result), completed; Cancel(err), failed now;
// Snooze(d), again later as if this attempt had not been; RetryIn(d, err), again after d as long as attempts are left; any other
// error, the same after the backoff. A panic counts as an error. ctx ends after the job's timeout, and when the drain's time is over; an error returned after
// that second end burns no attempt. A handler may run more than once for one job (crash, lost outcome): it must be idempotent.
type Handler func(ctx context.Context, j *Job) error

type cancelError struct{ err error }

func (e *cancelError) Error() string { return e.err.Error() }
func (e *cancelError) Unwrap() error { return e.err }

// Cancel makes a job fail now, whatever attempts are left.
func Cancel(err error) error {
	if err == nil {
		err = errors.New("canceled by its handler")
	}
	return &cancelError{err}
}

type snoozeError struct{ d time.Duration }

func (e *snoozeError) Error() string { return fmt.Sprintf("snoozed for %v", e.d) }

// snoozeMin keeps a handler that always snoozes from spinning.
const snoozeMin = 10 * time.Millisecond

// Snooze delays a job without burning an attempt.
func Snooze(d time.Duration) error { return &snoozeError{min(max(d, snoozeMin), delayMax)} }

type retryError struct {
	err error
	d   time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// RetryIn fails an attempt as err does, but names the wait before the next one, in place of the job's backoff: for handlers with a
// schedule of their own. Without attempts left the job fails.
func RetryIn(d time.Duration, err error) error {
	if err == nil {
		err = errors.New("to be tried again, says its handler")
	}
	return &retryError{err, min(max(d, 0), delayMax)}
}

// retryWait is how long to wait after a failed attempt.
func retryWait(j *Job, err error) time.Duration {
	var retry *retryError
	if errors.As(err, &retry) {
		return retry.d
	}
	return j.Backoff.Wait(j.AttemptsMade)
}

type doneError struct{ result []byte }

func (e *doneError) Error() string { return "done" }

// Done completes a job with a result to keep (up to 1 MiB). It is a wish like the others, not a failure.
func Done(result []byte) error { return &doneError{result} }
