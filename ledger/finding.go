package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

const (
	// looksMin and looksFor bound how long the box tries to find out what became of a record before a person is asked: so many
	// fruitless looks in a row, spread over so long. Time alone would count an outage's.
	looksMin = 20
	looksFor = 24 * time.Hour
)

// standing is what an object of the processor's says about the record that it was made for.
type standing string

const (
	stoodSucceeded standing = "succeeded" // the money moved
	stoodFailed    standing = "failed"    // it did not, and will not
	stoodPending   standing = "pending"   // nobody knows yet
	stoodWaiting   standing = "waiting"   // an intent that nobody has confirmed
	stoodAnother   standing = "another"   // it is not what was asked for
)

// judge says how the object stands.
func (s *send) judge(o *upstream.Object) standing {
	amount, currency := s.amount()
	switch {
	case o.Amount != amount || o.Currency != currency:
		return stoodAnother
	case o.Status == "succeeded":
		return stoodSucceeded
	case o.Status == "failed" && s.collection() != upstream.PathIntents, o.Status == "canceled":
		return stoodFailed
	case s.collection() != upstream.PathIntents:
		return stoodPending
	case o.Status == "requires_confirmation":
		return stoodWaiting
	case o.Status == "requires_payment_method":
		return stoodFailed // it was made with one, which a declined confirmation took away
	}
	return stoodPending
}

// finding is what was found out about a record without sending it: a row of the table.
type finding struct {
	kind     string // poll, resolve, verdict
	account  string
	began    time.Time
	result   string // found, absent, undecided, pending; of a verdict, what the person said
	reason   string
	evidence any // what proves it; nil for none
}

const (
	kindPoll    = "poll"
	kindResolve = "resolve"
	kindVerdict = "verdict"

	resultFound     = "found"
	resultAbsent    = "absent"
	resultUndecided = "undecided"
	resultPending   = "pending"
)

// writeFinding appends the finding to the record's.
func (l *Ledger) writeFinding(tx *shards.Tx, s *send, f *finding, now time.Time) error {
	var proof any
	if f.evidence != nil {
		b, err := json.Marshal(f.evidence)
		if err != nil {
			return err
		}
		proof = string(b)
	}
	_, err := tx.Exec(`INSERT INTO findings (tenant, record, n, attempts, kind, account, epoch, started_at, ended_at, result, reason, evidence)
		SELECT ?, ?, coalesce(max(n), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM findings WHERE tenant = ? AND record = ?`,
		string(s.tenant), s.id, s.n-1, f.kind, f.account, int64(l.set.Manifest().Epoch), f.began.UnixMilli(), now.UnixMilli(), f.result, nullText(f.reason), proof,
		string(s.tenant), s.id)
	return err
}

