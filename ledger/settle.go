package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

const (
	// unsentPause spaces attempts that are known not to have had an effect: the
	// line decides when there is a next one, not a growing backoff.
	unsentPause = 2 * time.Second
	// outagePause is how often a record looks whether its shard is back: there
	// may be thousands in one.
	outagePause = time.Minute
	// pinnedPause is how often a record looks whether its account is back.
	pinnedPause = time.Minute
	// enterMax is how long a record waits for a place among those that the account is sent: then its worker serves another tenant.
	enterMax = 30 * time.Second
	// stepsMax steps are taken for a record without its being put back into the queue: an intent takes two, and a look before each.
	stepsMax = 6
)

// later is the wish of a step that settled nothing: to be asked again, after a time or, if it names none, when the queue's backoff says.
type later struct {
	after  time.Duration
	reason string
}

func (e *later) Error() string { return e.reason }

func (e *later) wish() error {
	if e.after > 0 {
		return jobs.Snooze(e.after)
	}
	return errors.New(e.reason)
}

// settle is the handler of the queue [PaymentsQueue], for payments and refunds. The queue says when to look; what is done follows
// from the record alone:
//
//	read → final or in review: done, nothing is sent
//	known to be at the processor without an end → asked for it by its id
//	may have left, and its key may be forgotten → looked up
//	seal → attempt, exact bytes and first_sent_at are durable
//	send → with the upstream key of the record's series
//	record → outcome, journal row, state in one guarded transaction
//
// A crash after the seal leaves an attempt without outcome: the same bytes go
// out again under the same key, while the processor remembers it.
func (l *Ledger) settle(ctx context.Context, j *jobs.Job) error {
	if l.direct.holds(j.ID) {
		return jobs.Snooze(unsentPause)
	}
	what := rest
	for range stepsMax {
		var err error
		what, err = l.advance(ctx, tenants.ID(j.Tenant), j.ID, what)
		var wish *later
		switch {
		case errors.Is(err, errMoved), errors.Is(err, errTooOld):
			continue // how it stands now says what is left to do
		case errors.Is(err, errNoAccount):
			return jobs.Snooze(unsentPause)
		case errors.Is(err, errPinned):
			return jobs.Snooze(pinnedPause)
		case errors.Is(err, errNoRecord):
			return jobs.Cancel(fmt.Errorf("%w %s", err, j.ID))
		case errors.As(err, &wish):
			return wish.wish()
		case err != nil:
			return l.settleLater(err)
		case what == rest:
			return nil
		}
	}
	return jobs.Snooze(unsentPause)
}

var errNoRecord = errors.New("no record")

// settleLater turns a failure of the box itself into a retry that counts no attempt.
func (l *Ledger) settleLater(err error) error {
	if errors.Is(err, shards.ErrUnavailable) || errors.Is(err, tenants.ErrSealed) {
		return jobs.Snooze(outagePause) // alarmed already
	}
	l.log.Warn("settling put off", "err", err)
	return jobs.Snooze(unsentPause)
}

// next is what is left to do for a record at once.
type next int

const (
	rest        next = iota // nothing
	again                   // whatever follows from how it stands now
	transmitNow             // it was just looked up: send it
)

// advance takes the next step for a record.
func (l *Ledger) advance(ctx context.Context, t tenants.ID, id string, what next) (next, error) {
	s, err := l.loadSend(ctx, t, id)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNoRecord
	}
	if err != nil {
		return rest, err
	}
	if s.final || s.state == Review {
		return rest, nil
	}
	acc, err := l.accountFor(s)
	if err != nil {
		return rest, err
	}
	if what == transmitNow {
		return l.transmit(ctx, acc, s)
	}
	if s.unconfirmed() {
		return l.lookBack(ctx, acc, s)
	}
	if s.polled() {
		return l.poll(ctx, acc, s)
	}
	if why := l.doubt(acc, s); why != sure {
		if what, err := l.resolve(ctx, acc, s, why); err != nil || what != transmitNow {
			return what, err
		}
	}
	return l.transmit(ctx, acc, s)
}

// enter waits for a place among what the account is sent, before anything is sealed. leave gives it back.
func (l *Ledger) enter(ctx context.Context, acc *upstream.Account) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, enterMax)
	defer cancel()
	leave, err = acc.Enter(ctx)
	if err != nil {
		return nil, &later{after: unsentPause}
	}
	return leave, nil
}

