package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/tenants"
)

// Attempt is one step that was taken for a payment or a refund: a send, a poll, a
// look-up, or a person's verdict.
type Attempt struct {
	N           int            `json:"n"`      // from 1, over all steps of the record
	Record      string         `json:"record"` // the payment's id, or that of one of its refunds
	Step        string         `json:"step"`   // charge, create, confirm, refund; poll, resolve; verdict
	At          time.Time      `json:"at"`
	EndedAt     *time.Time     `json:"ended_at"` // null: cut short by a crash, or still under way
	UpstreamKey *string        `json:"upstream_key"`
	RequestHash *string        `json:"request_hash"` // SHA-256 of the exact bytes, hex; of sends
	Account     string         `json:"account"`
	MaybeSent   *bool          `json:"maybe_sent"`
	HTTPStatus  *int           `json:"http_status"`
	RequestID   *string        `json:"upstream_request_id"`
	Verdict     *string        `json:"verdict"` // succeeded, declined, retryable, unknown; found, absent, undecided, pending
	Reason      *string        `json:"reason"`
	Evidence    jsontext.Value `json:"evidence"` // what proves the verdict; null when nothing was kept
}

// Attempts lists every step that was taken for the payment and its refunds, oldest first.
func (l *Ledger) Attempts(ctx context.Context, t tenants.ID, id string) ([]Attempt, error) {
	return nil, errors.ErrUnsupported
}

// Verdict is what a person decides about a payment or a refund in review.
type Verdict struct {
	Verdict    string // succeeded, failed, resend
	UpstreamID string // of succeeded: the processor's object
	Reason     string // kept on record; required
}

// Resolve acts on a payment in review as a person decided.
func (l *Ledger) Resolve(ctx context.Context, t tenants.ID, id string, v Verdict) (Payment, error) {
	return Payment{}, errors.ErrUnsupported
}

// ResolveRefund is Resolve for a refund in review.
func (l *Ledger) ResolveRefund(ctx context.Context, t tenants.ID, id string, v Verdict) (Refund, error) {
	return Refund{}, errors.ErrUnsupported
}
