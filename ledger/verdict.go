package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// Verdict is what a person decides about a payment or a refund in review.
type Verdict struct {
	Verdict    string // succeeded, failed, resend
	UpstreamID string // of succeeded: the processor's object
	Reason     string // kept on record; required
}

const (
	verdictSucceeded = "succeeded"
	verdictFailed    = "failed"
	verdictResend    = "resend"
)

// verdictDelay is how long the job of a record that is sent again waits. It is made before the verdict is stored, so that no crash
// leaves the record without it, and finds a record in review, which ends it, if it comes too early.
const verdictDelay = 2 * time.Second

func (v *Verdict) validate() error {
	switch v.Verdict {
	case verdictSucceeded, verdictFailed, verdictResend:
	default:
		return invalid("verdict_invalid", "verdict", "must be succeeded, failed or resend")
	}
	switch {
	case v.Verdict == verdictSucceeded && v.UpstreamID == "":
		return invalid("upstream_id_missing", "upstream_id", "name the processor's object, which is compared before it is believed")
	case v.Verdict != verdictSucceeded && v.UpstreamID != "":
		return invalid("upstream_id_invalid", "upstream_id", "goes with succeeded only")
	case v.Reason == "":
		return invalid("reason_missing", "reason", "say how that is known; it is kept on record")
	}
	if err := checkText("upstream_id", v.UpstreamID, tokenMax, true); err != nil {
		return err
	}
	if err := checkText("reason", v.Reason, descriptionMax, false); err != nil {
		return err
	}
	for _, m := range []struct{ field, value string }{{"upstream_id", v.UpstreamID}, {"reason", v.Reason}} {
		if holdsCardNumber(m.value) {
			return cardData(m.field)
		}
	}
	return nil
}

// Resolve acts on a payment in review as a person decided: it is settled, or sent again under a new upstream key. A success is
// compared with the processor's object, which must have the payment's amount and currency.
func (l *Ledger) Resolve(ctx context.Context, t tenants.ID, id string, v Verdict) (Payment, error) {
	if _, ok := ParsePaymentID(id); !ok {
		return Payment{}, notFound("payment")
	}
	if err := l.decide(ctx, t, id, "payment", &v); err != nil {
		return Payment{}, err
	}
	return l.Payment(ctx, t, id)
}

// ResolveRefund is Resolve for a refund in review.
func (l *Ledger) ResolveRefund(ctx context.Context, t tenants.ID, id string, v Verdict) (Refund, error) {
	if _, ok := ParseRefundID(id); !ok {
		return Refund{}, notFound("refund")
	}
	if err := l.decide(ctx, t, id, "refund", &v); err != nil {
		return Refund{}, err
	}
	return l.Refund(ctx, t, id)
}

func (l *Ledger) decide(ctx context.Context, t tenants.ID, id, kind string, v *Verdict) error {
	if err := v.validate(); err != nil {
		return err
	}
	s, err := l.loadSend(ctx, t, id)
	if err != nil {
		return found(kind, err)
	}
	notInReview := &Error{Kind: Conflict, Code: "not_in_review", Message: "the " + kind + " is not in review; the box settles it, or has"}
	if s.final || s.state != Review {
		return notInReview
	}
	f := &finding{kind: kindVerdict, account: s.account, began: l.clock.now(), result: v.Verdict, reason: v.Reason}
	var o outcome
	switch v.Verdict {
	case verdictSucceeded:
		object, err := l.seen(ctx, s, v.UpstreamID)
		if err != nil {
			return err
		}
		f.evidence = evidenceOf(object)
		o = settledAs(Succeeded, object.ID)
		if s.table == paymentTable {
			l.claiming.Lock()
			defer l.claiming.Unlock() // when the verdict is stored
			if err := l.unclaimed(ctx, s, object); err != nil {
				return unavailable(err)
			}
		}
	case verdictFailed:
		o = settledAs(Failed, "")
		o.failure = Failure{Code: "failed_by_verdict", Message: "The operator found that it did not take place."}
	case verdictResend:
		if err := l.ended(ctx, s); err != nil {
			return err
		}
		waits := s.step == confirm // its intent is kept: it can be charged once
		o = outcome{sync: Queued, unsent: true, forgotten: !waits, unpinned: !waits, series: s.series + 1, looked: true}
		job := settleJob(&Event{Tenant: t, Subject: id})
		job[0].Delay = verdictDelay
		if _, err := l.jobs.Enqueue(ctx, job...); err != nil {
			return unavailable(err)
		}
	}
	now := l.clock.now()
	o.settledAt = l.settledAt(s.tenant, now)
	err = l.apply(s, o, now, func(tx *shards.Tx) error {
		if err := s.stillInReview(tx, &o); err != nil {
			if errors.Is(err, sql.ErrNoRows) {
				return notInReview
			}
			return err
		}
		return l.writeFinding(tx, s, f, now)
	}, s.n-1, nil)
	if err != nil {
		return unavailable(err)
	}
	l.alarms.clear(alarmKey{tenant: t, code: "refund_review", subject: id})
	l.alarms.clear(alarmKey{tenant: t, code: "payment_charged_twice", subject: id})
	l.log.Info("verdict", "tenant", string(t), "record", id, "verdict", v.Verdict)
	if v.Verdict == verdictResend {
		if _, err := l.jobs.Enqueue(context.WithoutCancel(ctx), settleJob(&Event{Tenant: t, Subject: id})...); err != nil {
			l.log.Warn("a record that is to be sent again waits for the sweeper", "record", id, "err", err)
		}
	}
	return nil
}

