package jobs

import (
	"container/heap"
	"math"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// queue is what memory knows of the queues of one name: of one that ships with the box, or of all tenants' own of that name.
// Engine.mu guards it.
type queue struct {
	QueueConfig
	shipped bool
	paused  bool             // by the operator, all of it
	lines   map[string]*line // by tenant
	views   []*view          // of those who lease from all tenants
	watched map[*line]bool   // those with views of their own
	active  int              // jobs leased
	rate    *rate.Limiter    // nil: no limit
	nextDue uint64           // no delayed job is due before; never: none

	resting rests       // lines that their rate keeps back, by when it lets them go on
	alarm   *time.Timer // wakes for the first of them, or for the queue's own rate
	alarmAt time.Duration
}

const never = math.MaxUint64

// line is one tenant's jobs in one queue. The jobs themselves are on disk only: a million of them cost a line nothing.
type line struct {
	tenant                                      string
	waiting, delayed, completed, failed, parked int

	leases map[order]*lease // what is active; also damaged records on their way out
	own    *declared        // the tenant's own queue; nil: it is not
	paused bool             // by its tenant, or by the operator for it
	views  []*view          // of workers that lease from this tenant only
	limits lineLimits
	restAt time.Duration // steady time at which its rate lets it go on; 0: it is not resting
}

func newQueue(c QueueConfig, shipped bool) *queue {
	q := &queue{QueueConfig: c, shipped: shipped, lines: map[string]*line{}, watched: map[*line]bool{}, nextDue: never}
	q.rate = c.Limits.Rate.limiter()
	return q
}

func (q *queue) line(tenant string) *line {
	l := q.lines[tenant]
	if l == nil {
		l = &line{tenant: tenant, leases: map[order]*lease{}}
		l.limits = q.limitsOf(l)
		q.lines[tenant] = l
	}
	return l
}

// reset forgets all counts. Leases, pauses, declarations and who waits stay.
func (q *queue) reset() {
	q.nextDue = never
	for _, l := range q.lines {
		l.waiting, l.delayed, l.completed, l.failed, l.parked = 0, 0, 0, 0, 0
		for v := range q.viewsOf(l) {
			v.forget(l)
		}
	}
}

// drop forgets a line that holds nothing, so that tenants that left cost nothing.
func (q *queue) drop(l *line, now time.Time) {
	if l.waiting|l.delayed|l.completed|l.failed|l.parked|len(l.leases)|len(l.views) != 0 ||
		l.own != nil || l.paused || l.restAt != 0 || !l.limits.idle(now) {
		return
	}
	for _, v := range q.views {
		v.forget(l)
	}
	delete(q.lines, l.tenant)
}

// free says that the job at key may be leased (again).
func (q *queue) free(l *line, key []byte, name string) {
	for v := range q.viewsOf(l) {
		if v.wants(name) {
			v.free(l, key)
		}
	}
}

// unblock lets a line take its turns again, after a pause or a limit. All who wait look again.
func (q *queue) unblock(l *line) {
	for v := range q.viewsOf(l) {
		v.unblock(l)
	}
}

// wake makes somebody of each view look again, after something kept all of the queue back.
func (q *queue) wake() {
	for _, v := range q.views {
		v.wake()
	}
	for l := range q.watched {
		for _, v := range l.views {
			v.wake()
		}
	}
}

// ready says whether the queue as a whole may lease a job now, and if only its rate keeps it back, when it may.
func (q *queue) ready(now time.Time) (ok bool, in time.Duration) {
	if q.paused || q.Limits.Active > 0 && q.active >= q.Limits.Active {
		return false, 0
	}
	in = tokenIn(q.rate, now)
	return in == 0, in
}

// limit puts other limits in force. What the former ones kept back may go on.
func (q *queue) limit(l Limits) {
	q.Limits, q.rate = l, l.Rate.limiter()
	for _, ln := range q.lines {
		ln.limits = q.limitsOf(ln)
		q.unrest(ln)
		if !ln.paused {
			q.unblock(ln)
		}
	}
	q.wake()
}

// took counts a leased job against the limits.
func (q *queue) took(l *line, now time.Time) {
	q.active++
	if q.rate != nil {
		q.rate.ReserveN(now, 1)
	}
	if l.limits.rate != nil {
		l.limits.rate.ReserveN(now, 1)
	}
}

// gave is its opposite when a lease is over. What the active caps kept back may go on.
func (q *queue) gave(l *line) {
	full := q.Limits.Active > 0 && q.active >= q.Limits.Active
	q.active--
	for v := range q.viewsOf(l) {
		if v.blocked(l) && !l.paused && l.restAt == 0 {
			v.unblock(l)
		}
	}
	if full {
		q.wake()
	}
}

// rest takes a line out of all turns until steady time at.
func (q *queue) rest(l *line, at time.Duration) {
	if l.restAt == 0 {
		l.restAt = at
		heap.Push(&q.resting, l)
	}
}

// rested lets lines go on whose rest is over, and says when the next one's is; 0: nobody rests.
func (q *queue) rested(now time.Duration) (next time.Duration) {
	for len(q.resting) > 0 {
		l := q.resting[0]
		if l.restAt > now {
			return l.restAt
		}
		heap.Pop(&q.resting)
		l.restAt = 0
		if !l.paused {
			q.unblock(l)
		}
	}
	return 0
}

// unrest ends a line's rest before its time.
func (q *queue) unrest(l *line) {
	if l.restAt != 0 {
		l.restAt = 0
		q.resting = slices.DeleteFunc(q.resting, func(o *line) bool { return o == l })
		heap.Init(&q.resting)
	}
}

// rests is a heap of lines by restAt.
type rests []*line

func (r rests) Len() int           { return len(r) }
func (r rests) Less(i, j int) bool { return r[i].restAt < r[j].restAt }
func (r rests) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *rests) Push(x any)        { *r = append(*r, x.(*line)) }
func (r *rests) Pop() any {
	last := len(*r) - 1
	l := (*r)[last]
	(*r)[last] = nil
	*r = (*r)[:last]
	return l
}
