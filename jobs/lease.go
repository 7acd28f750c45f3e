package jobs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// lease is a hold on one job. One of the box's own workers lives in memory only; one of a worker outside is on disk, too (out).
// Engine.mu guards it.
type lease struct {
	job     Job    // of a lease from outside only what says which one it is
	key     []byte // its waiting key
	settled bool   // an outcome is on its way or done: the start need not be written any more, nor does the lease run out
	parking bool   // not a worker's: a damaged record on its way out

	share any // what it needs together with others; nil: nothing. The runner's, which knows what it means

	interrupted bool // the attempt before this lease ended with the process

	out     *held         // what is on disk about a lease from outside; nil: not one
	expires time.Duration // steady time at which it runs out
	heapAt  int           // its place in Engine.deadlines, from 1; 0: it is not there
}

// leased returns the lease of a job at a waiting key, if there is one. Engine.mu is held.
func (e *Engine) leased(queue, tenant string, key []byte) *lease {
	if q := e.queues[queue]; q != nil {
		if l := q.lines[tenant]; l != nil {
			return l.leases[orderIn(key)]
		}
	}
	return nil
}

// holds says whether a lease is still in force. Engine.mu is held.
func (e *Engine) holds(le *lease) bool { return e.leased(le.job.Queue, le.job.Tenant, le.key) == le }

// begin counts the attempt and has it written: in passing, or waited for while an attempt is suspected of killing the process.
// It returns the job as it is now, for the handler.
func (e *Engine) begin(ctx context.Context, le *lease) (Job, error) {
	now := e.clock.now()
	e.mu.Lock()
	le.job.AttemptsMade++
	le.job.startedAt = now
	record := le.job
	e.moved(&record, Waiting)
	wait := e.startsWait.on()
	if !wait {
		e.starts = append(e.starts, le)
	}
	submit := !wait && !e.riding
	if submit {
		e.riding = true
	}
	e.mu.Unlock()
	if submit {
		e.submitStarts()
	}
	if !wait {
		return record, nil
	}
	return record, e.st.Update(ctx, func(tx *bbolt.Tx) error {
		return tx.Bucket(bWaiting).Put(le.key, record.encode())
	})
}

// submitStarts writes what attempts have begun by the time the next group runs, and are not over by then.
func (e *Engine) submitStarts() {
	var batch []*lease
	var taken bool
	e.st.Submit(func(tx *bbolt.Tx) error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !taken {
			taken, e.riding = true, false
			batch, e.starts = e.starts, nil
		}
		b := tx.Bucket(bWaiting)
		wrote := false
		for _, le := range batch {
			if le.settled || !e.holds(le) {
				continue
			}
			wrote = true
			if err := b.Put(le.key, le.job.encode()); err != nil {
				return err
			}
		}
		if !wrote {
			return store.Untouched(nil)
		}
		return nil
	}, func(error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !taken { // refused before it ran: let the next start try again
			e.riding = false
		}
	})
}

// outcome is what becomes of a lease.
type outcome struct {
	state   State // Completed, Failed, Delayed, or Waiting: as before the lease
	attempt attempt
	result  []byte
	err     error // why it failed or is delayed
	delay   time.Duration
}

// attempt says what an outcome means for the count of attempts.
type attempt int

const (
	counted  attempt = iota // it was made
	undone                  // it counts as not made: snoozed, or stopped by the drain
	notBegun                // the handler was not called
)

// apply makes j what the outcome says. j.startedAt says when the attempt began.
func (o outcome) apply(j *Job, now time.Time, worker string) {
	now = now.UTC()
	if o.err != nil {
		j.LastError = brief(o.err)
	}
	if o.attempt == counted {
		a := Attempt{N: j.AttemptsMade, StartedAt: j.startedAt, EndedAt: now, Worker: worker}
		if o.err != nil {
			a.Error = j.LastError
		}
		j.ended(a)
	}
	j.startedAt = time.Time{}
	if o.attempt != notBegun {
		j.interruptions = 0 // the process lived through it
	}
	if o.attempt == undone {
		j.AttemptsMade = max(j.AttemptsMade-1, 0)
	}
	j.State, j.LeaseToken = o.state, ""
	switch o.state {
	case Delayed:
		j.RunAt = now.Add(o.delay)
	case Completed, Failed:
		j.FinishedAt, j.Result = now, o.result
	}
}

