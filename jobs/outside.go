package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

const (
	// leaseMax jobs go into one lease, and leaseBytesMax bytes of their data: an answer must fit into the memory of both sides.
	leaseMax      = 1000
	leaseBytesMax = 4 << 20

	leaseForDefault = 30 * time.Second
	leaseForMin     = 10 * time.Millisecond // less runs out on the way to the worker
	leaseForMax     = 24 * time.Hour        // a worker that lives can extend; one that died should be noticed the same day
	leaseWaitMax    = time.Minute           // proxies cut what waits longer

	workerBytesMax   = 255
	namesMax         = 100
	progressBytesMax = 4096 // it is told to everybody who watches
)

// LeaseRequest asks for jobs on behalf of a worker that is not in this process.
type LeaseRequest struct {
	Queue  string
	Tenant string        // "": all tenants in turn; the box's own work is not among theirs
	Max    int           // 1 to 1000; 0: 1. Fewer come when there are fewer, or when their data is much
	For    time.Duration // after which the jobs are leased anew, unless extended: 10 ms to 24 h; 0: 30 s
	Wait   time.Duration // long poll: how long to wait for a first job, up to a minute; 0: not at all
	Worker string        // free text of up to 255 bytes, shown on the job
	Names  []string      // only jobs of these names; empty: all
}

func (r *LeaseRequest) validate() error {
	r.Max, r.For = cmp.Or(r.Max, 1), cmp.Or(r.For, leaseForDefault)
	switch {
	case r.Max < 1 || r.Max > leaseMax:
		return invalid("max", "%d: use 1 to %d", r.Max, leaseMax)
	case r.Wait < 0 || r.Wait > leaseWaitMax:
		return invalid("wait_ms", "%v: use 0 to %v", r.Wait, leaseWaitMax)
	case len(r.Worker) > workerBytesMax || !isLine(r.Worker):
		return invalid("worker", "use up to %d bytes of UTF-8 on one line", workerBytesMax)
	case len(r.Names) > namesMax:
		return invalid("names", "%d names, up to %d are taken", len(r.Names), namesMax)
	}
	for i, n := range r.Names {
		if len(n) > nameBytesMax || !utf8.ValidString(n) {
			return invalid(fmt.Sprintf("names[%d]", i), "use up to %d bytes of UTF-8", nameBytesMax)
		}
	}
	return leaseFor(r.For)
}

func leaseFor(d time.Duration) error {
	if d < leaseForMin || d > leaseForMax {
		return invalid("lease_ms", "%v: use %v to %v", d, leaseForMin, leaseForMax)
	}
	return nil
}

// isLine says whether s is text without control characters.
func isLine(s string) bool {
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return utf8.ValidString(s)
}

