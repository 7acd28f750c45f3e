package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/tenants"
)

// RefundID names a refund: "re_" and a ULID with the slot of its payment.
type RefundID string

// RefundStatus is what a refund is to the business.
type RefundStatus string

const (
	// RefundPending: accepted and kept, not yet settled.
	RefundPending RefundStatus = "pending"
	// RefundDone: the processor holds exactly one refund for it, or it canceled a
	// payment that was provably unsent. Final.
	RefundDone RefundStatus = "succeeded"
	// RefundRefused: the processor gave a final no; its amount may be refunded again. Final.
	RefundRefused RefundStatus = "failed"
)

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
}

// NewRefund is a request to give money back.
type NewRefund struct {
	PaymentID string
	Amount    int64  // minor units; 0: all that is not refunded yet
	Reason    string // duplicate, fraudulent, requested_by_customer; "" for none
	Metadata  map[string]string
	Surface   string // as NewPayment's
}

// RefundFilter selects refunds, newest first; its zero value selects all of the tenant's.
type RefundFilter struct {
	PaymentID string
	Limit     int    // 1 to 100; 0 means 20
	Cursor    string // NextCursor of the page before
}

// RefundPage is part of a list, newest first.
type RefundPage struct {
	Data       []Refund
	HasMore    bool
	NextCursor string // "" when there is no more
}

// CreateRefund accepts a refund.
func (l *Ledger) CreateRefund(ctx context.Context, t tenants.ID, key IdempotencyKey, n NewRefund) (_ Refund, replayed bool, err error) {
	return Refund{}, false, errors.ErrUnsupported
}

// Refund returns one of the tenant's refunds.
func (l *Ledger) Refund(ctx context.Context, t tenants.ID, id string) (Refund, error) {
	return Refund{}, errors.ErrUnsupported
}

// Refunds lists the tenant's refunds.
func (l *Ledger) Refunds(ctx context.Context, t tenants.ID, f RefundFilter) (RefundPage, error) {
	return RefundPage{}, errors.ErrUnsupported
}

// AwaitRefund is [Ledger.Await] of a refund.
func (l *Ledger) AwaitRefund(ctx context.Context, t tenants.ID, id RefundID, d time.Duration) (Refund, error) {
	return Refund{}, errors.ErrUnsupported
}

// refundEvent describes the change that r has just gone through.
func (l *Ledger) refundEvent(t tenants.ID, typ EventType, r *Refund, at time.Time) *Event {
	slot, _ := r.ID.slot()
	data, err := json.Marshal(refundEventData{r.ID, r.Object, r.PaymentID, r.Amount, r.Currency, r.Status, r.UpstreamID, r.Failure, r.CreatedAt, r.SettledAt})
	if err != nil { // a struct of strings and numbers always encodes
		panic(err)
	}
	return &Event{ID: l.ids.event(at, slot), Tenant: t, Type: typ, Subject: string(r.ID), Slot: slot, OccurredAt: at, Data: data, amount: r.Amount, currency: r.Currency}
}

// refundEventData is what an event tells of a refund.
type refundEventData struct {
	ID         RefundID     `json:"id"`
	Object     string       `json:"object"`
	PaymentID  PaymentID    `json:"payment_id"`
	Amount     int64        `json:"amount"`
	Currency   string       `json:"currency"`
	Status     RefundStatus `json:"status"`
	UpstreamID *string      `json:"upstream_id"`
	Failure    *Failure     `json:"failure"`
	CreatedAt  time.Time    `json:"created_at"`
	SettledAt  *time.Time   `json:"settled_at"`
}

const refundColumns = `r.id, r.payment_id, r.amount, r.currency, r.status, r.sync, r.attempts, r.first_sent_at, r.last_error, r.upstream_id,
	r.failure_code, r.failure_decline, r.failure_message, r.reason, r.metadata, r.created_at, r.settled_at FROM refunds r`

func scanRefund(row scanner) (r Refund, err error) {
	var id, payment, status, sync string
	var firstSent, settled sql.NullInt64
	var lastError, upstreamID, fCode, fDecline, fMessage, reason, metadata sql.NullString
	var created int64
	if err := row.Scan(&id, &payment, &r.Amount, &r.Currency, &status, &sync, &r.Sync.Attempts, &firstSent, &lastError, &upstreamID,
		&fCode, &fDecline, &fMessage, &reason, &metadata, &created, &settled); err != nil {
		return Refund{}, err
	}
	r.ID, r.Object, r.PaymentID, r.Status, r.Sync.State = RefundID(id), "refund", PaymentID(payment), RefundStatus(status), SyncState(sync)
	r.Sync.FirstSentAt, r.SettledAt = optionalTime(firstSent), optionalTime(settled)
	r.Sync.LastError, r.UpstreamID, r.Reason = optionalText(lastError), optionalText(upstreamID), optionalText(reason)
	if fCode.Valid {
		r.Failure = &Failure{fCode.String, fDecline.String, fMessage.String}
	}
	r.CreatedAt, r.Metadata = instant(created), map[string]string{}
	if metadata.Valid {
		if err := json.Unmarshal([]byte(metadata.String), &r.Metadata); err != nil {
			return Refund{}, fmt.Errorf("refund %s: metadata: %w", r.ID, err)
		}
	}
	return r, nil
}
