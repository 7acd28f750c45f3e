package ledger

import (
	"context"
	"errors"

	"tenderbox/tenants"
)

// Cancel gives up a payment that is provably unsent. key "" for none.
func (l *Ledger) Cancel(ctx context.Context, t tenants.ID, key IdempotencyKey, id string) (_ Payment, replayed bool, err error) {
	return Payment{}, false, errors.ErrUnsupported
}

// Confirm lets an intent that was made unconfirmed be settled; method replaces its payment
// method, "" keeps it. key "" for none.
func (l *Ledger) Confirm(ctx context.Context, t tenants.ID, key IdempotencyKey, id, method string) (_ Payment, replayed bool, err error) {
	return Payment{}, false, errors.ErrUnsupported
}
