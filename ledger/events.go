package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// Position is a place in the tenant's events: how far each journal has been
// read. The zero value is the beginning.
type Position struct {
	epoch uint64
	seqs  []uint64 // by shard: the last row that was read
}

// String is the position in as few bytes as it takes, for [ParsePosition].
func (p Position) String() string {
	b := binary.AppendUvarint(nil, p.epoch)
	for _, seq := range p.seqs {
		b = binary.AppendUvarint(b, seq)
	}
	return string(b)
}

// ParsePosition reads what [Position.String] wrote; "" is the beginning.
func ParsePosition(s string) (p Position, ok bool) {
	if s == "" {
		return Position{}, true
	}
	b := []byte(s)
	next := func() (n uint64) {
		n, size := binary.Uvarint(b)
		if ok = size > 0; ok {
			b = b[size:]
		}
		return n
	}
	for p.epoch = next(); ok && len(b) > 0; {
		p.seqs = append(p.seqs, next())
	}
	return p, ok
}

const (
	// eventsMax is the largest page of events.
	eventsMax = 100
	// eventScanMax is how many rows of each journal one page looks through: other
	// tenants' rows stand between, and a quiet tenant must not make the box read all of
	// theirs at once. Who gets an empty page with more behind it asks on.
	eventScanMax = 10_000
	// eventBytesMax of data end a page early: a hundred of the largest events would be too much at once.
	eventBytesMax = 1 << 20
)

// EventFilter selects among a tenant's events.
type EventFilter struct {
	After Position
	Types []string // "user.created", "user.*" or "*"; none: all
	Limit int      // 1 to 100; 0 means 20
}

const typePatternsMax = 50 // of one filter; the box has some twenty types

func (f *EventFilter) normalise(shards int) error {
	f.Limit = cmp.Or(f.Limit, pageDefault)
	if f.Limit < 1 || f.Limit > eventsMax {
		return invalid("limit_invalid", "limit", fmt.Sprintf("must be from 1 to %d", eventsMax))
	}
	if len(f.Types) > typePatternsMax {
		return invalid("types_invalid", "types", fmt.Sprintf("at most %d", typePatternsMax))
	}
	for _, t := range f.Types {
		if t != "*" && !isEventType(strings.TrimSuffix(t, ".*")) {
			return invalid("types_invalid", "types", "name types such as user.created, user.* or *")
		}
	}
	// A folder has had fewer shards, never more: those that came later begin at their beginning.
	if len(f.After.seqs) > shards {
		return invalid("after_invalid", "after", "is not a position in these events")
	}
	return nil
}

// isEventType accepts dotted lower-case words, which are safe in a NATS subject.
func isEventType(s string) bool {
	if len(s) == 0 || len(s) > eventTypeMax {
		return false
	}
	for word := range strings.SplitSeq(s, ".") {
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
			return false
		}
	}
	return true
}

const eventTypeMax = 100 // bytes

// wants reports whether an event's type is one that the patterns name; none: any is.
func wants(patterns []string, t EventType) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return tenants.MatchType(p, string(t)) })
}

// whereWanted says the same in SQL, by comparisons, which cost a row next to nothing.
func whereWanted(patterns []string, args []any) (string, []any) {
	if len(patterns) == 0 || slices.Contains(patterns, "*") {
		return "", args
	}
	var either []string
	for _, p := range patterns {
		if family, ok := strings.CutSuffix(p, "*"); ok {
			either, args = append(either, `type > ? AND type < ?`), append(args, family, strings.TrimSuffix(family, ".")+"/") // which follows the dot
		} else {
			either, args = append(either, `type = ?`), append(args, p)
		}
	}
	return ` AND (` + strings.Join(either, ` OR `) + `)`, args
}

// EventPage is part of a tenant's events, oldest first. Each event comes with the position behind it.
type EventPage struct {
	Events []Event
	Behind []Position // by event
	Next   Position   // behind the page, also if it is empty
	More   bool       // there may be more behind it
}

// errEventsGone tells a reader whose position belongs to another life of the box.
var errEventsGone = &Error{Kind: Gone, Code: "events_gone", Field: "after",
	Message: "the box was restored from a backup since; begin without a position and leave out the ids that you know"}