func nullText(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// conclude stores what was found out and what follows from it, in one transaction.
func (l *Ledger) conclude(s *send, f *finding, o outcome) error {
	now := l.clock.now()
	o.at = f.account
	o.settledAt = l.settledAt(s.tenant, now)
	return l.apply(s, o, now, func(tx *shards.Tx) error { return l.writeFinding(tx, s, f, now) }, s.n-1, nil)
}

// adopt settles the record as the processor's object stands, or notes that it is there and has no outcome yet.
func (l *Ledger) adopt(s *send, f *finding, o *upstream.Object, failure upstream.Failure) (next, error) {
	f.evidence = evidenceOf(o)
	switch s.judge(o) {
	case stoodSucceeded:
		f.result = resultFound
		return rest, l.conclude(s, f, settledAs(Succeeded, o.ID))
	case stoodFailed:
		f.result = resultFound
		end := settledAs(Failed, o.ID)
		end.failure = lostFailure(failure)
		return rest, l.conclude(s, f, end)
	case stoodWaiting:
		f.result = resultFound
		return again, l.conclude(s, f, outcome{sync: Queued, object: o.ID, unsent: true, series: 1, looked: true})
	case stoodPending:
		f.result, f.reason = resultPending, "the "+o.Kind+" is "+o.Status
		wish := error(&later{reason: f.reason}) // the queue's backoff spaces the polls
		if s.upstreamID == o.ID {
			return rest, cmp.Or(l.note(s, f), wish)
		}
		end := unsettled(InDoubt, f.reason)
		end.object, end.looked = o.ID, true
		return rest, cmp.Or(l.conclude(s, f, end), wish)
	}
	f.result, f.reason = resultUndecided, fmt.Sprintf("the processor holds a %s for it of another amount or currency", o.Kind)
	if before, err := l.lastFinding(s); f.kind == kindPoll && (err != nil || before.kind != kindPoll || before.reason != f.reason) {
		return rest, cmp.Or(err, l.note(s, f), error(&later{reason: f.reason})) // one answer alone may be garbled
	}
	return rest, l.review(s, f, f.reason)
}

// lostFailure puts into words a refusal whose answer was lost: the object alone says little of why.
func lostFailure(f upstream.Failure) Failure {
	if f.Code == "" && f.Message == "" {
		f.Code, f.Message = "declined", "The processor declined; its answer, which said why, was lost."
	}
	return Failure{f.Code, f.DeclineCode, f.Message}
}

// review gives the record to a person.
func (l *Ledger) review(s *send, f *finding, why string) error {
	if s.unconfirmed() { // nothing is sent for it, and it is looked for again
		return &later{reason: why}
	}
	f.reason = why
	err := l.conclude(s, f, unsettled(Review, why))
	if err == nil && s.table == refundTable {
		l.refundInReview(s.tenant, s.id)
	}
	return err
}

// refundInReview raises the alarm that stands in for an event: there is none for a refund that waits for a person.
func (l *Ledger) refundInReview(t tenants.ID, id string) {
	l.raise(alarmKey{tenant: t, code: "refund_review", subject: id}, "refund "+id+" waits for a person's verdict")
}

// note stores a look that settled nothing. One that says what the one before said changes that one's row, so that a record
// looked at for days keeps a few rows; after enough that say nothing, the record goes to a person (errMoved).
func (l *Ledger) note(s *send, f *finding) error {
	now := l.clock.now()
	before, err := l.lastFinding(s)
	if err != nil {
		return err
	}
	same := before.kind == f.kind && before.result == f.result && (f.result != resultPending || before.reason == f.reason)
	// The first look since the last send that knows the processor's clock dates that send: it has a row of its own.
	if a, dated := f.evidence.(absence); dated && (before.attempts != s.n-1 || before.noted.IsZero() && !a.Noted.IsZero()) {
		same = false
	}
	if !same {
		if f.evidence == nil {
			f.evidence = looks{1}
		}
		return l.update(context.Background(), s, func(tx *shards.Tx) error { return l.writeFinding(tx, s, f, now) })
	}
	if f.result == resultPending {
		return nil
	}
	if before.looks+1 >= looksMin && now.Sub(before.began) >= looksFor {
		return cmp.Or(l.review(s, f, "could not be found out: "+f.reason), errMoved)
	}
	return l.update(context.Background(), s, func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE findings SET ended_at = ?, reason = ?, evidence = json_set(coalesce(evidence, '{}'), '$.looks', ?)
			WHERE tenant = ? AND record = ? AND n = ?`, now.UnixMilli(), nullText(f.reason), before.looks+1, string(s.tenant), s.id, before.n)
		return err
	})
}

// looks counts those that a finding stands for.
type looks struct {
	Looks int64 `json:"looks"`
}

// lastLook is the record's latest finding.
type lastLook struct {
	n            int64
	kind, result string
	reason       string
	began        time.Time
	looks        int64
	attempts     int       // that were sealed before
	noted        time.Time // the processor's clock then; zero if the look did not need it
}

func (l *Ledger) lastFinding(s *send) (f lastLook, err error) {
	err = l.shardOf(s.payment.ID).View(context.Background(), func(tx *shards.Tx) error {
		var reason sql.NullString
		var began int64
		var noted string
		err := tx.QueryRow(`SELECT n, kind, result, reason, started_at, coalesce(json_extract(evidence, '$.looks'), 1),
			attempts, coalesce(json_extract(evidence, '$.noted'), '') FROM findings
			WHERE tenant = ? AND record = ? ORDER BY n DESC LIMIT 1`, string(s.tenant), s.id).Scan(&f.n, &f.kind, &f.result, &reason, &began, &f.looks, &f.attempts, &noted)
		f.reason, f.began = reason.String, instant(began)
		f.noted, _ = time.Parse(time.RFC3339Nano, noted) // zero when it was not noted
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return f, err
}

// alarmReviews raises the alarms of the shard's refunds in review, which a start has forgotten.
func (l *Ledger) alarmReviews(ctx context.Context, sh *shards.Shard) error {
	return sh.View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT /* box */ tenant, id FROM refunds INDEXED BY refunds_open WHERE sync <> 'settled' AND sync = 'review' LIMIT ?`, relayBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var t, id string
			if err := rows.Scan(&t, &id); err != nil {
				return err
			}
			l.refundInReview(tenants.ID(t), id)
		}
		return rows.Err()
	})
}
