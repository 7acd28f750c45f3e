package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"tenderbox/tenants"
	"tenderbox/upstream"
)

// theirs is an object of the processor's that names a record of a box; a charge of an intent is the intent.
type theirs struct {
	Side
	id     string
	pay    string     // the payment that it names
	inside bool       // made within the span, not only within its margins
	marked bool       // it bears the mark of some box's tenant
	owner  tenants.ID // who that is, if one of those that are compared
	next   *theirs    // another for the same record
}

// succeeded: money moved.
func (s *theirs) succeeded() bool { return s.Status == "succeeded" }

// moves: it did, or may yet without anybody's doing anything.
func (s *theirs) moves() bool {
	return s.succeeded() || s.Status == "pending" || s.Status == "processing"
}

// looseRefund is a refund that names no refund of a box.
type looseRefund struct {
	Side
	id   string
	path string // where what it gives back is found
}

// givenBack is one of a payment.
type givenBack struct {
	looseRefund
	payment string
}

// lists is what the processor's lists show of one account over a span and its margins. It is read once, and held against the books of each
// tenant that is compared over the span. It knows nothing of their books.
type lists struct {
	acc     *upstream.Account
	from    time.Time // of the span
	to      time.Time // after it
	began   time.Time
	owners  map[string]tenants.ID    // by the marks of those that are compared
	records map[string]*theirs       // by the record that they name
	loose   map[string][]looseRefund // by the charge or the intent
	given   []givenBack
	foreign int64 // objects made in the span that bear no box's mark
	kept    int   // objects in memory
	gap     *gap  // why not all of it was read; nil: it was
	leave   func()
}

// readLists reads the account's lists for those tenants, who share it. It takes one of the box's places, which the caller gives back (leave).
func (l *Ledger) readLists(ctx context.Context, acc *upstream.Account, from, to time.Time, ts ...tenants.ID) (*lists, error) {
	if err := reachable(acc); err != nil {
		return nil, err
	}
	// What was settled before this moment was there before it, and the lists are read after it.
	began := l.clock.now()
	if to.After(began) {
		to = began
	}
	switch {
	case !from.Before(to):
		return nil, invalid("time_range_invalid", "to", "must be later than from, and from must not lie in the future")
	case exceedDays(from, to, reconciliationSpanMax):
		return nil, invalid("time_range_invalid", "to", "at most 31 days after from")
	}
	leave, err := l.reconciling.enter()
	if err != nil {
		return nil, err
	}
	ls := &lists{acc: acc, from: from.UTC(), to: to.UTC(), began: began, owners: map[string]tenants.ID{}, records: map[string]*theirs{},
		loose: map[string][]looseRefund{}, leave: leave}
	for _, t := range ts {
		ls.owners[l.keys.ownerMark(t)] = t
	}
	// Intents before charges: a charge of an intent that was seen says nothing new. Refunds first of all: what they give back passes by later.
	for _, path := range []string{upstream.PathRefunds, upstream.PathIntents, upstream.PathCharges} {
		if err := ls.sweep(ctx, path); err != nil {
			if err := ended(ctx, err); !errors.As(err, &ls.gap) {
				leave()
				return nil, err
			}
			break
		}
	}
	return ls, nil
}

// sweep reads a collection over the span and its margins.
func (ls *lists) sweep(ctx context.Context, path string) error {
	from, to := ls.from.Add(-reconcileMargin), ls.to.Add(reconcileMargin)
	full, n := false, 0
	s, answer := ls.acc.Sweep(ctx, path, url.Values{"created[lte]": {strconv.FormatInt(to.Unix(), 10)}}, from, func(o upstream.Object) bool {
		n++
		full = n > sweepObjectsMax
		if !full && o.Created <= to.Unix() { // else it heeds no window
			full = !ls.see(path, &o)
		}
		return !full
	})
	switch {
	case full:
		return &gap{fmt.Sprintf("there are more than %d objects: ask for a shorter span", reconcileObjectsMax)}
	case !s.Complete:
		return &gap{fmt.Sprintf("the processor's list %s could not be read whole: %s", path, answer.Reason)}
	}
	return nil
}

// see notes an object. false: there is no room for it.
func (ls *lists) see(path string, o *upstream.Object) bool {
	at := time.Unix(o.Created, 0) // whole seconds: one that the span cuts lies within it
	inside := !at.Before(ls.from.Truncate(time.Second)) && at.Before(ls.to)
	seen := &theirs{Side: Side{o.Amount, o.Currency, o.Status}, id: o.ID, inside: inside, pay: o.Metadata[markPayment]}
	if mark := o.Metadata[markOwner]; mark != "" {
		seen.marked, seen.owner = true, ls.owners[mark]
	}
	record := seen.pay
	_, ours := ParsePaymentID(record)
	if path == upstream.PathRefunds {
		record = o.Metadata[markRefund]
		if _, ours = ParseRefundID(record); !ours {
			return !inside || ls.setLoose(o, seen)
		}
		return ls.note(record, seen)
	}
	if seen.id = cmp.Or(o.PaymentIntent, o.ID); !ours {
		if seen.id == o.ID { // what is not marked and an intent's may be another's or not: the intent tells
			ls.disown(seen.id, inside)
		}
		return true
	}
	ls.assign(seen.id, seen.pay)
	return ls.note(record, seen)
}

// note keeps an object that names a record.
func (ls *lists) note(record string, seen *theirs) bool {
	for s := ls.records[record]; s != nil; s = s.next {
		if s.id != seen.id {
			continue
		}
		// An intent and a charge of its, or two of them, of which at most one succeeds.
		if seen.succeeded() && !s.succeeded() && s.Status != "canceled" {
			s.Side, s.inside = seen.Side, s.inside || seen.inside
		}
		return true
	}
	if ls.kept++; ls.kept > reconcileObjectsMax {
		return false
	}
	seen.next = ls.records[record]
	ls.records[record] = seen
	return true
}

// setLoose keeps a refund that bears no refund's mark until it is known whose charge it gives back.
func (ls *lists) setLoose(o *upstream.Object, seen *theirs) bool {
	if !seen.moves() {
		return true // nothing was given back
	}
	if ls.kept++; ls.kept > reconcileObjectsMax {
		return false
	}
	of := cmp.Or(o.PaymentIntent, o.Charge)
	ls.loose[of] = append(ls.loose[of], looseRefund{seen.Side, o.ID, upstream.PathCharges})
	if o.PaymentIntent != "" {
		ls.loose[of][len(ls.loose[of])-1].path = upstream.PathIntents
	}
	return true
}

// assign says whose payment the loose refunds of a charge or an intent give back.
func (ls *lists) assign(id, payment string) {
	for _, refund := range ls.loose[id] {
		ls.given = append(ls.given, givenBack{refund, payment})
	}
	delete(ls.loose, id)
}

// disown counts a charge or an intent that is no box's, and the refunds of it.
func (ls *lists) disown(id string, inside bool) {
	if inside {
		ls.foreign++
	}
	ls.foreign += int64(len(ls.loose[id]))
	delete(ls.loose, id)
}
