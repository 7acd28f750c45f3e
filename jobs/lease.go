package jobs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// lease is one worker's hold on one job. It lives in memory only; Engine.mu guards it.
type lease struct {
	job     Job
	key     []byte // its waiting key
	settled bool   // an outcome is on its way or done: the start need not be written any more
	parking bool   // not a worker's: a damaged record on its way out

	interrupted bool // the attempt before this lease ended with the process
}

// lease takes up to n jobs of a queue, one a tenant and turn. ready keeps tenants out of this round; it is
// called without a lock, once for each.
func (e *Engine) lease(queue string, n, tenantMax int, ready func(tenant string) bool) []*lease {
	said := map[string]bool{}
	isReady := func(tenant string) bool {
		yes, asked := said[tenant]
		if !asked {
			yes = ready == nil || ready(tenant)
			said[tenant] = yes
		}
		return yes
	}
	var out []*lease
	for turns := e.turns(queue); len(out) < n && len(turns) > 0; {
		// A pass: one job for each tenant whose turn comes, or an equal share each if there are fewer tenants than jobs.
		var pass []string
		for ; len(pass) < n-len(out) && len(turns) > 0; turns = turns[1:] {
			if isReady(turns[0]) {
				pass = append(pass, turns[0])
			}
		}
		if len(pass) == 0 {
			break
		}
		taken, more := e.take(queue, pass, max(1, (n-len(out))/len(pass)), tenantMax)
		out = append(out, taken...)
		turns = append(turns, more...)
	}
	return out
}

// turns returns the tenants that may have a job to lease, in the order of their turns.
func (e *Engine) turns(queue string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.queues[queue]
	ts := make([]string, len(q.ring))
	for i, l := range q.ring {
		ts[i] = l.tenant
	}
	return ts
}

// take leases up to share jobs of each of the tenants. more are those that may have another one.
func (e *Engine) take(queue string, tenants []string, share, tenantMax int) (out []*lease, more []string) {
	var damaged []*lease
	e.mu.Lock()
	defer func() {
		e.mu.Unlock()
		for _, le := range damaged {
			e.park(le)
		}
	}()
	if e.closed {
		return nil, nil
	}
	q := e.queues[queue]
	err := e.st.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bWaiting).Cursor()
		for _, tenant := range tenants {
			l := q.lines[tenant]
			if l == nil || !l.inRing {
				continue
			}
			got, dry := 0, false
			for got < share && !dry && (tenantMax <= 0 || l.active < tenantMax) {
				le, err := e.next(c, q, l)
				switch {
				case le == nil:
					dry = true
				case err != nil:
					le.parking = true
					damaged = append(damaged, le)
				default:
					got++
					out = append(out, le)
				}
			}
			if dry {
				q.leave(l)
				q.drop(l)
				continue
			}
			q.rotate(l)
			if got == share {
				more = append(more, tenant)
			}
		}
		return nil
	})
	if err != nil { // the store is out of service, and has said so; nothing was lost, the runner asks again
		e.log.Debug("jobs: lease", slog.String("queue", queue), slog.Any("err", err))
	}
	return out, more
}

// next leases the first free job of a line. nil: there is none.
func (e *Engine) next(c *bbolt.Cursor, q *queue, l *line) (*lease, error) {
	prefix := linePrefix(q.Name, l.tenant)
	from := l.from
	if from == nil {
		from = prefix
	}
	for k, v := c.Seek(from); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(k) != len(prefix)+orderBytes || e.leases[string(k)] != nil {
			continue
		}
		le := &lease{key: bytes.Clone(k)}
		j, err := decodeJob(q.Name, l.tenant, Active, v)
		if err != nil {
			j.Queue, j.Tenant = q.Name, l.tenant
			j.LastError = err.Error()
		}
		if j.started { // and never ended: the process did
			j.started, le.interrupted = false, true
			j.interruptions++
		}
		le.job = j
		e.nextTok++
		le.job.LeaseToken = strconv.FormatUint(e.nextTok, 36)
		e.leases[string(le.key)] = le
		l.from = le.key
		l.waiting--
		l.active++
		return le, err
	}
	l.from = nil
	return nil, nil
}

