package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// RefundID names a refund: "re_" and a ULID with the slot of its payment.
type RefundID string

// RefundStatus is what a refund is to the business.
type RefundStatus string

const (
	// RefundPending: accepted and kept, not yet settled. Its amount is set aside: no
	// other refund of the payment can have it.
	RefundPending RefundStatus = "pending"
	// RefundDone: the processor holds exactly one refund for it, or it canceled a
	// payment that was provably unsent. Final.
	RefundDone RefundStatus = "succeeded"
	// RefundRefused: the processor gave a final no; its amount may be refunded again. Final.
	RefundRefused RefundStatus = "failed"
)

// Final reports whether the status never changes again.
func (s RefundStatus) Final() bool { return s == RefundDone || s == RefundRefused }

// Refund is a refund as its tenant sees it; its JSON is the outward form.
type Refund struct {
	ID         RefundID          `json:"id"`
	Object     string            `json:"object"` // "refund"
	PaymentID  PaymentID         `json:"payment_id"`
	Amount     int64             `json:"amount"` // minor units
	Currency   string            `json:"currency"`
	Status     RefundStatus      `json:"status"`
	Sync       Sync              `json:"sync"`
	UpstreamID *string           `json:"upstream_id"`
	Failure    *Failure          `json:"failure"`
	Reason     *string           `json:"reason"`
	Metadata   map[string]string `json:"metadata"`
	CreatedAt  time.Time         `json:"created_at"`
	SettledAt  *time.Time        `json:"settled_at"`

	UserID  *string `json:"-"` // of its payment; events tell them
	OrderID *string `json:"-"`
	Means   Means   `json:"-"` // of its payment
}

// NewRefund is a request to give money back.
type NewRefund struct {
	PaymentID string
	Amount    int64  // minor units; 0: all that is not refunded yet
	Reason    string // duplicate, fraudulent, requested_by_customer; "" for none
	Metadata  map[string]string
	Surface   string // as NewPayment's
}

// validate checks n. What the payment allows is known only where it stands.
func (n *NewRefund) validate() error {
	if n.Amount < 0 || n.Amount > amountMax {
		return invalid("amount_invalid", "amount", fmt.Sprintf("must be a whole number of minor units from 1 to %d", int64(amountMax)))
	}
	switch n.Reason {
	case "", "duplicate", "fraudulent", "requested_by_customer":
	default:
		return invalid("reason_invalid", "reason", "must be duplicate, fraudulent or requested_by_customer")
	}
	return validateMetadata(n.Metadata)
}

// meaning is for once.
func (n *NewRefund) meaning() []string {
	m := []string{surfaced("refund", n.Surface), n.PaymentID, strconv.FormatInt(n.Amount, 10), n.Reason}
	for _, name := range slices.Sorted(maps.Keys(n.Metadata)) {
		m = append(m, name, n.Metadata[name])
	}
	return m
}

// CreateRefund accepts a refund, with or without the line: when it returns without error, the
// refund is on the disk, its amount set aside, and it will be settled upstream exactly once. A
// full refund of a payment that is provably unsent cancels it instead, and no money moves. The
// same key and the same request return the same refund, as it is now, with replayed true.
func (l *Ledger) CreateRefund(ctx context.Context, t tenants.ID, key IdempotencyKey, n NewRefund) (_ Refund, replayed bool, err error) {
	if err := n.validate(); err != nil {
		return Refund{}, false, err
	}
	pid, ok := ParsePaymentID(n.PaymentID)
	if !ok {
		return Refund{}, false, notFound("payment")
	}
	return once(ctx, l, t, request[Refund]{key: key, meaning: n.meaning(),
		read: func(ctx context.Context, id string) (Refund, error) { return l.Refund(ctx, t, id) },
		make: func(ctx context.Context, seen lookup) (Refund, error) {
			return l.createRefund(ctx, t, key, seen, pid, &n)
		}})
}

