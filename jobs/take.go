package jobs

import (
	"bytes"
	"log/slog"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
)

// scanMax records are looked at in one step of leasing: everybody waits meanwhile. Who looks for rare names goes on in the next step.
const scanMax = 4096

// take leases up to n jobs for w, one a tenant and turn. If it finds fewer, w is idle from then on, and is poked when there is news.
// roomOf says how many jobs of a tenant may be taken in this call (nil: no limit); it is called without a lock, once for each. No more is taken once
// there are bytesMax bytes of data.
func (e *Engine) take(w *waiter, n, bytesMax int, roomOf func(tenant string) *room) (out []*lease, err error) {
	var said map[string]*room
	if roomOf != nil {
		said = map[string]*room{}
	}
	t := taking{e: e, w: w, n: n, bytesMax: bytesMax, said: said}
	for again := true; again && err == nil; {
		again, err = t.step()
		for _, tenant := range t.ask {
			said[tenant] = roomOf(tenant)
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
	said        map[string]*room // of the tenants that were asked about; nil: of none

	out, damaged []*lease
	size         int      // bytes of data in out
	ask          []string // tenants of whom said does not know
	scan         int      // records that this step may still look at
	passes       int
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

// pass returns the lines whose turn it is: one for each job that is wanted, if there are as many. It returns none if it does not know of some how much
// room there is; they are in ask then.
func (t *taking) pass() (pass []*spot) {
	t.passes++
	for el := t.w.view.ring.Front(); el != nil && len(pass) < t.n-len(t.out) && len(t.ask) < askMax; el = el.Next() {
		s := el.Value.(*spot)
		if t.said != nil {
			left, known := t.said[s.line.tenant]
			if !known {
				t.ask = append(t.ask, s.line.tenant)
			}
			if !known || left.full() {
				continue
			}
			left.enter(t.passes)
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
	left := t.said[l.tenant]
	if left.full() {
		return false // others of this pass took it all: the turn is still to come
	}
	share = left.part(share)
	for got := 0; got < share && !t.full() && t.scan > 0 && !left.full(); got++ {
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
			left.take(le)
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
