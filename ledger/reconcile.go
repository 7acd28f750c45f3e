package ledger

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"tenderbox/tenants"
	"tenderbox/upstream"
)

const (
	// reconcileMax bounds a comparison: a hundred thousand objects in a thousand pages, some of which have to wait for the processor.
	reconcileMax = 5 * time.Minute
	// reconciliationsMax readings are held at a time: each may have reconcileObjectsMax in memory.
	reconciliationsMax = 3
	// reconcileObjectsMax of an account's objects are compared at once: some 25 MB. Who has more asks for a shorter span.
	reconcileObjectsMax = 100_000
	// reconcileMargin is how far beyond the span the processor's lists are read: what it made just before midnight was settled just
	// after, and the clocks do not agree to the second.
	reconcileMargin = windowMargin
	// reconcileLooksMax objects are asked for by their ids, because the list did not show them.
	reconcileLooksMax = 1000
)

// reconciling says whose comparisons are under way.
type reconciling struct {
	mu     sync.Mutex // guards what follows
	of     map[tenants.ID]bool
	places int // that are taken
}

// begin sees to it that the tenant is compared once at a time.
func (r *reconciling) begin(t tenants.ID) (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of[t] {
		return nil, &Error{Kind: Conflict, Code: "reconciliation_under_way", Message: "this tenant's ledger is being compared already; its result will stand in the list"}
	}
	r.of[t] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.of, t)
	}, nil
}

// enter takes one of the places of those that hold a reading in memory.
func (r *reconciling) enter() (leave func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.places >= reconciliationsMax {
		return nil, &Error{Kind: Unavailable, Code: "reconciliation_under_way", RetryAfter: earlyPause, Message: "as many comparisons are under way as the box makes at a time"}
	}
	r.places++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.places--
	}, nil
}

// Reconcile compares what the tenant's ledger has settled from the first instant up to, and without, the second with what the
// processor's lists show. It reads, and changes neither; what it found is kept. Zero times: yesterday, by the box's time zone. The longest span
// is counted in days of from's zone. A comparison that could not read everything is no error: it says so.
func (l *Ledger) Reconcile(ctx context.Context, t tenants.ID, from, to time.Time) (Reconciliation, error) {
	if from.IsZero() && to.IsZero() {
		from, to = DayOf(l.clock.now().In(l.o.Zone)).Add(-1).Span(l.o.Zone)
	}
	end, err := l.reconciling.begin(t)
	if err != nil {
		return Reconciliation{}, err
	}
	defer end()
	limited, cancel := withinReconcileMax(ctx)
	defer cancel()
	ls, err := l.readLists(limited, l.accountOf(t), from, to, t)
	if err != nil {
		return Reconciliation{}, unavailable(err)
	}
	defer ls.leave()
	return l.compare(ctx, limited, ls, t, nil)
}

// Zone is the box's time zone: that of its days.
func (l *Ledger) Zone() *time.Location { return l.o.Zone }

// withinReconcileMax bounds the work on a comparison.
func withinReconcileMax(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, reconcileMax, &gap{"it took longer than five minutes"})
}

// ended is the reason for which work that failed has ended: that its time was over, if it was.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// compare holds the tenant's books against what was read, within the limited context, and keeps what is found; day names a daily comparison.
func (l *Ledger) compare(ctx, limited context.Context, ls *lists, t tenants.ID, day *string) (Reconciliation, error) {
	c := &comparison{Ledger: l, lists: ls, t: t, alone: l.aloneOn(ls.acc, t), r: &Reconciliation{Object: "reconciliation", From: ls.from, To: ls.to, Day: day,
		Account: ls.acc.Name(), CreatedAt: ls.began, Kinds: map[DifferenceKind]int64{}, Differences: []Difference{}}}
	err := ended(limited, c.run(limited))
	c.r.Foreign = ls.foreign
	var gap *gap
	switch {
	case errors.As(err, &gap):
		c.r.Status, c.r.Reason = Incomplete, &gap.reason
	case err != nil:
		return Reconciliation{}, unavailable(err)
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

// reachable reports why an account cannot be asked now.
func reachable(acc *upstream.Account) error {
	if acc == nil {
		return &Error{Kind: Conflict, Code: "upstream_unconfigured", Message: "there is no line to a processor whose lists could be compared"}
	}
	if acc.Ready() {
		return nil
	}
	why := "the processor asked to wait, or refuses the box: see the alarms in the status"
	if link := acc.Link(); link.State == upstream.Offline {
		why = "the line to the processor is offline: " + link.Evidence
	} else if acc.Breaker().State != upstream.BreakerClosed {
		why = "the breaker of the line to the processor is open: it does not answer as it should"
	}
	return &Error{Kind: Unavailable, Code: "upstream_unreachable", RetryAfter: earlyPause, Message: "nothing can be compared now: " + why}
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

// comparison is one of a tenant, under way.
type comparison struct {
	*Ledger
	*lists
	t     tenants.ID
	alone bool // no other tenant uses the account
	looks int  // objects that were asked for by their ids
	r     *Reconciliation
}

// run compares. A gap ends it.
func (c *comparison) run(ctx context.Context) error {
	// What was seen stands, also if not all was.
	if err := c.judgeSeen(ctx); err != nil {
		return err
	}
	if c.gap != nil {
		return c.gap
	}
	return cmp.Or(c.judgeSettled(ctx), c.judgeLoose(ctx))
}
