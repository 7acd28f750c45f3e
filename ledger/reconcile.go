package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"

	"tenderbox/tenants"
	"tenderbox/upstream"
)

const (
	// reconcileMax bounds a comparison: a hundred thousand objects in a thousand pages, some of which have to wait for the processor.
	reconcileMax = 5 * time.Minute
	// reconciliationsMax comparisons run at a time, one of them a tenant's: each may hold reconcileObjectsMax in memory.
	reconciliationsMax = 3
	// reconcileObjectsMax of the tenant's objects are compared at once: some 25 MB. Who has more asks for a shorter span.
	reconcileObjectsMax = 100_000
	// reconcileMargin is how far beyond the span the processor's lists are read: what it made just before midnight was settled just
	// after, and the clocks do not agree to the second.
	reconcileMargin = windowMargin
	// reconcileLooksMax objects are asked for by their ids, because the list did not show them.
	reconcileLooksMax = 1000
)

// reconciling says whose comparisons are under way.
type reconciling struct {
	mu sync.Mutex // guards of
	of map[tenants.ID]bool
}

// begin takes one of the places.
func (r *reconciling) begin(t tenants.ID) (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.of[t]:
		return nil, &Error{Kind: Conflict, Code: "reconciliation_under_way", Message: "this tenant's ledger is being compared already; its result will stand in the list"}
	case len(r.of) >= reconciliationsMax:
		return nil, &Error{Kind: Unavailable, Code: "reconciliation_under_way", RetryAfter: earlyPause, Message: "as many comparisons are under way as the box makes at a time"}
	}
	r.of[t] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.of, t)
	}, nil
}

// Reconcile compares what the tenant's ledger has settled from the first instant up to, and without, the second with what the
// processor's lists show. It reads, and changes neither; what it found is kept. Zero times: yesterday, by the box's time zone. The longest span
// is counted in days of from's zone. A comparison that could not read everything is no error: it says so.
func (l *Ledger) Reconcile(ctx context.Context, t tenants.ID, from, to time.Time) (Reconciliation, error) {
	if from.IsZero() && to.IsZero() {
		from, to = DayOf(l.clock.now().In(l.o.Zone)).Add(-1).Span(l.o.Zone)
	}
	return l.reconcile(ctx, t, from, to, nil)
}

// Zone is the box's time zone: that of its days.
func (l *Ledger) Zone() *time.Location { return l.o.Zone }

// reconcile is Reconcile; day names a daily one.
func (l *Ledger) reconcile(ctx context.Context, t tenants.ID, from, to time.Time, day *string) (Reconciliation, error) {
	end, err := l.reconciling.begin(t)
	if err != nil {
		return Reconciliation{}, err
	}
	defer end()
	acc, err := l.reachable(t)
	if err != nil {
		return Reconciliation{}, err
	}
	// What was settled before this moment was there before it, and the lists are read after it.
	began := l.clock.now()
	if to.After(began) {
		to = began
	}
	switch {
	case !from.Before(to):
		return Reconciliation{}, invalid("time_range_invalid", "to", "must be later than from, and from must not lie in the future")
	case exceedDays(from, to, reconciliationSpanMax):
		return Reconciliation{}, invalid("time_range_invalid", "to", "at most 31 days after from")
	}
	c := &comparison{Ledger: l, t: t, acc: acc, owner: l.keys.ownerMark(t), alone: l.aloneOn(acc, t), records: map[string]*theirs{}, loose: map[string][]looseRefund{},
		r: &Reconciliation{Object: "reconciliation", From: from.UTC(), To: to.UTC(), Day: day, Account: acc.Name(), CreatedAt: began,
			Kinds: map[DifferenceKind]int64{}, Differences: []Difference{}}}
	limited, cancel := context.WithTimeout(ctx, reconcileMax)
	defer cancel()
	var gap *gap
	switch err := c.run(limited); {
	case ctx.Err() != nil:
		return Reconciliation{}, unavailable(ctx.Err()) // who asked has gone
	case limited.Err() != nil:
		c.incomplete("it took longer than five minutes")
	case errors.As(err, &gap):
		c.incomplete(gap.reason)
	case err != nil:
		return Reconciliation{}, unavailable(err)
	}
	switch {
	case c.r.Reason != nil:
		c.r.Status = Incomplete
	case c.r.Total > 0:
		c.r.Status = Different
	default:
		c.r.Status = Equal
	}
	c.r.EndedAt = l.clock.now()
	l.nameReconciliation(t, c.r)
	if err := l.tellDifferences(ctx, t, c.r); err != nil {
		return Reconciliation{}, unavailable(err)
	}
	if err := l.keepReconciliation(ctx, t, c.r); err != nil {
		return Reconciliation{}, err
	}
	return *c.r, l.alarmDifferences(ctx, t)
}

// reachable returns the tenant's account, if it can be asked now.
func (l *Ledger) reachable(t tenants.ID) (*upstream.Account, error) {
	acc := l.accountOf(t)
	if acc == nil {
		return nil, &Error{Kind: Conflict, Code: "upstream_unconfigured", Message: "there is no line to a processor whose lists could be compared"}
	}
	if acc.Ready() {
		return acc, nil
	}
	why := "the processor asked to wait, or refuses the box: see the alarms in the status"
	if link := acc.Link(); link.State == upstream.Offline {
		why = "the line to the processor is offline: " + link.Evidence
	} else if acc.Breaker().State != upstream.BreakerClosed {
		why = "the breaker of the line to the processor is open: it does not answer as it should"
	}
	return nil, &Error{Kind: Unavailable, Code: "upstream_unreachable", RetryAfter: earlyPause, Message: "nothing can be compared now: " + why}
}

