package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// request is one that a client may repeat under a key: what it is told by, and
// the means to make its record or to read it again.
type request[T any] struct {
	key     IdempotencyKey                                      // "": it is not repeated
	meaning []string                                            // what makes it the same as another, whatever its spelling
	read    func(ctx context.Context, record string) (T, error) // as it is now
	make    func(ctx context.Context, seen lookup) (T, error)
}

// once makes the record of a request, once for its key: the same request under
// the same key gets the record that the first one made, as it is now, with
// replayed true. A key belongs to its tenant, whatever it was used for.
func once[T any](ctx context.Context, l *Ledger, t tenants.ID, r request[T]) (v T, replayed bool, err error) {
	var seen lookup
	if r.key != "" {
		seen.fingerprint = l.keys.fingerprintOf(t, r.meaning...)
		// Looked up before the claim too: replays do not stand in each other's way.
		if v, found, err := known(ctx, l, t, &r, &seen); found || err != nil {
			return v, found && err == nil, err
		}
		own := claim{t, r.key}
		if !l.keys.claims.take(own) {
			return v, false, errKeyInProgress
		}
		defer l.keys.claims.release(own)
		if v, found, err := known(ctx, l, t, &r, &seen); found || err != nil {
			return v, found && err == nil, err
		}
	}
	v, err = r.make(ctx, seen)
	if err != nil {
		var none T
		return none, false, unavailable(err)
	}
	return v, false, nil
}

// known returns the record that the key was used for, if it was for this request.
func known[T any](ctx context.Context, l *Ledger, t tenants.ID, r *request[T], seen *lookup) (v T, found bool, err error) {
	rec, found, unread, err := l.keys.find(ctx, t, r.key)
	switch {
	case err != nil:
		return v, false, unavailable(err)
	case !found:
		seen.unread = unread
		return v, false, nil
	case !bytes.Equal(rec.fingerprint, seen.fingerprint):
		return v, true, errKeyMismatch
	}
	v, err = r.read(ctx, rec.record.id())
	return v, true, err
}

// keyRow is the row that a request's key gets. The closure that makes the record
// attaches it.
type keyRow struct {
	tenant tenants.ID
	record recordID
	key    IdempotencyKey
	lookup
}

// newKeyRow returns nil for a request without a key.
func newKeyRow(t tenants.ID, key IdempotencyKey, record recordID, seen lookup) *keyRow {
	if key == "" {
		return nil
	}
	return &keyRow{t, record, key, seen}
}

// attach adds the row to the group; nil, of a request without a key, adds nothing.
func (k *keyRow) attach(tx *shards.Tx) error {
	if k != nil {
		tx.Attach(k)
	}
	return k.fits(tx)
}

// fits refuses a shard that was out of service when the key was looked up: it has come back, and may hold the key.
func (k *keyRow) fits(tx *shards.Tx) error {
	if k != nil && slices.Contains(k.unread, tx.Shard().ID()) {
		return fmt.Errorf("%w: it came into service after the key was looked up", shards.ErrUnavailable)
	}
	return nil
}

// settled follows the commit with the index. Of an unknown outcome the row may be
// there: the index only says where to look. A commit known to be durable is
// followed by afterCommit.
func (k *keys) settled(row *keyRow, err error) {
	if row != nil && errors.Is(err, shards.ErrUnknown) {
		k.add(row.tenant, row.key, row.record)
	}
}
