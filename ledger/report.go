package ledger

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
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
	AmountRefunded int64  `json:"amount_refunded"`
}

// reportSpanMax bounds a report: a year and a leap day. A till asks for a day.
const reportSpanMax = 366 * 24 * time.Hour

// Report sums the tenant's payments created from the first instant up to, and
// without, the second: the end-of-day report of a till, straight from the
// shards. Ids sort by time, so a range of time is a range of the primary key.
func (l *Ledger) Report(ctx context.Context, t tenants.ID, from, to time.Time) ([]ReportRow, error) {
	if !from.Before(to) {
		return nil, invalid("time_range_invalid", "to", "must be later than from")
	}
	if to.Sub(from) > reportSpanMax {
		return nil, invalid("time_range_invalid", "to", "at most 366 days after from")
	}
	type group struct {
		currency string
		status   Status
	}
	var mu sync.Mutex // guards sums
	sums := map[group]ReportRow{}
	err := each(ctx, l.set.All(), func(_ context.Context, tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT currency, status, count(*), sum(amount), sum(amount_refunded) FROM payments
			WHERE tenant = ? AND id >= ? AND id < ? GROUP BY currency, status`, string(t), idAt(paymentPrefix, from), idAt(paymentPrefix, to))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var currency, status string
			var count, amount, refunded int64
			if err := rows.Scan(&currency, &status, &count, &amount, &refunded); err != nil {
				return err
			}
			mu.Lock()
			g := group{currency, Status(status)}
			s := sums[g]
			overflow := s.Amount > math.MaxInt64-amount
			sums[g] = ReportRow{currency, g.status, s.Count + count, s.Amount + amount, s.AmountRefunded + refunded}
			mu.Unlock()
			if overflow {
				return fmt.Errorf("report: the sum of %s exceeds 64 bits", currency)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, unavailable(err)
	}
	out := make([]ReportRow, 0, len(sums))
	for _, r := range sums {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b ReportRow) int {
		if c := strings.Compare(a.Currency, b.Currency); c != 0 {
			return c
		}
		return strings.Compare(string(a.Status), string(b.Status))
	})
	return out, nil
}
