package ledger

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// table names the records of one kind that are sent upstream. The columns that say how far a record has come are the same in both.
type table string

const (
	paymentTable table = "payments"
	refundTable  table = "refunds"
)

// step is what a send asks the processor for.
type step string

const (
	// charge takes the money, in one step.
	charge step = "charge"
	// create makes an intent and moves no money: of those made, only the one whose id the payment
	// keeps is ever confirmed.
	create step = "create"
	// confirm takes the money of that intent, which can be taken once, under whatever key.
	confirm step = "confirm"
	// refund gives money back.
	refund step = "refund"
)

// send is one record, a payment or a refund, on its way upstream, as it stood when it was read.
type send struct {
	tenant  tenants.ID
	table   table
	id      string
	payment Payment // the record; of a refund, the payment whose money it gives back
	refund  Refund  // the record, if it is a refund

	final        bool
	state        SyncState
	createdAt    time.Time
	firstSentAt  *time.Time // under the present key: before, nothing can have had an effect
	account      string     // pinned; "" before the first seal
	upstreamID   string     // what is known to be at the processor; "" when nothing is
	series       int        // which of the record's keys is in use, from 1
	resolveFirst int        // see the column

	step    step
	n       int    // number of the next attempt, from 1
	key     string // upstream idempotency key
	keyHash string // of the client's key, as sends carry it; "" without one
	owner   string // names box and tenant at the processor, to the box alone
	path    string
	token   string // the source, so that no text tells it
	body    []byte // exact bytes
	hash    []byte // SHA-256 of body
	stored  bool   // the body has been sealed by an earlier attempt
	first   bool   // this attempt is the first under its key that may leave
}

// amount is what the processor's object must name.
func (s *send) amount() (int64, string) {
	if s.table == refundTable {
		return s.refund.Amount, s.refund.Currency
	}
	return s.payment.Amount, s.payment.Currency
}

// unconfirmed reports an intent that its client has not confirmed, here.
func (s *send) unconfirmed() bool {
	return s.table == paymentTable && s.payment.Status == RequiresConfirmation
}

// collection is where the processor keeps the record's object.
func (s *send) collection() string {
	switch {
	case s.table == refundTable:
		return upstream.PathRefunds
	case s.payment.Means == ByMethod:
		return upstream.PathIntents
	}
	return upstream.PathCharges
}

// movesMoney reports whether the step, done twice under two keys, has two effects. Intents that are made are not yet charged, and one
// that is confirmed is charged once.
func (s *send) movesMoney() bool { return s.step == charge || s.step == refund }

// upstreamKey is the idempotency key of the step in its series.
func upstreamKey(id string, what step, series int) string {
	if what == confirm {
		id += ":confirm"
	}
	if series > 1 {
		id += ":" + strconv.Itoa(series)
	}
	return id
}

func sendRecord(t tenants.ID, id, key string) string {
	return "sends/" + string(t) + "/" + id + "/" + key + "/body"
}

// loadSend reads the record and either the sealed bytes of the attempt before or what they are to be made of.
func (l *Ledger) loadSend(ctx context.Context, t tenants.ID, id string) (*send, error) {
	s := &send{tenant: t, id: id, table: paymentTable, payment: Payment{ID: PaymentID(id)}}
	slot, ok := s.payment.ID.slot()
	if !ok {
		s.table = refundTable
		if slot, ok = RefundID(id).slot(); !ok {
			return nil, sql.ErrNoRows
		}
	}
	var source, body, hash []byte
	var path string
	err := l.set.Shard(slot).View(ctx, func(tx *shards.Tx) error {
		var err error
		if s.table == refundTable {
			err = s.scanRefund(tx)
		} else {
			source, err = s.scanPayment(tx)
		}
		if err != nil || s.final {
			return err
		}
		s.chooseStep()
		if s.n == 1 {
			return nil // no attempt, so nothing was sealed
		}
		err = tx.QueryRow(`SELECT path, body, body_hash FROM sends WHERE tenant = ? AND record = ? AND upstream_key = ?`,
			string(t), id, s.key).Scan(&path, &body, &hash)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		s.stored = err == nil
		return err
	})
	if err != nil || s.final {
		return s, err
	}
	unsealed := alarmKey{tenant: t, code: "payment_unreadable", subject: id}
	if err := s.open(l, source, path, body, hash); err != nil {
		l.raise(unsealed, "what is to be sent for "+id+" cannot be opened; it is not settled until that is mended")
		return nil, err
	}
	l.alarms.clear(unsealed)
	return s, nil
}

