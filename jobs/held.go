package jobs

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// held is what is on disk about a lease from outside, under the job's waiting key. It never changes once memory has it: a new one takes its place.
// The job's own record is written when the lease ends.
type held struct {
	token, worker, id, name string
	attempt                 int
	startedAt, until        time.Time // by the engine's clock
	progress                []byte
}

const heldVersion = 1

func holdOf(j *Job) *held {
	return &held{j.LeaseToken, j.Worker, j.ID, j.Name, j.AttemptsMade, j.startedAt, j.LeasedUntil, j.Progress}
}

func (h *held) encode(queue, tenant string) []byte {
	b := make([]byte, 0, 64+len(h.token)+len(h.worker)+len(h.id)+len(h.name)+len(h.progress))
	for _, s := range [...]string{h.token, h.worker, h.id, h.name} {
		b = appendText(b, s)
	}
	for _, n := range [...]int64{int64(h.attempt), unixNano(h.startedAt), unixNano(h.until)} {
		b = binary.AppendVarint(b, n)
	}
	return seal(heldVersion, queue, tenant, appendText(b, h.progress))
}

func decodeHeld(queue, tenant string, b []byte) (h held, err error) {
	payload, err := unseal(heldVersion, queue, tenant, b)
	if err != nil {
		return h, err
	}
	r := reader{b: payload}
	h.token, h.worker, h.id, h.name = string(r.bytes()), string(r.bytes()), string(r.bytes()), string(r.bytes())
	h.attempt, h.startedAt, h.until, h.progress = int(r.int()), r.time(), r.time(), r.copy()
	if r.bad || len(r.b) != 0 {
		return h, fmt.Errorf("%w: fields do not fit", ErrDamaged)
	}
	return h, nil
}

// deadlines is a heap of leases from outside, by when they run out.
type deadlines []*lease

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].expires < d[j].expires }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].heapAt, d[j].heapAt = i+1, j+1
}

func (d *deadlines) Push(x any) {
	le := x.(*lease)
	*d = append(*d, le)
	le.heapAt = len(*d)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	le := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	le.heapAt = 0
	return le
}

// keepDeadline makes a lease run out at le.expires, and its token known. Engine.mu is held.
func (e *Engine) keepDeadline(le *lease) {
	e.tokens[le.out.token] = le
	if le.heapAt == 0 {
		heap.Push(&e.deadlines, le)
	} else {
		heap.Fix(&e.deadlines, le.heapAt-1)
	}
	if le.expires < e.tickAt {
		e.poke()
	}
}

// forgetDeadline is its opposite. Engine.mu is held.
func (e *Engine) forgetDeadline(le *lease) {
	if le.out != nil && e.tokens[le.out.token] == le {
		delete(e.tokens, le.out.token)
	}
	if le.heapAt != 0 {
		heap.Remove(&e.deadlines, le.heapAt-1)
	}
}

// restore takes up a lease from outside that the file holds and memory does not. Engine.mu is held.
func (e *Engine) restore(l heldLease) {
	q := e.queues[l.queue]
	ln := q.line(l.tenant)
	if ln.leases[orderIn(l.key)] != nil {
		return
	}
	j := Job{State: Active}
	j.Queue, j.Tenant, j.ID, j.Name = l.queue, l.tenant, l.held.id, l.held.name
	p, seq := orderOf(l.key[len(l.key)-orderBytes:])
	j.Priority, j.seq = int(p), seq
	left := min(max(l.held.until.Sub(e.clock.now()), 0), leaseForMax)
	le := &lease{job: j, key: l.key, out: &l.held, expires: e.clock.steady() + left}
	ln.leases[orderIn(l.key)] = le
	q.active++
	e.keepDeadline(le)
}

// expireMax leases end in one transaction when they run out.
const expireMax = 1000

// expire ends leases that ran out, as attempts that failed, and says when the next one does.
func (e *Engine) expire(ctx context.Context) time.Duration {
	var ends []*ending
	e.mu.Lock()
	now := e.clock.steady()
	var busy []*lease
	for len(e.deadlines) > 0 && e.deadlines[0].expires <= now && len(ends) < expireMax {
		le := heap.Pop(&e.deadlines).(*lease)
		if le.settled { // its worker is just about to end it
			busy = append(busy, le)
			continue
		}
		ends = append(ends, &ending{lease: le, outcome: ranOut})
	}
	for _, le := range busy { // should that fail, it runs out after all
		le.expires = now + scheduleRetry
		heap.Push(&e.deadlines, le)
	}
	e.mu.Unlock()
	if len(ends) > 0 {
		e.end(ctx, ends)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, en := range ends {
		le := en.lease
		if e.holds(le) && le.heapAt == 0 { // the store refused
			le.expires = e.clock.steady() + scheduleRetry
			heap.Push(&e.deadlines, le)
		}
	}
	if len(ends) > 0 {
		le := ends[0].lease
		e.log.Warn("jobs: leases ran out", slog.Int("n", len(ends)), slog.String("queue", le.job.Queue), slog.String("tenant", le.job.Tenant),
			slog.String("job", le.job.ID), slog.String("worker", le.out.worker))
	}
	if len(e.deadlines) == 0 {
		return schedulePoll
	}
	return max(e.deadlines[0].expires-e.clock.steady(), 0)
}

var errRanOut = errors.New("the lease ran out")

// ranOut is what becomes of a job whose worker did not come back.
func ranOut(j *Job) outcome {
	if j.Attempts > 0 && j.AttemptsMade >= j.Attempts {
		return outcome{state: Failed, err: errRanOut}
	}
	return outcome{state: Waiting, err: errRanOut}
}