// stillInReview makes sure of what the verdict is about, in its transaction. A refund of the processor's stands for one of ours.
func (s *send) stillInReview(tx *shards.Tx, o *outcome) error {
	var n int64
	err := tx.QueryRow(`SELECT 1 FROM `+string(s.table)+` WHERE tenant = ? AND id = ? AND sync = 'review' AND attempts = ?`, string(s.tenant), s.id, s.n-1).Scan(&n)
	if err != nil || s.table != refundTable || o.object == "" {
		return err
	}
	var other string
	err = tx.QueryRow(`SELECT id FROM refunds WHERE tenant = ? AND payment_id = ? AND upstream_id = ? AND id <> ?`,
		string(s.tenant), string(s.payment.ID), o.object, s.id).Scan(&other)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		err = &Error{Kind: Conflict, Code: "upstream_object_differs", Field: "upstream_id", Message: "the object settles " + other + " already"}
	}
	return err
}

// unclaimed reports an error if another payment of the box, in whichever file and of whichever tenant, is settled by the object, waits for its
// end, or is settled by the intent that it belongs to or by that intent's charge. Objects that the settler adopts bear the mark of the
// payment that they were made for, and a verdict names none that bears another's: so no settler can come between this and the verdict.
func (l *Ledger) unclaimed(ctx context.Context, s *send, o *upstream.Object) error {
	acc, err := l.accountFor(s)
	if err != nil {
		return err
	}
	at := identity(acc)
	return each(ctx, l.set.All(), func(_ context.Context, tx *shards.Tx) error {
		var t tenants.ID
		var id string
		err := tx.QueryRow(`SELECT /* box */ tenant, id FROM payments WHERE upstream_id IN (?, ?, ?) AND coalesce(account, ?) = ? AND NOT (tenant = ? AND id = ?) LIMIT 1`,
			o.ID, o.PaymentIntent, o.Charge, at, at, string(s.tenant), s.id).Scan(&t, &id)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err != nil:
			return err
		case t != s.tenant:
			id = "another tenant's payment"
		}
		return &Error{Kind: Conflict, Code: "upstream_object_differs", Field: "upstream_id", Message: "the processor's object is that of " + id + " already; it settles one payment"}
	})
}

// shown asks the processor for an object of the record's collection; nil: it says that it shows none.
func (l *Ledger) shown(ctx context.Context, s *send, id string) (*upstream.Object, error) {
	away := func(reason string) error {
		return &Error{Kind: Unavailable, Code: "upstream_unavailable", RetryAfter: unsentPause, Message: "the processor cannot be asked for the object now: " + reason}
	}
	acc, err := l.accountFor(s)
	if err != nil {
		return nil, away(err.Error())
	}
	answer := acc.Get(ctx, s.collection()+"/"+url.PathEscape(id))
	a := s.withoutToken(&answer)
	switch {
	case a.Missing():
		return nil, nil
	case a.Object.ID == "":
		return nil, away(a.Reason)
	}
	return &a.Object, nil
}

// ended reports an error if what is sent again is known to be at the processor and may still take effect there, or has.
func (l *Ledger) ended(ctx context.Context, s *send) error {
	if s.upstreamID == "" || !s.movesMoney() {
		return nil
	}
	o, err := l.shown(ctx, s, s.upstreamID)
	if err != nil || o == nil || o.Final() && o.Status != "succeeded" {
		return err
	}
	return &Error{Kind: Conflict, Code: "upstream_object_open", Message: "the processor's " + o.Kind + " " + o.ID + " is " + o.Status +
		": sent again, it would take effect twice; let it end there first, or settle by it"}
}

// seen asks the processor for the object that a person named, and compares it.
func (l *Ledger) seen(ctx context.Context, s *send, id string) (*upstream.Object, error) {
	o, err := l.shown(ctx, s, id)
	if err == nil && o == nil {
		err = invalid("upstream_object_missing", "upstream_id", "the processor has no such object in "+s.collection())
	}
	if err != nil {
		return nil, err
	}
	differs := func(format string, args ...any) error {
		return &Error{Kind: Conflict, Code: "upstream_object_differs", Field: "upstream_id", Message: "the processor's object " + fmt.Sprintf(format, args...)}
	}
	amount, currency := s.amount()
	switch {
	case o.Amount != amount:
		return nil, differs("has the amount %d, not %d", o.Amount, amount)
	case o.Currency != currency:
		return nil, differs("is in %s, not %s", o.Currency, currency)
	case o.Status != "succeeded":
		return nil, differs("is %s, not succeeded", o.Status)
	case o.Metadata[markPayment] != "" && o.Metadata[markPayment] != string(s.payment.ID):
		return nil, differs("belongs to another payment")
	case s.table == refundTable && o.Metadata[markRefund] != "" && o.Metadata[markRefund] != s.id:
		return nil, differs("belongs to another refund")
	case s.table == refundTable && !s.givesBack(o):
		return nil, differs("gives another charge back")
	}
	return o, nil
}

// givesBack reports whether the refund is of the record's payment.
func (s *send) givesBack(o *upstream.Object) bool {
	paid := s.payment.UpstreamID
	return paid != nil && (o.Charge == *paid || o.PaymentIntent == *paid)
}
