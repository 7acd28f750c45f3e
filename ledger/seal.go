package ledger

import (
	"cmp"
	"context"
	"errors"
	"time"

	"tenderbox/shards"
	"tenderbox/upstream"
)

var (
	errMoved     = errors.New("record has moved on")
	errNoAccount = errors.New("no upstream account")
	errPinned    = errors.New("record is pinned to another upstream account")
	errTooOld    = errors.New("sent longer ago than the processor remembers keys")
)

// identity names an upstream account as a record is pinned to it: the same
// account at the same address, whatever its key.
func identity(a *upstream.Account) string { return a.Name() + " at " + a.URL() }

// accountFor returns the account that the record may be sent to, or looked up in: one that may have left
// is settled where it may be, and nowhere else.
func (l *Ledger) accountFor(s *send) (*upstream.Account, error) {
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
	return acc, nil
}

// tooOld reports whether the processor may have forgotten the key that the record was first sent under. While it has not told the
// time, as after a start into its errors, that cannot be excluded: the box's own clock may have lost years. Nor can it of a send
// that this box dated ahead of both clocks.
func (l *Ledger) tooOld(acc *upstream.Account, s *send) bool {
	if s.firstSentAt == nil {
		return false
	}
	theirs := acc.Clock()
	age := l.clock.notBefore(theirs).Sub(*s.firstSentAt)
	return theirs.IsZero() || age >= l.o.KeyMemory || age < -clockSkewMax
}

// seal makes the attempt durable before its first byte leaves. A record whose key the processor may have forgotten is not sealed
// (errTooOld): nothing is re-sent blindly.
func (l *Ledger) seal(ctx context.Context, acc *upstream.Account, s *send) error {
	mu := l.accountMu(s.tenant)
	mu.RLock() // the tenant's account stays what it is until the seal is durable
	defer mu.RUnlock()
	if now, err := l.accountFor(s); err != nil || now != acc {
		return cmp.Or(err, errMoved)
	}
	if s.movesMoney() && l.tooOld(acc, s) {
		return errTooOld
	}
	return l.update(ctx, s, l.sealing(acc, s).write)
}

// seal is an attempt as it is written before its first byte leaves.
type seal struct {
	send       *send
	account    string
	credential string
	epoch      uint64
	at         time.Time
	sentAt     time.Time // of the first attempt that may leave under its key
	theirs     time.Time // the processor's clock; zero: nobody told
	body       []byte    // sealed; nil: stored by an earlier attempt
}

// sealing makes the seal of the send's next attempt.
func (l *Ledger) sealing(acc *upstream.Account, s *send) *seal {
	s.first = s.firstSentAt == nil
	now, theirs := l.clock.now(), acc.Clock()
	// A box whose clock runs ahead would make the send look younger later.
	sentAt := now
	if !theirs.IsZero() && theirs.Before(sentAt) {
		sentAt = theirs
	}
	e := &seal{send: s, account: identity(acc), credential: acc.KeyID(), epoch: l.set.Manifest().Epoch, at: now, sentAt: instant(sentAt.UnixMilli()), theirs: theirs}
	if s.first {
		s.firstSentAt = &e.sentAt
	}
	if !s.stored {
		e.body = l.keyring.Seal(sendRecord(s.tenant, s.id, s.key), s.body)
	}
	return e
}

// write seals a record that was taken before: errMoved if it no longer stands as it was read.
func (e *seal) write(tx *shards.Tx) error {
	s := e.send
	n, err := tx.Exec(`UPDATE `+string(s.table)+` SET sync = 'sending', attempts = ?, first_sent_at = coalesce(first_sent_at, ?), account = ?
		WHERE tenant = ? AND id = ? AND status = 'pending' AND sync <> 'review' AND attempts = ? AND series = ? AND resolve_first = 0`,
		s.n, e.sentAt.UnixMilli(), e.account, string(s.tenant), s.id, s.n-1, s.series)
	if err != nil {
		return err
	}
	if n == 0 {
		return errMoved
	}
	tx.Attach(e)
	return nil
}

var (
	insertSends    = newInsert(`INSERT OR FAIL INTO sends (tenant, record, upstream_key, path, body, body_hash, sealed_at)`, `(?,?,?,?,?,?,?)`)
	insertAttempts = newInsert(`INSERT OR FAIL INTO attempts (tenant, record, n, upstream_key, account, epoch, started_at, step, credential, their_time)`,
		`(?,?,?,?,?,?,?,?,?,?)`)
)

// writeSeals stores the group's attempts and what they send.
func (g *group) writeSeals(tx *shards.Tx) error {
	err := insertSends.exec(tx, len(g.bodies), func(args []any, i int) []any {
		e := g.bodies[i]
		s := e.send
		return append(args, string(s.tenant), s.id, s.key, s.path, e.body, s.hash, e.at.UnixMilli())
	})
	if err != nil {
		return err
	}
	return insertAttempts.exec(tx, len(g.seals), func(args []any, i int) []any {
		e := g.seals[i]
		s := e.send
		return append(args, string(s.tenant), s.id, s.n, s.key, e.account, int64(e.epoch), e.at.UnixMilli(), string(s.step), e.credential, knownTime(e.theirs))
	})
}

// knownTime is NULL for a time that nobody told.
func knownTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}

// update writes what brings an accepted record further. A full disk holds a
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
