package ledger

import (
	"context"
	"strings"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/upstream"
)

// codeUnexpectedState is the processor's refusal to confirm an intent whose state is past that: it may have been charged.
const codeUnexpectedState = "payment_intent_unexpected_state"

// outcome is what is now known of a record, and what is written of that.
type outcome struct {
	status    Status // Succeeded or Failed; "": as open as it was
	sync      SyncState
	object    string // its id at the processor; "" leaves what is known
	at        string // the account that holds it, to which the record is pinned if it is not yet
	failure   Failure
	reason    string // its last error; "" for none
	unsent    bool   // nothing can have had an effect under the present key
	forgotten bool   // what is known to be at the processor is not what the record is settled by
	unpinned  bool   // nor at the present account: any may be next
	series    int    // the keys to go on with; 0: the present ones
	looked    bool   // it was looked up and need not be again before it is sent
	lookFirst bool   // it must be, whatever comes between
	settledAt time.Time
}

func settledAs(status Status, object string) outcome {
	return outcome{status: status, sync: Settled, object: object}
}

func unsettled(sync SyncState, reason string) outcome { return outcome{sync: sync, reason: reason} }

// outcomeOf says what the answer to the send proves of the record. before is how many sends before the one that was answered may have
// reached the processor.
func (s *send) outcomeOf(a *upstream.Answer, before int) outcome {
	switch {
	case a.Outcome == upstream.Retryable && s.first:
		// No attempt may have had an effect: the record is as unsent as on its first day, and not pinned, unless an intent of its
		// waits at that account.
		return outcome{sync: Queued, unsent: true, unpinned: s.step != confirm, reason: a.Reason}
	case s.step == create:
		return s.outcomeOfCreate(a)
	case a.Outcome == upstream.Succeeded && s.judge(&a.Object) == stoodSucceeded: // a confirmation's bytes do not name the amount
		return settledAs(Succeeded, a.Object.ID)
	case a.Outcome == upstream.Declined && s.conclusive(a, before):
		o := settledAs(Failed, "")
		o.failure = failureOf(a)
		return o
	case a.Outcome == upstream.Declined && s.movesMoney():
		o := unsettled(InDoubt, "a repeat was "+a.Reason+"; what became of the first send is looked up")
		o.lookFirst = true
		return o
	}
	o := unsettled(InDoubt, a.Reason)
	o.object = a.Object.ID // it is there, and has no outcome yet
	return o
}

// outcomeOfCreate never says in doubt: nothing was charged, whatever happened.
func (s *send) outcomeOfCreate(a *upstream.Answer) outcome {
	switch {
	case a.Object.Status == "succeeded": // a processor that confirms unasked
		return settledAs(Succeeded, a.Object.ID)
	case a.Object.ID != "" && a.Outcome != upstream.Declined:
		return outcome{sync: Queued, object: a.Object.ID, unsent: true, series: 1} // the keys of the confirmation begin anew
	case a.Outcome == upstream.Declined:
		o := settledAs(Failed, "")
		o.failure = failureOf(a)
		return o
	}
	return unsettled(Queued, a.Reason)
}

func failureOf(a *upstream.Answer) Failure {
	return Failure{a.Failure.Code, a.Failure.DeclineCode, a.Failure.Message}
}

// conclusive reports whether a refusal tells what became of the record. A repeat's does not: a processor that forgot the key early, or a
// deputy of its, refuses the repeat of what it has charged. One that is replayed is the answer to the only send before, and with more than one
// it may be that to a repeat.
func (s *send) conclusive(a *upstream.Answer, before int) bool {
	if s.step == confirm && a.Failure.Code == codeUnexpectedState {
		return false // it is confirmed already, by whichever send
	}
	return before == 0 || before == 1 && a.Replayed
}

// sendsBefore counts the sends before the one that was answered which may have reached the processor, if that matters.
func (l *Ledger) sendsBefore(s *send, a *upstream.Answer) int {
	n := max(a.Sends-1, 0)
	if a.Outcome != upstream.Declined || s.first {
		return n
	}
	sent, err := l.history(context.Background(), s)
	if err != nil {
		return n + severalSends // the answer is in hand: at worst it is looked up in vain
	}
	return n + sent.sends(s)
}

