package ledger

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// ReportRow sums the payments of one currency and status. Amounts are minor units.
type ReportRow struct {
	Currency       string `json:"currency"`
	Status         Status `json:"status"`
	Count          int64  `json:"count"`
	Amount         int64  `json:"amount"`
	AmountRefunded int64  `json:"amount_refunded"` // of these payments, whenever that was
}

// RefundRow sums the refunds of one currency and status. Amounts are minor units.
type RefundRow struct {
	Currency string       `json:"currency"`
	Status   RefundStatus `json:"status"`
	Count    int64        `json:"count"`
	Amount   int64        `json:"amount"`
}

// Report is what a till has taken, and what it has given back, in a span of time.
type Report struct {
	Payments []ReportRow
	Refunds  []RefundRow // made in the span, whenever their payments were; not those that canceled an unsent payment
}

// reportSpanMax days bound a report: a year and a leap day. A till asks for a day.
const reportSpanMax = 366

// Report sums the tenant's payments and refunds created from the first instant up to, and
// without, the second: the end-of-day report of a till, straight from the
// shards. Ids sort by time, so a range of time is a range of the primary key. The longest span is counted in days of from's zone.
func (l *Ledger) Report(ctx context.Context, t tenants.ID, from, to time.Time) (Report, error) {
	if !from.Before(to) {
		return Report{}, invalid("time_range_invalid", "to", "must be later than from")
	}
	if exceedDays(from, to, reportSpanMax) {
		return Report{}, invalid("time_range_invalid", "to", "at most 366 days after from")
	}
	payments, refunds := reportSums{}, reportSums{}
	var mu sync.Mutex // guards payments and refunds
	err := each(ctx, l.set.All(), func(_ context.Context, tx *shards.Tx) error {
		for _, q := range []struct {
			into  reportSums
			query string
			ids   string
		}{
			{payments, `SELECT currency, status, count(*), sum(amount), sum(amount_refunded) FROM payments
				WHERE tenant = ? AND id >= ? AND id < ? GROUP BY currency, status`, paymentPrefix},
			{refunds, `SELECT currency, status, count(*), sum(amount), 0 FROM refunds
				WHERE tenant = ? AND id >= ? AND id < ? AND NOT voids GROUP BY currency, status`, refundPrefix},
		} {
			rows, err := tx.Query(q.query, string(t), idAt(q.ids, from), idAt(q.ids, to))
			if err != nil {
				return err
			}
			if err := q.into.add(rows, &mu); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Report{}, unavailable(err)
	}
	var r Report
	r.Payments = payments.rows()
	for _, s := range refunds.rows() {
		r.Refunds = append(r.Refunds, RefundRow{s.Currency, RefundStatus(s.Status), s.Count, s.Amount})
	}
	return r, nil
}

// reportSums are a report's rows by currency and status.
type reportSums map[[2]string]ReportRow

// add adds what one shard has found. mu guards the sums.
func (sums reportSums) add(rows *shards.Rows, mu *sync.Mutex) error {
	defer rows.Close()
	for rows.Next() {
		var r ReportRow
		if err := rows.Scan(&r.Currency, &r.Status, &r.Count, &r.Amount, &r.AmountRefunded); err != nil {
			return err
		}
		mu.Lock()
		k := [2]string{r.Currency, string(r.Status)}
		s := sums[k]
		overflow := s.Amount > math.MaxInt64-r.Amount
		sums[k] = ReportRow{r.Currency, r.Status, s.Count + r.Count, s.Amount + r.Amount, s.AmountRefunded + r.AmountRefunded}
		mu.Unlock()
		if overflow {
			return fmt.Errorf("report: the sum of %s exceeds 64 bits", r.Currency)
		}
	}
	return rows.Err()
}

// rows returns the sums in the order of currency and status.
func (sums reportSums) rows() []ReportRow {
	out := make([]ReportRow, 0, len(sums))
	for _, r := range sums {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b ReportRow) int {
		return cmp.Or(cmp.Compare(a.Currency, b.Currency), cmp.Compare(a.Status, b.Status))
	})
	return out
}
