package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"sort"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

const (
	// eventNearRows are looked through before and behind the place where a row of an event's time should stand. Rows of a group are
	// numbered when it commits, in another order than that in which their times were taken; a clock that was set leaves more disorder
	// than that, and what was written about then is not found.
	eventNearRows = 5_000
	// eventLateMax is how much later than its time a row may be written: events that arose outside the shards.
	eventLateMax = time.Minute
)

// Event finds a tenant's event by its id. The journals have no index of ids, which would cost each change a page: the id's time says
// about where the row stands. What is far from there counts as not found.
func (l *Ledger) Event(ctx context.Context, t tenants.ID, id string) (Event, error) {
	u, ok := parseID(eventPrefix, id)
	if !ok {
		return Event{}, notFound("event")
	}
	e, err := l.emitted(ctx, t, EventID(id))
	var refusal *Error
	if err == nil || !errors.As(err, &refusal) || refusal.Kind != NotFound {
		return e, err
	}
	p := l.partOf(slotOf(u))
	if !p.verified.Load() {
		return Event{}, unavailable(errors.New("the journal was not verified yet"))
	}
	head := int64(p.journal.currentHead().seq)
	err = p.shard.View(ctx, func(tx *shards.Tx) error {
		from, err := firstFrom(tx, head, u.Timestamp())
		if err != nil {
			return err
		}
		to, err := firstFrom(tx, head, u.Timestamp().Add(eventLateMax))
		if err != nil {
			return err
		}
		to = min(to, from+eventNearRows)
		e, err = scanEvent(tx.QueryRow(`SELECT `+journalColumns+` FROM journal WHERE seq > ? AND seq <= ? AND tenant = ? AND id = ?`,
			from-eventNearRows, to+eventNearRows, string(t), id), p.shard.ID())
		return err
	})
	return e, found("event", err)
}

// firstFrom is the position of the first row that tells of at or later, as far as rows stand in the order of their times.
func firstFrom(tx *shards.Tx, head int64, at time.Time) (seq int64, err error) {
	ms := at.UnixMilli()
	n := sort.Search(int(head), func(i int) bool {
		var occurred int64
		// Retention leaves gaps at the beginning, so the next row there is stands for those before it.
		e := tx.QueryRow(`SELECT /* box */ occurred_at FROM journal WHERE seq >= ? ORDER BY seq LIMIT 1`, int64(i)+1).Scan(&occurred)
		if e != nil && !errors.Is(e, sql.ErrNoRows) {
			err = cmp.Or(err, e)
		}
		return e != nil || occurred >= ms
	})
	return int64(n) + 1, err
}
