package jobs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// scanMax records are looked at in one step of leasing: everybody waits meanwhile. Who looks for rare names goes on in the next step.
const scanMax = 4096

// lease is a hold on one job. One of the box's own workers lives in memory only; one of a worker outside is on disk, too (out).
// Engine.mu guards it.
type lease struct {
	job     Job    // of a lease from outside only what says which one it is
	key     []byte // its waiting key
	settled bool   // an outcome is on its way or done: the start need not be written any more, nor does the lease run out
	parking bool   // not a worker's: a damaged record on its way out

	interrupted bool // the attempt before this lease ended with the process

	out     *held         // what is on disk about a lease from outside; nil: not one
	expires time.Duration // steady time at which it runs out
	heapAt  int           // its place in Engine.deadlines, from 1; 0: it is not there
}

// take leases up to n jobs for w, one a tenant and turn. If it finds fewer, w is idle from then on, and is poked when there is news.
// ready keeps tenants out of this call; it is called without a lock, once for each. No more is taken once there are bytesMax bytes of data.
func (e *Engine) take(w *waiter, n, bytesMax int, ready func(tenant string) bool) (out []*lease, err error) {
	var said map[string]bool
	if ready != nil {
		said = map[string]bool{}
	}
	t := taking{e: e, w: w, n: n, bytesMax: bytesMax, said: said}
	for again := true; again && err == nil; {
		again, err = t.step()
		for _, tenant := range t.ask {
			said[tenant] = ready(tenant)
		}
		for _, le := range t.damaged {
			e.park(le)
		}
		t.ask, t.damaged = t.ask[:0], nil
	}
	return t.out, err
}

// taking is one call of take.
type taking struct {
	e           *Engine
	w           *waiter
	n, bytesMax int
	said        map[string]bool // which tenants are ready; nil: all

	out, damaged []*lease
	size         int      // bytes of data in out
	ask          []string // tenants of whom said does not know
	scan         int      // records that this step may still look at
}

// askMax tenants are asked about at a time, without the lock.
const askMax = 256

func (t *taking) full() bool { return len(t.out) >= t.n || t.size >= t.bytesMax }

// step does as much as it may in one go. again: there is more to do.
func (t *taking) step() (again bool, err error) {
	e, v := t.e, t.w.view
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false, ErrClosed
	}
	q := e.queues[t.w.queue]
	v.awake(t.w)
	e.looks++
	v.used = e.looks
	steady := e.clock.steady()
	now := rateTime(steady)
	next := q.rested(steady)
	t.scan = scanMax
	err = e.st.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bWaiting).Cursor()
		for !t.full() && t.scan > 0 {
			ok, in := q.ready(now)
			if !ok {
				if in > 0 {
					next = earlier(next, steady+in)
				}
				break
			}
			pass := t.pass()
			if len(pass) == 0 {
				break
			}
			share := max(1, (t.n-len(t.out))/len(pass))
			for _, s := range pass {
				if t.turn(c, q, s, share, now) {
					next = earlier(next, s.line.restAt)
				}
			}
		}
		return nil
	})
	e.setAlarm(q, next, steady)
	switch {
	case err != nil: // the store is out of service, and has said so; nothing was lost
		e.log.Debug("jobs: lease", slog.String("queue", q.Name), slog.Any("err", err))
		v.rest(t.w)
	case len(t.ask) > 0, t.scan <= 0 && !t.full():
		return true, nil
	case !t.full():
		v.rest(t.w)
	case v.ring.Len() > 0:
		v.wake()
	}
	return false, err
}

// pass returns the lines whose turn it is: one for each job that is wanted, if there are as many. It returns none if it does not know of some whether
// they are ready; they are in ask then.
func (t *taking) pass() (pass []*spot) {
	for el := t.w.view.ring.Front(); el != nil && len(pass) < t.n-len(t.out) && len(t.ask) < askMax; el = el.Next() {
		s := el.Value.(*spot)
		if t.said != nil {
			ready, known := t.said[s.line.tenant]
			if !known {
				t.ask = append(t.ask, s.line.tenant)
			}
			if !ready {
				continue
			}
		}
		pass = append(pass, s)
	}
	if len(t.ask) > 0 {
		return nil
	}
	return pass
}

