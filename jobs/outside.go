package jobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// LeaseRef says of which job an outside worker speaks.
type LeaseRef struct{ Tenant, Queue, ID, Token string }

// lent returns the lease that a worker outside holds. Engine.mu is held.
func (e *Engine) lent(r LeaseRef) *lease {
	le := e.tokens[r.Token]
	if le == nil || le.settled || le.job.Tenant != r.Tenant || le.job.Queue != r.Queue || le.job.ID != r.ID {
		return nil
	}
	return le
}

// lost says why there is no such lease: ErrNotFound, or ErrStaleLease.
func (e *Engine) lost(r LeaseRef) error {
	if err := e.canSee(r.Tenant, r.Queue); err != nil {
		return err
	}
	if _, err := e.Get(r.Tenant, r.Queue, r.ID); err != nil {
		return err
	}
	return fmt.Errorf("job %q: %w", r.ID, ErrStaleLease)
}

// holder returns the lease of a worker outside or of the box's own. Errors to branch on: ErrUnknownQueue, ErrNotFound, ErrStaleLease.
func (e *Engine) holder(r LeaseRef) (*lease, error) {
	e.mu.Lock()
	le := e.lent(r)
	e.mu.Unlock()
	if le != nil {
		return le, nil
	}
	if err := e.lost(r); !errors.Is(err, ErrStaleLease) {
		return nil, err
	}
	var key []byte
	err := e.st.View(func(tx *bbolt.Tx) error {
		p, err := locate(tx, r.Queue, r.Tenant, r.ID)
		if err == nil && p.in == placeWaiting {
			_, key = p.key(r.Queue, r.Tenant)
		}
		return err
	})
	if err == nil && key != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		if le := e.leased(r.Queue, r.Tenant, key); le != nil && !le.settled && !le.parking && le.out == nil && le.job.LeaseToken == r.Token {
			return le, nil
		}
	}
	return nil, fmt.Errorf("job %q: %w", r.ID, ErrStaleLease)
}

// Completion is the good end of one lease.
type Completion struct {
	LeaseRef
	Result json.RawMessage // JSON of up to 1 MiB, or nil
}

// Complete ends a lease with a result (JSON, may be nil). A token that is not the present one: ErrStaleLease.
func (e *Engine) Complete(ctx context.Context, r LeaseRef, result json.RawMessage) (Job, error) {
	js, errs := e.CompleteMany(ctx, []Completion{{r, result}})
	return js[0], errs[0]
}

// CompleteMany ends several leases in one acknowledgement. Each has its own answer; those that are stale do not keep others from theirs.
func (e *Engine) CompleteMany(ctx context.Context, cs []Completion) ([]Job, []error) {
	js, errs := make([]Job, len(cs)), make([]error, len(cs))
	if len(cs) > leaseMax {
		for i := range errs {
			errs[i] = invalid("jobs", "%d in one call, up to %d are taken", len(cs), leaseMax)
		}
		return js, errs
	}
	ends := make([]*ending, 0, len(cs))
	at := make([]int, 0, len(cs))
	for i, c := range cs {
		if err := validJSON("result", c.Result, dataBytesMax); err != nil {
			errs[i] = err
			continue
		}
		ends = append(ends, &ending{ref: c.LeaseRef, outcome: func(*Job) outcome { return outcome{state: Completed, result: c.Result} }})
		at = append(at, i)
	}
	e.end(ctx, ends)
	for n, i := range at {
		js[i], errs[i] = ends[n].job, ends[n].err
	}
	return js, errs
}

// Fail ends a lease without success: again after the backoff (or delay, if not nil) while attempts are left and retry is true.
func (e *Engine) Fail(ctx context.Context, r LeaseRef, reason string, retry bool, delay *time.Duration) (Job, error) {
	if delay != nil && (*delay < 0 || *delay > delayMax) {
		return Job{}, invalid("delay_ms", "%v: use 0 to %v", *delay, delayMax)
	}
	en := &ending{ref: r, outcome: func(j *Job) outcome {
		o := outcome{state: Delayed, err: errors.New(cmp.Or(reason, "the worker gave no reason"))}
		switch {
		case !retry || j.Attempts > 0 && j.AttemptsMade >= j.Attempts:
			o.state = Failed
		case delay == nil:
			o.delay = j.Backoff.Wait(j.AttemptsMade)
		default:
			o.delay = *delay
		}
		if o.state == Delayed && o.delay == 0 {
			o.state = Waiting
		}
		return o
	}}
	e.end(ctx, []*ending{en})
	return en.job, en.err
}

