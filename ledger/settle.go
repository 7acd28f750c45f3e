package ledger

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

const (
	// unsentPause spaces attempts that are known not to have had an effect: the
	// line decides when there is a next one, not a growing backoff.
	unsentPause = 2 * time.Second
	// outagePause is how often a payment looks whether its shard is back: there
	// may be thousands in one.
	outagePause = time.Minute
	// clockSkewMax is how far the processor's clock may be ahead before it is
	// believed to be the better one.
	clockSkewMax = time.Minute
	// pinnedPause is how often a payment looks whether its account is back.
	pinnedPause = time.Minute
)

// settle is the handler of the queue [PaymentsQueue]. The queue says when to
// look; what is done follows from the payment alone:
//
//	read → final or in review: done, nothing is sent
//	seal → attempt, exact bytes and first_sent_at are durable
//	send → with the payment's one upstream key
//	record → outcome, journal row, state in one guarded transaction
//
// A crash after the seal leaves an attempt without outcome: the same bytes go
// out again under the same key, while the processor remembers it.
func (l *Ledger) settle(ctx context.Context, j *jobs.Job) error {
	t, id := tenants.ID(j.Tenant), PaymentID(j.ID)
	s, err := l.loadSend(ctx, t, id)
	if err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return jobs.Cancel(fmt.Errorf("no payment %s", id))
		}
		return l.settleLater(err)
	}
	if s.payment.Status != Pending || s.payment.Sync.State == Review {
		return nil
	}
	acc, err := l.seal(ctx, s)
	switch {
	case errors.Is(err, errReview), errors.Is(err, errMoved):
		return nil
	case errors.Is(err, errNoAccount):
		return jobs.Snooze(unsentPause)
	case errors.Is(err, errPinned):
		return jobs.Snooze(pinnedPause)
	case err != nil:
		return l.settleLater(err)
	}
	l.onWire.Store(id, struct{}{})
	defer l.onWire.Delete(id)
	answer := acc.Post(ctx, s.path, s.body, s.key)
	if err := l.record(s, &answer); err != nil {
		return l.settleLater(err)
	}
	switch answer.Outcome {
	case upstream.Succeeded, upstream.Declined:
		return nil
	case upstream.Retryable:
		return jobs.Snooze(max(answer.RetryAfter, unsentPause))
	}
	return errors.New(answer.Reason) // unknown: the queue's backoff spaces the retries
}

// settleLater turns a failure of the box itself into a retry that counts no attempt.
func (l *Ledger) settleLater(err error) error {
	if errors.Is(err, shards.ErrUnavailable) || errors.Is(err, tenants.ErrSealed) {
		return jobs.Snooze(outagePause) // alarmed already
	}
	l.log.Warn("settling put off", "err", err)
	return jobs.Snooze(unsentPause)
}

var (
	errReview    = errors.New("payment needs review")
	errMoved     = errors.New("payment has moved on")
	errNoAccount = errors.New("no upstream account")
	errPinned    = errors.New("payment is pinned to another upstream account")
)

// identity names an upstream account as a payment is pinned to it: the same
// account at the same address, whatever its key.
func identity(a *upstream.Account) string { return a.Name() + " at " + a.URL() }

// send is one payment on its way upstream.
type send struct {
	tenant  tenants.ID
	payment Payment
	account string // pinned; "" before the first seal
	n       int    // number of the attempt, from 1
	key     string // upstream idempotency key
	path    string
	token   string // the source, so that no text tells it
	body    []byte // exact bytes
	hash    []byte // SHA-256 of body
	stored  bool   // the body has been sealed by an earlier attempt
	first   bool   // this attempt is the first that may leave
}

// upstreamKey is the payment's one idempotency key at the processor.
func upstreamKey(id PaymentID) string { return string(id) }

func sendRecord(t tenants.ID, id PaymentID, key string) string {
	return "sends/" + string(t) + "/" + string(id) + "/" + key + "/body"
}