func (s *send) scanPayment(tx *shards.Tx) (source []byte, err error) {
	s.payment, err = scanPayment(tx.QueryRow(`SELECT `+paymentColumns+` WHERE p.tenant = ? AND p.id = ?`, string(s.tenant), s.id))
	if err != nil {
		return nil, err
	}
	var account, key sql.NullString
	err = tx.QueryRow(`SELECT p.source, p.account, p.series, p.resolve_first, k.key FROM payments p
		LEFT JOIN idempotency_keys k ON k.tenant = p.tenant AND k.record = p.id WHERE p.tenant = ? AND p.id = ?`,
		string(s.tenant), s.id).Scan(&source, &account, &s.series, &s.resolveFirst, &key)
	p := &s.payment
	s.final, s.state, s.createdAt, s.firstSentAt = p.Status.Final() || s.unconfirmed() && s.resolveFirst == 0, p.Sync.State, p.CreatedAt, p.Sync.FirstSentAt
	s.account, s.keyHash, s.n = account.String, key.String, p.Sync.Attempts+1
	if p.UpstreamID != nil {
		s.upstreamID = *p.UpstreamID
	}
	return source, err
}

func (s *send) scanRefund(tx *shards.Tx) (err error) {
	s.refund, err = scanRefund(tx.QueryRow(`SELECT `+refundColumns+` WHERE r.tenant = ? AND r.id = ?`, string(s.tenant), s.id))
	if err != nil {
		return err
	}
	var account, paidTo, key sql.NullString
	if err := tx.QueryRow(`SELECT r.account, p.account, r.series, r.resolve_first, k.key FROM refunds r
		JOIN payments p ON p.tenant = r.tenant AND p.id = r.payment_id
		LEFT JOIN idempotency_keys k ON k.tenant = r.tenant AND k.record = r.id WHERE r.tenant = ? AND r.id = ?`,
		string(s.tenant), s.id).Scan(&account, &paidTo, &s.series, &s.resolveFirst, &key); err != nil {
		return err
	}
	s.payment, err = scanPayment(tx.QueryRow(`SELECT `+paymentColumns+` WHERE p.tenant = ? AND p.id = ?`, string(s.tenant), string(s.refund.PaymentID)))
	r := &s.refund
	s.final, s.state, s.createdAt, s.firstSentAt = r.Status != RefundPending, r.Sync.State, r.CreatedAt, r.Sync.FirstSentAt
	s.account, s.keyHash, s.n = account.String, key.String, r.Sync.Attempts+1
	if s.account == "" {
		s.account = paidTo.String // money goes back the way it came
	}
	if r.UpstreamID != nil {
		s.upstreamID = *r.UpstreamID
	}
	return err
}

// chooseStep says what is to be sent next.
func (s *send) chooseStep() {
	switch {
	case s.table == refundTable:
		s.step = refund
	case s.payment.Means == BySource:
		s.step = charge
	case s.upstreamID == "":
		s.step = create
	default:
		s.step = confirm
	}
	s.key = upstreamKey(s.id, s.step, s.series)
}

// confirmation is the send that follows from the answer to a create; nil if the answer shows no intent that waits for it.
func (s *send) confirmation(answer *upstream.Answer) *send {
	if s.step != create {
		return nil
	}
	made := s.outcomeOfCreate(answer)
	if made.object == "" || made.status != "" {
		return nil
	}
	c := *s
	c.upstreamID, c.payment.UpstreamID = made.object, &made.object
	c.state, c.firstSentAt, c.series, c.n, c.stored = made.sync, nil, made.series, s.n+1, false
	c.chooseStep()
	c.encodeNow()
	return &c
}

