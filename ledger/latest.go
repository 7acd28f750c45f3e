package ledger

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"tenderbox/tenants"
)

// latestRows of each journal are looked through for the latest events: other tenants' rows stand between, and nothing leads to one's own
// but reading them all, some 20 ms a file at worst. What is older is read on from its beginning, with [Ledger.Events].
const latestRows = eventScanMax

// EventKind is a type of event; of payments, with Means, only those that are paid by it.
type EventKind struct {
	Type  EventType
	Means Means // "": any
}

// LatestFilter selects among a tenant's latest events.
type LatestFilter struct {
	Kinds []EventKind // none: nothing
	Limit int         // 1 to 100; 0 means 20

	Older, Newer EventID   // as Filter's
	From, To     time.Time // of the events; zero: unbounded
}

// kinds are the filter's without what needs not be asked: looking up each payment of ten thousand rows is most of the work.
func (f *LatestFilter) kinds() (kinds []EventKind) {
	other := map[Means]Means{BySource: ByMethod, ByMethod: BySource}
	for _, k := range f.Kinds {
		if k.Means != "" && slices.Contains(f.Kinds, EventKind{k.Type, other[k.Means]}) {
			k.Means = ""
		}
		if !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// LatestEvents reads the tenant's latest events, newest first, which is the order of their ids: how far back, latestRows says. With a
// shard out of service the list would have holes, so it is refused.
func (l *Ledger) LatestEvents(ctx context.Context, t tenants.ID, f LatestFilter) (events []Event, more bool, err error) {
	if f.Limit, err = pageLimit(f.Limit); err != nil {
		return nil, false, err
	}
	within := span{prefix: eventPrefix, older: string(f.Older), newer: string(f.Newer), from: f.From, to: f.To}
	if err := within.check(); err != nil {
		return nil, false, err
	}
	for _, p := range l.parts {
		if !p.verified.Load() {
			return nil, false, unavailable(errors.New("a journal was not verified yet"))
		}
	}
	where, args := "", []any{string(t), latestRows}
	within.narrow(func(cond string, arg any) { where, args = where+" AND j.id "+cond, append(args, arg) })
	var kinds []string
	for _, k := range f.kinds() {
		cond := "j.type = ?"
		if args = append(args, string(k.Type)); k.Means != "" {
			cond += " AND (SELECT p.source_kind FROM payments p WHERE p.tenant = j.tenant AND p.id = j.subject) = ?"
			args = append(args, string(k.Means))
		}
		kinds = append(kinds, cond)
	}
	if len(kinds) == 0 {
		return nil, false, nil
	}
	query := `SELECT ` + journalColumns + ` FROM journal j WHERE j.tenant = ? AND j.seq > (SELECT max(seq) FROM journal) - ?` + where +
		` AND (` + strings.Join(kinds, " OR ") + `) ORDER BY j.id ` + within.order() + ` LIMIT ?`
	scan := func(row scanner) (Event, error) {
		e, err := scanEvent(row, 0)
		e.Shard = l.set.Shard(e.Slot).ID()
		return e, err
	}
	id := func(e Event) string { return string(e.ID) }
	all, err := gather(ctx, l.set.All(), scan, id, query, append(args, f.Limit+1)...)
	if err != nil {
		return nil, false, err
	}
	events, _, more = cut(&within, all, f.Limit, id)
	return events, more, nil
}

// ParseEventID accepts exactly the form in which ids are handed out.
func ParseEventID(s string) (EventID, bool) {
	_, ok := parseID(eventPrefix, s)
	return EventID(s), ok
}
