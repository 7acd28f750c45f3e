package ledger

import (
	"context"
	"fmt"
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
	// dailyRetry spaces the tries of a day that could not be read whole.
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
	tried map[tenants.ID]time.Time        // when a day could not be read whole
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
	for _, t := range d.tenants.List() {
		if err := d.look(ctx, t.ID); err != nil && ctx.Err() == nil {
			d.log.Warn("a day is not reconciled yet", "tenant", string(t.ID), "err", err)
		}
	}
}

// look compares the tenant's days that are due, oldest first.
func (d *daily) look(ctx context.Context, t tenants.ID) error {
	now := d.clock.now()
	y, m, day := now.In(d.o.Zone).Add(-dailyAfter).Date()
	last := time.Date(y, m, day-1, 0, 0, 0, 0, d.o.Zone)
	if d.done[t] == last.Format(time.DateOnly) {
		return nil
	}
	if _, known := d.done[t]; !known { // a start has forgotten the alarms
		if err := d.alarmDifferences(ctx, t); err != nil {
			return err
		}
		d.done[t] = ""
	}
	if !d.calm(d.accountOf(t), now) || now.Sub(d.tried[t]).Abs() < dailyRetry {
		return nil
	}
	due, err := d.due(ctx, t, last)
	if err != nil {
		return err
	}
	whole := true
	for _, at := range due {
		from, to := d.dayOf(at)
		name := at.Format(time.DateOnly)
		r, err := d.reconcile(ctx, t, from, to, &name)
		if err != nil {
			return err
		}
		if r.Status == Incomplete {
			d.tried[t], whole = now, false
			d.log.Warn("a day could not be reconciled whole and is tried again later", "tenant", string(t), "day", name, "reason", *r.Reason)
		}
	}
	if whole {
		d.done[t] = last.Format(time.DateOnly)
	}
	return d.alarmDifferences(ctx, t) // the oldest have had their time
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

// due lists the days up to the last that no whole comparison has been made of since the latest of which one was; of a tenant without any, the last.
func (d *daily) due(ctx context.Context, t tenants.ID, last time.Time) (days []time.Time, err error) {
	kept, err := d.readReconciliations(ctx, t, afterReconciliations, 2*reconciliationsKept)
	if err != nil {
		return nil, err
	}
	first := last
	for _, r := range kept {
		if r.Day == nil || r.Status == Incomplete {
			continue
		}
		if day, err := time.ParseInLocation(time.DateOnly, *r.Day, d.o.Zone); err == nil {
			y, m, n := day.Date()
			first = time.Date(y, m, n+1, 0, 0, 0, 0, d.o.Zone)
		}
		break // the newest stands first
	}
	y, m, n := last.Date()
	if bound := time.Date(y, m, n-dailyBackMax+1, 0, 0, 0, 0, d.o.Zone); first.Before(bound) {
		first = bound
	}
	for at := first; !at.After(last); {
		days = append(days, at)
		_, at = d.dayOf(at)
	}
	return days, nil
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
