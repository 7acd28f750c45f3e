package jobs

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound: no job of that id in that queue of that tenant, or none any more.
	ErrNotFound = errors.New("no such job")
	// ErrUnknownQueue: the queue is not among Options.Queues.
	ErrUnknownQueue = errors.New("unknown queue")
	// ErrInvalid: a NewJob breaks a rule; the text says which.
	ErrInvalid = errors.New("invalid job")
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

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