// ending is one lease that comes to its end.
type ending struct {
	ref     LeaseRef
	lease   *lease // filled in from ref if nil
	outcome func(j *Job) outcome

	job     Job // what became of it
	err     error
	damaged bool
	passing bool // it is kept, but those that end with it push it out at once
}

// end ends leases from outside in one transaction and answers each.
func (e *Engine) end(ctx context.Context, ends []*ending) {
	var live, lost []*ending
	e.mu.Lock()
	for _, en := range ends {
		if en.lease == nil {
			en.lease = e.lent(en.ref)
		}
		if en.lease == nil {
			lost = append(lost, en)
			continue
		}
		en.lease.settled = true // nobody else ends it, nor does it run out
		live = append(live, en)
	}
	e.mu.Unlock()
	for _, en := range lost {
		en.err = e.lost(en.ref)
	}
	if len(live) == 0 {
		return
	}
	var w writes
	told := false
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset()
		for _, en := range live {
			if err := e.endLease(tx, en); err != nil {
				return err
			}
		}
		markPassing(live)
		for _, en := range live {
			if en.err != nil {
				continue
			}
			if err := e.conclude(tx, &w, en.lease, &en.job, en.passing); err != nil {
				return err
			}
		}
		return nil
	}, func(err error) {
		told = true
		e.mu.Lock()
		for _, en := range live {
			switch le := en.lease; {
			case isUnknown(err):
				e.release(le, false) // whatever the file holds is found by reading anew
			case err != nil:
				le.settled = false
			case en.damaged:
				e.release(le, false)
				e.queues[le.job.Queue].line(le.job.Tenant).parked++
			case en.err != nil:
				e.release(le, false)
			}
		}
		e.mu.Unlock()
		e.applied(func() { e.follow(&w) })(err)
	})
	if err == nil {
		return
	}
	for _, en := range live {
		en.job, en.err = Job{}, fmt.Errorf("job %q: %w", en.lease.job.ID, err)
	}
	if !told {
		e.mu.Lock()
		for _, en := range live {
			en.lease.settled = false
		}
		e.mu.Unlock()
	}
}

// endLease removes one lease and finds out what becomes of its job.
func (e *Engine) endLease(tx *bbolt.Tx, en *ending) error {
	en.err, en.damaged, en.passing = nil, false, false
	le := en.lease
	queue, tenant := le.job.Queue, le.job.Tenant
	leased := tx.Bucket(bLeased).Cursor()
	k, v := leased.Seek(le.key)
	if !bytes.Equal(k, le.key) {
		v = nil
	}
	h, err := decodeHeld(queue, tenant, v)
	if err != nil || h.token != le.out.token {
		en.err = fmt.Errorf("job %q: %w", le.job.ID, ErrStaleLease)
		return nil
	}
	if err := leased.Delete(); err != nil {
		return err
	}
	v = tx.Bucket(bWaiting).Get(le.key)
	if v == nil {
		en.err = fmt.Errorf("job %q: %w", le.job.ID, ErrNotFound)
		return nil
	}
	j, err := decodeJob(queue, tenant, Active, v)
	if err != nil {
		en.err, en.damaged = err, true
		p := place{in: placeWaiting}
		p.priority, p.seq = orderOf(le.key[len(le.key)-orderBytes:])
		return parkAt(tx, queue, tenant, p)
	}
	j.AttemptsMade, j.startedAt, j.Progress = h.attempt, h.startedAt, h.progress
	en.outcome(&j).apply(&j, e.clock.now(), h.worker)
	en.job = j
	return nil
}

