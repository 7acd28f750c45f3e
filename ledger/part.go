package ledger

import (
	"context"
	"fmt"
	"sync/atomic"

	"tenderbox/shards"
)

// part is a shard with what the ledger keeps about it.
type part struct {
	shard   *shards.Shard
	journal *journal
	derive  poke // rows wait to become jobs
	hurry   poke // someone waits for the outcome of one of them

	// verified: the journal's end was held against its anchor since the box was
	// started. Until then nothing is written.
	verified atomic.Bool
}

// origin names the journal that the shard appends to in this epoch.
func (p *part) origin() string { return origin(p.shard.ID(), p.journal.epoch) }

// jobsSource names the cursor up to which the journal's rows have become jobs.
func (p *part) jobsSource() string { return "journal/" + p.origin() }

// look is attached by a group that writes nothing, so that the hooks below run.
type look struct{}

// refresh catches up with a file that was opened, or opened anew after an
// unknown outcome, also when nobody writes to it.
func (l *Ledger) refresh(ctx context.Context, p *part) error {
	if p.shard.Err() != nil || (!p.journal.stale(p.shard.Generation()) && !l.exposure.isDue(p.shard.ID())) {
		return nil
	}
	return p.shard.UpdateReserved(ctx, func(tx *shards.Tx) error {
		tx.Attach(look{})
		return nil
	})
}

// events returns the journal rows among what a group's closures attached.
func events(attached []any) []*Event {
	out := make([]*Event, 0, len(attached))
	for _, a := range attached {
		if e, ok := a.(*Event); ok {
			out = append(out, e)
		}
	}
	return out
}

// beforeCommit runs in the writer's transaction, after the group's closures.
func (l *Ledger) beforeCommit(tx *shards.Tx, attached []any) error {
	p := l.parts[tx.Shard().ID()]
	if !p.verified.Load() {
		return fmt.Errorf("%w: its journal is not verified yet", shards.ErrUnavailable)
	}
	return p.journal.write(tx, events(attached))
}

// afterCommit runs in the writer when the group is durable, before its callers
// are answered, and never beside another commit of the same shard.
func (l *Ledger) afterCommit(sh *shards.Shard, attached []any) {
	p, rows := l.parts[sh.ID()], events(attached)
	switch {
	case !p.journal.committed() && !l.exposure.isDue(sh.ID()):
		l.exposure.committed(sh.ID(), rows)
	case l.exposure.rebuild(context.Background(), sh) != nil:
		l.exposure.committed(sh.ID(), rows)
		l.exposure.recountDue(sh.ID()) // the next group, or the relay's next look, tries again
	default:
		// What the file held was in doubt; now it is counted, this group included.
		l.exposure.recounted(rows)
		l.exposure.settleDoubts(sh.ID(), sh.Generation())
	}
	if len(rows) == 0 {
		return
	}
	l.clock.wrote(rows[len(rows)-1].OccurredAt)
	p.derive.wake()
	l.publish.wake()
}

// uncounted reports whether the sums of a shard that could be counted are not
// known yet. What a damaged one holds nobody knows, and the others serve.
func (l *Ledger) uncounted() bool {
	for _, p := range l.parts {
		if p.shard.Err() == nil && l.exposure.isDue(p.shard.ID()) {
			return true
		}
	}
	return false
}

// shardOf returns the shard of a payment.
func (l *Ledger) shardOf(id PaymentID) *shards.Shard {
	slot, _ := id.slot()
	return l.set.Shard(slot)
}