// Lease waits for and leases jobs. An empty answer is not an error. The token (Job.LeaseToken) and the deadline (Job.LeasedUntil) are durable
// when it returns, and are honoured after a restart. Errors to branch on: ErrInvalid, ErrUnknownQueue, ErrClosed, ctx's, the store's.
func (e *Engine) Lease(ctx context.Context, r LeaseRequest) ([]Job, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if err := e.canSee(r.Tenant, r.Queue); err != nil {
		return nil, err
	}
	w := newWaiter(r.Queue)
	if err := e.look(w, r.Tenant, r.Names, 0); err != nil {
		return nil, err
	}
	defer e.unregister(w)
	timer := time.NewTimer(r.Wait)
	defer timer.Stop()
	for {
		les, err := e.take(w, r.Max, leaseBytesMax, ofTenants)
		if len(les) > 0 {
			js, err := e.lend(ctx, les, r)
			if err != nil || len(js) > 0 {
				return js, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lease: %w", err)
		}
		if r.Wait == 0 {
			return nil, nil
		}
		select {
		case <-w.poked:
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-e.done:
			return nil, ErrClosed
		}
	}
}

// ofTenants keeps the box's own work from workers outside: they could not name its tenant, and what they
// complete would not be done.
func ofTenants(tenant string) bool { return tenant != "" }

// look lets w look through the view of a tenant ("": all), names (none: all) and tenantMax.
func (e *Engine) look(w *waiter, tenant string, names []string, tenantMax int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.queues[w.queue]
	var v *view
	if tenantMax > 0 {
		v = newView(tenant, names)
		v.max = tenantMax
		q.attach(v)
	} else if v = q.view(tenant, names); v == nil {
		return invalid("names", "up to %d different lists of names may be waited for at a time", viewsMax)
	}
	v.refs++
	w.view = v
	return nil
}

// lend makes leases those of a worker outside, and answers when they are on disk.
func (e *Engine) lend(ctx context.Context, les []*lease, r LeaseRequest) ([]Job, error) {
	les = e.unsuspected(ctx, les)
	if len(les) == 0 {
		return nil, nil
	}
	now, steady := e.clock.now(), e.clock.steady()
	js := make([]Job, len(les))
	for i, le := range les {
		j := le.job
		j.AttemptsMade++
		j.LeaseToken, j.LeasedUntil, j.Worker, j.startedAt = rand.Text(), now.Add(r.For).UTC(), r.Worker, now
		js[i] = j
	}
	e.mu.Lock()
	for i, le := range les {
		le.out, le.expires = holdOf(&js[i]), steady+r.For
	}
	e.mu.Unlock()
	told := false
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		leased, waiting := tx.Bucket(bLeased), tx.Bucket(bWaiting)
		leased.FillPercent = pageFill
		for i, le := range les {
			if le.interrupted { // what the lost attempt left on the job is written now, or never
				if err := waiting.Put(le.key, le.job.encode()); err != nil {
					return err
				}
			}
			if err := leased.Put(le.key, holdOf(&js[i]).encode(js[i].Queue, js[i].Tenant)); err != nil {
				return err
			}
		}
		return nil
	}, func(err error) {
		told = true
		e.mu.Lock()
		for i, le := range les {
			switch {
			case err == nil:
				le.job = le.job.light()
				e.keepDeadline(le)
				e.moved(&js[i], Waiting)
			default: // of an unknown outcome the file tells when it is read anew
				e.release(le, !isUnknown(err))
			}
		}
		e.mu.Unlock()
		if isUnknown(err) {
			e.applied(nil)(err)
		}
	})
	if err != nil && !told {
		e.mu.Lock()
		for _, le := range les {
			e.release(le, true)
		}
		e.mu.Unlock()
	}
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return js, nil
}

// unsuspected settles those leases whose jobs ended the process too often, and returns the others.
func (e *Engine) unsuspected(ctx context.Context, les []*lease) []*lease {
	good := les[:0]
	for _, le := range les {
		o, bad := suspect(le)
		if !bad {
			good = append(good, le)
			continue
		}
		if err := e.settle(context.WithoutCancel(ctx), le, o); err != nil && !isUnknown(err) {
			e.mu.Lock()
			e.release(le, true)
			e.mu.Unlock()
		}
	}
	return good
}

// light is what memory keeps of a job that is leased to the outside: its data may be a megabyte.
func (j *Job) light() Job {
	l := Job{State: Active, seq: j.seq}
	l.Queue, l.Tenant, l.ID, l.Name, l.Priority = j.Queue, j.Tenant, j.ID, j.Name, j.Priority
	return l
}

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
		p, err := decodePlace(tx.Bucket(bIDs).Get(idKey(r.Queue, r.Tenant, r.ID)))
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
			en.err, en.damaged = nil, false
			if err := e.endIn(tx, &w, en); err != nil {
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

// endIn writes the end of one lease.
func (e *Engine) endIn(tx *bbolt.Tx, w *writes, en *ending) error {
	le := en.lease
	queue, tenant := le.job.Queue, le.job.Tenant
	leased := tx.Bucket(bLeased)
	h, err := decodeHeld(queue, tenant, leased.Get(le.key))
	if err != nil || h.token != le.out.token {
		en.err = fmt.Errorf("job %q: %w", le.job.ID, ErrStaleLease)
		return nil
	}
	if err := leased.Delete(le.key); err != nil {
		return err
	}
	v := tx.Bucket(bWaiting).Get(le.key)
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
	return e.conclude(tx, w, le, &en.job)
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
	}, func(h *held) { h.progress = progress })
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
