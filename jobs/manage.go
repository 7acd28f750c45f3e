package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

const (
	// manageMax jobs are changed in one transaction, everybody else waits meanwhile.
	manageMax = 1000

	// manageBytesMax of records end a transaction early: a thousand jobs may have a megabyte each.
	manageBytesMax = 8 << 20
)

// ErrState: the job is not in a state in which this can be done to it; the text names the state.
var ErrState = errors.New("the job's state does not allow it")

func stateError(is State, do string) error {
	return fmt.Errorf("%w: it is %s, so it cannot be %s", ErrState, is, do)
}

// writable returns a queue's configuration if jobs may be put into it and removed from it by others than the box itself.
func (e *Engine) writable(tenant, queue string) (QueueConfig, error) {
	q, err := e.config(tenant, queue)
	if err == nil && q.ReadOnly {
		err = fmt.Errorf("%w: %q", ErrReadOnly, queue)
	}
	return q, err
}

// Retry moves a failed or completed job back to waiting, at its old place, with its attempts anew. Errors to branch on: ErrNotFound,
// ErrState, ErrDamaged, ErrUnknownQueue, and the store's.
func (e *Engine) Retry(ctx context.Context, tenant, queue, id string) (Job, error) {
	j, err := e.change(ctx, tenant, queue, id, func(tx *bbolt.Tx, w *changes, j *Job, p place) error {
		if j.State != Completed && j.State != Failed {
			return stateError(j.State, "retried")
		}
		return w.retry(tx, e, j, p)
	})
	if err != nil {
		return Job{}, fmt.Errorf("retry job %q: %w", id, err)
	}
	return j, nil
}

// Promote makes a delayed job wait: it is due now. Errors to branch on: as for Retry.
func (e *Engine) Promote(ctx context.Context, tenant, queue, id string) (Job, error) {
	j, err := e.change(ctx, tenant, queue, id, func(tx *bbolt.Tx, w *changes, j *Job, p place) error {
		if j.State != Delayed {
			return stateError(j.State, "promoted")
		}
		if err := removeAt(tx, queue, tenant, p); err != nil {
			return err
		}
		w.left(queue, tenant, p)
		j.State, j.RunAt = Waiting, e.clock.now().UTC()
		return w.put(tx, j, Delayed)
	})
	if err != nil {
		return Job{}, fmt.Errorf("promote job %q: %w", id, err)
	}
	return j, nil
}

// Remove deletes a job that is not active, with all that is kept of it; an id that is enqueued again is a new job. What
// the box itself has to do (queues that are ReadOnly) is not removed by anybody. Errors to branch on: ErrReadOnly, and as for Retry.
func (e *Engine) Remove(ctx context.Context, tenant, queue, id string) error {
	if err := e.remove(ctx, tenant, queue, id); err != nil {
		return fmt.Errorf("remove job %q: %w", id, err)
	}
	return nil
}

func (e *Engine) remove(ctx context.Context, tenant, queue, id string) error {
	if _, err := e.writable(tenant, queue); err != nil {
		return err
	}
	var w changes
	return e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset(e)
		_, p, err := find(tx, queue, tenant, id)
		switch {
		case errors.Is(err, ErrNotFound):
			return store.Untouched(err)
		case err != nil && p == place{}: // the index leads nowhere, or to another job, which stays
			return forget(tx, queue, tenant, id, p)
		}
		return w.remove(tx, e, queue, tenant, id, p)
	}, w.then(e))
}

// RetryFailed retries the jobs of a queue that are failed now, oldest first; tenant "": of all tenants. It works in bounded batches, each
// all or nothing, and returns how many were retried, also beside an error.
func (e *Engine) RetryFailed(ctx context.Context, tenant, queue string) (n int, err error) {
	failed, err := e.failed(tenant, queue)
	for tenant, left := range failed {
		for left > 0 && err == nil {
			var batch int
			batch, err = e.retryBatch(ctx, tenant, queue, min(left, manageMax))
			if batch == 0 {
				break
			}
			n, left = n+batch, left-batch // those that fail again meanwhile are left alone
		}
	}
	if err != nil {
		return n, fmt.Errorf("retry failed jobs of %q: %w", queue, err)
	}
	return n, nil
}

// failed counts the failed jobs of a tenant, or of all.
func (e *Engine) failed(tenant, queue string) (map[string]int, error) {
	if err := e.canSee(tenant, queue); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := map[string]int{}
	for _, l := range e.queues[queue].lines {
		if l.failed > 0 && (tenant == "" || tenant == l.tenant) {
			n[l.tenant] = l.failed
		}
	}
	return n, nil
}

