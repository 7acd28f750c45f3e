package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	"tenderbox/shards"
	"tenderbox/upstream"
)

const (
	// lookAfter unknown outcomes under one key a record is looked up too, before it is sent again: a processor that keeps an error
	// under the key answers it for a day, whatever the request did.
	lookAfter = 3
	// windowMargin is how much earlier than the first send a look-up begins: the processor's clock is known as well as an answer was quick.
	windowMargin = 15 * time.Minute
	// createdMargin is the same for a record that only the box's own clock dates.
	createdMargin = 24 * time.Hour
	// sentMargin after the last seal its send has ended, in this process or with the one before, and the processor has worked it off:
	// the queue gives no handler more than ten minutes.
	sentMargin = 15 * time.Minute
	// formerMargin after this process first looked, what a box that it follows has sent is worked off: the sends of a
	// process end with it. So is what this process has sent, so long after it ended.
	formerMargin = 15 * time.Second
	// wholeTries readings are made of a list before what is seen in a part of it is taken: beside it there may be a second success, and what
	// broke one reading is mostly gone in the next. In vain, the outcome that is known counts more, and an alarm says what is not.
	wholeTries = 3
)

// doubtful says why a record is looked up before it is sent.
type doubtful int

const (
	sure   doubtful = iota // it is not
	early                  // it was sent in vain several times; what is found is adopted, else it is sent again under its key
	remade                 // an intent is made anew, under a new key: no look is needed
	late                   // the processor may have forgotten its key
	former                 // a box before this one, on these data, may have sent it
)

func (l *Ledger) doubt(acc *upstream.Account, s *send) doubtful {
	switch {
	case s.resolveFirst > 0:
		return former
	case s.firstSentAt == nil || s.step == confirm:
		return sure
	case s.step == create && ((s.n-1)%lookAfter == 0 || l.tooOld(acc, s)):
		return remade
	case s.step == create:
		return sure
	case l.tooOld(acc, s):
		return late
	case s.n > lookAfter:
		return early
	}
	return sure
}

// resolve looks the record up in the processor's list, and adopts what it finds, or lets the record be sent when it is proved that nothing
// is there: under its key, or if that may be forgotten, under a new one. What can be neither found nor excluded is looked up again, and
// is a person's in the end.
func (l *Ledger) resolve(ctx context.Context, acc *upstream.Account, s *send, why doubtful) (next, error) {
	f := &finding{kind: kindResolve, account: identity(acc), began: l.clock.now()}
	if why == remade {
		f.result, f.reason = resultUndecided, "an intent that nobody confirms moves no money: another is made"
		return again, l.conclude(s, f, outcome{sync: Queued, unsent: true, series: s.series + 1})
	}
	sent, err := l.history(ctx, s)
	if err != nil {
		return rest, err
	}
	q, r, found, err := l.search(ctx, acc, s, sent, why)
	if err != nil {
		return rest, err
	}
	if r.Complete {
		l.alarms.clear(partAlarm(s, q.path))
	}
	o, twice := s.choose(found)
	switch refused := o != nil && s.judge(&o.Object) == stoodFailed; {
	case twice:
		l.raise(alarmKey{tenant: s.tenant, code: "payment_charged_twice", subject: s.id}, "the processor holds more than one success for "+s.id)
		f.result, f.evidence = resultFound, proofsOf(found)
		return rest, l.review(s, f, "the processor holds more than one success for it")
	case o != nil && !refused && r.Complete:
		return l.adopt(s, f, &o.Object, upstream.Failure{})
	case o != nil && !refused:
		return l.adoptInPart(s, f, q, r, o)
	case why == early && !(refused && q.provenBy(r)):
		return transmitNow, nil
	}
	return again, l.exclude(ctx, acc, s, f, q, r, sent, o)
}

