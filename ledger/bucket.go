package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// Bucket is the step of time by which analytics are asked for.
type Bucket string

// The buckets. A day is a calendar day of the zone, of 23 or 25 hours when its clocks change.
const (
	ByHour Bucket = "hour"
	ByDay  Bucket = "day"
)

const (
	hourSpanMax = 31  // days; a month: 744 buckets of each currency, and one more when clocks go back
	daySpanMax  = 366 // days; a year and a leap day
	// bucketRowsMax bounds an answer to some megabytes: one currency fills a few
	// hundred, and who trades in a hundred asks for less at a time.
	bucketRowsMax = 10_000
)

// span returns the bucket that t, a time of some zone, lies in.
func (b Bucket) span(t time.Time) (start, end time.Time) {
	if b == ByHour {
		start = t.Add(-time.Duration(t.Minute())*time.Minute - time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
		return start, start.Add(time.Hour)
	}
	return DayOf(t).Span(t.Location())
}

// AnalyticsQuery asks for sums.
type AnalyticsQuery struct {
	Nouns    []Noun
	Bucket   Bucket
	From, To time.Time      // without To; widened to whole buckets
	Zone     *time.Location // whose hours and days; nil: UTC
}

// widen validates the query and makes its span whole buckets.
func (q *AnalyticsQuery) widen() error {
	spanMax := daySpanMax
	switch q.Bucket {
	case ByDay:
	case ByHour:
		spanMax = hourSpanMax
	default:
		return invalid("bucket_invalid", "bucket", "must be hour or day")
	}
	if q.Zone == nil {
		q.Zone = time.UTC
	}
	if !q.From.Before(q.To) {
		return invalid("time_range_invalid", "to", "must be later than from")
	}
	if exceedDays(q.From.In(q.Zone), q.To, spanMax) {
		return invalid("time_range_invalid", "to", fmt.Sprintf("by the %s at most %d days after from", q.Bucket, spanMax))
	}
	start, _ := q.Bucket.span(q.From.In(q.Zone))
	last, end := q.Bucket.span(q.To.In(q.Zone))
	if q.From = start; !last.Equal(q.To) {
		q.To = end
	}
	q.From, q.To = q.From.UTC(), q.To.UTC()
	return nil
}

// AnalyticsRow sums one bucket and currency.
type AnalyticsRow struct {
	Start    time.Time // the bucket's first instant
	Currency string    // "" of users
	Tallies  map[EventType]Tally
}

// Sums is an answer. Buckets in which nothing happened are left out.
type Sums struct {
	From, To time.Time
	Rows     []AnalyticsRow // by start, then currency
	Lag      Lag
}

// Lag says how far the sums are behind the tenant's events.
type Lag struct {
	// EventsBehind is how many of the tenant's events are not counted yet; at least so many if AsOf is nil.
	EventsBehind int64 `json:"events_behind"`
	// AsOf is the time up to which every event is counted; nil while the sums are still being filled or a shard is out of service.
	AsOf *time.Time `json:"as_of"`
}

// Sums answers a query about the tenant.
func (a *Analytics) Sums(ctx context.Context, t tenants.ID, q AnalyticsQuery) (Sums, error) {
	if err := q.widen(); err != nil {
		return Sums{}, err
	}
	file, err := a.current()
	if err != nil {
		return Sums{}, err
	}
	leave, err := a.enter(ctx, t)
	if err != nil {
		return Sums{}, err
	}
	defer leave()
	out := Sums{From: q.From, To: q.To}
	var cursors []head
	err = file.View(ctx, func(tx *shards.Tx) (err error) {
		if cursors, err = readCursors(tx, len(a.l.parts)); err != nil {
			return err
		}
		for _, noun := range q.Nouns {
			if err := q.read(tx, t, noun, &out); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Sums{}, outOfService(err)
	}
	// After the sums: what happens meanwhile makes the lag too large, never too small.
	out.Lag = a.lag(ctx, t, cursors)
	slices.SortFunc(out.Rows, func(x, y AnalyticsRow) int {
		if c := x.Start.Compare(y.Start); c != 0 {
			return c
		}
		return strings.Compare(x.Currency, y.Currency)
	})
	return out, nil
}

// enter waits for the tenant's turn: one that asks for many years at once waits for
// itself, and others do not.
func (a *Analytics) enter(ctx context.Context, t tenants.ID) (leave func(), err error) {
	v, _ := a.turns.LoadOrStore(t, make(chan struct{}, 1))
	turn := v.(chan struct{})
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// outOfService puts an error of the file into words for the caller.
func outOfService(err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	e := *errAnalytics
	e.Cause = err
	return &e
}

// read adds one noun's sums to out.
func (q *AnalyticsQuery) read(tx *shards.Tx, t tenants.ID, noun Noun, out *Sums) error {
	type bucketOf struct {
		start    time.Time
		currency string
	}
	at := map[bucketOf]int{} // index of rows
	for i, r := range out.Rows {
		at[bucketOf{r.Start, r.Currency}] = i
	}
	rows, err := tx.Query(`SELECT slice, currency, what, count, amount FROM tallies WHERE tenant = ? AND noun = ? AND slice >= ? AND slice < ?`,
		string(t), string(noun), int64(sliceFrom(q.From)), int64(sliceFrom(q.To)))
	if err != nil {
		return err
	}
	defer rows.Close()
	last, start := slice(-1), time.Time{}
	for rows.Next() {
		var s slice
		var currency, what string
		var one Tally
		if err := rows.Scan(&s, &currency, &what, &one.Count, &one.Amount); err != nil {
			return err
		}
		if s != last || start.IsZero() {
			last = s
			start, _ = q.Bucket.span(s.start().In(q.Zone))
			start = start.UTC()
		}
		k := bucketOf{start, currency}
		i, known := at[k]
		if !known {
			if i = len(out.Rows); i == bucketRowsMax {
				return invalid("time_range_invalid", "to", fmt.Sprintf("the answer has more than %d rows; ask for a shorter span", bucketRowsMax))
			}
			at[k] = i
			out.Rows = append(out.Rows, AnalyticsRow{start, currency, map[EventType]Tally{}})
		}
		typ := EventType(string(noun) + "." + what)
		sum := out.Rows[i].Tallies[typ]
		if sum.add(one); sum.full() {
			return invalid("sum_too_large", "bucket", "a sum of "+currency+" exceeds 64 bits")
		}
		out.Rows[i].Tallies[typ] = sum
	}
	return rows.Err()
}

// cursors returns how far each journal is counted.
func (a *Analytics) cursors(ctx context.Context) (cursors []head, err error) {
	file, err := a.current()
	if err != nil {
		return nil, err
	}
	err = file.View(ctx, func(tx *shards.Tx) error {
		cursors, err = readCursors(tx, len(a.l.parts))
		return err
	})
	return cursors, err
}

func readCursors(tx *shards.Tx, n int) ([]head, error) {
	cursors := make([]head, n)
	for i := range cursors {
		var err error
		if cursors[i], err = readCursor(tx, i); err != nil {
			return nil, err
		}
	}
	return cursors, nil
}

// lag counts the tenant's events behind the cursors, and no other's: how much the
// others do is not the tenant's business. It looks at as many rows as a page of
// events does.
func (a *Analytics) lag(ctx context.Context, t tenants.ID, cursors []head) (lag Lag) {
	whole := true
	asOf := a.l.clock.now()
	for i, p := range a.l.parts {
		if !p.readable() {
			whole = false
			continue
		}
		from, head := cursors[i].seq, p.journal.currentHead().seq
		if from > head || a.unchecked(i, cursors[i]) {
			whole = false // it is about to be counted anew
			continue
		}
		upTo := min(head, from+eventScanMax)
		whole = whole && upTo == head
		if upTo == from {
			continue
		}
		n, oldest, err := p.eventsBehind(ctx, t, from, upTo)
		if err != nil {
			a.l.log.Warn("analytics: journal not readable", "shard", p.shard.ID(), "err", err)
			whole = false
			continue
		}
		lag.EventsBehind += n
		if n > 0 && oldest.Before(asOf) {
			asOf = oldest
		}
	}
	if whole {
		lag.AsOf = &asOf
	}
	return lag
}

// eventsBehind counts the tenant's rows after seq and not after upTo, and tells the oldest's time.
func (p *part) eventsBehind(ctx context.Context, t tenants.ID, seq, upTo uint64) (n int64, oldest time.Time, err error) {
	if rows, known := p.journal.tail.after(seq, int(upTo-seq)); known {
		for _, e := range rows {
			if e.Tenant != t {
				continue
			}
			if n++; n == 1 || e.OccurredAt.Before(oldest) {
				oldest = e.OccurredAt
			}
		}
		return n, oldest, nil
	}
	err = p.shard.View(ctx, func(tx *shards.Tx) error {
		var ms sql.NullInt64
		err := tx.QueryRow(`SELECT count(*), min(occurred_at) FROM journal WHERE seq > ? AND seq <= ? AND tenant = ?`,
			int64(seq), int64(upTo), string(t)).Scan(&n, &ms)
		oldest = instant(ms.Int64)
		return err
	})
	return n, oldest, err
}
