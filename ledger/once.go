package ledger

import (
	"bytes"
	"context"
	"errors"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// request is one that a client may repeat under a key: what it is told by, and
// the means to make its record or to read it again.
type request[T any] struct {
	key     IdempotencyKey                                      // "": it is not repeated
	meaning []string                                            // what makes it the same as another, whatever its spelling
	read    func(ctx context.Context, record string) (T, error) // as it is now
	make    func(ctx context.Context, fingerprint []byte) (T, error)
}

// once makes the record of a request, once for its key: the same request under
// the same key gets the record that the first one made, as it is now, with
// replayed true. A key belongs to its tenant, whatever it was used for.
func once[T any](ctx context.Context, l *Ledger, t tenants.ID, r request[T]) (v T, replayed bool, err error) {
	var fingerprint []byte
	if r.key != "" {
		fingerprint = l.keys.fingerprintOf(t, r.meaning...)
		// Looked up before the claim too: replays do not stand in each other's way.
		if v, found, err := known(ctx, l, t, &r, fingerprint); found || err != nil {
			return v, found && err == nil, err
		}
		end, err := l.keys.begin(t, r.key)
		if err != nil {
			return v, false, err
		}
		defer end()
		if v, found, err := known(ctx, l, t, &r, fingerprint); found || err != nil {
			return v, found && err == nil, err
		}
	}
	v, err = r.make(ctx, fingerprint)
	if err != nil {
		var none T
		return none, false, unavailable(err)
	}
	return v, false, nil
}

// known returns the record that the key was used for, if it was for this request.
func known[T any](ctx context.Context, l *Ledger, t tenants.ID, r *request[T], fingerprint []byte) (v T, found bool, err error) {
	rec, found, err := l.keys.find(ctx, t, r.key)
	switch {
	case err != nil:
		return v, false, unavailable(err)
	case !found:
		return v, false, nil
	case !bytes.Equal(rec.fingerprint, fingerprint):
		return v, true, errKeyMismatch
	}
	v, err = r.read(ctx, rec.record.id())
	return v, true, err
}

// keyRow is the row that a request's key gets. The closure that makes the record
// attaches it.
type keyRow struct {
	tenant      tenants.ID
	record      recordID
	key         IdempotencyKey
	fingerprint []byte
}

// newKeyRow returns nil for a request without a key.
func newKeyRow(t tenants.ID, key IdempotencyKey, record recordID, fingerprint []byte) *keyRow {
	if key == "" {
		return nil
	}
	return &keyRow{t, record, key, fingerprint}
}

// attach adds the row to the group; nil, of a request without a key, adds nothing.
func (k *keyRow) attach(tx *shards.Tx) {
	if k != nil {
		tx.Attach(k)
	}
}

// settled follows the commit with the index. Of an unknown outcome the row may be
// there: the index only says where to look. A commit known to be durable is
// followed by afterCommit.
func (k *keys) settled(row *keyRow, err error) {
	if row != nil && errors.Is(err, shards.ErrUnknown) {
		k.add(row.tenant, row.key, row.record)
	}
}