// record stores the outcome of an attempt: the attempt's row, the record's
// state (guarded: a final state never changes) and the journal row, in one
// transaction, with what follows in the same (nil: nothing). It is not cut short by a stop of the box: the answer is in hand.
func (l *Ledger) record(s *send, answer *upstream.Answer, then func(tx *shards.Tx) error) (outcome, error) {
	now := l.clock.now()
	a := s.withoutToken(answer)
	o := s.outcomeOf(a, l.sendsBefore(s, a))
	o.settledAt = l.settledAt(s.tenant, now)
	proof, err := proofOf(a)
	if err != nil {
		return o, err
	}
	result := a.Outcome
	if s.step == create && o.object != "" {
		result = upstream.Succeeded // of what was asked: an intent
	}
	err = l.apply(s, o, now, func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE attempts SET ended_at = ?, outcome = ?, maybe_sent = ?, http_status = ?, request_id = ?, reason = ?, evidence = ?
			WHERE tenant = ? AND record = ? AND n = ?`,
			now.UnixMilli(), string(result), a.Sends, a.Status, a.RequestID, a.Reason, proof,
			string(s.tenant), s.id, s.n)
		return err
	}, s.n, then)
	return o, err
}

// apply writes an outcome, and before it what it rests on, in one transaction. The record changes only if it has seen as many
// attempts as the outcome is about; what it rests on is kept in any case. then is what follows from the change; without one, and with a then, the error
// is errMoved.
func (l *Ledger) apply(s *send, o outcome, now time.Time, ground func(tx *shards.Tx) error, attempts int, then func(tx *shards.Tx) error) error {
	set, args := o.assignments(s)
	event, changed := l.eventOf(s, &o, now), false
	err := l.update(context.Background(), s, func(tx *shards.Tx) error {
		if err := ground(tx); err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE `+string(s.table)+` SET `+set+` WHERE tenant = ? AND id = ? AND status = ? AND sync `+s.guard()+` AND attempts = ?`,
			append(args, string(s.tenant), s.id, s.openAs(), attempts)...)
		if changed = n > 0; err != nil || !changed {
			return err
		}
		if event != nil {
			tx.Attach(event)
		}
		if o.status != "" {
			if err := l.finish(tx, s, o.status, now); err != nil {
				return err
			}
		}
		if then != nil {
			return then(tx)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if changed && o.status != "" && s.table == paymentTable {
		l.direct.settle(s.after(&o))
	}
	l.wake(s)
	if !changed && then != nil {
		return errMoved // nothing followed
	}
	return nil
}

// openAs is the status of a record that is not final.
func (s *send) openAs() string {
	if s.unconfirmed() {
		return string(RequiresConfirmation)
	}
	return string(Pending) // of refunds too
}

// guard keeps everybody but a person from a record that is in review.
func (s *send) guard() string {
	if s.state == Review {
		return "= 'review'"
	}
	return "<> 'review'"
}

// finish does what goes with a final state.
func (l *Ledger) finish(tx *shards.Tx, s *send, status Status, now time.Time) error {
	// The bytes name the source, which is needed no more.
	if _, err := tx.Exec(`UPDATE sends SET body = NULL WHERE tenant = ? AND record = ?`, string(s.tenant), s.id); err != nil {
		return err
	}
	if s.table == paymentTable {
		p := s.payment
		p.Status = status
		return l.settleOrder(tx, s.tenant, &p, now)
	}
	if status == Succeeded {
		return nil
	}
	// Its amount may be refunded again.
	_, err := tx.Exec(`UPDATE payments SET amount_refunded = amount_refunded - ? WHERE tenant = ? AND id = ?`,
		s.refund.Amount, string(s.tenant), string(s.payment.ID))
	return err
}

// assignments is the SET part of the record's update.
func (o *outcome) assignments(s *send) (set string, args []any) {
	var text strings.Builder
	put := func(column string, value any) {
		if text.Len() > 0 {
			text.WriteString(", ")
		}
		text.WriteString(column)
		if strings.Contains(column, "?") {
			args = append(args, value)
		}
	}
	put("sync = ?", string(o.sync))
	if o.reason == "" {
		put("last_error = NULL", nil)
	} else {
		put("last_error = ?", o.reason)
	}
	if o.status != "" {
		put("status = ?", string(o.status))
		put("settled_at = ?", o.settledAt.UnixMilli())
		if s.table == paymentTable {
			put("source = NULL", nil)
		}
	}
	switch {
	case o.object != "":
		put("upstream_id = ?", o.object)
		if o.at != "" {
			put("account = coalesce(account, ?)", o.at)
		}
	case o.forgotten:
		put("upstream_id = NULL", nil)
	}
	if o.status == Failed {
		put("failure_code = ?", o.failure.Code)
		put("failure_decline = ?", o.failure.DeclineCode)
		put("failure_message = ?", o.failure.Message)
	}
	if o.unsent {
		put("first_sent_at = NULL", nil)
	}
	if o.unpinned {
		put("account = NULL", nil)
	}
	if o.series != 0 {
		put("series = ?", o.series)
	}
	if o.looked {
		put("resolve_first = 0", nil)
	}
	if o.lookFirst {
		put("resolve_first = ?", lookUp)
	}
	return text.String(), args
}

// eventOf is the journal row of the change; nil when it is no event.
func (l *Ledger) eventOf(s *send, o *outcome, now time.Time) *Event {
	if s.table == refundTable {
		return l.refundEventOf(s, o, now)
	}
	var typ EventType
	switch {
	case o.status == Succeeded:
		typ = PaymentSucceeded
	case o.status == Failed:
		typ = PaymentFailed
	case o.sync == Review:
		typ = PaymentReview
	case o.sync == InDoubt && s.state != InDoubt:
		typ = PaymentInDoubt
	default:
		return nil
	}
	return l.paymentEvent(s.tenant, typ, s.after(o), now)
}

// after is the payment as the outcome leaves it.
func (s *send) after(o *outcome) *Payment {
	p := s.payment
	p.Sync = Sync{State: o.sync, Attempts: s.n, FirstSentAt: s.firstSentAt}
	if o.object != "" {
		p.UpstreamID = &o.object
	}
	if o.status != "" {
		p.Status, p.SettledAt = o.status, &o.settledAt
	}
	if o.status == Failed {
		p.Failure = &o.failure
	}
	return &p
}

// refundEventOf is the journal row of a refund's change: only its end is an event.
func (l *Ledger) refundEventOf(s *send, o *outcome, now time.Time) *Event {
	r := s.refund
	r.Sync.State, r.SettledAt = o.sync, &o.settledAt
	if o.object != "" {
		r.UpstreamID = &o.object
	}
	switch o.status {
	case Succeeded:
		r.Status = RefundDone
		return l.refundEvent(s.tenant, RefundSucceeded, &r, now)
	case Failed:
		r.Status, r.Failure = RefundRefused, &o.failure
		return l.refundEvent(s.tenant, RefundFailed, &r, now)
	}
	return nil
}

// wake tells those who wait for the record that it has changed.
func (l *Ledger) wake(s *send) {
	if s.table == refundTable {
		l.refunds.wake(s.refund.ID)
		return
	}
	l.waiters.wake(s.payment.ID)
}

// evidence is what is kept of the processor's object: what proves the outcome,
// and nothing of the person who paid.
type evidence struct {
	ID       string `json:"id"`
	Object   string `json:"object"`
	Status   string `json:"status"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Created  int64  `json:"created"`
}

func evidenceOf(o *upstream.Object) evidence {
	return evidence{o.ID, o.Kind, o.Status, o.Amount, o.Currency, o.Created}
}

// refusal is what is kept of the processor's no.
type refusal struct {
	Failure Failure `json:"failure"`
}

// proofOf is what is kept of an answer: its object, or why it is a no. NULL when it shows neither.
func proofOf(a *upstream.Answer) (any, error) {
	var proof any
	switch o := &a.Object; {
	case o.ID != "":
		proof = evidenceOf(o)
	case a.Outcome == upstream.Declined:
		proof = refusal{failureOf(a)}
	default:
		return nil, nil
	}
	b, err := json.Marshal(proof)
	return string(b), err
}

func proofsOf(found []sighting) (proofs []evidence) {
	for _, o := range found {
		proofs = append(proofs, evidenceOf(&o.Object))
	}
	return proofs
}
