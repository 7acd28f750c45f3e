package jobs

import (
	"bytes"
	"cmp"
	"container/list"
	"iter"
	"slices"
	"strings"
	"time"
)

// view is a queue as one kind of worker sees it: all jobs or those of some names, of all tenants or of one. Each view has its own turns
// and remembers how far it has looked, so that a million jobs of other names are passed by once, not at each lease.
// Engine.mu guards it.
type view struct {
	tenant string // "": all of them, in turn
	key    string // of its names
	names  map[string]bool
	alone  bool // one waiter's own
	lent   bool // of workers outside: the box's own work, which is no tenant's, is not for them
	max    int  // of one tenant's active jobs, a runner's TenantMax; 0: no limit

	spots map[string]*spot // by tenant
	ring  list.List        // of *spot: lines that may have a job to lease, in the order of their turns
	idle  list.List        // of *waiter: found nothing and wait, the longest first
	refs  int              // workers that look through it
	used  uint64           // when it was last looked through, to tell the oldest
}

// spot is a line's place in a view.
type spot struct {
	line *line
	from []byte        // no job that the view wants is free before this key; nil: look from the beginning
	turn *list.Element // its place in the ring; nil: it is not in it
	held bool          // out of the ring because of a pause or a limit, not because it is dry
}

// viewsMax views of one tenant (and of those who lease from all) are kept. Each costs every new job a look.
const viewsMax = 16

func namesKey(names []string) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(names)))
	return strings.Join(sorted, "\x00")
}

func newView(tenant string, names []string) *view {
	v := &view{tenant: tenant, key: namesKey(names), spots: map[string]*spot{}}
	if len(names) > 0 {
		v.names = map[string]bool{}
		for _, n := range names {
			v.names[n] = true
		}
	}
	return v
}

// attach adds a view of a queue. Lines that have something waiting get their turn.
func (q *queue) attach(v *view) {
	if v.tenant == "" {
		q.views = append(q.views, v)
		for _, l := range q.lines {
			if l.waiting > 0 {
				v.enter(v.spot(l))
			}
		}
		return
	}
	l := q.line(v.tenant)
	l.views = append(l.views, v)
	q.watched[l] = true
	v.enter(v.spot(l))
}

func (q *queue) detach(v *view) {
	is := func(o *view) bool { return o == v }
	if v.tenant == "" {
		q.views = slices.DeleteFunc(q.views, is)
	} else if l := q.lines[v.tenant]; l != nil {
		if l.views = slices.DeleteFunc(l.views, is); len(l.views) == 0 {
			delete(q.watched, l)
		}
	}
}

// view returns the view of a tenant's (or, with "", everybody's) workers that want names; lent: of those outside. The least recently used one
// that nobody looks through makes room; nil: there is no room.
func (q *queue) view(tenant string, names []string, lent bool) *view {
	views := q.views
	if tenant != "" {
		views = q.line(tenant).views
	}
	key := namesKey(names)
	var oldest *view
	for _, v := range views {
		if !v.alone && v.lent == lent && v.key == key {
			return v
		}
		if v.refs == 0 && (oldest == nil || v.used < oldest.used) {
			oldest = v
		}
	}
	if len(views) >= viewsMax {
		if oldest == nil {
			return nil
		}
		q.detach(oldest)
	}
	v := newView(tenant, names)
	v.lent = lent
	q.attach(v)
	return v
}

// viewsOf are the views in which a line has a spot.
func (q *queue) viewsOf(l *line) iter.Seq[*view] {
	return func(yield func(*view) bool) {
		for _, vs := range [...][]*view{q.views, l.views} {
			for _, v := range vs {
				if !yield(v) {
					return
				}
			}
		}
	}
}

func (v *view) wants(name string) bool { return v.names == nil || v.names[name] }

func (v *view) spot(l *line) *spot {
	s := v.spots[l.tenant]
	if s == nil {
		s = &spot{line: l}
		v.spots[l.tenant] = s
	}
	return s
}

