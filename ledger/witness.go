package ledger

import (
	"context"
	"database/sql"
	"errors"
	"net/url"

	"tenderbox/shards"
	"tenderbox/upstream"
)

// witnessRowsMax attempts of a shard are looked through for a witness, the latest first.
const witnessRowsMax = 5_000

// witness is a charge that the account holds, for the box has its answer, and the API key that it was made with.
type witness struct {
	kind, id   string
	credential sql.NullString
}

// sees reports whether what was sent for the record would be seen with the API key that the reading was made with: because it was
// sent with that key, or because a witness is seen with it. A key of another account sees an empty list, which proves nothing.
// The error is a wish, or the box's own failure.
func (l *Ledger) sees(ctx context.Context, acc *upstream.Account, s *send, p past, keyID string) (bool, error) {
	sent := p.credentials()
	if len(sent) == 0 { // what a box before this one has sent: any charge will do that this box knows of
		w, found, err := l.witness(ctx, acc, s, nil)
		if err != nil || !found {
			return !found, err
		}
		sent = append(sent, w.credential)
	}
	for _, c := range sent {
		if c.Valid && c.String == keyID && keyID != "" {
			continue
		}
		if seen, err := l.seesThose(ctx, acc, s, c, keyID); err != nil || !seen {
			return false, err
		}
	}
	return true, nil
}

// seesThose reports whether what was sent with one key is seen with another.
func (l *Ledger) seesThose(ctx context.Context, acc *upstream.Account, s *send, sent sql.NullString, keyID string) (bool, error) {
	k := credentials{acc, sent.String, keyID}
	l.lookups.mu.Lock()
	shown := l.lookups.shown[k]
	l.lookups.mu.Unlock()
	if shown {
		return true, nil
	}
	w, found, err := l.witness(ctx, acc, s, &sent)
	if err != nil || !found {
		return false, err
	}
	path := upstream.PathCharges
	if w.kind == "payment_intent" {
		path = upstream.PathIntents
	}
	a := acc.Get(ctx, path+"/"+url.PathEscape(w.id))
	switch {
	case a.Object.ID == w.id && acc.KeyID() == keyID:
		l.lookups.mu.Lock()
		defer l.lookups.mu.Unlock()
		l.lookups.shown[k] = true
		return true, nil
	case a.Outcome == upstream.Declined && acc.KeyID() == keyID:
		return false, nil
	}
	return false, &later{reason: "whether the API key is the account's could not be found out: " + a.Reason}
}

// witness finds a charge of the tenant's that the account holds, made with the API key if one is named.
func (l *Ledger) witness(ctx context.Context, acc *upstream.Account, s *send, sent *sql.NullString) (w witness, found bool, err error) {
	for _, sh := range l.healthy() {
		err := sh.View(ctx, func(tx *shards.Tx) error {
			var of any
			if sent != nil && sent.Valid {
				of = sent.String
			}
			return tx.QueryRow(`SELECT coalesce(json_extract(evidence, '$.object'), ''), json_extract(evidence, '$.id'), credential FROM
				(SELECT account, step, outcome, credential, evidence FROM attempts
					WHERE tenant = ? AND record > 'pay_' AND record < 'pay`+"`"+`' ORDER BY record DESC LIMIT ?)
				WHERE account = ? AND outcome = 'succeeded' AND json_extract(evidence, '$.status') = 'succeeded' AND (? OR credential IS ?) LIMIT 1`,
				string(s.tenant), witnessRowsMax, identity(acc), boolInt(sent == nil), of).Scan(&w.kind, &w.id, &w.credential)
		})
		switch {
		case err == nil:
			return w, true, nil
		case !errors.Is(err, sql.ErrNoRows):
			return w, false, err
		}
	}
	return w, false, nil
}
