package ledger

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/tenants"
	"tenderbox/upstream"
)

// ReconciliationDifference is told when a daily comparison with the processor's lists has found differences.
const ReconciliationDifference EventType = "reconciliation.difference"

const (
	// dailyLook spaces looks whether a day's comparison is due.
	dailyLook = time.Minute
	// dailyAfter midnight the day is compared: what was on its way then has come.
	dailyAfter = 30 * time.Minute
	// dailyCalm is how long the line must have been there: after an outage, what is in doubt is found out first.
	dailyCalm = 15 * time.Minute
	// dailyRetry spaces the tries of a day that could not be compared or not be read whole: each may read the processor's lists anew.
	dailyRetry = time.Hour
	// dailyBackMax days are caught up with after an outage; the lists of a month are read in minutes.
	dailyBackMax = 31
	// differenceAlarmFor is how long the alarm of a difference stands that no later comparison of its span has found gone: a person
	// cannot undo every difference, and a week is long enough to have read of it.
	differenceAlarmFor = 7 * 24 * time.Hour
)

// daily compares each tenant's days with the processor's lists, each day once.
type daily struct {
	*Ledger
	done  map[tenants.ID]string           // the last day that is done, or has nothing to be done
	tried map[tenants.ID]time.Time        // when a day could not be compared, or not be read whole
	ready map[*upstream.Account]time.Time // since when an account could be asked whenever it was looked at
}

func newDaily(l *Ledger) *daily {
	return &daily{l, map[tenants.ID]string{}, map[tenants.ID]time.Time{}, map[*upstream.Account]time.Time{}}
}

// reconcileDaily works until ctx ends. What is done stands in the shards, so that a start goes on where the process before was.
func (l *Ledger) reconcileDaily(ctx context.Context) error {
	d := newDaily(l)
	for {
		d.round(ctx)
		if pause(ctx, dailyLook) != nil {
			return nil
		}
	}
}

// round looks after every tenant. What goes wrong with one is tried again in the next.
func (d *daily) round(ctx context.Context) {
	var all []tenants.ID
	for _, t := range d.tenants.List() {
		all = append(all, t.ID)
	}
	for t, err := range d.look(ctx, all...) {
		if ctx.Err() == nil {
			d.log.Warn("a day is not reconciled yet", "tenant", string(t), "err", err)
		}
	}
}

// look compares those tenants' days that are due, oldest first; those who share an account share the reading of its lists. After whatever
// went wrong with one of them, it waits before it tries that one again.
func (d *daily) look(ctx context.Context, ts ...tenants.ID) (failed map[tenants.ID]error) {
	now := d.clock.now()
	last := DayOf(now.Add(-dailyAfter).In(d.o.Zone)).Add(-1)
	failed = map[tenants.ID]error{}
	fail := func(t tenants.ID, err error) { failed[t], d.tried[t] = err, now }
	owed := map[*upstream.Account]map[tenants.ID]Day{} // the first day that is due
	for _, t := range ts {
		acc := d.accountOf(t)
		calm := d.calm(acc, now) // always: it must not miss an outage of which it asks
		if d.done[t] == last.String() || now.Sub(d.tried[t]).Abs() < dailyRetry {
			continue
		}
		first, err := d.owes(ctx, t, last, calm)
		switch {
		case err != nil:
			fail(t, err)
		case calm:
			if owed[acc] == nil {
				owed[acc] = map[tenants.ID]Day{}
			}
			owed[acc][t] = first
		}
	}
	for acc, first := range owed {
		whole := maps.Clone(first)
		for back := dailyBackMax - 1; back >= 0; back-- {
			day := last.Add(-back)
			var with []tenants.ID
			for t, from := range first {
				if failed[t] == nil && !day.Before(from) {
					with = append(with, t)
				}
			}
			for t, err := range d.compareDay(ctx, acc, day, with) {
				if delete(whole, t); err != nil {
					fail(t, err)
				}
			}
		}
		for t := range first {
			if _, ok := whole[t]; ok {
				d.done[t] = last.String()
			}
			if failed[t] == nil {
				if err := d.alarmDifferences(ctx, t); err != nil { // the oldest have had their time
					fail(t, err)
				}
			}
		}
	}
	return failed
}

// compareDay compares the day of tenants who share an account. It returns those of whom it could not be done, or not be read whole (nil).
func (d *daily) compareDay(ctx context.Context, acc *upstream.Account, day Day, ts []tenants.ID) (short map[tenants.ID]error) {
	short = map[tenants.ID]error{}
	from, to := day.Span(d.o.Zone)
	if len(ts) == 0 || !from.Before(to) { // the zone's calendar left it out
		return short
	}
	slices.Sort(ts)
	reading, cancel := withinReconcileMax(ctx)
	defer cancel()
	ls, err := d.readLists(reading, acc, from, to, ts...)
	if err != nil {
		for _, t := range ts {
			short[t] = err
		}
		return short
	}
	defer ls.leave()
	for _, t := range ts {
		r, err := d.compareWith(ctx, ls, t, day.String())
		switch {
		case err != nil:
			short[t] = err
		case r.Status == Incomplete:
			short[t], d.tried[t] = nil, r.CreatedAt
			d.log.Warn("a day could not be reconciled whole and is tried again later", "tenant", string(t), "day", day.String(), "reason", *r.Reason)
		}
	}
	return short
}

