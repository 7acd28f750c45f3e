package store

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
)

// rerunsMax is how many failing operations a group repeats itself for. More failures end the group early: what
// ran well so far is committed and the rest begins anew, so that a flood of failures costs each operation two runs.
const rerunsMax = 2

func (s *Store) enqueue(o *op) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := s.queue.put(o); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

// write is the writer: it gathers what waits, commits it, answers, and heals the file when it has to. It leaves when
// the queue is closed and empty.
func (s *Store) write() {
	defer close(s.writerDone)
	debug.SetPanicOnFault(true)
	var ops []*op
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	trimmed := time.Now()
	for rescueWait := rescueWaitMin; ; {
		var wait time.Duration
		var closed bool
		ops, wait, closed = s.queue.take(ops[:0])
		switch broken := s.Err(); {
		case len(ops) > 0 && broken != nil: // came in while it broke
			s.answer(ops, broken)
		case len(ops) > 0:
			s.commitAll(ops)
			rescueWait = rescueWaitMin
			if now := time.Now(); now.Sub(trimmed) > trimEvery {
				trimmed = now
				s.Trim()
			}
		case closed:
			return
		case errors.Is(broken, ErrUnavailable):
			wait = rescueWait
			fallthrough
		default:
			if wait > 0 {
				timer.Reset(wait)
			}
			select {
			case <-s.queue.wake:
			case <-timer.C:
				if errors.Is(broken, ErrUnavailable) && !s.heal() {
					rescueWait = min(2*rescueWait, rescueWaitMax)
				}
			}
		}
		clear(ops)
	}
}

// commitAll commits ops in one transaction, or in a few if many of them fail.
func (s *Store) commitAll(ops []*op) {
	for len(ops) > 0 {
		if err := s.Err(); err != nil {
			s.answer(ops, err)
			return
		}
		n, err := s.commitSome(ops)
		s.answer(ops[:n], err)
		ops = ops[n:]
	}
}

// commitSome runs a prefix of ops in one transaction, commits it and says how long that prefix is. Failed
// operations have their own error in op.err; the error returned is the commit's and overrules all,
// also theirs, because they may have failed over something that a lost neighbour wrote.
func (s *Store) commitSome(ops []*op) (n int, err error) {
	f := s.file.Load()
	for i := range ops {
		ops[i].err = nil
	}
	n = len(ops)
	for reruns := 0; ; reruns++ {
		f.tuneFreelist()
		tx, err := f.begin(true)
		if err != nil {
			return n, s.fail(f, err)
		}
		failed, wrote := s.runAll(tx, ops[:n])
		if failed < 0 && wrote {
			return n, s.commit(f, tx, n)
		}
		if err := guard(s.path, tx.Rollback); err != nil {
			return n, s.fail(f, err)
		}
		if failed < 0 {
			return n, nil // nobody wrote anything: what they saw is on disk already
		}
		if reruns >= rerunsMax {
			n = failed + 1 // all before it ran well and will again
		}
	}
}

// runAll runs those ops that have not failed yet. It stops at the first that fails and may have
// written something: the transaction is spoilt then. failed is its index, or -1.
func (s *Store) runAll(tx *bbolt.Tx, ops []*op) (failed int, wrote bool) {
	for i, o := range ops {
		if o.err != nil {
			if !isUntouched(o.err) {
				continue
			}
			o.err = nil // it may fare better now that a neighbour is gone
		}
		o.err = guard(s.path, func() error { return o.fn(tx) })
		switch {
		case o.err == nil:
			wrote = true
		case !isUntouched(o.err):
			return i, wrote
		}
	}
	return -1, wrote
}

func isUntouched(err error) bool {
	_, ok := err.(*untouchedError) //nolint:errorlint // only the outermost mark counts
	return ok
}

// answer tells each operation how it went: err if not nil, else its own error.
func (s *Store) answer(ops []*op, err error) {
	for _, o := range ops {
		own := o.err
		if u, ok := own.(*untouchedError); ok { //nolint:errorlint // see isUntouched
			own = u.err
		}
		if err != nil {
			own = err
		}
		if o.then != nil {
			if p := guard(s.path, func() error { o.then(own); return nil }); p != nil {
				s.o.Logger.Error("store: a callback panicked", slog.String("file", s.path), slog.Any("err", p))
			}
		}
		if o.done != nil {
			o.done <- own
		}
	}
}