// adoptInPart takes what is seen in a list that cannot be read whole, but for an intent that waits: it would be confirmed, and another of the
// record's may have been.
func (l *Ledger) adoptInPart(s *send, f *finding, q question, r *reading, o *sighting) (next, error) {
	why := r.broke(s)
	before, err := l.lastFinding(s)
	if err != nil {
		return rest, err
	}
	tried := before.kind == kindResolve && before.result == resultUndecided && before.attempts == s.n-1 && before.looks >= wholeTries-1
	if stood := s.judge(&o.Object); stood == stoodWaiting || !tried {
		f.evidence = evidenceOf(&o.Object)
		return rest, l.undecided(s, f, "something is found in the processor's list, which could not be read whole: "+why)
	}
	f.reason = "the processor's list could not be read whole: a second success for it would not have been seen"
	l.raise(partAlarm(s, q.path), "the processor's list of "+q.path+" cannot be read whole ("+why+"); "+s.id+
		" goes by what is seen of it, and a second success for it would not be: reconcile the days since it was made")
	return l.adopt(s, f, &o.Object, upstream.Failure{})
}

// partAlarm stands from when something was adopted from a part of a list until one was read whole.
func partAlarm(s *send, path string) alarmKey {
	return alarmKey{tenant: s.tenant, code: "upstream_list_incomplete", subject: path}
}

// search looks for the record's objects: what was asked, what was read, and what of that is the record's.
func (l *Ledger) search(ctx context.Context, acc *upstream.Account, s *send, sent past, why doubtful) (q question, r *reading, found []sighting, err error) {
	if q, err = l.question(acc, s, sent, why); err == nil {
		r, err = l.look(ctx, s, q)
	}
	if err == nil {
		found, err = l.owned(ctx, s, r.of(q.marks))
	}
	return q, r, found, err
}

// question is what is asked of a collection.
type question struct {
	place
	filter url.Values
	marks  []mark
	from   time.Time // what is looked for was made at or after this
	after  time.Time // a reading that began before this proves no absence; zero: none can be proved yet
	early  bool      // no absence is to be proved: any reading of late will do
}

// provenBy reports whether the reading shows all that was sent, as far as its API key sees.
func (q *question) provenBy(r *reading) bool {
	return r.Complete && !r.Began.IsZero() && !q.after.IsZero() && !r.Began.Before(q.after)
}

func (l *Ledger) question(acc *upstream.Account, s *send, sent past, why doubtful) (q question, err error) {
	q.place, q.early = place{acc, s.collection()}, why == early
	first, last, left := sent.window()
	switch {
	case s.table == refundTable:
		q.marks, q.from = []mark{{markRefund, s.id}}, everything // those of one charge are few
		if id := s.payment.UpstreamID; id != nil && s.payment.Means == ByMethod {
			q.filter = url.Values{"payment_intent": {*id}}
		} else if id != nil {
			q.filter = url.Values{"charge": {*id}}
		}
	case !left && s.resolveFirst == lookUpByKey: // made in this epoch
		q.from = s.createdAt.Add(-createdMargin)
		if s.createdAt.After(acc.Clock()) { // the box's clock was not right
			q.from = everything
		}
	case !left: // made by the box before, whose clock nobody knows to have been right
		q.from = everything
		if s.resolveFirst&lookUpOlder == 0 && l.lookups.isLarge(q.place) {
			q.from, err = l.lastDated(acc, s)
		}
		if err != nil {
			return q, err
		}
	case first.IsZero():
		q.from = everything
	default:
		q.from = first.Add(-windowMargin)
	}
	byKey := s.resolveFirst&lookUpByKey != 0 && s.keyHash != ""
	if byKey {
		q.marks = append(q.marks, mark{markKey, s.keyHash})
	}
	if s.table == paymentTable {
		q.marks = append(q.marks, mark{markPayment, s.id})
		if byKey {
			if from := s.createdAt.Add(-keyRetention - createdMargin); from.Before(q.from) {
				q.from = from // the request that is repeated came while its key was kept
			}
		}
	}
	switch {
	case why == former, why == early:
		since := l.lookups.since(q.place)
		if left && last.After(since) { // the seal; what it sent took no longer than a call may
			since = last.Add(acc.Timeout())
		}
		if !since.IsZero() {
			q.after = since.Add(formerMargin)
		}
		if s.movesMoney() && l.tooOld(acc, s) {
			q.after, err = l.sentBefore(acc, s, last)
		}
	default:
		q.after, err = l.sentBefore(acc, s, last)
	}
	return q, err
}