func (l *Ledger) createRefund(ctx context.Context, t tenants.ID, key IdempotencyKey, seen lookup, pid PaymentID, n *NewRefund) (Refund, error) {
	now := l.clock.now()
	slot, _ := pid.slot()
	id := l.ids.refund(now, slot)
	row := newKeyRow(t, key, recordID(id), seen)
	var metadata any // NULL
	if len(n.Metadata) > 0 {
		b, err := json.Marshal(n.Metadata, json.Deterministic(true))
		if err != nil {
			return Refund{}, err
		}
		metadata = string(b)
	}
	var r Refund
	voids := false
	err := l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		p, err := readPayment(tx, t, pid)
		if err != nil {
			return err
		}
		r = Refund{ID: id, Object: "refund", PaymentID: pid, Amount: n.Amount, Currency: p.Currency, Status: RefundPending, Sync: Sync{State: Queued},
			Reason: optional(n.Reason), Metadata: map[string]string{}, CreatedAt: now, UserID: p.UserID, OrderID: p.OrderID, Means: p.Means}
		maps.Copy(r.Metadata, n.Metadata)
		if left := p.Amount - p.AmountRefunded; r.Amount == 0 {
			r.Amount = left
		}
		if voids, err = l.setAside(tx, t, &p, r.Amount, now); err != nil {
			return err
		}
		var settled any // NULL
		if voids {
			at := l.settledAt(t, now)
			r.Status, r.Sync.State, r.SettledAt, settled = RefundDone, Settled, &at, at.UnixMilli()
		} else {
			tx.Attach(l.refundEvent(t, RefundCreated, &r, now))
		}
		if _, err := tx.Exec(`INSERT INTO refunds (tenant, id, payment_id, amount, currency, status, sync, reason, metadata, voids, created_at, settled_at, resolve_first)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)`, string(t), string(id), string(pid), r.Amount, r.Currency, string(r.Status), string(r.Sync.State),
			nullable(r.Reason), metadata, boolInt(voids), now.UnixMilli(), settled, l.resolveFirst(tx.Shard(), key != "" && !voids)); err != nil {
			return err
		}
		return row.attach(tx)
	})
	l.keys.settled(row, err)
	if err != nil {
		return Refund{}, found("payment", err)
	}
	if voids {
		l.waiters.wake(pid)
	}
	return r, nil
}

// setAside takes a refund's amount from what is left of the payment, or cancels the payment if it
// is provably unsent and all of it is given back. The rules of refunds stand here.
func (l *Ledger) setAside(tx *shards.Tx, t tenants.ID, p *Payment, amount int64, now time.Time) (voids bool, err error) {
	left := p.Amount - p.AmountRefunded
	switch p.Status {
	case Failed, Canceled:
		return false, paymentFinal(p, "no money was taken that could be given back")
	case Succeeded:
	default:
		if amount != p.Amount && amount <= left {
			return false, &Error{Kind: Conflict, Code: "payment_not_settled", Field: "amount",
				Message: "the payment is not settled yet; part of it can be given back once it is"}
		}
	}
	if amount > left || left == 0 {
		return false, invalid("refund_exceeds", "amount", fmt.Sprintf("%d %s of the payment are left to refund", left, p.Currency))
	}
	if p.Status != Succeeded {
		canceled, err := l.giveUp(tx, t, p, now)
		if err == nil && !canceled {
			err = &Error{Kind: Conflict, Code: "payment_not_settled", Message: "the payment may have reached the processor; it can be refunded once it is settled"}
		}
		return true, err
	}
	n, err := tx.Exec(`UPDATE payments SET amount_refunded = amount_refunded + ? WHERE tenant = ? AND id = ? AND status = 'succeeded' AND amount_refunded + ? <= amount`,
		amount, string(t), string(p.ID), amount)
	if err == nil && n == 0 { // the one writer has just read it
		err = fmt.Errorf("payment %s: %d cannot be set aside", p.ID, amount)
	}
	return false, err
}

const refundColumns = `r.id, r.payment_id, r.amount, r.currency, r.status, r.sync, r.attempts, r.first_sent_at, r.last_error, r.upstream_id,
	r.failure_code, r.failure_decline, r.failure_message, r.reason, r.metadata, r.created_at, r.settled_at, p.user_id, p.order_id, p.source_kind
	FROM refunds r JOIN payments p ON p.tenant = r.tenant AND p.id = r.payment_id`

func scanRefund(row scanner) (r Refund, err error) {
	var firstSent, settled sql.NullInt64
	var lastError, upstreamID, fCode, fDecline, fMessage, reason, metadata, user, order sql.NullString
	var created int64
	if err := row.Scan(&r.ID, &r.PaymentID, &r.Amount, &r.Currency, &r.Status, &r.Sync.State, &r.Sync.Attempts, &firstSent, &lastError, &upstreamID,
		&fCode, &fDecline, &fMessage, &reason, &metadata, &created, &settled, &user, &order, &r.Means); err != nil {
		return Refund{}, err
	}
	r.Object, r.CreatedAt, r.SettledAt, r.Sync.FirstSentAt = "refund", instant(created), optionalTime(settled), optionalTime(firstSent)
	r.Sync.LastError, r.UpstreamID, r.Reason = optionalText(lastError), optionalText(upstreamID), optionalText(reason)
	r.UserID, r.OrderID = optionalText(user), optionalText(order)
	if fCode.Valid {
		r.Failure = &Failure{fCode.String, fDecline.String, fMessage.String}
	}
	r.Metadata = map[string]string{}
	if metadata.Valid {
		if err := json.Unmarshal([]byte(metadata.String), &r.Metadata); err != nil {
			return Refund{}, fmt.Errorf("refund %s: metadata: %w", r.ID, err)
		}
	}
	return r, nil
}

func readRefund(tx *shards.Tx, t tenants.ID, id RefundID) (Refund, error) {
	return scanRefund(tx.QueryRow(`SELECT `+refundColumns+` WHERE r.tenant = ? AND r.id = ?`, string(t), string(id)))
}

