package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// enqueueMax jobs go into one call: one transaction must stay short, because everybody waits for it.
const enqueueMax = 10_000

// pageFill is how full pages are left when they split. Keys mostly grow, so a half-empty page would stay half empty.
const pageFill = 0.9

// Enqueue stores jobs, all or none, and returns them as they are on disk. A job whose ID is stored already in its queue and tenant
// is not added again: the stored one is returned in its place. Errors to branch on: ErrInvalid,
// ErrUnknownQueue, ErrClosed, and the store's.
func (e *Engine) Enqueue(ctx context.Context, js ...NewJob) ([]Job, error) {
	batch, err := e.prepare(js)
	if err != nil || len(js) == 0 {
		return nil, err
	}
	a := adding{js: js, batch: batch}
	if err := e.st.UpdateThen(ctx, a.run, e.applied(func() { e.follow(&a.writes) })); err != nil {
		return nil, fmt.Errorf("enqueue: %w", err)
	}
	for i := range a.stored {
		batch[i] = a.stored[i]
		e.overlay(&batch[i])
	}
	return batch, nil
}

// adding is one call of Enqueue.
type adding struct {
	writes
	js     []NewJob
	batch  []Job
	stored map[int]Job // in place of those that were there already
}

func (a *adding) run(tx *bbolt.Tx) error {
	a.reset()
	a.placed, a.stored = slices.Grow(a.placed, len(a.batch)), nil
	for i := range a.batch {
		old, err := a.add(tx, &a.batch[i], a.js[i].ID != "")
		if err != nil {
			return err
		}
		if old != nil {
			if a.stored == nil {
				a.stored = map[int]Job{}
			}
			a.stored[i] = *old
		}
	}
	if len(a.placed) == 0 {
		return store.Untouched(nil)
	}
	return nil
}

// problemsMax problems of a batch are reported together: more would be the same mistake once more.
const problemsMax = 10

// prepare validates a batch and fills in the defaults. Of several jobs, each problem is a *JobError.
func (e *Engine) prepare(js []NewJob) ([]Job, error) {
	if len(js) > enqueueMax {
		return nil, invalid("jobs", "%d in one call, up to %d are taken", len(js), enqueueMax)
	}
	batch := make([]Job, len(js))
	now, wall := e.clock.now(), e.clock.wall()
	var errs []error
	var q QueueConfig
	for i, n := range js {
		var err error
		if i == 0 || n.Queue != js[i-1].Queue || n.Tenant != js[i-1].Tenant || len(errs) > 0 {
			q, err = e.config(n.Tenant, n.Queue)
		}
		if err == nil {
			batch[i], err = n.prepare(q, now, wall)
		}
		switch {
		case err == nil:
		case len(js) == 1:
			return nil, err
		case len(errs) < problemsMax:
			errs = append(errs, &JobError{i, err})
		}
	}
	return batch, errors.Join(errs...)
}

// writes collects what a transaction did to jobs, for memory to follow. A rerun starts with reset.
type writes struct {
	placed   []placed
	over     []over
	finished []finished
	parked   []placed

	one [1]placed // room for the usual case
}

// placed is a job that became waiting or delayed; of a parked one, job is nil.
type placed struct {
	job           *Job
	from          State // "": it is new
	queue, tenant string
	place         place
	key           []byte // its record's; not of a parked one
}

// over is a lease that ended with job's state.
type over struct {
	lease *lease
	job   *Job
}

// finished is a job that completed or failed. kept is the change in the number of those that are kept.
type finished struct {
	job  *Job
	from State
	kept int
}

func (w *writes) reset() {
	w.placed, w.over, w.finished, w.parked = w.one[:0], w.over[:0], w.finished[:0], w.parked[:0]
}