// markPassing finds jobs that need not be kept, because enough others of their line complete in the same transaction. Of a hundred with the default
// retention ten are written instead of a hundred written and ninety removed.
func markPassing(ends []*ending) {
	type kind struct {
		queue, tenant string
		keep          Retention
	}
	after := map[kind]int{}
	for _, en := range slices.Backward(ends) {
		if keep := en.job.RemoveOnComplete; en.err == nil && en.job.State == Completed && keep.Count > 0 {
			k := kind{en.job.Queue, en.job.Tenant, keep}
			en.passing = after[k] >= keep.Count
			after[k]++
		}
	}
}

// Extend moves a lease's deadline to now+d.
func (e *Engine) Extend(ctx context.Context, r LeaseRef, d time.Duration) (Job, error) {
	if err := leaseFor(d); err != nil {
		return Job{}, err
	}
	until, expires := e.clock.now().Add(d).UTC(), e.clock.steady()+d
	return e.alter(ctx, r, func(le *lease, done bool) {
		if done || expires > le.expires { // a longer lease must not run out while it is written
			le.expires = expires
			e.keepDeadline(le)
		}
	}, func(h *held) { h.until = until })
}

// Progress stores a JSON value of up to 4 KiB on the job.
func (e *Engine) Progress(ctx context.Context, r LeaseRef, progress json.RawMessage) (Job, error) {
	if err := validJSON("progress", progress, progressBytesMax); err != nil {
		return Job{}, err
	}
	le, err := e.holder(r)
	if err != nil {
		return Job{}, err
	}
	if le.out == nil {
		return e.ownProgress(ctx, le, progress)
	}
	return e.alter(ctx, r, func(le *lease, done bool) {
		if done {
			j := le.job
			j.Progress, j.AttemptsMade, j.Worker, j.LeasedUntil = le.out.progress, le.out.attempt, le.out.worker, le.out.until
			e.moved(&j, Active)
		}
	}, func(h *held) { h.progress = bytes.Clone(progress) })
}

// alter changes what is on disk about a lease from outside. follow is called before that and (done) after it, with Engine.mu held.
func (e *Engine) alter(ctx context.Context, r LeaseRef, follow func(le *lease, done bool), change func(h *held)) (Job, error) {
	e.mu.Lock()
	le := e.lent(r)
	if le != nil {
		follow(le, false)
	}
	e.mu.Unlock()
	if le == nil {
		return Job{}, e.lost(r)
	}
	var h held
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) (err error) {
		leased := tx.Bucket(bLeased)
		h, err = decodeHeld(r.Queue, r.Tenant, leased.Get(le.key))
		if err != nil || h.token != r.Token { // it ended in this very group
			return store.Untouched(fmt.Errorf("job %q: %w", r.ID, ErrStaleLease))
		}
		change(&h)
		return leased.Put(le.key, h.encode(r.Queue, r.Tenant))
	}, e.applied(func() {
		if e.holds(le) {
			le.out = &h
			follow(le, true)
		}
	}))
	if err != nil {
		return Job{}, fmt.Errorf("job %q: %w", r.ID, err)
	}
	return e.Get(r.Tenant, r.Queue, r.ID)
}

// ownProgress is Progress of a job that a worker of the box has.
func (e *Engine) ownProgress(ctx context.Context, le *lease, progress json.RawMessage) (Job, error) {
	var j Job
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		e.mu.Lock()
		over := le.settled || !e.holds(le)
		j = le.job
		e.mu.Unlock()
		if over {
			return store.Untouched(ErrStaleLease)
		}
		j.Progress = progress
		return tx.Bucket(bWaiting).Put(le.key, j.encode())
	}, e.applied(func() {
		le.job.Progress = progress
		e.moved(&j, Active)
	}))
	if err != nil {
		return Job{}, fmt.Errorf("job %q: %w", le.job.ID, err)
	}
	return j, nil
}

func validJSON(field string, b json.RawMessage, most int) error {
	switch {
	case len(b) > most:
		return invalid(field, "%d bytes, up to %d are kept", len(b), most)
	case len(b) > 0 && !json.Valid(b):
		return invalid(field, "it is not JSON")
	}
	return nil
}
