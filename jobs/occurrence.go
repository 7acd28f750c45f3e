package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/bbolt"
)

// plans is what memory knows of the schedules: when each is due next. Engine.mu guards it.
type plans struct {
	next  map[string]uint64 // by key, in ns; those without a next time are not in it
	first uint64            // none is due before; never: none
	seen  time.Time         // what the machine's clock showed last; before it: the clock was set back
}

// planned follows a change of one schedule; nil: it is gone. Engine.mu is held.
func (e *Engine) planned(key string, p *plan) {
	if p == nil || p.NextAt.IsZero() {
		delete(e.plans.next, key) // first may be early then, which costs one look
		return
	}
	due := nanos(p.NextAt)
	e.plans.next[key] = due
	if due < e.plans.first {
		e.plans.first = due
		e.poke()
	}
}

// readPlans reads memory's part of the schedules.
func readPlans(tx *bbolt.Tx) plans {
	ps := plans{next: map[string]uint64{}, first: never}
	eachPlan(tx, nil, func(queue, tenant, id string, p plan, err error) bool {
		if err == nil && !p.NextAt.IsZero() {
			due := nanos(p.NextAt)
			ps.next[string(planKey(queue, tenant, id))] = due
			ps.first = min(ps.first, due)
		}
		return true
	})
	return ps
}

// tickPlans makes jobs of occurrences that are due, a batch at a time, and says when to look again.
func (e *Engine) tickPlans(ctx context.Context) (wait time.Duration, err error) {
	now := e.clock.wall()
	e.mu.Lock()
	back := now.Before(e.plans.seen) || e.plans.seen.IsZero()
	e.mu.Unlock()
	if back { // also at the start: the clock may have been set back while the box was off
		if err := e.replanAll(ctx, now); err != nil {
			return 0, err
		}
	}
	e.mu.Lock()
	e.plans.seen = now
	e.mu.Unlock()
	keys, first := e.duePlans(nanos(now))
	switch {
	case len(keys) > 0:
		return 0, e.come(ctx, keys, now) // there may be more than a batch
	case first == never:
		return schedulePoll, nil
	default:
		return timeOf(first).Sub(now), nil
	}
}

// duePlans returns up to comeMax schedules that are due, or, if there are none, when the first one is.
func (e *Engine) duePlans(now uint64) (keys []string, first uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.plans.first > now {
		return nil, e.plans.first
	}
	first = never
	for key, due := range e.plans.next {
		if due > now {
			first = min(first, due)
		} else if len(keys) < comeMax {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 { // else there is another look when these have come
		e.plans.first = first
	}
	return keys, first
}

// come makes the jobs of due schedules, and moves the schedules on, in one transaction.
func (e *Engine) come(ctx context.Context, keys []string, now time.Time) error {
	var w writes
	moved := map[string]*plan{}
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset()
		clear(moved)
		for _, key := range keys {
			queue, tenant, id, _ := cutPlan([]byte(key))
			p, err := readPlan(tx, queue, tenant, id)
			if err != nil {
				if !errors.Is(err, ErrNotFound) {
					e.log.Error("jobs: a schedule cannot be read; put it anew", slog.String("queue", queue), slog.String("tenant", tenant),
						slog.String("schedule", id), slog.Any("err", err))
				}
				moved[key] = nil
				continue
			}
			if !p.NextAt.IsZero() && !p.NextAt.After(now) && !p.Paused {
				if err := e.comeOne(tx, &w, queue, tenant, &p, now); err != nil {
					return err
				}
				if err := putPlan(tx, queue, tenant, &p); err != nil {
					return err
				}
			}
			moved[key] = &p
		}
		return nil
	}, e.applied(func() {
		for key, p := range moved {
			e.planned(key, p)
		}
		e.follow(&w)
	}))
	if err != nil && ctx.Err() == nil {
		e.log.Warn("jobs: cannot make scheduled jobs, trying again", slog.Any("err", err))
	}
	return err
}

// comeOne moves one due schedule on and enqueues the occurrence's job. What cannot be enqueued (its queue is gone, a rule has
// changed) is said on the schedule, which goes on.
func (e *Engine) comeOne(tx *bbolt.Tx, w *writes, queue, tenant string, p *plan, now time.Time) error {
	at := p.come(now)
	if at.IsZero() {
		return nil
	}
	q, err := e.known(tenant, queue)
	var job Job
	if err == nil {
		job, err = p.job(queue, tenant, at).prepare(q, e.clock.now(), now)
	}
	if err != nil {
		p.LastError = brief(fmt.Errorf("%s made no job: %w", at.UTC().Format(time.RFC3339), err))
		e.log.Warn("jobs: a schedule made no job", slog.String("queue", queue), slog.String("tenant", tenant),
			slog.String("schedule", p.ID), slog.Any("err", err))
		return nil
	}
	if _, err := w.add(tx, &job, true); err != nil {
		return err
	}
	p.LastAt, p.LastJobID, p.LastError = at.UTC(), job.ID, ""
	return nil
}

// replanAll brings schedules nearer that a clock which was set back left too far ahead.
func (e *Engine) replanAll(ctx context.Context, now time.Time) error {
	nearer := func(p *plan) (changed bool) {
		w, err := p.timing()
		if err != nil || p.Paused {
			return false
		}
		next := p.Dealt.next(now, &w)
		changed = !next.IsZero() && (p.NextAt.IsZero() || next.Before(p.NextAt))
		if changed {
			p.NextAt = next
		}
		return changed
	}
	var keys []string
	err := e.st.View(func(tx *bbolt.Tx) error {
		eachPlan(tx, nil, func(queue, tenant, id string, p plan, err error) bool {
			if err == nil && nearer(&p) {
				keys = append(keys, string(planKey(queue, tenant, id)))
			}
			return true
		})
		return nil
	})
	for err == nil && len(keys) > 0 {
		batch := keys[:min(len(keys), comeMax)]
		keys = keys[len(batch):]
		moved := map[string]*plan{}
		err = e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
			clear(moved)
			for _, key := range batch {
				queue, tenant, id, _ := cutPlan([]byte(key))
				p, err := readPlan(tx, queue, tenant, id)
				if err != nil || !nearer(&p) {
					continue // changed or gone since
				}
				if err := putPlan(tx, queue, tenant, &p); err != nil {
					return err
				}
				moved[key] = &p
			}
			return nil
		}, e.applied(func() {
			for key, p := range moved {
				e.planned(key, p)
			}
		}))
	}
	return err
}
