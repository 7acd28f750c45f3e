package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// plan is a schedule as it is stored: JSON under these names, behind a version and a checksum that covers queue and tenant, too.
// Unlike jobs there are few of them, so they may be readable.
type plan struct {
	ID                        string
	Cron, TimeZone            string
	Every, Phase              time.Duration // Phase keeps an interval's beat when the schedule is edited
	Missed                    Missed
	Job                       NewJob
	Paused                    bool
	CreatedAt, NextAt, LastAt time.Time
	LastJobID, LastError      string
	Dealt                     dealt
}

const planVersion = 1

func (p *plan) timing() (timing, error) {
	if p.Every > 0 {
		return everyTiming(p.Every, p.Phase), nil
	}
	return parseTiming(p.Cron, p.TimeZone)
}

// come says whether an occurrence is due at now, moves the plan on, and returns the one that becomes a job; zero: none does.
// However many are due, one job stands for them: the last one's.
func (p *plan) come(now time.Time) time.Time {
	w, err := p.timing()
	if err != nil { // the zone is no longer known
		p.NextAt, p.LastError = time.Time{}, err.Error()
		return time.Time{}
	}
	at := p.Dealt.last(p.NextAt, now, &w)
	if p.Missed == Skip && now.Sub(at) > missedAfter {
		at = time.Time{}
	}
	if !at.IsZero() {
		p.Dealt = p.Dealt.add(at, &w)
	}
	p.NextAt = p.Dealt.next(now, &w)
	return at
}

// jobID is the same for the same occurrence, always.
func (p *plan) jobID(at time.Time) string { return p.ID + "@" + at.UTC().Format("20060102T150405Z") }

func (p *plan) schedule(queue, tenant string) Schedule {
	s := Schedule{
		Tenant: tenant, Queue: queue, ID: p.ID, Cron: p.Cron, Every: p.Every, TimeZone: p.TimeZone, Missed: p.Missed, Job: p.Job,
		Paused: p.Paused, CreatedAt: p.CreatedAt, NextAt: p.NextAt, LastAt: p.LastAt, LastJobID: p.LastJobID, LastError: p.LastError,
	}
	s.Job.Queue, s.Job.Tenant = queue, tenant
	return s
}

func planLine(queue, tenant string) []byte { return linePrefix(tenant, queue) }

// planKey begins with the tenant: a limit goes over all its queues.
func planKey(queue, tenant, id string) []byte { return append(planLine(queue, tenant), id...) }

func cutPlan(k []byte) (queue, tenant, id string, ok bool) {
	t, q, rest, ok := cutLine(k)
	return string(q), string(t), string(rest), ok
}

func putPlan(tx *bbolt.Tx, queue, tenant string, p *plan) error {
	content, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("schedule %q: %w", p.ID, err)
	}
	return tx.Bucket(bSchedules).Put(planKey(queue, tenant, p.ID), seal(planVersion, queue, tenant, content))
}

// decodePlan reads a stored schedule. The plan shares no memory with b.
func decodePlan(queue, tenant, id string, b []byte) (plan, error) {
	var p plan
	if b == nil {
		return p, ErrNotFound
	}
	content, err := unseal(planVersion, queue, tenant, b)
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(content, &p); err != nil {
		return p, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	if p.ID != id {
		return p, fmt.Errorf("%w: it is another one's", ErrDamaged)
	}
	return p, nil
}

func readPlan(tx *bbolt.Tx, queue, tenant, id string) (plan, error) {
	return decodePlan(queue, tenant, id, tx.Bucket(bSchedules).Get(planKey(queue, tenant, id)))
}

// eachPlan calls do with the schedules whose keys begin with prefix, until it returns false.
func eachPlan(tx *bbolt.Tx, prefix []byte, do func(queue, tenant, id string, p plan, err error) bool) {
	c := tx.Bucket(bSchedules).Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		queue, tenant, id, ok := cutPlan(k)
		if !ok {
			continue // Audit names it
		}
		p, err := decodePlan(queue, tenant, id, v)
		if !do(queue, tenant, id, p, err) {
			return
		}
	}
}