func (e *Engine) retryBatch(ctx context.Context, tenant, queue string, n int) (int, error) {
	var w changes
	prefix := append(linePrefix(queue, tenant), placeFailed)
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset(e)
		var jobs []Job
		var places []place
		c := tx.Bucket(bFinished).Cursor()
		size := 0
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+8 && len(jobs) < n && size < manageBytesMax; k, v = c.Next() {
			j, err := decodeJob(queue, tenant, Failed, v)
			if err != nil {
				continue // Audit names it, and retention drops it
			}
			jobs, places, size = append(jobs, j), append(places, place{in: placeFailed, at: be.Uint64(k[len(prefix):])}), size+len(v)
		}
		for i := range jobs {
			if err := w.retry(tx, e, &jobs[i], places[i]); err != nil {
				return err
			}
		}
		if len(jobs) == 0 {
			return store.Untouched(nil)
		}
		return nil
	}, w.then(e))
	if err != nil {
		return 0, err
	}
	return len(w.placed), nil
}

// Drain removes the waiting (and, with delayed, the delayed) jobs of a tenant's line that are there now, active ones aside. It works in bounded batches, each all
// or nothing, and returns how many were removed, also beside an error. Errors to branch on: ErrReadOnly, ErrUnknownQueue, and the store's.
func (e *Engine) Drain(ctx context.Context, tenant, queue string, delayed bool) (int, error) {
	_, err := e.writable(tenant, queue)
	d := draining{e: e, queue: queue, tenant: tenant, line: linePrefix(queue, tenant)}
	for d.next = d.line; err == nil && d.next != nil; {
		err = d.batch(ctx, bWaiting)
	}
	if delayed && err == nil {
		for d.next = d.line; err == nil && d.next != nil; {
			err = d.batch(ctx, bLater)
		}
	}
	if err != nil {
		return d.removed, fmt.Errorf("drain %q: %w", queue, err)
	}
	return d.removed, nil
}

// draining is one call of Drain.
type draining struct {
	e             *Engine
	queue, tenant string
	line          []byte
	last          uint64 // jobs with a higher sequence came later and stay
	next          []byte // where the next batch begins; nil: at the end
	removed       int
}

func (d *draining) batch(ctx context.Context, bucket []byte) error {
	var w changes
	var next []byte
	last := d.last
	err := d.e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset(d.e)
		if last = d.last; last == 0 {
			last = tx.Bucket(bWaiting).Sequence()
		}
		places, end := d.find(tx, bucket, last)
		next = end
		for _, f := range places {
			if err := w.remove(tx, d.e, d.queue, d.tenant, f.id, f.place); err != nil && !errors.Is(err, ErrState) {
				return err
			}
		}
		if w.removed == 0 {
			return store.Untouched(nil)
		}
		return nil
	}, w.then(d.e))
	if err == nil {
		d.next, d.last, d.removed = next, last, d.removed+w.removed
	}
	return err
}

type namedPlace struct {
	place
	id string
}

// find returns the next jobs to remove, and where to go on. Damaged records stay, and are parked when their turn comes.
func (d *draining) find(tx *bbolt.Tx, bucket []byte, last uint64) (found []namedPlace, next []byte) {
	c := tx.Bucket(bucket).Cursor()
	size := 0
	k, v := c.Seek(d.next)
	for n := 0; bytes.HasPrefix(k, d.line); k, v = c.Next() {
		if n++; n > manageMax || size >= manageBytesMax {
			return found, bytes.Clone(k)
		}
		p := place{in: placeWaiting}
		ok := len(k) == len(d.line)+orderBytes
		if bytes.Equal(bucket, bLater) {
			p, ok = splitLater(k[len(d.line):], v)
			if _, key := p.key(d.queue, d.tenant); ok {
				v = tx.Bucket(bDelayed).Get(key)
			}
		} else if ok {
			p.priority, p.seq = orderOf(k[len(d.line):])
		}
		if !ok || p.seq > last {
			continue
		}
		size += len(v)
		if j, err := decodeJob(d.queue, d.tenant, p.state(), v); err == nil {
			found = append(found, namedPlace{p, j.ID})
		}
	}
	return found, nil
}

