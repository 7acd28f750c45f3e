package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/sourcegraph/conc/panics"
	"go.etcd.io/bbolt"

	"tenderbox/store"
)

const (
	// moveMax delayed jobs become waiting in one transaction. A million due at once take turns with everybody else.
	moveMax = 1000

	// schedulePoll bounds how long the schedule trusts its timer: clocks jump and machines sleep.
	schedulePoll = 30 * time.Second

	scheduleRetry = time.Second // after the store refused
	clockEvery    = time.Minute // how often the clock is noted, for the next start
)

// schedule is the engine's own goroutine: it moves what is due, and reads memory anew when it is in doubt.
func (e *Engine) schedule(ctx context.Context) {
	defer close(e.scheduled)
	timer := time.NewTimer(0)
	defer timer.Stop()
	noted := e.clock.now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-timer.C:
		}
		var wait time.Duration
		r := panics.Try(func() { wait = e.tick(ctx) })
		if r != nil {
			e.log.Error("jobs: the scheduler panicked", slog.Any("err", r.AsError()))
			wait = scheduleRetry
		}
		if now := e.clock.now(); now.Sub(noted) >= clockEvery {
			noted = now
			e.st.Submit(func(tx *bbolt.Tx) error {
				return tx.Bucket(bMeta).Put(metaClock, be.AppendUint64(nil, nanos(now)))
			}, nil) // a lost note costs accuracy after a crash, nothing else
		}
		timer.Reset(wait)
	}
}

// tick does what is due, in bounded batches, and says when to look again.
func (e *Engine) tick(ctx context.Context) time.Duration {
	e.sleep(math.MaxInt64) // what comes in from now on pokes
	if err := e.recount(ctx); err != nil {
		return scheduleRetry
	}
	wait := min(schedulePoll, e.expire(ctx))
	planned, err := e.tickPlans(ctx)
	if err != nil {
		return scheduleRetry
	}
	wait = min(wait, planned)
	due, next := e.due()
	for _, q := range due {
		next = 0 // there may be more than a batch
		if err := e.moveDue(ctx, q); err != nil {
			if ctx.Err() == nil {
				e.log.Warn("jobs: cannot move due jobs, trying again", slog.String("queue", q), slog.Any("err", err))
			}
			return scheduleRetry
		}
	}
	wait = min(wait, next)
	e.sleep(wait)
	return wait
}

// sleep notes for how long the scheduler does not look: only what is due earlier has to poke it.
func (e *Engine) sleep(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tickAt = math.MaxInt64
	if now := e.clock.steady(); d < math.MaxInt64-now {
		e.tickAt = now + d
	}
}

// due returns the queues in which delayed jobs are due, and when to look for those of the others.
func (e *Engine) due() (queues []string, next time.Duration) {
	next = schedulePoll
	now := e.clock.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, q := range e.queues {
		if q.nextDue == never {
			continue
		}
		if d := timeOf(q.nextDue).Sub(now); d <= 0 {
			queues = append(queues, name)
		} else {
			next = min(next, d)
		}
	}
	return queues, next
}

// recount reads memory anew if an outcome was unknown. It runs as an operation of the store, so that it takes its place in
// the order of changes: what came before is counted by it, what comes after adds to it.
func (e *Engine) recount(ctx context.Context) error {
	e.mu.Lock()
	stale := e.stale
	e.mu.Unlock()
	if !stale {
		return nil
	}
	var c census
	return e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		c = takeCensus(tx)
		return store.Untouched(nil)
	}, e.applied(func() { e.install(c) }))
}

// move is a delayed job on its way to waiting.
type move struct {
	key    []byte
	tenant string
	place  place
}

// moveDue makes up to moveMax due jobs of a queue waiting.
func (e *Engine) moveDue(ctx context.Context, queue string) error {
	prefix := queuePrefix(queue)
	var w moves
	return e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		now := nanos(e.clock.now())
		var due []move
		w = moves{nextDue: never}
		c := tx.Bucket(bDelayed).Cursor()
		for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			_, tenant, p, ok := splitDelayed(k)
			if !ok {
				continue
			}
			if p.at > now || len(due) == moveMax {
				w.nextDue = p.at
				break
			}
			due = append(due, move{bytes.Clone(k), tenant, p})
		}
		return w.apply(tx, queue, due)
	}, e.applied(func() {
		e.queues[queue].nextDue = w.nextDue
		e.followMoves(&w)
	}))
}

