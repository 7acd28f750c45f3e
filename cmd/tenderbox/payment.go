package main

import (
	"context"
	"net/http"

	"tenderbox/ledger"
)

const (
	paymentsPath = "/api/v1/payments"
	statusPath   = "/api/v1/status"
)

// payRequest is the body of POST /api/v1/payments, as far as the demo uses it.
type payRequest struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Source   string `json:"source"`
}

// pay asks the box for a payment. A key makes the request safe to repeat; prefer is the Prefer header, ""
// for none.
func (b *box) pay(ctx context.Context, p payRequest, key, prefer string) (ledger.Payment, error) {
	header := http.Header{"Idempotency-Key": {key}}
	if prefer != "" {
		header.Set("Prefer", prefer)
	}
	var made ledger.Payment
	err := b.send(ctx, http.MethodPost, paymentsPath, header, p, &made)
	return made, err
}