// aloneOn reports whether no other tenant of the box uses the account.
func (l *Ledger) aloneOn(acc *upstream.Account, t tenants.ID) bool {
	for _, other := range l.tenants.List() {
		if other.ID != t && l.account(&other) == acc {
			return false
		}
	}
	return true
}

// gap is why not everything could be read.
type gap struct{ reason string }

func (g *gap) Error() string { return g.reason }

// theirs is an object of the processor's that names a record of a box; a charge of an intent is the intent.
type theirs struct {
	Side
	id     string
	pay    string  // the payment that it names
	inside bool    // made within the span, not only within its margins
	marked bool    // it bears the mark of some box's tenant
	mine   bool    // this tenant's
	next   *theirs // another for the same record
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

// comparison is one under way.
type comparison struct {
	*Ledger
	t       tenants.ID
	acc     *upstream.Account
	owner   string                   // the tenant's mark
	alone   bool                     // no other tenant uses the account
	records map[string]*theirs       // by the record that they name
	loose   map[string][]looseRefund // by the charge or the intent
	given   []givenBack
	kept    int // objects in memory
	looks   int // objects that were asked for by their ids
	r       *Reconciliation
}

func (c *comparison) incomplete(reason string) { c.r.Reason = &reason }

// run compares. A gap ends it.
func (c *comparison) run(ctx context.Context) error {
	// Intents before charges: a charge of an intent that was seen says nothing new. Refunds first of all: what they give back passes by later.
	var first error
	for _, path := range []string{upstream.PathRefunds, upstream.PathIntents, upstream.PathCharges} {
		if first = c.sweep(ctx, path); first != nil {
			break
		}
	}
	// What was seen stands, also if not all was.
	if err := c.judgeSeen(ctx); err != nil {
		return err
	}
	if first != nil {
		return first
	}
	return cmp.Or(c.judgeSettled(ctx), c.judgeLoose(ctx))
}

// sweep reads a collection over the span and its margins.
func (c *comparison) sweep(ctx context.Context, path string) error {
	from, to := c.r.From.Add(-reconcileMargin), c.r.To.Add(reconcileMargin)
	full, n := false, 0
	s, answer := c.acc.Sweep(ctx, path, url.Values{"created[lte]": {strconv.FormatInt(to.Unix(), 10)}}, from, func(o upstream.Object) bool {
		n++
		full = n > sweepObjectsMax
		if !full && o.Created <= to.Unix() { // else it heeds no window
			full = !c.see(path, &o)
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
func (c *comparison) see(path string, o *upstream.Object) bool {
	at := time.Unix(o.Created, 0) // whole seconds: one that the span cuts lies within it
	inside := !at.Before(c.r.From.Truncate(time.Second)) && at.Before(c.r.To)
	seen := &theirs{Side: Side{o.Amount, o.Currency, o.Status}, id: o.ID, inside: inside, pay: o.Metadata[markPayment]}
	if mark := o.Metadata[markOwner]; mark != "" {
		seen.marked, seen.mine = true, mark == c.owner
	}
	record := seen.pay
	_, ours := ParsePaymentID(record)
	if path == upstream.PathRefunds {
		record = o.Metadata[markRefund]
		if _, ours = ParseRefundID(record); !ours {
			return !inside || c.setLoose(o, seen)
		}
		return c.note(record, seen)
	}
	if seen.id = cmp.Or(o.PaymentIntent, o.ID); !ours {
		if seen.id == o.ID { // what is not marked and an intent's may be another's or not: the intent tells
			c.disown(seen.id, inside)
		}
		return true
	}
	c.assign(seen.id, seen.pay)
	return c.note(record, seen)
}

// note keeps an object that names a record.
func (c *comparison) note(record string, seen *theirs) bool {
	for s := c.records[record]; s != nil; s = s.next {
		if s.id != seen.id {
			continue
		}
		// An intent and a charge of its, or two of them, of which at most one succeeds.
		if seen.succeeded() && !s.succeeded() && s.Status != "canceled" {
			s.Side, s.inside = seen.Side, s.inside || seen.inside
		}
		return true
	}
	if c.kept++; c.kept > reconcileObjectsMax {
		return false
	}
	seen.next = c.records[record]
	c.records[record] = seen
	return true
}

// setLoose keeps a refund that bears no refund's mark until it is known whose charge it gives back.
func (c *comparison) setLoose(o *upstream.Object, seen *theirs) bool {
	if !seen.moves() {
		return true // nothing was given back
	}
	if c.kept++; c.kept > reconcileObjectsMax {
		return false
	}
	of := cmp.Or(o.PaymentIntent, o.Charge)
	c.loose[of] = append(c.loose[of], looseRefund{seen.Side, o.ID, upstream.PathCharges})
	if o.PaymentIntent != "" {
		c.loose[of][len(c.loose[of])-1].path = upstream.PathIntents
	}
	return true
}

// assign says whose payment the loose refunds of a charge or an intent give back.
func (c *comparison) assign(id, payment string) {
	for _, refund := range c.loose[id] {
		c.given = append(c.given, givenBack{refund, payment})
	}
	delete(c.loose, id)
}

// disown counts a charge or an intent that is no box's, and the refunds of it.
func (c *comparison) disown(id string, inside bool) {
	if inside {
		c.r.Foreign++
	}
	c.r.Foreign += int64(len(c.loose[id]))
	delete(c.loose, id)
}
