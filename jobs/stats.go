package jobs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// QueueStats are the counts of one queue.
type QueueStats struct {
	Queue                                       string
	Waiting, Delayed, Active, Completed, Failed int
	Damaged                                     int       // records parked because they could not be read
	OldestWaiting                               time.Time // since when the head of the longest waiting line is due; zero: nobody waits
}

// Stats returns the counts of all queues, by name. The counts are kept in memory; the heads of the lines are read.
func (e *Engine) Stats() []QueueStats { return e.stats(func(string) bool { return true }) }

// TenantStats returns one tenant's counts, of the queues in which it has jobs.
func (e *Engine) TenantStats(tenant string) []QueueStats {
	return slices.DeleteFunc(e.stats(func(t string) bool { return t == tenant }), func(s QueueStats) bool {
		return s == QueueStats{Queue: s.Queue}
	})
}

func (e *Engine) stats(of func(tenant string) bool) []QueueStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []QueueStats
	_ = e.st.View(func(tx *bbolt.Tx) error { e.heads(tx, of, &out); return nil })
	if out == nil {
		e.heads(nil, of, &out) // out of service: counts without heads
	}
	slices.SortFunc(out, func(a, b QueueStats) int { return cmp.Compare(a.Queue, b.Queue) })
	return out
}

func (e *Engine) heads(tx *bbolt.Tx, of func(string) bool, out *[]QueueStats) {
	for _, q := range e.queues {
		s := QueueStats{Queue: q.Name}
		for _, l := range q.lines {
			if !of(l.tenant) {
				continue
			}
			// A lease may overtake the count of the job it took; it is never wrong for long.
			s.Waiting += max(l.waiting, 0)
			s.Delayed += l.delayed
			s.Active += l.active
			s.Completed += l.completed
			s.Failed += l.failed
			s.Damaged += l.parked
			if t := e.head(tx, q, l); !t.IsZero() && (s.OldestWaiting.IsZero() || t.Before(s.OldestWaiting)) {
				s.OldestWaiting = t
			}
		}
		*out = append(*out, s)
	}
}

// head says since when the first waiting job of a line is due.
func (e *Engine) head(tx *bbolt.Tx, q *queue, l *line) time.Time {
	if tx == nil || l.waiting <= 0 {
		return time.Time{}
	}
	prefix := linePrefix(q.Name, l.tenant)
	c := tx.Bucket(bWaiting).Cursor()
	for k, v := c.Seek(cmpNil(l.from, prefix)); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if e.leases[string(k)] != nil {
			continue
		}
		if j, err := decodeJob(q.Name, l.tenant, Waiting, v); err == nil {
			return j.RunAt
		}
	}
	return time.Time{}
}

func cmpNil(b, or []byte) []byte {
	if b == nil {
		return or
	}
	return b
}

// Audit reads every record of a stopped box's file and returns one line a finding. An error means that it could not be read.
func Audit(path string) (findings []string, err error) {
	err = store.ViewFile(path, func(tx *bbolt.Tx) error {
		findings = audit(tx)
		return nil
	})
	return findings, err
}

func audit(tx *bbolt.Tx) (findings []string) {
	say := func(format string, args ...any) { findings = append(findings, fmt.Sprintf(format, args...)) }
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return []string{fmt.Sprintf("jobs: bucket %q is missing", name)}
		}
	}
	jobs := 0
	record := func(queue, tenant string, p place, v []byte) {
		jobs++
		j, err := decodeJob(queue, tenant, p.state(), v)
		if err != nil {
			say("jobs: queue %q, tenant %q, sequence %d: %v", queue, tenant, p.seq, err)
			return
		}
		got, err := decodePlace(tx.Bucket(bIDs).Get(idKey(queue, tenant, j.ID)))
		if p.in == placeCompleted || p.in == placeFailed {
			p.priority, p.seq = j.order()
		}
		if err != nil || got != p {
			say("jobs: queue %q, tenant %q, job %q: the index does not lead to it", queue, tenant, j.ID)
		}
	}
	each := func(name []byte, do func(k, v []byte) bool) {
		_ = tx.Bucket(name).ForEach(func(k, v []byte) error {
			if !do(k, v) {
				say("jobs: bucket %q: key %q does not belong there", name, k)
			}
			return nil
		})
	}
	each(bWaiting, func(k, v []byte) bool {
		queue, tenant, rest, ok := cutLine(k)
		if !ok || len(rest) != orderBytes {
			return false
		}
		p := place{in: placeWaiting}
		p.priority, p.seq = orderOf(rest)
		record(string(queue), string(tenant), p, v)
		return true
	})
	each(bDelayed, func(k, v []byte) bool {
		queue, tenant, p, ok := splitDelayed(k)
		if ok {
			record(queue, tenant, p, v)
		}
		return ok
	})
	each(bFinished, func(k, v []byte) bool {
		queue, tenant, rest, ok := cutLine(k)
		if !ok || len(rest) != finishedBytes {
			return false
		}
		record(string(queue), string(tenant), place{in: rest[0], at: be.Uint64(rest[1:])}, v)
		return true
	})
	each(bParked, func(k, _ []byte) bool {
		queue, tenant, rest, ok := cutLine(k)
		if ok && len(rest) == placeBytes {
			say("jobs: queue %q, tenant %q: a damaged record is parked", queue, tenant)
		}
		return ok
	})
	each(bCursors, func(k, _ []byte) bool {
		if _, _, err := readCursor(tx, string(k)); err != nil {
			say("jobs: source %q: %v", k, err)
		}
		return true
	})
	ids := 0
	each(bIDs, func(_, _ []byte) bool { ids++; return true })
	if ids > jobs {
		say("jobs: %d index entries lead nowhere", ids-jobs)
	}
	return findings
}
