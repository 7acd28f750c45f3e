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

// Stats returns the counts of all queues, by name; queues of one name that tenants declared are counted together. The counts are kept in
// memory; the heads of the lines are read.
func (e *Engine) Stats() []QueueStats { return e.stats("") }

// TenantStats returns one tenant's counts, of the queues in which it has jobs.
func (e *Engine) TenantStats(tenant string) []QueueStats {
	return slices.DeleteFunc(e.stats(tenant), func(s QueueStats) bool { return s == QueueStats{Queue: s.Queue} })
}

func (e *Engine) stats(tenant string) []QueueStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []QueueStats
	e.reading(func(tx *bbolt.Tx) {
		out = nil
		for _, q := range e.queues {
			out = append(out, e.counts(tx, q, tenant))
		}
	})
	slices.SortFunc(out, func(a, b QueueStats) int { return cmp.Compare(a.Queue, b.Queue) })
	return out
}

// reading runs do with a snapshot of the file, or with nil if the store is out of service.
func (e *Engine) reading(do func(tx *bbolt.Tx)) {
	if err := e.st.View(func(tx *bbolt.Tx) error { do(tx); return nil }); err != nil {
		do(nil)
	}
}

// counts are those of one tenant in a queue, or (tenant "") of all. Engine.mu is held.
func (e *Engine) counts(tx *bbolt.Tx, q *queue, tenant string) QueueStats {
	s := QueueStats{Queue: q.Name}
	if tenant != "" {
		if l := q.lines[tenant]; l != nil {
			s.add(q, l, tx)
		}
		return s
	}
	for _, l := range q.lines {
		s.add(q, l, tx)
	}
	return s
}

func (s *QueueStats) add(q *queue, l *line, tx *bbolt.Tx) {
	// A lease may overtake the count of the job it took; it is never wrong for long.
	s.Waiting += max(l.waiting, 0)
	s.Delayed += l.delayed
	s.Active += len(l.leases)
	s.Completed += l.completed
	s.Failed += l.failed
	s.Damaged += l.parked
	if t := head(tx, q, l); !t.IsZero() && (s.OldestWaiting.IsZero() || t.Before(s.OldestWaiting)) {
		s.OldestWaiting = t
	}
}

// head says since when the first waiting job of a line is due.
func head(tx *bbolt.Tx, q *queue, l *line) time.Time {
	if tx == nil || l.waiting <= 0 {
		return time.Time{}
	}
	prefix := linePrefix(q.Name, l.tenant)
	from := prefix
	for v := range q.viewsOf(l) { // one that sees all knows where the first free one is
		if s := v.spots[l.tenant]; v.names == nil && s != nil && s.from != nil {
			from = s.from
		}
	}
	c := tx.Bucket(bWaiting).Cursor()
	for k, v := c.Seek(from); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(k) != len(prefix)+orderBytes || l.leases[orderIn(k)] != nil {
			continue
		}
		if sound(q.Name, l.tenant, v) {
			return runAtOf(v)
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
	indexed := 0 // jobs that have an entry in the index
	record := func(queue, tenant string, p place, v []byte) {
		j, err := decodeJob(queue, tenant, p.state(), v)
		if err != nil {
			indexed++ // it may have an entry
			say("jobs: queue %q, tenant %q, sequence %d: %v", queue, tenant, p.seq, err)
			return
		}
		if tells(j.ID, p) {
			return
		}
		indexed++
		got, err := decodePlace(tx.Bucket(indexOf(p)).Get(idKey(queue, tenant, j.ID)))
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
	each(bLeased, func(k, v []byte) bool {
		queue, tenant, rest, ok := cutLine(k)
		if !ok || len(rest) != orderBytes {
			return false
		}
		h, err := decodeHeld(string(queue), string(tenant), v)
		switch p, bad := locate(tx, string(queue), string(tenant), h.id); {
		case err != nil:
			say("jobs: queue %q, tenant %q: a lease: %v", queue, tenant, err)
		case bad != nil || p.in != placeWaiting || order(rest) != orderIn(p.encode()):
			say("jobs: queue %q, tenant %q, job %q: a lease of a job that does not wait", queue, tenant, h.id)
		}
		return true
	})
	for _, line := range readSettings(tx).broken {
		say("jobs: %s", line)
	}
	each(bCursors, func(k, _ []byte) bool {
		if _, _, err := readCursor(tx, string(k)); err != nil {
			say("jobs: source %q: %v", k, err)
		}
		return true
	})
	auditBeside(tx, say, each)
	ids := 0
	for _, name := range indexes {
		each(name, func(_, _ []byte) bool { ids++; return true })
	}
	if ids > indexed {
		say("jobs: %d index entries lead nowhere", ids-indexed)
	}
	return findings
}