// add stores j, unless a job of that id is stored already: that is returned. named: somebody chose the id; else it is generated here.
func (w *writes) add(tx *bbolt.Tx, j *Job, named bool) (stored *Job, err error) {
	if named {
		old, p, err := find(tx, j.Queue, j.Tenant, j.ID)
		switch {
		case err == nil:
			there := old // only now it needs memory of its own
			return &there, nil
		case errors.Is(err, ErrNotFound):
		case errors.Is(err, ErrDamaged): // it is replaced: its id must not be lost to work that has to be done
			if err := forget(tx, j.Queue, j.Tenant, j.ID, p); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
	seq, err := tx.Bucket(bWaiting).NextSequence()
	if err != nil {
		return nil, err
	}
	j.seq = seq
	if !named {
		j.ID = generateID(j.order())
	}
	return nil, w.put(tx, j, "")
}

// put stores j as waiting or delayed, as j.State says, and where to find it. from is the state it leaves; "": it is new.
func (w *writes) put(tx *bbolt.Tx, j *Job, from State) error {
	p := place{in: placeWaiting}
	p.priority, p.seq = j.order()
	if j.State == Delayed {
		p.in, p.at = placeDelayed, nanos(j.RunAt)
	}
	_, key := p.key(j.Queue, j.Tenant)
	if err := putAt(tx, j, p, key, j.leaves(from)); err != nil {
		return err
	}
	w.placed = append(w.placed, placed{j, from, j.Queue, j.Tenant, p, key})
	return nil
}

// leaves is the place of a job that leaves the state, as far as the index must know it: the state's, and the order. None for "".
func (j *Job) leaves(from State) (p place) {
	switch from {
	case "":
		return place{}
	case Delayed:
		p.in = placeDelayed
	case Completed:
		p.in = placeCompleted
	case Failed:
		p.in = placeFailed
	default:
		p.in = placeWaiting
	}
	p.priority, p.seq = j.order()
	return p
}

// putAt stores j at p, whose key is key. was: the place it leaves, or none.
func putAt(tx *bbolt.Tx, j *Job, p place, key []byte, was place) error {
	b := tx.Bucket(p.bucket())
	b.FillPercent = pageFill
	if err := b.Put(key, j.encode()); err != nil {
		return err
	}
	if p.in == placeDelayed {
		if err := tx.Bucket(bLater).Put(laterKey(j.Queue, j.Tenant, p.seq), p.later()); err != nil {
			return err
		}
	}
	return index(tx, j, p, was)
}

// removeAt removes the record at p. Where it was found, by its id, is up to the caller.
func removeAt(tx *bbolt.Tx, queue, tenant string, p place) error {
	name, key := p.key(queue, tenant)
	if err := tx.Bucket(name).Delete(key); err != nil || p.in != placeDelayed {
		return err
	}
	return tx.Bucket(bLater).Delete(laterKey(queue, tenant, p.seq))
}

// read reads the record at p.
func read(tx *bbolt.Tx, queue, tenant string, p place) (Job, error) {
	name, key := p.key(queue, tenant)
	if name == nil {
		return Job{}, fmt.Errorf("%w: place %q", ErrDamaged, p.in)
	}
	v := tx.Bucket(name).Get(key)
	if v == nil {
		return Job{}, fmt.Errorf("%w: the index points at nothing", ErrDamaged)
	}
	return decodeJob(queue, tenant, p.state(), v)
}

func (p place) state() State {
	switch p.in {
	case placeDelayed:
		return Delayed
	case placeCompleted:
		return Completed
	case placeFailed:
		return Failed
	default:
		return Waiting
	}
}

// follow brings memory up to date with what a transaction did, and tells of it. Engine.mu is held.
func (e *Engine) follow(w *writes) {
	for _, o := range w.over {
		again := o.job.State == Waiting
		e.release(o.lease, again)
		if again {
			e.moved(o.job, Active)
		}
	}
	for _, f := range w.finished {
		l := e.queues[f.job.Queue].line(f.job.Tenant)
		if f.job.State == Completed {
			l.completed += f.kept
		} else {
			l.failed += f.kept
		}
		e.moved(f.job, f.from)
	}
	for _, p := range w.placed {
		q := e.queues[p.queue]
		l := q.line(p.tenant)
		if p.place.in == placeDelayed {
			l.delayed++
			if p.place.at < q.nextDue {
				q.nextDue = p.place.at
				e.poke()
			}
		} else {
			l.waiting++
			q.free(l, p.key, p.job.Name)
		}
		e.moved(p.job, p.from)
	}
	for _, o := range w.over {
		q := e.queues[o.job.Queue]
		q.drop(q.line(o.job.Tenant), rateTime(e.clock.steady()))
	}
}

// overlay shows on a job read from disk what its lease knows.
func (e *Engine) overlay(j *Job) {
	if j.State != Waiting {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	le := e.leased(j.Queue, j.Tenant, j.waitingKey())
	if le == nil || le.parking {
		return
	}
	j.State = Active
	if h := le.out; h != nil {
		j.AttemptsMade, j.startedAt, j.LeasedUntil, j.Worker, j.Progress = h.attempt, h.startedAt, h.until, h.worker, h.progress
		return
	}
	j.AttemptsMade, j.startedAt, j.Progress = le.job.AttemptsMade, le.job.startedAt, le.job.Progress
}

// Get returns a job as it is now. Errors to branch on: ErrNotFound, ErrDamaged, and the store's.
func (e *Engine) Get(tenant, queue, id string) (Job, error) {
	var j Job
	err := e.st.View(func(tx *bbolt.Tx) (err error) {
		j, _, err = find(tx, queue, tenant, id)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("job %q: %w", id, err)
	}
	e.overlay(&j)
	return j, nil
}

// addFailed enqueues what Options.Failed derives from a job that failed for good.
func (e *Engine) addFailed(tx *bbolt.Tx, w *writes, j Job) error {
	if e.o.Failed == nil {
		return nil
	}
	for _, n := range e.o.Failed(j) {
		q, err := e.known(n.Tenant, n.Queue)
		var job Job
		if err == nil {
			job, err = n.prepare(q, e.clock.now(), e.clock.wall())
		}
		if err != nil {
			e.log.Error("jobs: a job derived from a failed one is not valid", slog.String("queue", n.Queue), slog.Any("err", err))
			continue
		}
		if _, err := w.add(tx, &job, n.ID != ""); err != nil {
			return err
		}
	}
	return nil
}
