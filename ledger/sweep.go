package ledger

import (
	"context"
	"errors"
	"time"
)

const (
	// requeueEvery is how often unsettled payments without a job are looked for:
	// the queue should lose none, and this is why it does not matter if it does.
	requeueEvery = 5 * time.Minute
	// pruneEvery is how often idempotency keys past their retention are dropped.
	pruneEvery = time.Hour
	// scrubEvery is how often every journal is read from its first row.
	scrubEvery = 24 * time.Hour
	// scrubPause spaces the scrubber's batches: some 20,000 rows a second, a few
	// percent of a core.
	scrubPause = 50 * time.Millisecond
)

// sweep does what is due now and then.
func (l *Ledger) sweep(ctx context.Context) error {
	var pruned time.Time
	for pause(ctx, requeueEvery) == nil {
		l.lookups.forget()
		l.ageEpochs(ctx)
		due := l.o.Now().Sub(pruned).Abs() >= pruneEvery
		for _, sh := range l.healthy() {
			if err := l.requeueOpen(ctx, sh); err != nil && ctx.Err() == nil {
				l.log.Warn("unsettled payments not swept", "shard", sh.ID(), "err", err)
			}
			before, ok := l.keysBefore()
			if !due || !ok {
				continue
			}
			if err := l.keys.prune(ctx, sh, before); err != nil && ctx.Err() == nil {
				l.log.Warn("idempotency keys not pruned", "shard", sh.ID(), "err", err)
			}
			if err := pruneRecorded(ctx, sh, before); err != nil && ctx.Err() == nil {
				l.log.Warn("recorded events not pruned", "shard", sh.ID(), "err", err)
			}
		}
		if due {
			pruned = l.o.Now()
		}
	}
	return nil
}

// keysBefore is the time before which keys may be forgotten. A wall clock that
// jumped ahead must not make them old, so a processor's clock has to agree; while
// none is known, nothing is forgotten.
func (l *Ledger) keysBefore() (time.Time, bool) {
	now, ok := l.surely()
	return now.Add(-keyRetention), ok
}

// surely returns a time that has come by the box's clock and by every processor's that has told it; false, and the zero time, if none has.
func (l *Ledger) surely() (now time.Time, ok bool) {
	now = l.clock.now()
	for _, acc := range l.accounts.List() {
		if theirs := acc.Clock(); !theirs.IsZero() {
			ok = true
			if theirs.Before(now) {
				now = theirs
			}
		}
	}
	if !ok {
		return time.Time{}, false
	}
	return now, true
}

// scrub verifies every journal from its first row, slowly, again and again. A
// damaged one takes its shard out of service.
func (l *Ledger) scrub(ctx context.Context) error {
	c := newChain(l.keyring)
	for ctx.Err() == nil {
		for _, p := range l.parts {
			if p.shard.Err() != nil {
				continue
			}
			err := l.scrubPart(ctx, p, c)
			if errors.Is(err, ErrJournal) {
				p.shard.Isolate(err)
			} else if err != nil && ctx.Err() == nil {
				l.log.Warn("journal not scrubbed", "shard", p.shard.ID(), "err", err)
			}
		}
		_ = pause(ctx, scrubEvery)
	}
	return nil
}

func (l *Ledger) scrubPart(ctx context.Context, p *part, c *chain) error {
	cursor, _, err := l.jobs.Cursor(p.jobsSource())
	if err != nil {
		return err
	}
	_, err = verifyJournal(ctx, p.shard, c, head{}, head{cursor.Offset, cursor.Anchor}, func() error { return pause(ctx, scrubPause) })
	return err
}
