package ledger

import (
	"context"
	"errors"
	"time"

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
	panic("contract")
}
