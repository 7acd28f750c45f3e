package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	json "github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"tenderbox/shards"
	"tenderbox/tenants"
)

const paymentColumns = `p.id, p.amount, p.currency, p.status, p.sync, p.attempts, p.first_sent_at, p.last_error, p.upstream_id,
	p.failure_code, p.failure_decline, p.failure_message, p.amount_refunded, p.order_id, p.user_id, p.taken_offline,
	p.created_at, p.settled_at, p.source_kind, p.source IS NULL, x.description, x.metadata
	FROM payments p LEFT JOIN payment_extras x ON p.has_extras AND x.tenant = p.tenant AND x.payment_id = p.id`

// scanner is a row, or the present row of many.
type scanner interface{ Scan(dest ...any) error }

func scanPayment(row scanner) (p Payment, err error) {
	var id, status, sync, means string
	var firstSent, settled sql.NullInt64
	var lastError, upstreamID, fCode, fDecline, fMessage, order, user, description, metadata sql.NullString
	var offline, created int64
	var noSource bool
	if err := row.Scan(&id, &p.Amount, &p.Currency, &status, &sync, &p.Sync.Attempts, &firstSent, &lastError, &upstreamID,
		&fCode, &fDecline, &fMessage, &p.AmountRefunded, &order, &user, &offline, &created, &settled, &means, &noSource, &description, &metadata); err != nil {
		return Payment{}, err
	}
	p.ID, p.Object, p.Status, p.Sync.State = PaymentID(id), "payment", Status(status), SyncState(sync)
	p.Sync.FirstSentAt, p.SettledAt = optionalTime(firstSent), optionalTime(settled)
	p.Sync.LastError, p.UpstreamID, p.OrderID, p.UserID, p.Description =
		optionalText(lastError), optionalText(upstreamID), optionalText(order), optionalText(user), optionalText(description)
	if fCode.Valid {
		p.Failure = &Failure{fCode.String, fDecline.String, fMessage.String}
	}
	p.TakenOffline, p.CreatedAt, p.Means = offline != 0, instant(created), Means(means)
	p.MethodMissing = noSource && p.Status == RequiresConfirmation
	p.Metadata = map[string]string{}
	if metadata.Valid {
		if err := json.Unmarshal([]byte(metadata.String), &p.Metadata); err != nil {
			return Payment{}, fmt.Errorf("payment %s: metadata: %w", p.ID, err)
		}
	}
	return p, nil
}

func optionalTime(n sql.NullInt64) *time.Time {
	if !n.Valid {
		return nil
	}
	t := instant(n.Int64)
	return &t
}

func optionalText(s sql.NullString) *string {
	if !s.Valid {
		return nil
	}
	return &s.String
}

// Payment returns one of the tenant's payments. An unknown id, another tenant's
// and one that is no id at all give the same error.
func (l *Ledger) Payment(ctx context.Context, t tenants.ID, id string) (p Payment, err error) {
	pid, ok := ParsePaymentID(id)
	if !ok {
		return Payment{}, notFound("payment")
	}
	slot, _ := pid.slot()
	err = l.set.Shard(slot).View(ctx, func(tx *shards.Tx) error {
		p, err = readPayment(tx, t, pid)
		return err
	})
	if err != nil {
		return Payment{}, found("payment", err)
	}
	l.addNextAttempt(t, id, &p.Sync)
	return p, nil
}

func readPayment(tx *shards.Tx, t tenants.ID, id PaymentID) (Payment, error) {
	return scanPayment(tx.QueryRow(`SELECT `+paymentColumns+` WHERE p.tenant = ? AND p.id = ?`, string(t), string(id)))
}

// addNextAttempt looks up when the queue will try a payment or refund next: it keeps the schedule, the shard does not.
func (l *Ledger) addNextAttempt(t tenants.ID, id string, s *Sync) {
	if s.State == Settled || s.State == Review || s.Attempts == 0 {
		return
	}
	if j, err := l.jobs.Get(string(t), PaymentsQueue, id); err == nil && j.RunAt.After(l.clock.now()) {
		at := j.RunAt.UTC()
		s.NextAttemptAt = &at
	}
}

// Filter selects payments; its zero value selects all of the tenant's.
type Filter struct {
	Status Status
	Sync   SyncState
	UserID string
	Order  string // an order's id
	Limit  int    // 1 to 100; 0 means 20
	Cursor string // NextCursor of the page before

	// Older and Newer are places in the list: what stands behind one, or next before it. Newer
	// without Older gives the page that ends there, and no cursor.
	Older, Newer PaymentID
	From, To     time.Time // made at From or later, before To; zero: unbounded
	Means        Means
	Confirmed    bool // leaves out intents that wait to be confirmed
}

func (f *Filter) span(before string) span {
	return span{prefix: paymentPrefix, older: cmp.Or(before, string(f.Older)), newer: string(f.Newer), from: f.From, to: f.To}
}

// Page is part of a list, newest first.
type Page struct {
	Data       []Payment
	HasMore    bool
	NextCursor string // "" when there is no more
}

