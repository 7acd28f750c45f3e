package ledger

import (
	"cmp"
	"context"
	"net/url"
	"time"

	"tenderbox/upstream"
)

const (
	// confirmsMax confirmations may an intent be asked for under keys of their own: one that takes none of so many needs a person.
	confirmsMax = 100
	// pendingMax is how long a payment may be without an end at the processor before a person is asked. The slowest means, a direct
	// debit, take up to 14 business days, which with holidays are some 24.
	pendingMax = 30 * 24 * time.Hour
	// refundPendingMax is the same for refunds: processors wait up to 45 days for an account's balance, or for the payer's bank details.
	refundPendingMax = 60 * 24 * time.Hour
)

// polled reports whether what is known to be at the processor is asked how it stands, instead of being sent for.
func (s *send) polled() bool {
	if s.upstreamID == "" {
		return false
	}
	// An intent that was never asked to be confirmed has not moved, unless a box before this one may have asked.
	return s.step != confirm || s.firstSentAt != nil || s.resolveFirst > 0
}

// poll asks the processor for the record's object by its id, and settles the record when that has an end.
func (l *Ledger) poll(ctx context.Context, acc *upstream.Account, s *send) (next, error) {
	f := &finding{kind: kindPoll, account: identity(acc), began: l.clock.now()}
	leave, err := l.enter(ctx, acc)
	if err != nil {
		return rest, err
	}
	answer := acc.Get(ctx, s.collection()+"/"+url.PathEscape(s.upstreamID))
	leave()
	a := s.withoutToken(&answer)
	switch {
	case a.Outcome == upstream.Retryable:
		return rest, &later{after: max(a.RetryAfter, unsentPause)}
	case a.Object.ID == "":
		// Also if it is not found: what was there does not vanish, so something else is wrong.
		f.result, f.reason = resultUndecided, "not to be read at the processor: "+a.Reason
		return rest, cmp.Or(l.note(s, f), error(&later{reason: f.reason}))
	}
	if s.step == confirm && s.judge(&a.Object) == stoodWaiting {
		return l.confirmAnew(ctx, s, f, a)
	}
	if s.judge(&a.Object) == stoodPending {
		if long, err := l.pendingLong(ctx, acc, s, &a.Object); err != nil || long {
			f.result, f.evidence = resultPending, evidenceOf(&a.Object)
			return rest, cmp.Or(err, l.review(s, f, "the "+a.Object.Kind+" has been "+a.Object.Status+" for too long"))
		}
	}
	return l.adopt(s, f, &a.Object, a.Failure)
}

// pendingLong reports whether the object had time enough to come to an end. Both ends are the processor's time: no clock of the box's that jumps
// makes a case of what is under way.
func (l *Ledger) pendingLong(ctx context.Context, acc *upstream.Account, s *send, o *upstream.Object) (bool, error) {
	sent, err := l.history(ctx, s)
	if err != nil {
		return false, err
	}
	_, since, _ := sent.window()
	if since.IsZero() && o.Created > 0 { // sent by a box before this one, or before its clock was known
		since = time.Unix(o.Created, 0)
	}
	long := pendingMax
	if s.table == refundTable {
		long = refundPendingMax
	}
	now := acc.Clock()
	return !now.IsZero() && !since.IsZero() && now.Sub(since) >= long, nil
}

// confirmAnew goes on with an intent that no confirmation has reached, or none that was worked off: under a new key, because the answer
// kept under the old one may be an error for as long as it is kept. The intent can be charged once, so an old confirmation
// that arrives late changes nothing; but it may arrive, so the payment stays one that may have left.
func (l *Ledger) confirmAnew(ctx context.Context, s *send, f *finding, a *upstream.Answer) (next, error) {
	f.result, f.reason = resultAbsent, "the intent waits for its confirmation"
	f.evidence = evidenceOf(&a.Object)
	past, err := l.history(ctx, s)
	if err != nil {
		return rest, err
	}
	o := outcome{sync: s.state, looked: true}
	switch {
	case past.undecided(s.key) && s.series >= confirmsMax:
		return rest, l.review(s, f, "the processor does not work off the intent's confirmations")
	case past.undecided(s.key):
		o.series = s.series + 1
	case s.resolveFirst == 0:
		return transmitNow, nil
	}
	return transmitNow, l.conclude(s, f, o)
}