// look reads what answers the question, or hears what was read lately.
func (l *Ledger) look(ctx context.Context, s *send, q question) (*reading, error) {
	if q.filter != nil {
		return l.lookups.read(ctx, q.acc, q.path, q.filter, q.from), nil
	}
	after := q.after
	if q.early || after.After(q.acc.Clock()) {
		after = time.Time{} // no reading can prove absence yet; one may find it
	}
	return l.lookups.ask(ctx, q.place, q.from, after)
}

// lastDated is where a look-up begins that the account holds too much for from its beginning: what another box has sent for the record, and is not in
// these data, was sent after they were parted, and so after the last of their sends of which the processor's time is known. If there is none, the
// beginning it is, which is not read to its end, and a person is asked.
func (l *Ledger) lastDated(acc *upstream.Account, s *send) (time.Time, error) {
	var last sql.NullInt64
	err := l.shardOf(s.payment.ID).View(context.Background(), func(tx *shards.Tx) error {
		return tx.QueryRow(`SELECT /* box */ max(their_time) FROM attempts WHERE epoch < ? AND account = ?`, int64(l.set.Manifest().Epoch), identity(acc)).Scan(&last)
	})
	if at := instant(last.Int64); err == nil && last.Valid && at.Before(acc.Clock()) {
		return at.Add(-windowMargin), nil
	}
	return everything, err
}

// sentBefore is the time, by the processor's clock, from which on a reading sees all that was sent. If the last seal
// did not know that clock, the record waits from the first look on, which is noted.
func (l *Ledger) sentBefore(acc *upstream.Account, s *send, last time.Time) (time.Time, error) {
	if !last.IsZero() {
		return last.Add(sentMargin), nil
	}
	noted, err := l.firstLook(s)
	if err != nil || noted.IsZero() {
		return time.Time{}, err
	}
	return noted.Add(sentMargin), nil
}

// owned leaves out what bears the client's key and belongs to another record that the box knows: keys are used again after their time.
func (l *Ledger) owned(ctx context.Context, s *send, found []sighting) (own []sighting, err error) {
	for _, o := range found {
		known, err := l.anothers(ctx, s, &o)
		if err != nil {
			return nil, err
		}
		if known {
			continue
		}
		own = append(own, o)
	}
	return own, nil
}

// choose picks the object that tells most: a success, or what is not settled, before a refusal. twice: more than one took effect, or may yet.
func (s *send) choose(found []sighting) (best *sighting, twice bool) {
	rank := map[standing]int{stoodFailed: 1, stoodWaiting: 2, stoodPending: 3, stoodAnother: 4, stoodSucceeded: 5}
	effects := 0
	for i := range found {
		o := &found[i]
		switch o.Status {
		case "succeeded", "pending", "processing":
			effects++
		}
		if best == nil || rank[s.judge(&o.Object)] > rank[s.judge(&best.Object)] {
			best = o
		}
	}
	return best, effects > 1
}

// absence is what proves that nothing is there.
type absence struct {
	Path    string    `json:"path"`
	From    time.Time `json:"from"`
	Began   time.Time `json:"began"` // by the processor's clock, as all here
	After   time.Time `json:"after"` // all sends had ended and were worked off by then
	Pages   int       `json:"pages"`
	Objects int       `json:"objects"`
	First   string    `json:"first"`
	Last    string    `json:"last"`
	KeyID   string    `json:"key_id"`
	Noted   time.Time `json:"noted"`
	Looks   int64     `json:"looks"`
}

// undecided notes a look that settled nothing, and wishes for another.
func (l *Ledger) undecided(s *send, f *finding, reason string) error {
	f.result, f.reason = resultUndecided, reason
	return cmp.Or(l.note(s, f), error(&later{reason: reason}))
}