// begin counts the attempt and has it written: in passing, or waited for while an attempt is suspected of killing the process.
func (e *Engine) begin(ctx context.Context, le *lease) error {
	e.mu.Lock()
	le.job.AttemptsMade++
	le.job.started = true
	record := le.job
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
		return nil
	}
	return e.st.Update(ctx, func(tx *bbolt.Tx) error {
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
		for _, le := range batch {
			if le.settled || e.leases[string(le.key)] != le {
				continue
			}
			if err := b.Put(le.key, le.job.encode()); err != nil {
				return err
			}
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

// settle writes an outcome and waits for the disk. After any error but ErrStaleLease and store.ErrUnknown the lease still holds.
func (e *Engine) settle(ctx context.Context, le *lease, o outcome) error {
	e.mu.Lock()
	if e.leases[string(le.key)] != le {
		e.mu.Unlock()
		return ErrStaleLease
	}
	le.settled = true
	j := le.job
	e.mu.Unlock()

	now := e.clock.now()
	j.started = false
	if o.attempt != notBegun {
		j.interruptions = 0 // the process lived through it
	}
	if o.attempt == undone {
		j.AttemptsMade = max(j.AttemptsMade-1, 0)
	}
	if o.err != nil {
		j.LastError = brief(o.err)
	}
	j.State, j.LeaseToken = o.state, ""
	switch o.state {
	case Delayed:
		j.RunAt = now.Add(o.delay).UTC()
	case Completed, Failed:
		j.FinishedAt, j.Result = now.UTC(), o.result
	}
	return e.resolve(ctx, le, j)
}

// resolve moves the job of a lease to where j says and ends the lease.
func (e *Engine) resolve(ctx context.Context, le *lease, j Job) error {
	var w writes
	var kept int // change in the number of finished jobs
	then := e.applied(func() {
		e.release(le, j.State == Waiting)
		l := e.queues[j.Queue].line(j.Tenant)
		switch j.State {
		case Completed:
			l.completed += kept
		case Failed:
			l.failed += kept
		}
		e.place(w.placed)
		e.queues[j.Queue].drop(l)
	})
	return e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset()
		kept = 0
		waiting := tx.Bucket(bWaiting)
		switch j.State {
		case Waiting:
			return waiting.Put(le.key, j.encode())
		case Delayed:
			if err := waiting.Delete(le.key); err != nil {
				return err
			}
			return w.put(tx, &j)
		}
		if err := waiting.Delete(le.key); err != nil {
			return err
		}
		var err error
		if kept, err = finish(tx, &j); err != nil {
			return err
		}
		if j.State == Failed {
			return e.addFailed(tx, &w, j)
		}
		return nil
	}, func(err error) {
		if isUnknown(err) {
			e.mu.Lock()
			e.release(le, false) // whatever the file holds is found by reading anew
			e.mu.Unlock()
		}
		then(err)
	})
}

// release ends a lease. Engine.mu is held. again: the job waits as before.
func (e *Engine) release(le *lease, again bool) {
	if e.leases[string(le.key)] != le {
		return
	}
	delete(e.leases, string(le.key))
	q := e.queues[le.job.Queue]
	l := q.line(le.job.Tenant)
	l.active--
	if again {
		l.waiting++
		q.free(l, le.key)
		q.wakeRunners()
		return
	}
	for _, r := range q.runners {
		if r.o.TenantMax > 0 && l.waiting > 0 {
			r.Poke() // the tenant may have been at its limit
		}
	}
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

// parkAt moves the record at p to the parked ones. The index entry goes stale and reads as ErrDamaged.
func parkAt(tx *bbolt.Tx, queue, tenant string, p place) error {
	name, key := p.key(queue, tenant)
	b := tx.Bucket(name)
	v := bytes.Clone(b.Get(key))
	if err := b.Delete(key); err != nil {
		return err
	}
	return tx.Bucket(bParked).Put(append(linePrefix(queue, tenant), p.encode()...), v)
}

func isUnknown(err error) bool { return errors.Is(err, store.ErrUnknown) }
