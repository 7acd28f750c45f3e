package store

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"

	"github.com/sourcegraph/conc/panics"
)

// What an operation may be told. All but ErrUnknown mean: the file does not hold it.
var (
	// ErrClosed: the store was closed before the operation began.
	ErrClosed = errors.New("store is closed")
	// ErrLocked: another process (or another Store) has the file open.
	ErrLocked = errors.New("the file is in use by another process")
	// ErrOverloaded: Options.QueueMax operations are waiting; come again later.
	ErrOverloaded = errors.New("too many operations are waiting")
	// ErrFull: the disk or the quota is full.
	ErrFull = errors.New("the disk is full")
	// ErrUnavailable: the disk refused; the same operation may succeed later.
	ErrUnavailable = errors.New("the file cannot be written at present")
	// ErrUnknown: the commit failed so late that the file may hold the operation or not.
	// The store takes no operation until it knows (see Store.Err); what callers keep in memory must be read anew.
	ErrUnknown = errors.New("the outcome of the commit is unknown")
)

// CorruptError says that a file's structure is damaged. The store never repairs or deletes such a file.
type CorruptError struct {
	Path  string // the file
	Cause error  // what is wrong with it
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged (%v): stop the box, move the file aside (mv %[1]s %[1]s.broken) and start again, or restore a backup",
		e.Path, e.Cause)
}

func (e *CorruptError) Unwrap() error { return e.Cause }

// PanicError says that a function handed to the store panicked. Its operation was undone; the store goes on.
type PanicError struct {
	Value any    // what it panicked with
	Stack string // where
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic in a store operation: %v", e.Value) }

// untouchedError marks the answer of an operation that wrote nothing.
type untouchedError struct{ err error }

func (e *untouchedError) Error() string { return fmt.Sprintf("untouched: %v", e.err) }
func (e *untouchedError) Unwrap() error { return e.err }

// Untouched marks err, nil included, as the answer of an operation that wrote nothing to its transaction.
// The caller of Update gets err itself. Unmarked errors cost the group a second run, because what
// the failed operation may have written has to be undone; marked ones cost nothing, and a
// group in which nobody wrote is not committed at all.
func Untouched(err error) error { return &untouchedError{err} }

// guard runs fn and turns a panic into an error: a *CorruptError for a fault in the mapped file or a
// panic of bbolt itself, a *PanicError for anything else.
func guard(path string, fn func() error) (err error) {
	if r := panics.Try(func() { err = fn() }); r != nil {
		return panicked(path, r)
	}
	return err
}

func panicked(path string, r *panics.Recovered) error {
	fault, isFault := r.Value.(interface{ Addr() uintptr })
	if isFault && fault.Addr() != 0 {
		return &CorruptError{path, fmt.Errorf("reading it faulted: %v", r.Value)}
	}
	if strings.HasPrefix(culprit(r.Callers), "go.etcd.io/bbolt") {
		return &CorruptError{path, fmt.Errorf("bbolt gave up: %v", r.Value)}
	}
	return &PanicError{Value: r.Value, Stack: string(r.Stack)}
}

// culprit names the function that panicked: the first frame below the runtime's own.
func culprit(callers []uintptr) string {
	frames, below := runtime.CallersFrames(callers), false
	for {
		f, more := frames.Next()
		switch {
		case f.Function == "runtime.gopanic":
			below = true
		case below && !strings.HasPrefix(f.Function, "runtime."):
			return f.Function
		}
		if !more {
			return ""
		}
	}
}

// isFull recognises a full disk. bbolt flattens some causes into text.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error())
}
