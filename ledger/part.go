package ledger

import (
	"context"

	"tenderbox/shards"
)

// part is a shard with what the ledger keeps about it.
type part struct {
	shard   *shards.Shard
	journal *journal
	derive  poke // rows wait to become jobs
}

// origin names the journal that the shard appends to in this epoch.
func (p *part) origin() string { return origin(p.shard.ID(), p.journal.epoch) }

// jobsSource names the cursor up to which the journal's rows have become jobs.
func (p *part) jobsSource() string { return "journal/" + p.origin() }

// look is attached by a group that writes nothing, so that the hooks below run.
type look struct{}

// refresh catches up with a file that was opened, or opened anew after an
// unknown outcome, also when nobody writes to it.
func (p *part) refresh(ctx context.Context) error {
	if p.shard.Err() != nil || !p.journal.stale(p.shard.Generation()) {
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
	return l.parts[tx.Shard().ID()].journal.write(tx, events(attached))
}

// afterCommit runs in the writer when the group is durable, before its callers
// are answered, and never beside another commit of the same shard.
func (l *Ledger) afterCommit(sh *shards.Shard, attached []any) {
	p, rows := l.parts[sh.ID()], events(attached)
	if !p.journal.committed() {
		l.exposure.committed(sh.ID(), rows)
	} else if err := l.exposure.rebuild(context.Background(), sh); err != nil {
		l.log.Error("exposure not counted anew", "shard", sh.ID(), "err", err)
		l.exposure.committed(sh.ID(), rows)
	} else {
		// What the file held was in doubt; now it is counted, this group included.
		l.exposure.recounted(rows)
		l.exposure.settleDoubts(func(id PaymentID) bool { return l.shardOf(id) == sh })
	}
	if len(rows) == 0 {
		return
	}
	l.clock.wrote(rows[len(rows)-1].OccurredAt)
	p.derive.wake()
	l.publish.wake()
}

// shardOf returns the shard of a payment.
func (l *Ledger) shardOf(id PaymentID) *shards.Shard {
	slot, _ := id.slot()
	return l.set.Shard(slot)
}
