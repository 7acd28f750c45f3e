package ledger

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"tenderbox/shards"
)

// part is a shard with what the ledger keeps about it.
type part struct {
	shard   *shards.Shard
	journal *journal
	derive  poke // rows wait to become jobs
	hurry   poke // someone waits for the outcome of one of them

	// verified: the journal's end was held against its anchor since the box was started, and the shard is in the folder's epoch. Until
	// then nothing is written but that.
	verified atomic.Bool

	counts counts // of the rows that have become jobs, for analytics

	epochs atomic.Pointer[[]epoch] // that the shard has lived through; nil before it was read
}

// partOf is the slot's.
func (l *Ledger) partOf(slot shards.Slot) *part { return l.parts[l.set.Shard(slot).ID()] }

// origin names the journal that the shard appends to in this epoch.
func (p *part) origin() string { return origin(p.shard.ID(), p.journal.epoch) }

// jobsSource names the cursor up to which the journal's rows have become jobs.
func (p *part) jobsSource() string { return jobsSource(p.shard.ID(), p.journal.epoch) }

func jobsSource(shard int, epoch uint64) string { return "journal/" + origin(shard, epoch) }

// opening is attached by the one group that is written before the shard is verified. It is alone in its transaction.
type opening struct{}

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

// group is what the closures of one commit attached, sorted by what is to be done with it.
type group struct {
	events   []*Event      // journal rows, in the order of the closures
	accepted []*acceptance // new payments
	keys     []*keyRow     // idempotency keys, of payments and of other records
	rich     []*acceptance // those with a description or metadata
	sent     []*acceptance // new payments that are sealed as they are taken, and not among accepted
	seals    []*seal       // attempts
	bodies   []*seal       // those that are the first under their keys
}

func groupOf(attached []any) *group {
	g := &group{events: make([]*Event, 0, len(attached))}
	for _, v := range attached {
		switch v := v.(type) {
		case *Event:
			g.events = append(g.events, v)
		case *keyRow:
			g.keys = append(g.keys, v)
		case *seal:
			g.addSeal(v)
		case *acceptance:
			g.events = append(g.events, v.created)
			if v.seal == nil {
				g.accepted = append(g.accepted, v)
			} else {
				g.sent = append(g.sent, v)
				g.addSeal(v.seal)
			}
			if v.key != nil {
				g.keys = append(g.keys, v.key)
			}
			if v.extras.any {
				g.rich = append(g.rich, v)
			}
		}
	}
	return g
}

func (g *group) addSeal(e *seal) {
	g.seals = append(g.seals, e)
	if e.body != nil {
		g.bodies = append(g.bodies, e)
	}
}

// beforeCommit runs in the writer's transaction, after the group's closures.
func (l *Ledger) beforeCommit(tx *shards.Tx, attached []any) error {
	p := l.parts[tx.Shard().ID()]
	if !p.verified.Load() && !slices.Contains(attached, any(opening{})) {
		return fmt.Errorf("%w: its journal is not verified yet", shards.ErrUnavailable)
	}
	g := groupOf(attached)
	if err := g.write(tx); err != nil {
		return err
	}
	if err := g.writeSeals(tx); err != nil {
		return err
	}
	return p.journal.write(tx, g.events)
}

// afterCommit runs in the writer when the group is durable, before its callers
// are answered, and never beside another commit of the same shard.
func (l *Ledger) afterCommit(sh *shards.Shard, attached []any) {
	p, g := l.parts[sh.ID()], groupOf(attached)
	for _, k := range g.keys {
		l.keys.add(k.tenant, k.key, k.record)
	}
	switch {
	case !p.journal.committed(g.events) && !l.exposure.isDue(sh.ID()):
		l.exposure.committed(sh.ID(), g.events)
	case l.exposure.rebuild(context.Background(), sh) != nil:
		l.exposure.committed(sh.ID(), g.events)
		l.exposure.recountDue(sh.ID()) // the next group, or the relay's next look, tries again
	default:
		// What the file held was in doubt; now it is counted, this group included.
		l.exposure.recounted(g.events)
		l.exposure.settleDoubts(sh.ID(), sh.Generation())
	}
	if len(g.events) == 0 {
		return
	}
	l.clock.wrote(g.events[len(g.events)-1].OccurredAt)
	for _, e := range g.events {
		switch e.Type {
		case PaymentCreated, PaymentConfirmed:
			l.exposed.wake()
		case PaymentSucceeded, PaymentFailed:
			l.pulse.settled(e.Tenant, 1)
		}
	}
	p.derive.wake()
	l.publish.wake()
	l.tell(g.events)
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
