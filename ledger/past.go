package ledger

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	json "github.com/go-json-experiment/json"

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
	sends      int            // how many tries of it may have reached the processor
	refusal    sql.NullString // what is kept of a no
}

// severalSends stands for tries that nobody has counted: an attempt that was cut short may have made more than one.
const severalSends = 2

// left reports whether it may have reached the processor.
func (a *pastSend) left() bool { return a.sends > 0 }

// unheeded reports whether it had no effect, whatever else was sent.
func (a *pastSend) unheeded() bool { return !a.left() || a.outcome == string(upstream.Retryable) }

// history reads the record's attempts: some ten, and a few hundred after a day of a processor that answers errors.
func (l *Ledger) history(ctx context.Context, s *send) (p past, err error) {
	err = l.shardOf(s.payment.ID).View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT upstream_key, credential, their_time, outcome, maybe_sent, CASE outcome WHEN 'declined' THEN evidence END FROM attempts
			WHERE tenant = ? AND record = ? ORDER BY n`, string(s.tenant), s.id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var a pastSend
			var theirs, maybe sql.NullInt64
			var result sql.NullString
			if err := rows.Scan(&a.key, &a.credential, &theirs, &result, &maybe, &a.refusal); err != nil {
				return err
			}
			if theirs.Valid {
				a.theirs = instant(theirs.Int64)
			}
			a.outcome, a.sends = result.String, severalSends
			if maybe.Valid {
				a.sends = int(maybe.Int64)
			}
			p = append(p, a)
		}
		return rows.Err()
	})
	return p, err
}

// undecided reports whether a send under the key may have had an effect that nobody knows of.
func (p past) undecided(key string) bool {
	return slices.ContainsFunc(p, func(a pastSend) bool { return a.key == key && !a.unheeded() })
}

// sends counts those before the attempt s that may have had an effect under its key; of a confirmation, under any of them, for they are the same intent's.
func (p past) sends(s *send) (n int) {
	for _, a := range p[:min(s.n-1, len(p))] {
		if !a.unheeded() && (a.key == s.key || s.step == confirm && strings.HasPrefix(a.key, upstreamKey(s.id, confirm, 1))) {
			n += a.sends
		}
	}
	return n
}

// refused is the no that the last send under the key was answered with, if it was.
func (p past) refused(key string) (f upstream.Failure, ok bool) {
	for _, a := range slices.Backward(p) {
		switch {
		case a.unheeded():
			continue
		case a.key != key || a.outcome != string(upstream.Declined):
			return f, false
		}
		var kept refusal // an object's evidence has none: it says less
		if a.refusal.Valid {
			_ = json.Unmarshal([]byte(a.refusal.String), &kept)
		}
		return upstream.Failure{Code: kept.Failure.Code, DeclineCode: kept.Failure.DeclineCode, Message: kept.Failure.Message}, true
	}
	return f, false
}

// window is when, by the processor's clock, what may have been left behind was made: between the seals of the first and the last send
// that may have left. A zero time is not known.
func (p past) window() (first, last time.Time, any bool) {
	for _, a := range p {
		if !a.left() {
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
		if a.left() && !slices.Contains(names, a.credential) {
			names = append(names, a.credential)
		}
	}
	return names
}