// exclude proves that the reading would show what was sent, and lets the record be sent; or, if all that is there is a refusal, or a repeat was
// refused, settles it as that.
func (l *Ledger) exclude(ctx context.Context, acc *upstream.Account, s *send, f *finding, q question, r *reading, sent past, refused *sighting) error {
	f.evidence = absence{q.path, r.From, r.Began, q.after, r.Pages, r.Objects, r.First, r.Last, r.KeyID, acc.Clock(), 1}
	switch {
	case !r.Complete && r.answer.Outcome == upstream.Retryable && !r.answer.MaybeSent:
		return &later{after: max(r.answer.RetryAfter, unsentPause)}
	case !r.Complete:
		return l.undecided(s, f, "the processor's list could not be read whole: "+r.broke(s))
	case r.Began.IsZero():
		return l.undecided(s, f, "the processor does not tell the time, so nothing says that its list is newer than the send")
	case q.after.IsZero():
		return l.undecided(s, f, "the last send is not dated by the processor's clock: it is looked for again later")
	case r.Began.Before(q.after):
		return &later{after: min(max(q.after.Sub(acc.Clock()), unsentPause), sentMargin), reason: "the last send may still be under way"}
	}
	sees, err := l.sees(ctx, acc, s, sent, r.KeyID)
	if err != nil {
		return err
	}
	f.result = resultAbsent
	if !sees {
		f.result = resultUndecided
		return l.review(s, f, "nothing is found with the present API key, and nothing proves that it is of the account that was sent to")
	}
	failure, no := sent.refused(s.key)
	if refused != nil {
		_, err := l.adopt(s, f, &refused.Object, failure)
		return err
	}
	o := outcome{sync: s.state, looked: true}
	o.unpinned = s.unconfirmed() // nothing of it was sent anywhere
	switch {
	case no && s.movesMoney():
		f.reason = "a repeat was refused, and nothing else is there"
		o = settledAs(Failed, "")
		o.failure = lostFailure(failure)
	case s.movesMoney() && l.tooOld(acc, s):
		f.reason = "proved not to be there: it is sent under a new key"
		o.sync, o.unsent, o.unpinned, o.series = Queued, true, true, s.series+1
	}
	return l.conclude(s, f, o)
}

// lookBack looks for an intent that waits here for its confirmation, and may have been confirmed and charged by the box that this folder was
// copied from. What was is confirmed here too, and settled as it stands; of what was not, nobody need doubt any more that it is unsent.
func (l *Ledger) lookBack(ctx context.Context, acc *upstream.Account, s *send) (next, error) {
	f := &finding{kind: kindResolve, account: identity(acc), began: l.clock.now()}
	q, r, found, err := l.search(ctx, acc, s, nil, former)
	if err != nil {
		return rest, err
	}
	for i := range found {
		if stood := s.judge(&found[i].Object); stood != stoodWaiting && stood != stoodFailed {
			return again, l.confirmedBefore(ctx, s)
		}
	}
	return rest, l.exclude(ctx, acc, s, f, q, r, nil, nil)
}

// confirmedBefore writes down that the intent's client has confirmed it, in the box before.
func (l *Ledger) confirmedBefore(ctx context.Context, s *send) error {
	now := l.clock.now()
	return l.update(ctx, s, func(tx *shards.Tx) error {
		n, err := tx.Exec(`UPDATE payments SET status = 'pending' WHERE tenant = ? AND id = ? AND status = 'requires_confirmation' AND resolve_first > 0`,
			string(s.tenant), s.id)
		if err != nil || n == 0 {
			return err
		}
		p := s.payment
		p.Status, p.MethodMissing = Pending, false
		tx.Attach(l.paymentEvent(s.tenant, PaymentConfirmed, &p, now))
		return nil
	})
}

// firstLook is when, by the processor's clock, the record was first looked for since its last send; zero if it was not.
func (l *Ledger) firstLook(s *send) (time.Time, error) {
	last, err := l.lastFinding(s)
	if err != nil || last.kind != kindResolve || last.attempts != s.n-1 {
		return time.Time{}, err
	}
	return last.noted, nil
}

// anothers reports whether the object is that of another record of the tenant's that the box knows.
func (l *Ledger) anothers(ctx context.Context, s *send, o *sighting) (bool, error) {
	var err error
	switch id := o.payment; {
	case s.table == paymentTable && id != s.id:
		_, err = l.Payment(ctx, s.tenant, id)
	case s.table == refundTable && o.refund != s.id:
		id = o.refund
		_, err = l.Refund(ctx, s.tenant, id)
	default:
		return false, nil
	}
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Kind == NotFound {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("record of %s: %w", o.ID, err)
	}
	return true, nil
}