// Payments lists the tenant's payments, newest first. With a shard out of
// service the list would have holes, so it is refused.
func (l *Ledger) Payments(ctx context.Context, t tenants.ID, f Filter) (Page, error) {
	before, err := f.normalise()
	if err != nil {
		return Page{}, err
	}
	var where strings.Builder
	args := []any{string(t)}
	and := func(cond string, arg any) {
		where.WriteString(" AND " + cond)
		args = append(args, arg)
	}
	within := f.span(before)
	if err := within.check(); err != nil {
		return Page{}, err
	}
	within.narrow(func(cond string, arg any) { and("p.id "+cond, arg) })
	switch f.Means {
	case ByMethod:
		where.WriteString(" AND p.source_kind = 'payment_method'") // their own index serves
	case BySource:
		where.WriteString(" AND p.source_kind = 'source'")
	}
	if f.Confirmed {
		where.WriteString(" AND p.status <> 'requires_confirmation'")
	}
	if f.UserID != "" {
		and("p.user_id = ?", f.UserID)
	}
	if f.Order != "" {
		and("p.order_id = ?", f.Order)
	}
	if f.Status != "" {
		and("p.status = ?", string(f.Status))
	}
	if f.Sync != "" {
		and("p.sync = ?", string(f.Sync))
	}
	if f.Status == Pending || f.Status == RequiresConfirmation || (f.Sync != "" && f.Sync != Settled) {
		where.WriteString(" AND p.sync <> 'settled'") // lets the index of open payments serve
	}
	query := `SELECT ` + paymentColumns + ` WHERE p.tenant = ?` + where.String() + ` ORDER BY p.id ` + within.order() + ` LIMIT ?`
	args = append(args, f.Limit+1)

	files := l.set.All()
	if f.UserID != "" {
		files = []*shards.Shard{l.set.Shard(shards.SlotOf(string(t), f.UserID))}
	}
	if f.Order != "" {
		slot, ok := OrderID(f.Order).slot()
		if !ok {
			return Page{}, nil
		}
		files = []*shards.Shard{l.set.Shard(slot)}
	}
	id := func(p Payment) string { return string(p.ID) }
	all, err := gather(ctx, files, scanPayment, id, query, args...)
	if err != nil {
		return Page{}, err
	}
	var page Page
	page.Data, page.NextCursor, page.HasMore = cut(&within, all, f.Limit, id)
	for i := range page.Data {
		l.addNextAttempt(t, string(page.Data[i].ID), &page.Data[i].Sync)
	}
	return page, nil
}

func (f *Filter) normalise() (before string, err error) {
	switch f.Status {
	case "", Pending, Succeeded, Failed, Canceled, RequiresConfirmation:
	default:
		return "", invalid("status_invalid", "status", "must be pending, succeeded, failed, canceled or requires_confirmation")
	}
	switch f.Sync {
	case "", Queued, Sending, InDoubt, Settled, Review:
	default:
		return "", invalid("sync_invalid", "sync", "must be queued, sending, in_doubt, settled or review")
	}
	if f.Limit, err = pageLimit(f.Limit); err != nil {
		return "", err
	}
	if err := checkText("user_id", f.UserID, appIDMax, true); err != nil {
		return "", err
	}
	return pageCursor(f.Cursor, func(id string) bool { _, ok := ParsePaymentID(id); return ok })
}

// each runs fn on a snapshot of every file at once. Any failure fails all.
func each(ctx context.Context, files []*shards.Shard, fn func(ctx context.Context, tx *shards.Tx) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, sh := range files {
		g.Go(func() error {
			return sh.View(ctx, func(tx *shards.Tx) error { return fn(ctx, tx) })
		})
	}
	return g.Wait()
}

// oldestOpen returns when the tenant's oldest unsettled payment was made. An intent counts once it is confirmed, and from
// when it was made: rather too old than too young.
func (l *Ledger) oldestOpen(ctx context.Context, t tenants.ID) (at time.Time, found bool, err error) {
	var mu sync.Mutex // guards at and found
	err = each(ctx, l.healthy(), func(_ context.Context, tx *shards.Tx) error {
		var ms int64
		err := tx.QueryRow(`SELECT created_at FROM payments INDEXED BY payments_open
			WHERE tenant = ? AND sync <> 'settled' AND status = 'pending' ORDER BY id LIMIT 1`, string(t)).Scan(&ms)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if !found || instant(ms).Before(at) {
			at, found = instant(ms), true
		}
		return nil
	})
	return at, found, err
}

// oldestIn returns the tenant's oldest unsettled payment in a currency, and when it was made; no id: there is none.
func (l *Ledger) oldestIn(ctx context.Context, t tenants.ID, currency string) (at time.Time, id PaymentID, err error) {
	var mu sync.Mutex // guards at and id
	err = each(ctx, l.healthy(), func(_ context.Context, tx *shards.Tx) error {
		var ms int64
		var found string
		err := tx.QueryRow(`SELECT created_at, id FROM payments INDEXED BY payments_open
			WHERE tenant = ? AND sync <> 'settled' AND status = 'pending' AND currency = ? ORDER BY id LIMIT 1`, string(t), currency).Scan(&ms, &found)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if when := instant(ms); id == "" || when.Before(at) || when.Equal(at) && PaymentID(found) < id {
			at, id = when, PaymentID(found)
		}
		return nil
	})
	return at, id, err
}

// healthy lists the shards in service.
func (l *Ledger) healthy() []*shards.Shard {
	return slices.DeleteFunc(slices.Clone(l.set.All()), func(sh *shards.Shard) bool { return sh.Err() != nil })
}