// compareWith compares one tenant's day, for which it has as long as one that is asked for.
func (d *daily) compareWith(ctx context.Context, ls *lists, t tenants.ID, day string) (Reconciliation, error) {
	end, err := d.reconciling.begin(t)
	if err != nil {
		return Reconciliation{}, err
	}
	defer end()
	limited, cancel := withinReconcileMax(ctx)
	defer cancel()
	return d.compare(ctx, limited, ls, t, &day)
}

// calm reports whether the account can be asked, has been for a while, and agrees with the box about the time: else nobody knows what
// yesterday is.
func (d *daily) calm(acc *upstream.Account, now time.Time) bool {
	if acc == nil {
		return false
	}
	if !acc.Ready() {
		delete(d.ready, acc)
		return false
	}
	if d.ready[acc].IsZero() {
		d.ready[acc] = now
	}
	theirs := acc.Clock()
	if now.Sub(d.ready[acc]) < dailyCalm {
		return false
	}
	return !theirs.IsZero() && theirs.Sub(now).Abs() < dailyCalm
}

// owes is the first day that is due, once the account is calm: the one after the latest of which a whole comparison was made, or the last.
func (d *daily) owes(ctx context.Context, t tenants.ID, last Day, calm bool) (first Day, err error) {
	if _, known := d.done[t]; !known { // a start has forgotten the alarms
		if err := d.alarmDifferences(ctx, t); err != nil {
			return last, err
		}
		d.done[t] = ""
	}
	if !calm {
		return last, nil
	}
	kept, err := d.readReconciliations(ctx, t, afterReconciliations, 2*reconciliationsKept)
	if err != nil {
		return last, err
	}
	for _, r := range kept { // the newest stands first
		if r.Day == nil || r.Status == Incomplete {
			continue
		}
		if day, ok := ParseDay(*r.Day); ok {
			return day.Add(1), nil
		}
		break
	}
	return last, nil
}

// differenceData is the data of [ReconciliationDifference].
type differenceData struct {
	ID     ReconciliationID         `json:"reconciliation_id"`
	Status ReconciliationStatus     `json:"status"`
	Day    string                   `json:"day"`
	From   time.Time                `json:"from"`
	To     time.Time                `json:"to"`
	Total  int64                    `json:"differences_total"`
	Kinds  map[DifferenceKind]int64 `json:"kinds"`
}

// tellDifferences enqueues the event of a daily comparison that has found differences. The job's id follows from the day, so that one made
// again after a crash tells nothing again. Who asks for a comparison has its answer, and nothing is told.
func (l *Ledger) tellDifferences(ctx context.Context, t tenants.ID, r *Reconciliation) error {
	if r.Day == nil || r.Total == 0 {
		return nil
	}
	data, err := json.Marshal(differenceData{r.ID, r.Status, *r.Day, r.From, r.To, r.Total, r.Kinds}, json.Deterministic(true))
	if err != nil {
		return err
	}
	_, err = l.jobs.Enqueue(ctx, recordLater(string(t), "reconciliation_"+*r.Day+"_"+string(r.Status),
		recordJob{ReconciliationDifference, string(r.ID), l.clock.now(), data}))
	if err != nil {
		return fmt.Errorf("tell of differences: %w", err)
	}
	return nil
}

// alarmDifferences raises or clears the tenant's alarm by what is kept: a difference that a daily comparison has found stands until a later
// one over its span, however that came about, finds none, or its time is over.
func (l *Ledger) alarmDifferences(ctx context.Context, t tenants.ID) error {
	kept, err := l.readReconciliations(ctx, t, afterReconciliations, 2*reconciliationsKept)
	if err != nil {
		return err
	}
	k := alarmKey{tenant: t, code: "reconciliation_difference"}
	for _, r := range kept {
		if r.Day != nil && r.Total > 0 && l.clock.now().Sub(r.CreatedAt) < differenceAlarmFor && !settledSince(&r, kept) {
			l.raise(k, fmt.Sprintf("of %s: the ledger and the processor differ in %d points: `tenderbox reconcile` or /api/v1/reconciliations/%s tells which", *r.Day, r.Total, r.ID))
			return nil
		}
	}
	l.alarms.clear(k)
	return nil
}

// settledSince reports whether a comparison made later over the span, or more, has found nothing.
func settledSince(r *Reconciliation, kept []Reconciliation) bool {
	for i := range kept {
		o := &kept[i]
		if o.Status == Equal && o.CreatedAt.After(r.CreatedAt) && !o.From.After(r.From) && !o.To.Before(r.To) {
			return true
		}
	}
	return false
}