// change does something to one job that is not active.
func (e *Engine) change(ctx context.Context, tenant, queue, id string, do func(tx *bbolt.Tx, w *changes, j *Job, p place) error) (Job, error) {
	if _, err := e.config(tenant, queue); err != nil {
		return Job{}, err
	}
	var w changes
	var j Job
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) (err error) {
		w.reset(e)
		var p place
		if j, p, err = find(tx, queue, tenant, id); err != nil {
			return store.Untouched(err)
		}
		if e.overlay(&j); j.State == Active {
			return store.Untouched(do(tx, &w, &j, p)) // refuses it
		}
		if err = do(tx, &w, &j, p); errors.Is(err, ErrState) {
			return store.Untouched(err)
		}
		return err
	}, w.then(e))
	if err != nil {
		return Job{}, err
	}
	e.overlay(&j)
	return j, nil
}

// changes are writes that also take jobs out of states, for memory to follow.
type changes struct {
	writes
	gone    []placed // where jobs were
	claims  []*lease // waiting jobs on their way out: not to be leased
	removed int
}

// reset begins a run of a transaction's function. It runs on the store's goroutine, as then does.
func (w *changes) reset(e *Engine) {
	w.writes.reset()
	w.unclaim(e, true)
	w.gone, w.removed = w.gone[:0], 0
}

// then returns the callback that has memory follow.
func (w *changes) then(e *Engine) func(error) {
	return func(err error) {
		w.unclaim(e, err != nil && !isUnknown(err))
		e.applied(func() {
			for _, g := range w.gone {
				l := e.queues[g.queue].line(g.tenant)
				switch g.place.in {
				case placeDelayed:
					l.delayed--
				case placeCompleted:
					l.completed--
				case placeFailed:
					l.failed--
				case placeParked:
					l.parked--
				}
			}
			e.follow(&w.writes)
			for _, g := range w.gone {
				q := e.queues[g.queue]
				q.drop(q.line(g.tenant), rateTime(e.clock.steady()))
			}
		})(err)
	}
}

// left notes that a job is no longer at p.
func (w *changes) left(queue, tenant string, p place) {
	w.gone = append(w.gone, placed{queue: queue, tenant: tenant, place: p})
}

// retry moves a finished job at p back to waiting.
func (w *changes) retry(tx *bbolt.Tx, e *Engine, j *Job, p place) error {
	if err := removeAt(tx, j.Queue, j.Tenant, p); err != nil {
		return err
	}
	w.left(j.Queue, j.Tenant, p)
	from := j.State
	j.State, j.RunAt, j.FinishedAt = Waiting, e.clock.now().UTC(), time.Time{}
	j.AttemptsMade, j.interruptions, j.LastError, j.Result, j.Progress = 0, 0, "", nil, nil
	return w.put(tx, j, from)
}

// placeParked stands in changes.gone for a damaged record that was parked. No index leads to one.
const placeParked = 'p'

// remove deletes the job of that id at p, wherever that is, and all that is kept of it. ErrState: it is active.
func (w *changes) remove(tx *bbolt.Tx, e *Engine, queue, tenant, id string, p place) error {
	name, key := p.key(queue, tenant)
	switch {
	case name == nil || tx.Bucket(name).Get(key) == nil: // it was damaged, and parked
		parked, key := tx.Bucket(bParked), parkedKey(queue, tenant, p)
		if parked.Get(key) != nil {
			if err := parked.Delete(key); err != nil {
				return err
			}
			w.left(queue, tenant, place{in: placeParked})
		}
	case p.in == placeWaiting && !w.claim(e, queue, tenant, key):
		return stateError(Active, "removed")
	default:
		if err := removeAt(tx, queue, tenant, p); err != nil {
			return err
		}
		w.left(queue, tenant, p)
	}
	w.removed++
	return forget(tx, queue, tenant, id, p)
}

// claim keeps a waiting job from being leased between the transaction and its commit. false: it is leased.
func (w *changes) claim(e *Engine, queue, tenant string, key []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.queues[queue].line(tenant)
	if l.leases[orderIn(key)] != nil {
		return false
	}
	le := &lease{key: key, parking: true}
	le.job.Queue, le.job.Tenant = queue, tenant
	l.leases[orderIn(key)] = le
	l.waiting--
	w.claims = append(w.claims, le)
	return true
}

// unclaim ends the claims. again: their jobs stay.
func (w *changes) unclaim(e *Engine, again bool) {
	if len(w.claims) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, le := range w.claims {
		e.release(le, again)
	}
	w.claims = w.claims[:0]
}