// transmit seals, sends and records; an intent that was made it also confirms.
func (l *Ledger) transmit(ctx context.Context, acc *upstream.Account, s *send) (next, error) {
	leave, err := l.enter(ctx, acc)
	if err != nil {
		return rest, err
	}
	if err := l.seal(ctx, acc, s); err != nil {
		leave()
		return rest, err
	}
	return l.sendSealed(ctx, acc, s, leave)
}

// sendSealed sends what is sealed, gives its place back with leave, and records the answer.
func (l *Ledger) sendSealed(ctx context.Context, acc *upstream.Account, s *send, leave func()) (next, error) {
	l.onWire.Store(s.id, struct{}{})
	defer l.onWire.Delete(s.id)
	answer := acc.Post(ctx, s.path, s.body, s.key)
	leave() // the disk is not the processor's to wait for
	c := s.confirmation(&answer)
	if c == nil {
		return l.received(s, &answer)
	}
	leave, err := l.enter(ctx, acc)
	if err != nil {
		_, failed := l.record(s, &answer, nil) // confirmed when there is a place
		return rest, cmp.Or(failed, err)
	}
	if err := l.recordAndSeal(acc, s, &answer, c); err != nil {
		leave()
		return rest, err
	}
	answer = acc.Post(ctx, c.path, c.body, c.key)
	leave()
	return l.received(c, &answer)
}

// recordAndSeal keeps the intent that was made and seals its confirmation in one transaction: one wait for the disk less for who pays.
func (l *Ledger) recordAndSeal(acc *upstream.Account, s *send, made *upstream.Answer, c *send) error {
	mu := l.accountMu(s.tenant)
	mu.RLock() // as for every seal
	defer mu.RUnlock()
	if now, err := l.accountFor(c); err != nil || now != acc {
		_, failed := l.record(s, made, nil)
		return cmp.Or(failed, err, errMoved)
	}
	_, err := l.record(s, made, l.sealing(acc, c).write)
	return err
}

// received records an answer, and says what follows from it for the queue.
func (l *Ledger) received(s *send, answer *upstream.Answer) (next, error) {
	o, err := l.record(s, answer, nil)
	switch {
	case err != nil:
		return rest, err
	case o.status != "":
		return rest, nil
	case answer.Outcome == upstream.Retryable:
		return rest, &later{after: max(answer.RetryAfter, unsentPause)}
	}
	return rest, &later{reason: o.reason}
}

// promoteAttemptsMax attempts may a payment have made to be sent at once when the
// line is back. One that fails time and again, such as one that the processor
// answers 500 to for ever, opens the breaker for all: it waits out its backoff, up
// to ten minutes, so that those behind it are not starved.
const promoteAttemptsMax = 5

// promote makes put-off payments due at once when an account can be sent to again.
func (l *Ledger) promote(ctx context.Context) error {
	for {
		select {
		case <-l.lineBack:
		case <-ctx.Done():
			return nil
		}
		if _, err := l.jobs.PromoteDelayed(ctx, PaymentsQueue, l.ready, promoteAttemptsMax); err != nil && ctx.Err() == nil {
			l.log.Warn("put-off payments not promoted", "err", err)
		}
		l.runner.Poke()
	}
}

// ChangeAccount runs change, which gives the tenant another upstream account,
// unless a payment or refund of the tenant may have left for the present one and is not
// settled: it can only be settled where it may be.
func (l *Ledger) ChangeAccount(ctx context.Context, t tenants.ID, change func() error) error {
	mu := l.accountMu(t)
	mu.Lock()
	defer mu.Unlock()
	err := each(ctx, l.set.All(), func(_ context.Context, tx *shards.Tx) error {
		var id string
		err := tx.QueryRow(`SELECT id FROM payments INDEXED BY payments_open WHERE tenant = ? AND sync <> 'settled' AND (account IS NOT NULL OR resolve_first > 0)
			UNION ALL SELECT id FROM refunds INDEXED BY refunds_open WHERE tenant = ? AND sync <> 'settled' LIMIT 1`, string(t), string(t)).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			err = &Error{Kind: Conflict, Code: "upstream_account_in_use", Field: "upstream",
				Message: id + " may have reached the present account, or belongs there, and is not settled; rotate its key freely, but change the account later"}
		}
		return err
	})
	if err != nil {
		return unavailable(err)
	}
	return change()
}
