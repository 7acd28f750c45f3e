package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

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
	var w writes
	out := make([]Job, len(batch))
	err = e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset()
		for i := range batch {
			if out[i], err = w.add(tx, batch[i], js[i].ID != ""); err != nil {
				return err
			}
		}
		if len(w.placed) == 0 {
			return store.Untouched(nil)
		}
		return nil
	}, e.applied(func() { e.place(w.placed) }))
	if err != nil {
		return nil, fmt.Errorf("enqueue: %w", err)
	}
	for i := range out {
		e.overlay(&out[i])
	}
	return out, nil
}

// prepare validates a batch and fills in the defaults. All problems are reported together.
func (e *Engine) prepare(js []NewJob) ([]Job, error) {
	if len(js) > enqueueMax {
		return nil, invalid("%d jobs in one call, up to %d are taken", len(js), enqueueMax)
	}
	batch := make([]Job, len(js))
	now, wall := e.clock.now(), e.clock.wall()
	var errs []error
	var q QueueConfig
	for i, n := range js {
		var err error
		if i == 0 || n.Queue != q.Name {
			q, err = e.config(n.Queue)
		}
		if err == nil {
			batch[i], err = n.prepare(q, now, wall)
		}
		switch {
		case err == nil:
		case len(js) == 1:
			return nil, err
		default:
			errs = append(errs, fmt.Errorf("job %d: %w", i, err))
		}
	}
	return batch, errors.Join(errs...)
}

// writes collects what a transaction added, for memory to follow. A rerun starts with reset.
type writes struct{ placed []placed }

// placed is a job that became waiting or delayed.
type placed struct {
	queue, tenant string
	place         place
}

func (w *writes) reset() { w.placed = w.placed[:0] }

// add stores j, or returns the stored job of that id.
func (w *writes) add(tx *bbolt.Tx, j Job, mayExist bool) (Job, error) {
	if mayExist {
		old, err := find(tx, j.Queue, j.Tenant, j.ID)
		if err == nil {
			return old, nil
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
			return Job{}, err
		} // a damaged one is replaced: its id must not be lost to work that has to be done
	}
	seq, err := tx.Bucket(bWaiting).NextSequence()
	if err != nil {
		return Job{}, err
	}
	j.seq = seq
	return j, w.put(tx, &j)
}

// put stores j as waiting or delayed, as j.State says, and where to find it.
func (w *writes) put(tx *bbolt.Tx, j *Job) error {
	p := place{in: placeWaiting}
	p.priority, p.seq = j.order()
	if j.State == Delayed {
		p.in, p.at = placeDelayed, nanos(j.RunAt)
	}
	if err := putAt(tx, j, p); err != nil {
		return err
	}
	w.placed = append(w.placed, placed{j.Queue, j.Tenant, p})
	return nil
}

func putAt(tx *bbolt.Tx, j *Job, p place) error {
	name, key := p.key(j.Queue, j.Tenant)
	b, ids := tx.Bucket(name), tx.Bucket(bIDs)
	b.FillPercent, ids.FillPercent = pageFill, pageFill
	if err := b.Put(key, j.encode()); err != nil {
		return err
	}
	return ids.Put(idKey(j.Queue, j.Tenant, j.ID), p.encode())
}

// find reads the job of that id: ErrNotFound or ErrDamaged.
func find(tx *bbolt.Tx, queue, tenant, id string) (Job, error) {
	v := tx.Bucket(bIDs).Get(idKey(queue, tenant, id))
	if v == nil {
		return Job{}, ErrNotFound
	}
	p, err := decodePlace(v)
	if err != nil {
		return Job{}, err
	}
	j, err := read(tx, queue, tenant, p)
	if err == nil && j.ID != id {
		err = fmt.Errorf("%w: the index points at another job", ErrDamaged)
	}
	return j, err
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

// place brings memory up to date with jobs that became waiting or delayed. Engine.mu is held.
func (e *Engine) place(ps []placed) {
	for _, p := range ps {
		q := e.queues[p.queue]
		l := q.line(p.tenant)
		if p.place.in == placeDelayed {
			l.delayed++
			if p.place.at < q.nextDue {
				q.nextDue = p.place.at
				e.poke()
			}
			continue
		}
		l.waiting++
		_, key := p.place.key(p.queue, p.tenant)
		q.free(l, key)
		q.wakeRunners()
	}
}

// overlay shows on a job read from disk what only memory knows: that a worker has it.
func (e *Engine) overlay(j *Job) {
	if j.State != Waiting {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if le := e.leases[string(j.waitingKey())]; le != nil && !le.parking {
		j.State = Active
		j.AttemptsMade = le.job.AttemptsMade
	}
}

// Get returns a job as it is now. Errors to branch on: ErrNotFound, ErrDamaged, and the store's.
func (e *Engine) Get(tenant, queue, id string) (Job, error) {
	var j Job
	err := e.st.View(func(tx *bbolt.Tx) (err error) {
		j, err = find(tx, queue, tenant, id)
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
		q := e.known(n.Queue)
		job, err := n.prepare(q, e.clock.now(), e.clock.wall())
		if q.Name == "" {
			err = ErrUnknownQueue
		}
		if err != nil {
			e.log.Error("jobs: a job derived from a failed one is not valid", slog.String("queue", n.Queue), slog.Any("err", err))
			continue
		}
		if _, err := w.add(tx, job, n.ID != ""); err != nil {
			return err
		}
	}
	return nil
}

// known returns a configured queue or the zero value. Unlike config it works while the engine closes.
func (e *Engine) known(name string) QueueConfig {
	e.mu.Lock()
	defer e.mu.Unlock()
	if q := e.queues[name]; q != nil && q.configured {
		return q.QueueConfig
	}
	return QueueConfig{}
}