// loadSend reads the payment and either the sealed bytes of the attempt before
// or what they are to be made of.
func (l *Ledger) loadSend(ctx context.Context, t tenants.ID, id PaymentID) (*send, error) {
	slot, ok := id.slot()
	if !ok {
		return nil, sql.ErrNoRows
	}
	s := &send{tenant: t, key: upstreamKey(id)}
	var source, sealedBody, hash []byte
	var kind, path string
	var account, key sql.NullString
	err := l.set.Shard(slot).View(ctx, func(tx *shards.Tx) (err error) {
		s.payment, err = scanPayment(tx.QueryRow(`SELECT `+paymentColumns+` WHERE p.tenant = ? AND p.id = ?`, string(t), string(id)))
		if err != nil {
			return err
		}
		if err := tx.QueryRow(`SELECT p.source, p.source_kind, p.account, k.key FROM payments p
			LEFT JOIN idempotency_keys k ON k.tenant = p.tenant AND k.record = p.id WHERE p.tenant = ? AND p.id = ?`,
			string(t), string(id)).Scan(&source, &kind, &account, &key); err != nil {
			return err
		}
		err = tx.QueryRow(`SELECT path, body, body_hash FROM sends WHERE tenant = ? AND record = ? AND upstream_key = ?`,
			string(t), string(id), s.key).Scan(&path, &sealedBody, &hash)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		s.stored = err == nil
		return err
	})
	if err != nil || s.payment.Status != Pending {
		return s, err
	}
	s.account = account.String
	s.n = s.payment.Sync.Attempts + 1
	unsealed := alarmKey{tenant: t, code: "payment_unreadable", subject: string(id)}
	token, err := l.keyring.Open(sourceRecord(t, id), source)
	if err == nil && s.stored {
		s.body, err = l.keyring.Open(sendRecord(t, id, s.key), sealedBody)
	}
	if err != nil {
		l.raise(unsealed, "what is to be sent for "+string(id)+" cannot be opened; it is not settled until that is mended")
		return nil, err
	}
	l.alarms.clear(unsealed)
	s.token = string(token)
	if s.stored {
		s.path, s.hash = path, hash
	} else {
		keyHash := ""
		if key.Valid {
			keyHash = l.keys.upstreamHash(t, IdempotencyKey(key.String))
		}
		s.path, s.body = encodeSend(&s.payment, kind, s.token, keyHash)
	}
	sum := sha256.Sum256(s.body)
	if s.stored && subtle.ConstantTimeCompare(sum[:], hash) != 1 {
		return nil, fmt.Errorf("%w: the body does not fit its hash", tenants.ErrSealed)
	}
	s.hash = sum[:]
	return s, nil
}

// metadataSentMax is how many metadata keys of the client's are sent: the
// processor takes 50, two are the box's own. The box keeps all.
const metadataSentMax = metadataKeysMax - 2

// encodeSend makes the exact bytes that ask the processor for the payment.
func encodeSend(p *Payment, kind, token, keyHash string) (path string, body []byte) {
	r := upstream.ChargeRequest{Amount: p.Amount, Currency: p.Currency, Metadata: map[string]string{"tenderbox_payment": string(p.ID)}}
	if keyHash != "" {
		r.Metadata["tenderbox_key"] = keyHash
	}
	names := slices.Sorted(maps.Keys(p.Metadata))
	for _, name := range names[:min(len(names), metadataSentMax)] {
		r.Metadata[name] = p.Metadata[name]
	}
	if p.Description != nil {
		r.Description = *p.Description
	}
	if kind == "payment_method" {
		r.PaymentMethod = token
	} else {
		r.Source = token
	}
	return r.Encode()
}

