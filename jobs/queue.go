package jobs

import (
	"bytes"
	"math"
	"slices"
)

// queue is what memory knows of one queue. Engine.mu guards it.
type queue struct {
	QueueConfig
	configured bool
	lines      map[string]*line // by tenant
	ring       []*line          // lines that may have a job to lease, in the order of their turns
	nextDue    uint64           // no delayed job is due before; never: none
	runners    []*Runner
}

const never = math.MaxUint64

// line is one tenant's jobs in one queue. The jobs themselves are on disk only: a million of them cost a line nothing.
type line struct {
	tenant                                              string
	waiting, delayed, active, completed, failed, parked int

	from   []byte // no waiting job before this key is free to be leased; nil: look from the beginning
	inRing bool
}

func newQueue(c QueueConfig, configured bool) *queue {
	return &queue{QueueConfig: c, configured: configured, lines: map[string]*line{}, nextDue: never}
}

func (q *queue) reset() {
	clear(q.lines)
	q.ring, q.nextDue = nil, never
}

func (q *queue) line(tenant string) *line {
	l := q.lines[tenant]
	if l == nil {
		l = &line{tenant: tenant}
		q.lines[tenant] = l
	}
	return l
}

// enter puts a line at the end of the ring, if it is not in it.
func (q *queue) enter(l *line) {
	if !l.inRing {
		l.inRing = true
		q.ring = append(q.ring, l)
	}
}

// leave takes a line out of the ring: it has nothing to lease.
func (q *queue) leave(l *line) {
	if i := slices.Index(q.ring, l); i >= 0 {
		q.ring = slices.Delete(q.ring, i, i+1)
	}
	l.inRing = false
}

// rotate ends a line's turn.
func (q *queue) rotate(l *line) {
	if n := len(q.ring); n > 1 && q.ring[n-1] != l {
		if i := slices.Index(q.ring, l); i >= 0 {
			copy(q.ring[i:], q.ring[i+1:])
			q.ring[n-1] = l
		}
	}
}

// free says that the job at key may be leased (again).
func (q *queue) free(l *line, key []byte) {
	if l.from != nil && bytes.Compare(key, l.from) < 0 {
		l.from = key
	}
	q.enter(l)
}

func (q *queue) wakeRunners() {
	for _, r := range q.runners {
		r.Poke()
	}
}

// drop forgets a line that holds nothing, so that tenants that left cost nothing.
func (q *queue) drop(l *line) {
	if l.waiting|l.delayed|l.active|l.completed|l.failed|l.parked == 0 && !l.inRing {
		delete(q.lines, l.tenant)
	}
}