// Refund returns one of the tenant's refunds. An unknown id, another tenant's
// and one that is no id at all give the same error.
func (l *Ledger) Refund(ctx context.Context, t tenants.ID, id string) (r Refund, err error) {
	rid, ok := ParseRefundID(id)
	if !ok {
		return Refund{}, notFound("refund")
	}
	slot, _ := rid.slot()
	err = l.set.Shard(slot).View(ctx, func(tx *shards.Tx) error {
		r, err = readRefund(tx, t, rid)
		return err
	})
	if err != nil {
		return Refund{}, found("refund", err)
	}
	l.addNextAttempt(t, id, &r.Sync)
	return r, nil
}

// RefundFilter selects refunds, newest first; its zero value selects all of the tenant's.
type RefundFilter struct {
	PaymentID string
	Limit     int    // 1 to 100; 0 means 20
	Cursor    string // NextCursor of the page before

	Older, Newer RefundID  // as Filter's
	From, To     time.Time // made at From or later, before To; zero: unbounded
}

// RefundPage is part of a list, newest first.
type RefundPage struct {
	Data       []Refund
	HasMore    bool
	NextCursor string // "" when there is no more
}

// Refunds lists the tenant's refunds, newest first. A payment that the tenant does not have has none.
func (l *Ledger) Refunds(ctx context.Context, t tenants.ID, f RefundFilter) (RefundPage, error) {
	var err error
	if f.Limit, err = pageLimit(f.Limit); err != nil {
		return RefundPage{}, err
	}
	before, err := pageCursor(f.Cursor, func(id string) bool { _, ok := ParseRefundID(id); return ok })
	if err != nil {
		return RefundPage{}, err
	}
	where, args, files := "", []any{string(t)}, l.set.All()
	if f.PaymentID != "" {
		pid, ok := ParsePaymentID(f.PaymentID)
		if !ok {
			return RefundPage{}, nil
		}
		where, args, files = where+" AND r.payment_id = ?", append(args, f.PaymentID), []*shards.Shard{l.shardOf(pid)}
	}
	within := span{prefix: refundPrefix, older: cmp.Or(before, string(f.Older)), newer: string(f.Newer), from: f.From, to: f.To}
	if err := within.check(); err != nil {
		return RefundPage{}, err
	}
	within.narrow(func(cond string, arg any) { where, args = where+" AND r.id "+cond, append(args, arg) })
	query := `SELECT ` + refundColumns + ` WHERE r.tenant = ?` + where + ` ORDER BY r.id ` + within.order() + ` LIMIT ?`
	id := func(r Refund) string { return string(r.ID) }
	all, err := gather(ctx, files, scanRefund, id, query, append(args, f.Limit+1)...)
	if err != nil {
		return RefundPage{}, err
	}
	var page RefundPage
	page.Data, page.NextCursor, page.HasMore = cut(&within, all, f.Limit, id)
	for i := range page.Data {
		l.addNextAttempt(t, string(page.Data[i].ID), &page.Data[i].Sync)
	}
	return page, nil
}

// AwaitRefund is [Ledger.Await] of a refund.
func (l *Ledger) AwaitRefund(ctx context.Context, t tenants.ID, id RefundID, d time.Duration) (r Refund, err error) {
	slot, ok := id.slot()
	if !ok {
		return Refund{}, notFound("refund")
	}
	news, leave := l.refunds.join(id)
	defer leave()
	err = l.await(ctx, t, slot, string(id), news, d, func() (open bool, err error) {
		r, err = l.Refund(ctx, t, string(id))
		return r.Status == RefundPending && r.Sync.State != Review, err
	})
	return r, err
}

// refundEventData is what an event tells of a refund: no metadata, for that is the client's.
type refundEventData struct {
	ID         RefundID     `json:"id"`
	Object     string       `json:"object"`
	PaymentID  PaymentID    `json:"payment_id"`
	Amount     int64        `json:"amount"`
	Currency   string       `json:"currency"`
	Status     RefundStatus `json:"status"`
	UpstreamID *string      `json:"upstream_id"`
	Failure    *Failure     `json:"failure"`
	Reason     *string      `json:"reason"`
	OrderID    *string      `json:"order_id"`
	UserID     *string      `json:"user_id"`
	CreatedAt  time.Time    `json:"created_at"`
	SettledAt  *time.Time   `json:"settled_at"`
}

// refundEvent describes the change that r has just gone through.
func (l *Ledger) refundEvent(t tenants.ID, typ EventType, r *Refund, at time.Time) *Event {
	slot, _ := r.ID.slot()
	return l.event(t, typ, string(r.ID), slot, at, refundEventData{r.ID, r.Object, r.PaymentID, r.Amount, r.Currency, r.Status, r.UpstreamID, r.Failure,
		r.Reason, r.OrderID, r.UserID, r.CreatedAt, r.SettledAt})
}