// moves is what a transaction moved from delayed, for memory to follow.
type moves struct {
	writes
	nextDue uint64
}

func (w *moves) apply(tx *bbolt.Tx, queue string, ms []move) error {
	b := tx.Bucket(bDelayed)
	for _, m := range ms {
		v := b.Get(m.key)
		if v == nil {
			continue // promoted or leased since it was found
		}
		j, err := decodeJob(queue, m.tenant, Waiting, v)
		if errors.Is(err, ErrDamaged) {
			if err := parkAt(tx, queue, m.tenant, m.place); err != nil {
				return err
			}
			w.parked = append(w.parked, placed{queue: queue, tenant: m.tenant, place: m.place})
			continue
		}
		if err := removeAt(tx, queue, m.tenant, m.place); err != nil {
			return err
		}
		if err := w.put(tx, &j, Delayed); err != nil {
			return err
		}
	}
	return nil
}

// followMoves brings memory up to date. Engine.mu is held.
func (e *Engine) followMoves(w *moves) {
	for _, p := range w.placed {
		e.queues[p.queue].line(p.tenant).delayed--
	}
	for _, p := range w.parked {
		l := e.queues[p.queue].line(p.tenant)
		l.delayed--
		l.parked++
		e.log.Error("jobs: a damaged record was parked", slog.String("queue", p.queue), slog.String("tenant", p.tenant),
			slog.Uint64("sequence", p.place.seq))
	}
	e.follow(&w.writes)
}

// PromoteDelayed makes delayed jobs of a queue due now, for the tenants that match (nil: all), and returns how many. Jobs that have made more
// than attempts attempts (0: none do) stay put off: they fail for a reason of their own, and would only push in front of others.
// It works in batches, so what it began is done if it fails.
func (e *Engine) PromoteDelayed(ctx context.Context, queue string, match func(tenant string) bool, attempts int) (int, error) {
	if err := e.exists(queue); err != nil {
		return 0, err
	}
	return e.promoteDelayed(ctx, queue, match, attempts)
}

// PromoteAll makes all delayed jobs of a tenant's line due now, or (tenant "") of the whole queue, and returns how many, also beside an
// error. Errors to branch on: ErrUnknownQueue, and the store's.
func (e *Engine) PromoteAll(ctx context.Context, tenant, queue string) (int, error) {
	if err := e.canSee(tenant, queue); err != nil {
		return 0, err
	}
	return e.promoteDelayed(ctx, queue, func(of string) bool { return tenant == "" || tenant == of }, 0)
}

func (e *Engine) promoteDelayed(ctx context.Context, queue string, match func(tenant string) bool, attempts int) (int, error) {
	said := map[string]bool{}
	prefix := queuePrefix(queue)
	from, total := prefix, 0
	for from != nil {
		var batch []move
		err := e.st.View(func(tx *bbolt.Tx) error {
			c := tx.Bucket(bDelayed).Cursor()
			k, v := c.Seek(from)
			for from = nil; bytes.HasPrefix(k, prefix); k, v = c.Next() {
				_, tenant, p, ok := splitDelayed(k)
				if !ok {
					continue
				}
				yes, asked := said[tenant]
				if !asked {
					yes = match == nil || match(tenant)
					said[tenant] = yes
				}
				if !yes {
					continue
				}
				if attempts > 0 {
					if j, err := decodeJob(queue, tenant, Delayed, v); err == nil && j.AttemptsMade > attempts {
						continue
					}
				}
				if len(batch) == moveMax {
					from = bytes.Clone(k)
					return nil
				}
				batch = append(batch, move{bytes.Clone(k), tenant, p})
			}
			return nil
		})
		if err == nil && len(batch) > 0 {
			var w moves
			err = e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
				w = moves{}
				return w.apply(tx, queue, batch)
			}, e.applied(func() { e.followMoves(&w) }))
			total += len(w.placed)
		}
		if err != nil {
			return total, fmt.Errorf("promote delayed jobs of %q: %w", queue, err)
		}
	}
	return total, nil
}