// settle writes an outcome and waits for the disk. After any error but ErrStaleLease and store.ErrUnknown the lease still holds.
func (e *Engine) settle(ctx context.Context, le *lease, o outcome) error {
	fn, then, err := e.settling(le, o)
	if err != nil {
		return err
	}
	return e.st.UpdateThen(ctx, fn, then)
}

// settleThen is settle without the wait: done is called with the answer, mostly on the store's goroutine.
func (e *Engine) settleThen(le *lease, o outcome, done func(error)) {
	fn, then, err := e.settling(le, o)
	if err != nil {
		done(err)
		return
	}
	e.st.Start(fn, func(err error) { then(err); done(err) })
}

// settling returns what writes an outcome, and what follows when it is known how that went.
func (e *Engine) settling(le *lease, o outcome) (fn func(tx *bbolt.Tx) error, then func(error), err error) {
	e.mu.Lock()
	if !e.holds(le) {
		e.mu.Unlock()
		return nil, nil, ErrStaleLease
	}
	le.settled = true
	j := le.job
	e.mu.Unlock()
	o.apply(&j, e.clock.now(), "")
	var w writes
	return func(tx *bbolt.Tx) error {
			w.reset()
			return e.conclude(tx, &w, le, &j, false)
		}, func(err error) {
			if isUnknown(err) {
				e.mu.Lock()
				e.release(le, false) // whatever the file holds is found by reading anew
				e.mu.Unlock()
			}
			e.applied(func() { e.follow(&w) })(err)
		}, nil
}

// conclude writes what becomes of a leased job: its record stays in place, moves, or goes. passing: its end need not be kept.
func (e *Engine) conclude(tx *bbolt.Tx, w *writes, le *lease, j *Job, passing bool) error {
	waiting := tx.Bucket(bWaiting)
	w.over = append(w.over, over{le, j})
	if j.State == Waiting {
		return waiting.Put(le.key, j.encode())
	}
	if err := waiting.Delete(le.key); err != nil {
		return err
	}
	if j.State == Delayed {
		return w.put(tx, j, Active)
	}
	if err := finish(tx, w, j, Active, passing); err != nil {
		return err
	}
	if j.State == Failed {
		return e.addFailed(tx, w, *j)
	}
	return nil
}

// release ends a lease. Engine.mu is held. again: the job waits as before.
func (e *Engine) release(le *lease, again bool) {
	if !e.holds(le) {
		return
	}
	q := e.queues[le.job.Queue]
	l := q.line(le.job.Tenant)
	delete(l.leases, orderIn(le.key))
	e.forgetDeadline(le)
	if again {
		l.waiting++
	}
	if le.parking {
		for v := range q.viewsOf(l) {
			if again {
				v.free(l, le.key)
			}
			if !l.paused && l.restAt == 0 {
				v.unblock(l) // it may have looked like one too many of the line's active jobs
			}
		}
		return
	}
	if again {
		q.free(l, le.key, le.job.Name)
	}
	q.gave(l)
}

// park moves a record that cannot be read out of the way, and says so.
func (e *Engine) park(le *lease) {
	p := place{in: placeWaiting}
	p.priority, p.seq = orderOf(le.key[len(le.key)-orderBytes:])
	e.log.Error("jobs: a damaged record was parked", slog.String("queue", le.job.Queue), slog.String("tenant", le.job.Tenant),
		slog.Uint64("sequence", p.seq), slog.String("err", le.job.LastError))
	e.st.Submit(func(tx *bbolt.Tx) error {
		return parkAt(tx, le.job.Queue, le.job.Tenant, p)
	}, func(err error) {
		if err != nil && !isUnknown(err) { // try again with the next lease
			e.mu.Lock()
			defer e.mu.Unlock()
			e.release(le, true)
			return
		}
		e.applied(func() {
			e.release(le, false)
			e.queues[le.job.Queue].line(le.job.Tenant).parked++
		})(err)
	})
}

// parkAt moves the record at p to the parked ones. Its id reads as ErrDamaged from then on: the index entry goes stale, or there is none and the id tells of p.
func parkAt(tx *bbolt.Tx, queue, tenant string, p place) error {
	name, key := p.key(queue, tenant)
	v := bytes.Clone(tx.Bucket(name).Get(key))
	if err := removeAt(tx, queue, tenant, p); err != nil {
		return err
	}
	if p.in == placeWaiting {
		if err := tx.Bucket(bLeased).Delete(key); err != nil {
			return err
		}
	}
	return tx.Bucket(bParked).Put(parkedKey(queue, tenant, p), v)
}

func isUnknown(err error) bool { return errors.Is(err, store.ErrUnknown) }