// turn leases up to share jobs of one line and ends its turn. resting: its rate holds it back.
func (t *taking) turn(c *bbolt.Cursor, q *queue, s *spot, share int, now time.Time) (resting bool) {
	e, v, l := t.e, t.w.view, s.line
	for got := 0; got < share && !t.full() && t.scan > 0; got++ {
		if in := tokenIn(l.limits.rate, now); in > 0 && !l.paused {
			q.rest(l, e.clock.steady()+in)
		}
		if l.paused || l.restAt != 0 || l.limits.active > 0 && len(l.leases) >= l.limits.active || v.max > 0 && len(l.leases) >= v.max {
			v.leave(s, true)
			return l.restAt != 0
		}
		if ok, _ := q.ready(now); !ok {
			break
		}
		le, err := t.next(c, q, s)
		switch {
		case le == nil:
			if t.scan >= 0 {
				v.leave(s, false)
				q.drop(l, now)
				return false
			}
		case err != nil:
			le.parking = true
			t.damaged = append(t.damaged, le)
			got--
		default:
			q.took(l, now)
			t.out = append(t.out, le)
			t.size += len(le.job.Data)
		}
	}
	v.rotate(s)
	return false
}

// next leases the first free job of a line that the view wants. nil: there is none, or so many that it does not want that the step is over.
func (t *taking) next(c *bbolt.Cursor, q *queue, s *spot) (*lease, error) {
	l, v := s.line, t.w.view
	prefix := linePrefix(q.Name, l.tenant)
	for k, b := c.Seek(cmpNil(s.from, prefix)); bytes.HasPrefix(k, prefix); k, b = c.Next() {
		if t.scan--; t.scan < 0 {
			s.from = bytes.Clone(k)
			return nil, nil
		}
		if len(k) != len(prefix)+orderBytes || l.leases[orderIn(k)] != nil {
			continue
		}
		if v.names != nil && !v.names[string(nameOf(b))] && sound(q.Name, l.tenant, b) {
			continue
		}
		le := &lease{key: bytes.Clone(k)}
		j, err := decodeJob(q.Name, l.tenant, Active, b)
		if err != nil {
			j.Queue, j.Tenant = q.Name, l.tenant
			j.LastError = err.Error()
		}
		if !j.startedAt.IsZero() { // and never ended: the process did
			j.ended(Attempt{N: j.AttemptsMade, StartedAt: j.startedAt, Error: "the process ended"})
			j.startedAt, le.interrupted = time.Time{}, true
			j.interruptions++
		}
		le.job = j
		t.e.nextTok++
		le.job.LeaseToken = strconv.FormatUint(t.e.nextTok, 36)
		l.leases[orderIn(k)] = le
		l.waiting--
		s.from = append(bytes.Clone(k), 0)
		return le, err
	}
	s.from = append(prefix, bytes.Repeat([]byte{0xff}, orderBytes+1)...) // whatever becomes free later comes before it
	return nil, nil
}

// sound says whether a record's checksum holds.
func sound(queue, tenant string, b []byte) bool {
	_, err := unseal(recordVersion, queue, tenant, b)
	return err == nil
}

// earlier of two steady times, of which 0 is none.
func earlier(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// rateTime is steady time as limiters want it.
func rateTime(steady time.Duration) time.Time { return time.Unix(0, 0).Add(steady) }

// setAlarm has a queue's waiters woken at steady time at, when a rate lets it go on; 0: nothing to wake for. Engine.mu is held.
func (e *Engine) setAlarm(q *queue, at, now time.Duration) {
	if at == 0 || q.alarmAt != 0 && q.alarmAt <= at && q.alarmAt > now {
		return
	}
	q.alarmAt = at
	ring := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.closed {
			return
		}
		q.alarmAt = 0
		now := e.clock.steady()
		next := q.rested(now)
		ok, in := q.ready(rateTime(now))
		if ok {
			q.wake()
		} else if in > 0 {
			next = earlier(next, now+in)
		}
		e.setAlarm(q, next, now)
	}
	if q.alarm != nil {
		q.alarm.Stop()
	}
	q.alarm = time.AfterFunc(at-now, ring)
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
			return e.conclude(tx, &w, le, &j)
		}, func(err error) {
			if isUnknown(err) {
				e.mu.Lock()
				e.release(le, false) // whatever the file holds is found by reading anew
				e.mu.Unlock()
			}
			e.applied(func() { e.follow(&w) })(err)
		}, nil
}

// conclude writes what becomes of a leased job: its record stays in place, moves, or goes.
func (e *Engine) conclude(tx *bbolt.Tx, w *writes, le *lease, j *Job) error {
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
	if err := finish(tx, w, j, Active); err != nil {
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

// parkAt moves the record at p to the parked ones. The index entry goes stale and reads as ErrDamaged.
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
	return tx.Bucket(bParked).Put(slices.Concat(linePrefix(queue, tenant), p.encode()), v)
}

func isUnknown(err error) bool { return errors.Is(err, store.ErrUnknown) }