// seal makes the attempt durable before its first byte leaves, and returns the
// account to send it to. A payment that may have left longer ago than the
// processor remembers keys goes to review instead: nothing is re-sent blindly.
func (l *Ledger) seal(ctx context.Context, s *send) (*upstream.Account, error) {
	mu := l.accountMu(s.tenant)
	mu.RLock() // the tenant's account stays what it is until the seal is durable
	defer mu.RUnlock()
	acc := l.accountOf(s.tenant)
	if acc == nil {
		return nil, errNoAccount
	}
	pinned := alarmKey{tenant: s.tenant, code: "upstream_account_changed"}
	if s.account != "" && s.account != identity(acc) {
		l.raise(pinned, "payments that may have reached "+s.account+" wait until the box is configured for that account again")
		return nil, errPinned
	}
	l.alarms.clear(pinned)
	first := s.payment.Sync.FirstSentAt
	if first != nil && l.clock.notBefore(acc.Clock()).Sub(*first) >= l.o.KeyMemory {
		return nil, l.review(s)
	}
	s.first = first == nil
	now := l.clock.now()
	// A box whose clock runs ahead would make the send look younger later.
	sentAt := now
	if theirs := acc.Clock(); !theirs.IsZero() && theirs.Before(sentAt) {
		sentAt = theirs
	}
	err := l.update(ctx, s, func(tx *shards.Tx) error {
		n, err := tx.Exec(`UPDATE payments SET sync = 'sending', attempts = ?, first_sent_at = coalesce(first_sent_at, ?), account = ?
			WHERE tenant = ? AND id = ? AND status = 'pending' AND sync <> 'review' AND attempts = ?`,
			s.n, sentAt.UnixMilli(), identity(acc), string(s.tenant), string(s.payment.ID), s.n-1)
		if err != nil {
			return err
		}
		if n == 0 {
			return errMoved
		}
		if !s.stored {
			if _, err := tx.Exec(`INSERT INTO sends (tenant, record, upstream_key, path, body, body_hash, sealed_at) VALUES (?,?,?,?,?,?,?)`,
				string(s.tenant), string(s.payment.ID), s.key, s.path,
				l.keyring.Seal(sendRecord(s.tenant, s.payment.ID, s.key), s.body), s.hash, now.UnixMilli()); err != nil {
				return err
			}
		}
		_, err = tx.Exec(`INSERT INTO attempts (tenant, record, n, upstream_key, account, epoch, started_at) VALUES (?,?,?,?,?,?,?)`,
			string(s.tenant), string(s.payment.ID), s.n, s.key, identity(acc), int64(l.set.Manifest().Epoch), now.UnixMilli())
		return err
	})
	return acc, err
}

// update writes what brings an accepted payment further. A full disk holds a
// reserve for it, which is given free by the write that finds the disk full: that
// one is repeated.
func (l *Ledger) update(ctx context.Context, s *send, fn func(tx *shards.Tx) error) error {
	sh := l.shardOf(s.payment.ID)
	err := sh.UpdateReserved(ctx, fn)
	if errors.Is(err, shards.ErrFull) {
		err = sh.UpdateReserved(ctx, fn)
	}
	return err
}