// Events reads the tenant's events from the journals, which are the truth: in
// order for each user and record, merged by time over the shards. A shard out of
// service holds its events back, not those of others.
func (l *Ledger) Events(ctx context.Context, t tenants.ID, f EventFilter) (EventPage, error) {
	if err := f.normalise(len(l.parts)); err != nil {
		return EventPage{}, err
	}
	epoch := l.set.Manifest().Epoch
	if !l.stillHolds(f.After, epoch) {
		return EventPage{}, errEventsGone
	}
	at := Position{epoch, make([]uint64, len(l.parts))}
	copy(at.seqs, f.After.seqs)
	page := EventPage{}
	found := make([][]*Event, len(l.parts)) // by shard
	looked := slices.Clone(at.seqs)         // by shard: as far as found goes
	for i, p := range l.parts {
		if p.shard.Err() != nil || !p.verified.Load() {
			continue
		}
		head := p.journal.currentHead().seq
		if looked[i] = min(head, at.seqs[i]+eventScanMax); looked[i] <= at.seqs[i] {
			looked[i] = at.seqs[i]
			continue
		}
		var whole bool
		var err error
		if found[i], whole, err = l.eventsOf(ctx, p, t, at.seqs[i], looked[i], &f); err != nil {
			return EventPage{}, unavailable(err)
		}
		if n := len(found[i]); !whole {
			looked[i] = found[i][n-1].Seq
		}
		page.More = page.More || looked[i] < head
	}
	for len(page.Events) < f.Limit {
		next := -1
		for i, events := range found {
			if len(events) > 0 && (next < 0 || events[0].before(found[next][0])) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		e := found[next][0]
		found[next], at.seqs[next] = found[next][1:], e.Seq
		page.Events = append(page.Events, *e)
		page.Behind = append(page.Behind, Position{at.epoch, slices.Clone(at.seqs)})
	}
	for i, events := range found {
		if len(events) > 0 {
			page.More = true
		} else {
			at.seqs[i] = max(at.seqs[i], looked[i]) // nothing that is wanted stands before it
		}
	}
	page.Next = at
	return page, nil
}

// stillHolds reports whether what a reader has seen is what the journals hold up to there: a position of the epoch before does if it is not
// beyond what was taken over.
func (l *Ledger) stillHolds(at Position, epoch uint64) bool {
	if len(at.seqs) == 0 || at.epoch == epoch {
		return true
	}
	for i, seq := range at.seqs {
		if p := l.parts[i]; !p.verified.Load() {
			continue // nothing of it is shown now, and its place is kept
		} else if end, ok := p.endOf(at.epoch); !ok || seq > end {
			return false
		}
	}
	return true
}

// before orders events of different shards: by time, then by id.
func (e *Event) before(o *Event) bool {
	if c := e.OccurredAt.Compare(o.OccurredAt); c != 0 {
		return c < 0
	}
	return e.ID < o.ID
}

// eventsOf reads the tenant's rows after seq and not after upTo that f wants: up to one more than its limit, and up to eventBytesMax.
// whole says that there are no more.
func (l *Ledger) eventsOf(ctx context.Context, p *part, t tenants.ID, seq, upTo uint64, f *EventFilter) (events []*Event, whole bool, err error) {
	size := 0
	add := func(e *Event) (more bool) {
		events = append(events, e)
		size += len(e.Data)
		return len(events) <= f.Limit && size < eventBytesMax
	}
	if rows, known := p.journal.tail.after(seq, int(upTo-seq)); known {
		for _, e := range rows {
			if e.Tenant == t && wants(f.Types, e.Type) && !add(e) {
				return events, false, nil
			}
		}
		return events, true, nil
	}
	err = p.shard.View(ctx, func(tx *shards.Tx) error {
		types, args := whereWanted(f.Types, []any{int64(seq), int64(upTo), string(t)})
		rows, err := tx.Query(`SELECT `+journalColumns+` FROM journal WHERE seq > ? AND seq <= ? AND tenant = ?`+types+` ORDER BY seq LIMIT ?`, append(args, f.Limit+1)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e, err := scanEvent(rows, p.shard.ID())
			if err != nil {
				return err
			}
			if !add(&e) {
				return nil
			}
		}
		whole = true
		return rows.Err()
	})
	return events, whole, err
}

// RecordedAt is when the box wrote the event down; zero if only known to be after
// OccurredAt, as of events that arose outside the shards.
func (e *Event) RecordedAt() time.Time {
	if e.Type == JobFailed || e.Type == ConnectivityChanged || e.Type == ExposureHigh || e.Type == ReconciliationDifference {
		return time.Time{}
	}
	return e.OccurredAt
}

// Now is the position behind all events that are there.
func (l *Ledger) Now() Position {
	at := Position{l.set.Manifest().Epoch, make([]uint64, len(l.parts))}
	for i, p := range l.parts {
		at.seqs[i] = p.journal.currentHead().seq
	}
	return at
}

// Hear returns a channel that gets a value whenever the tenant may have new
// events: poke for speed, and look now and then for truth. leave ends it.
func (l *Ledger) Hear(t tenants.ID) (news <-chan struct{}, leave func()) {
	return l.hearers.join(t)
}

// tell wakes who hears the tenants of a durable group.
func (l *Ledger) tell(events []*Event) {
	if l.hearers.none() {
		return
	}
	var last tenants.ID
	for _, e := range events { // those of one tenant often follow each other, and twice is no harm
		if e.Tenant != last {
			last = e.Tenant
			l.hearers.wake(last)
		}
	}
}

// NewEvent is an event of an app's own.
type NewEvent struct {
	Type string
	Data []byte // JSON
}

// boxTypes begin the types of the box's own events; apps use others.
var boxTypes = []string{"user", "order", "payment", "refund", "connectivity", "job", "notification", "webhook", "reconciliation", "tenderbox"}

const eventDataMax = 1 << 20 // bytes; INTERFACE.md

func (n *NewEvent) validate() error {
	if !isEventType(n.Type) || !strings.Contains(n.Type, ".") {
		return invalid("type_invalid", "type", fmt.Sprintf("must be dotted lower-case words such as till.opened, at most %d bytes", eventTypeMax))
	}
	if word, _, _ := strings.Cut(n.Type, "."); slices.Contains(boxTypes, word) {
		return invalid("type_reserved", "type", "events that begin with "+word+". are the box's own")
	}
	if len(n.Data) > eventDataMax {
		return invalid("data_too_long", "data", fmt.Sprintf("at most %d bytes", eventDataMax))
	}
	v := jsontext.Value(n.Data)
	if err := v.Compact(); err != nil {
		return invalid("data_invalid", "data", "must be JSON")
	}
	if n.Data = v; jsonHoldsCard(v) {
		return cardData("data")
	}
	return nil
}

// Emit writes an event of an app's own, into a slot of its key's or any.
func (l *Ledger) Emit(ctx context.Context, t tenants.ID, key IdempotencyKey, n NewEvent) (Event, bool, error) {
	if n.Data == nil {
		n.Data = []byte("null")
	}
	if err := n.validate(); err != nil {
		return Event{}, false, err
	}
	return once(ctx, l, t, request[Event]{key: key, meaning: []string{"event", n.Type, string(n.Data)},
		read: func(ctx context.Context, id string) (Event, error) { return l.emitted(ctx, t, EventID(id)) },
		make: func(ctx context.Context, seen lookup) (Event, error) {
			return l.emit(ctx, t, key, seen, &n)
		}})
}

func (l *Ledger) emit(ctx context.Context, t tenants.ID, key IdempotencyKey, seen lookup, n *NewEvent) (Event, error) {
	now, slot := l.clock.now(), l.ids.randomSlot()
	if key != "" {
		slot = l.keys.slot(t, key)
	}
	e := &Event{ID: l.ids.event(now, slot), Tenant: t, Type: EventType(n.Type), Slot: slot, OccurredAt: now, Data: n.Data}
	e.Subject = string(e.ID)
	row := newKeyRow(t, key, recordID(e.ID), seen)
	err := l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		tx.Attach(e)
		return row.attach(tx)
	})
	l.keys.settled(row, err)
	if err != nil {
		return Event{}, err
	}
	return *e, nil
}

// emitted finds an event that is itself what a key made: an app's own, or the
// request for a notification. Only those are their own subject.
func (l *Ledger) emitted(ctx context.Context, t tenants.ID, id EventID) (e Event, err error) {
	u, ok := recordID(id).ulid()
	if !ok {
		return Event{}, notFound("event")
	}
	err = l.set.Shard(slotOf(u)).View(ctx, func(tx *shards.Tx) error {
		e, err = scanEvent(tx.QueryRow(`SELECT `+journalColumns+` FROM journal INDEXED BY journal_emitted WHERE tenant = ? AND id = ? AND subject = id`,
			string(t), string(id)), l.set.Shard(slotOf(u)).ID())
		return err
	})
	return e, found("event", err)
}
