package ledger

import (
	"context"
	"database/sql"
	"encoding/hex"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/shards"
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
	Verdict     *string        `json:"verdict"` // succeeded, declined, retryable, unknown; found, absent, undecided, pending; or a person's
	Reason      *string        `json:"reason"`
	Evidence    jsontext.Value `json:"evidence"` // what proves the verdict; null when nothing was kept
}

// attemptsMax steps are listed, the latest: a day of a processor that answers errors makes some two hundred for a record.
const attemptsMax = 1000

// Attempts lists every step that was taken for the payment and its refunds, oldest first.
func (l *Ledger) Attempts(ctx context.Context, t tenants.ID, id string) (steps []Attempt, err error) {
	pid, ok := ParsePaymentID(id)
	if !ok {
		return nil, notFound("payment")
	}
	const of = ` IN (SELECT id FROM payments WHERE tenant = ? AND id = ? UNION ALL SELECT id FROM refunds WHERE tenant = ? AND payment_id = ?)`
	err = l.shardOf(pid).View(ctx, func(tx *shards.Tx) error {
		if _, err := readPayment(tx, t, pid); err != nil {
			return err
		}
		rows, err := tx.Query(`SELECT t.record, coalesce(t.step, 'charge') step, t.started_at at, t.ended_at, t.upstream_key, s.body_hash, t.account, t.maybe_sent, t.http_status,
				t.request_id, t.outcome, t.reason, t.evidence, t.n attempts, 1 sent, t.n n FROM attempts t
				LEFT JOIN sends s ON s.tenant = t.tenant AND s.record = t.record AND s.upstream_key = t.upstream_key WHERE t.tenant = ? AND t.record`+of+`
			UNION ALL SELECT record, kind, started_at, ended_at, NULL, NULL, account, NULL, NULL, NULL, result, reason, evidence, attempts, 0, n FROM findings WHERE tenant = ? AND record`+of+`
			ORDER BY at DESC, attempts DESC, sent, n DESC LIMIT ?`, string(t), string(t), id, string(t), id, string(t), string(t), id, string(t), id, attemptsMax)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			a, err := scanAttempt(rows)
			if err != nil {
				return err
			}
			steps = append(steps, a)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, found("payment", err)
	}
	slices.Reverse(steps)
	number := map[string]int{} // by record
	for i := range steps {
		number[steps[i].Record]++
		steps[i].N = number[steps[i].Record]
	}
	return steps, nil
}

func scanAttempt(row scanner) (a Attempt, err error) {
	var at, attempts, sent, n int64
	var ended, maybe, status sql.NullInt64
	var key, requestID, verdict, reason, proof sql.NullString
	var hash []byte
	if err := row.Scan(&a.Record, &a.Step, &at, &ended, &key, &hash, &a.Account, &maybe, &status, &requestID, &verdict, &reason, &proof, &attempts, &sent, &n); err != nil {
		return a, err
	}
	a.At, a.EndedAt, a.UpstreamKey = instant(at), optionalTime(ended), optionalText(key)
	a.RequestID, a.Verdict, a.Reason = optional(requestID.String), optionalText(verdict), optional(reason.String)
	if hash != nil {
		a.RequestHash = optional(hex.EncodeToString(hash))
	}
	if maybe.Valid {
		left := maybe.Int64 != 0
		a.MaybeSent = &left
	}
	if status.Int64 != 0 {
		code := int(status.Int64)
		a.HTTPStatus = &code
	}
	a.Evidence = jsontext.Value("null")
	if proof.Valid {
		a.Evidence = jsontext.Value(proof.String)
	}
	return a, nil
}