// enter puts a line at the end of the ring, if it is not in it, and has somebody look.
func (v *view) enter(s *spot) {
	if v.lent && s.line.tenant == "" {
		return // they could not name its tenant, and what they complete would not be done
	}
	if s.turn == nil && !s.held {
		s.turn = v.ring.PushBack(s)
	}
	if s.turn != nil {
		v.wake()
	}
}

// leave takes a line out of the ring: it has nothing to lease, or (held) must not lease it.
func (v *view) leave(s *spot, held bool) {
	if s.turn != nil {
		v.ring.Remove(s.turn)
		s.turn = nil
	}
	s.held = held
}

// rotate ends a line's turn.
func (v *view) rotate(s *spot) {
	if s.turn != nil {
		v.ring.MoveToBack(s.turn)
	}
}

func (v *view) free(l *line, key []byte) {
	s := v.spot(l)
	if s.from != nil && bytes.Compare(key, s.from) < 0 {
		s.from = key
	}
	v.enter(s)
}

func (v *view) blocked(l *line) bool {
	s := v.spots[l.tenant]
	return s != nil && s.held
}

func (v *view) unblock(l *line) {
	if s := v.spots[l.tenant]; s != nil && s.held {
		s.held = false
		v.enter(s)
	}
}

// forget makes a line one that the view has never seen.
func (v *view) forget(l *line) {
	if s := v.spots[l.tenant]; s != nil {
		v.leave(s, false)
		delete(v.spots, l.tenant)
	}
}

// waiter is somebody who leases: a runner, or one call of Lease. Who finds too little is put among the idle in the same step, so no news is
// missed. News wakes one of a view; he wakes the next if he leaves something.
type waiter struct {
	queue string
	view  *view
	poked chan struct{}
	at    *list.Element // his place among the idle; nil: he is awake
}

func newWaiter(queue string) *waiter { return &waiter{queue: queue, poked: make(chan struct{}, 1)} }

func (w *waiter) poke() {
	select {
	case w.poked <- struct{}{}:
	default:
	}
}

// wake makes the one who has been idle the longest look again.
func (v *view) wake() {
	if first := v.idle.Front(); first != nil {
		w := v.idle.Remove(first).(*waiter)
		w.at = nil
		w.poke()
	}
}

func (v *view) rest(w *waiter) {
	if w.at == nil {
		w.at = v.idle.PushBack(w)
	}
}

func (v *view) awake(w *waiter) {
	if w.at != nil {
		v.idle.Remove(w.at)
		w.at = nil
	}
}

// unregister ends that. If he was woken and did not look, somebody else does.
func (e *Engine) unregister(w *waiter) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := w.view
	v.refs--
	if w.at == nil {
		v.wake()
	}
	v.awake(w)
	if v.alone {
		e.queues[w.queue].detach(v)
	}
}

// lineLimits are what a line's own limits come to.
type lineLimits struct {
	active int
	rate   limiter
}

// idle says whether forgetting the limits would let nobody run ahead of them.
func (l lineLimits) idle(now time.Time) bool {
	return l.rate == nil || l.rate.TokensAt(now) >= float64(l.rate.Burst())
}

// limitsOf are the limits of one tenant: in a queue of his own both kinds are.
func (q *queue) limitsOf(l *line) lineLimits {
	if l.own == nil {
		return lineLimits{q.Limits.TenantActive, q.Limits.TenantRate.limiter()}
	}
	o := l.own.Limits
	active, tighter := o.TenantActive, o.TenantRate
	if active == 0 || o.Active > 0 && o.Active < active {
		active = cmp.Or(o.Active, active)
	}
	if o.Rate.Count > 0 && (tighter.Count == 0 || o.Rate.perSecond() < tighter.perSecond()) {
		tighter = o.Rate
	}
	return lineLimits{active, tighter.limiter()}
}
