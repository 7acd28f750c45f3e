package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"go.etcd.io/bbolt"
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
	case r.Tenant != "" && !isLabel(r.Tenant):
		return invalid("tenant", "%q is not a DNS label", r.Tenant)
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
	if err := e.look(w, r.Tenant, r.Names, true); err != nil {
		return nil, err
	}
	defer e.unregister(w)
	timer := time.NewTimer(r.Wait)
	defer timer.Stop()
	for {
		les, err := e.take(w, r.Max, leaseBytesMax, nil)
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

// look lets w look through the view of a tenant ("": all) and names (none: all); lent: as a worker outside.
func (e *Engine) look(w *waiter, tenant string, names []string, lent bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w.view = e.queues[w.queue].view(tenant, names, lent); w.view == nil {
		return invalid("names", "up to %d different lists of names may be waited for at a time", viewsMax)
	}
	w.view.refs++
	return nil
}

// lookAlone lets w look through a view of its own: one that takes up to tenantMax of a tenant (0: no limit), or keeps tenants out by asking. News
// that it does not heed must not have been kept from others.
func (e *Engine) lookAlone(w *waiter, names []string, tenantMax int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.view = newView("", names)
	w.view.alone, w.view.max, w.view.refs = true, tenantMax, 1
	e.queues[w.queue].attach(w.view)
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