// review gives the payment to a person. It returns errReview when that is durable.
func (l *Ledger) review(s *send) error {
	p := s.payment
	p.Sync.State = Review
	e := l.paymentEvent(s.tenant, PaymentReview, &p, l.clock.now())
	err := l.update(context.Background(), s, func(tx *shards.Tx) error {
		n, err := tx.Exec(`UPDATE payments SET sync = 'review', last_error = ? WHERE tenant = ? AND id = ? AND status = 'pending' AND sync <> 'review'`,
			"in doubt for longer than the processor remembers idempotency keys", string(s.tenant), string(p.ID))
		if err == nil && n > 0 {
			tx.Attach(e)
		}
		return err
	})
	if err != nil {
		return err
	}
	l.waiters.wake(p.ID)
	return errReview
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

// withoutToken returns the answer with its texts freed of the source, which
// processors like to quote, and of anything that looks like a card number.
func (s *send) withoutToken(answer *upstream.Answer) *upstream.Answer {
	a := *answer
	for _, text := range []*string{&a.Reason, &a.RequestID, &a.Failure.Code, &a.Failure.DeclineCode, &a.Failure.Message} {
		if s.token != "" {
			*text = strings.ReplaceAll(*text, s.token, "[source]")
		}
		if holdsCardNumber(*text) {
			*text = "[withheld]"
		}
	}
	return &a
}

// record stores the outcome of an attempt: the attempt's row, the payment's
// state (guarded: a final state never changes) and the journal row, in one
// transaction. It is not cut short by a stop of the box: the answer is in hand.
func (l *Ledger) record(s *send, answer *upstream.Answer) error {
	now := l.clock.now()
	a := s.withoutToken(answer)
	p, settledAt := s.payment, now
	if a.Date.Sub(now) > clockSkewMax {
		settledAt = a.Date // the box's clock is behind; keys are kept by this time
	}
	var typ EventType // "" when the change is no event
	var set string
	var args []any
	switch a.Outcome {
	case upstream.Succeeded:
		typ = PaymentSucceeded
		p.Status, p.Sync.State, p.UpstreamID, p.SettledAt = Succeeded, Settled, &a.Object.ID, &settledAt
		set, args = "status = 'succeeded', sync = 'settled', upstream_id = ?, settled_at = ?, source = NULL, last_error = NULL",
			[]any{a.Object.ID, settledAt.UnixMilli()}
	case upstream.Declined:
		typ = PaymentFailed
		p.Status, p.Sync.State, p.SettledAt = Failed, Settled, &settledAt
		p.Failure = &Failure{a.Failure.Code, a.Failure.DeclineCode, a.Failure.Message}
		set, args = "status = 'failed', sync = 'settled', failure_code = ?, failure_decline = ?, failure_message = ?, settled_at = ?, source = NULL, last_error = NULL",
			[]any{a.Failure.Code, a.Failure.DeclineCode, a.Failure.Message, settledAt.UnixMilli()}
	default:
		if a.Outcome == upstream.Retryable && s.first {
			// No attempt may have had an effect: the payment is as unsent as on its
			// first day, and not pinned.
			set, args = "sync = 'queued', first_sent_at = NULL, account = NULL, last_error = ?", []any{a.Reason}
			break
		}
		if p.Sync.State != InDoubt {
			typ = PaymentInDoubt
		}
		p.Sync.State = InDoubt
		set, args = "sync = 'in_doubt', last_error = ?", []any{a.Reason}
	}
	var event *Event
	if typ != "" {
		event = l.paymentEvent(s.tenant, typ, &p, now)
	}
	var proof any
	if a.Object.ID != "" {
		b, err := json.Marshal(evidence{a.Object.ID, a.Object.Kind, a.Object.Status, a.Object.Amount, a.Object.Currency, a.Object.Created})
		if err != nil {
			return err
		}
		proof = string(b)
	}
	err := l.update(context.Background(), s, func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE attempts SET ended_at = ?, outcome = ?, maybe_sent = ?, http_status = ?, request_id = ?, reason = ?, evidence = ?
			WHERE tenant = ? AND record = ? AND n = ?`,
			now.UnixMilli(), string(a.Outcome), boolInt(a.MaybeSent), a.Status, a.RequestID, a.Reason, proof,
			string(s.tenant), string(p.ID), s.n)
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE payments SET `+set+` WHERE tenant = ? AND id = ? AND status = 'pending' AND sync <> 'review' AND attempts = ?`,
			append(args, string(s.tenant), string(p.ID), s.n)...)
		if err != nil || n == 0 {
			return err
		}
		if p.Status.Final() {
			// The bytes name the source, which is needed no more.
			if _, err := tx.Exec(`UPDATE sends SET body = NULL WHERE tenant = ? AND record = ?`, string(s.tenant), string(p.ID)); err != nil {
				return err
			}
		}
		if event != nil {
			tx.Attach(event)
		}
		if p.Status.Final() {
			return l.settleOrder(tx, s.tenant, &p, now)
		}
		return nil
	})
	if err == nil {
		l.waiters.wake(p.ID)
	}
	return err
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
// unless a payment of the tenant may have left for the present one and is not
// settled: that payment can only be settled where it may be.
func (l *Ledger) ChangeAccount(ctx context.Context, t tenants.ID, change func() error) error {
	mu := l.accountMu(t)
	mu.Lock()
	defer mu.Unlock()
	err := each(ctx, l.set.All(), func(_ context.Context, tx *shards.Tx) error {
		var id string
		err := tx.QueryRow(`SELECT id FROM payments INDEXED BY payments_open
			WHERE tenant = ? AND sync <> 'settled' AND first_sent_at IS NOT NULL LIMIT 1`, string(t)).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			err = &Error{Kind: Conflict, Code: "upstream_account_in_use", Field: "upstream",
				Message: "payment " + id + " may have reached the present account and is not settled; rotate its key freely, but change the account later"}
		}
		return err
	})
	if err != nil {
		return unavailable(err)
	}
	return change()
}
