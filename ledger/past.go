package ledger

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"tenderbox/shards"
	"tenderbox/upstream"
)

// past is what was sent for a record, oldest first.
type past []pastSend

// pastSend is an attempt, as far as it matters to what it may have left behind.
type pastSend struct {
	key        string
	credential sql.NullString // names the API key it was sent with; NULL: a program of before they were named
	theirs     time.Time      // the processor's clock at the seal; zero if it was not known
	outcome    string         // "" if it was cut short
	left       bool           // it may have reached the processor
}

// history reads the record's attempts: some ten, and a few hundred after a day of a processor that answers errors.
func (l *Ledger) history(ctx context.Context, s *send) (p past, err error) {
	err = l.shardOf(s.payment.ID).View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT upstream_key, credential, their_time, outcome, maybe_sent FROM attempts
			WHERE tenant = ? AND record = ? ORDER BY n`, string(s.tenant), s.id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var a pastSend
			var theirs, maybe sql.NullInt64
			var result sql.NullString
			if err := rows.Scan(&a.key, &a.credential, &theirs, &result, &maybe); err != nil {
				return err
			}
			if theirs.Valid {
				a.theirs = instant(theirs.Int64)
			}
			a.outcome, a.left = result.String, !maybe.Valid || maybe.Int64 != 0
			p = append(p, a)
		}
		return rows.Err()
	})
	return p, err
}

// undecided reports whether a send under the key may have had an effect that nobody knows of.
func (p past) undecided(key string) bool {
	return slices.ContainsFunc(p, func(a pastSend) bool {
		return a.key == key && a.left && a.outcome != string(upstream.Retryable)
	})
}

// window is when, by the processor's clock, what may have been left behind was made: between the seals of the first and the last send
// that may have left. A zero time is not known.
func (p past) window() (first, last time.Time, any bool) {
	for _, a := range p {
		if !a.left {
			continue
		}
		if !any {
			first, any = a.theirs, true
		}
		last = a.theirs
	}
	return first, last, any
}

// credentials are those that what may have left was sent with, each once.
func (p past) credentials() (names []sql.NullString) {
	for _, a := range p {
		if a.left && !slices.Contains(names, a.credential) {
			names = append(names, a.credential)
		}
	}
	return names
}