// open fills in the token and the exact bytes.
func (s *send) open(l *Ledger, source []byte, path string, body, hash []byte) error {
	// What was confirmed in the box that this folder was copied from may have no source here, and needs none to be found.
	if s.table == paymentTable && (source != nil || s.resolveFirst == 0 && s.upstreamID == "") {
		token, err := l.keyring.Open(sourceRecord(s.tenant, s.payment.ID), source)
		if err != nil {
			return err
		}
		s.token = string(token)
	}
	l.address(s)
	if !s.stored {
		s.encodeNow()
		return nil
	}
	body, err := l.keyring.Open(sendRecord(s.tenant, s.id, s.key), body)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(body); subtle.ConstantTimeCompare(sum[:], hash) != 1 {
		return fmt.Errorf("%w: the body does not fit its hash", tenants.ErrSealed)
	}
	s.path, s.body, s.hash = path, body, hash
	if s.step == create && confirmsAtOnce(body) {
		s.step = charge
	}
	return nil
}

// address fills in what names box, tenant and client's key at the processor.
func (l *Ledger) address(s *send) {
	s.owner = l.keys.ownerMark(s.tenant)
	if s.keyHash != "" {
		s.keyHash = l.keys.upstreamHash(s.tenant, IdempotencyKey(s.keyHash))
	}
}

// encodeNow makes the bytes of an attempt that is the first under its key.
func (s *send) encodeNow() {
	s.path, s.body = s.encode()
	sum := sha256.Sum256(s.body)
	s.hash = sum[:]
}

// confirmsAtOnce reports whether the bytes ask for an intent that takes the money as it is made: a program of before the two
// steps has sealed them, and they are a charge in all that matters.
func confirmsAtOnce(body []byte) bool {
	form, err := url.ParseQuery(string(body))
	return err != nil || form.Get("confirm") == "true"
}

// The metadata by which the processor's objects are known again.
const (
	markPayment = reservedMetadata + "payment"
	markRefund  = reservedMetadata + "refund"
	markKey     = reservedMetadata + "key"
	markOwner   = reservedMetadata + "owner"
)

// encode makes the exact bytes of the step.
func (s *send) encode() (path string, body []byte) {
	if s.step == confirm {
		return upstream.ConfirmRequest{Intent: s.upstreamID}.Encode()
	}
	metadata := map[string]string{markPayment: string(s.payment.ID), markOwner: s.owner}
	if s.keyHash != "" {
		metadata[markKey] = s.keyHash
	}
	add := func(of map[string]string) {
		names := slices.Sorted(maps.Keys(of))
		// The processor takes as many as the box does, and some are the box's own. The box keeps all.
		for _, name := range names[:min(len(names), metadataKeysMax-len(metadata))] {
			metadata[name] = of[name]
		}
	}
	if s.step == refund {
		metadata[markRefund] = s.id
		add(s.refund.Metadata)
		r := upstream.RefundRequest{Amount: s.refund.Amount, Metadata: metadata}
		if s.refund.Reason != nil {
			r.Reason = *s.refund.Reason
		}
		if s.payment.UpstreamID == nil { // refused at acceptance; the processor says what it thinks of it
			return r.Encode()
		}
		if s.payment.Means == ByMethod {
			r.PaymentIntent = *s.payment.UpstreamID
		} else {
			r.Charge = *s.payment.UpstreamID
		}
		return r.Encode()
	}
	add(s.payment.Metadata)
	r := upstream.ChargeRequest{Amount: s.payment.Amount, Currency: s.payment.Currency, Metadata: metadata}
	if s.payment.Description != nil {
		r.Description = *s.payment.Description
	}
	if s.step == create {
		r.PaymentMethod = s.token
	} else {
		r.Source = s.token
	}
	return r.Encode()
}

// withoutToken returns the answer with its texts freed of the source, which
// processors like to quote, and of anything that looks like a card number.
func (s *send) withoutToken(answer *upstream.Answer) *upstream.Answer {
	a := *answer
	for _, text := range []*string{&a.Reason, &a.RequestID, &a.Failure.Type, &a.Failure.Code, &a.Failure.DeclineCode, &a.Failure.Message, &a.Failure.Param} {
		*text = upstream.Redact(*text, s.token, "[source]")
		if holdsCardNumber(*text) {
			*text = "[withheld]"
		}
	}
	return &a
}
