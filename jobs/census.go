package jobs

import (
	"bytes"
	"log/slog"
	"math"

	"go.etcd.io/bbolt"
)

// census is what one pass over the keys finds.
type census struct {
	lines    map[string]map[string]*counts // by queue, tenant
	leased   []heldLease
	settings settings
	plans    plans
}

type counts struct {
	waiting, delayed, completed, failed, parked int
	due                                         uint64 // of the first delayed one
}

// heldLease is a lease from outside as the file has it.
type heldLease struct {
	queue, tenant string
	key           []byte
	held          held
}

func (c census) at(queue, tenant string) *counts {
	q := c.lines[queue]
	if q == nil {
		q = map[string]*counts{}
		c.lines[queue] = q
	}
	n := q[tenant]
	if n == nil {
		n = &counts{due: math.MaxUint64}
		q[tenant] = n
	}
	return n
}

// delays says whether anything depends on how far the clock had come.
func (c census) delays() bool {
	if len(c.leased) > 0 {
		return true
	}
	for _, q := range c.lines {
		for _, n := range q {
			if n.delayed > 0 {
				return true
			}
		}
	}
	return false
}

// takeCensus counts the keys of tx. Of jobs it reads no values.
func takeCensus(tx *bbolt.Tx) census {
	c := census{lines: map[string]map[string]*counts{}, settings: readSettings(tx), plans: readPlans(tx)}
	var n *counts
	var prefix []byte
	walk := func(name []byte, size int, count func(n *counts, rest []byte)) {
		cur := tx.Bucket(name).Cursor()
		n = nil
		for k, _ := cur.First(); k != nil; k, _ = cur.Next() {
			if n == nil || len(k) != len(prefix)+size || !bytes.HasPrefix(k, prefix) {
				queue, tenant, rest, ok := cutLine(k)
				if !ok || len(rest) != size {
					continue // not ours; Audit names it
				}
				prefix, n = k[:len(k)-size], c.at(string(queue), string(tenant))
			}
			count(n, k[len(prefix):])
		}
	}
	walk(bWaiting, orderBytes, func(n *counts, _ []byte) { n.waiting++ })
	walk(bFinished, finishedBytes, func(n *counts, rest []byte) {
		if rest[0] == placeCompleted {
			n.completed++
		} else {
			n.failed++
		}
	})
	walk(bParked, placeBytes, func(n *counts, _ []byte) { n.parked++ })
	cur := tx.Bucket(bDelayed).Cursor()
	for k, _ := cur.First(); k != nil; k, _ = cur.Next() {
		queue, tenant, p, ok := cutDelayed(k)
		if !ok {
			continue
		}
		n := c.lines[string(queue)][string(tenant)] // allocates nothing
		if n == nil {
			n = c.at(string(queue), string(tenant))
		}
		n.delayed++
		n.due = min(n.due, p.at)
	}
	waiting := tx.Bucket(bWaiting)
	cur = tx.Bucket(bLeased).Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		queue, tenant, rest, ok := cutLine(k)
		if !ok || len(rest) != orderBytes || waiting.Get(k) == nil {
			continue
		}
		h, err := decodeHeld(string(queue), string(tenant), v)
		if err != nil {
			continue // nobody can prove that he holds it: the job is free
		}
		c.at(string(queue), string(tenant))
		c.leased = append(c.leased, heldLease{string(queue), string(tenant), bytes.Clone(k), h})
	}
	return c
}

// install makes a census the state of memory. Leases stay: what is leased is not waiting.
func (e *Engine) install(c census) {
	for _, line := range c.settings.broken {
		e.log.Error("jobs: a queue's setting cannot be read", slog.String("what", line))
	}
	for _, q := range e.queues {
		q.reset()
	}
	e.plans.next, e.plans.first = c.plans.next, c.plans.first
	for name, tenants := range c.lines {
		q := e.named(name)
		for tenant, n := range tenants {
			l := q.line(tenant)
			l.waiting, l.delayed, l.completed, l.failed, l.parked = n.waiting, n.delayed, n.completed, n.failed, n.parked
			q.nextDue = min(q.nextDue, n.due)
		}
	}
	for _, le := range c.leased {
		e.restore(le)
	}
	for key := range c.settings.paused {
		e.pause(key[1], key[0], true)
	}
	for key, own := range c.settings.own {
		e.setOwn(key[1], key[0], own)
	}
	now := rateTime(e.clock.steady())
	for _, q := range e.queues {
		for _, l := range q.lines {
			l.waiting -= len(l.leases)
			if l.waiting <= 0 {
				q.drop(l, now)
				continue
			}
			for v := range q.viewsOf(l) {
				v.enter(v.spot(l))
			}
		}
	}
	e.stale = false
}
