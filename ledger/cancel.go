package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// provablyUnsent selects payments of which nothing that could have an effect has left this box,
// nor the box that this folder was copied from. The seal of a send and what relies on this are
// both guarded updates of the shard's one writer: one of them finds the payment moved on.
const provablyUnsent = `status IN ('pending', 'requires_confirmation') AND sync = 'queued' AND first_sent_at IS NULL AND resolve_first = 0`

// Cancel gives up a payment while it is provably unsent; afterwards it can only be refunded. One
// that is canceled already is returned as it is. key "" for none.
func (l *Ledger) Cancel(ctx context.Context, t tenants.ID, key IdempotencyKey, id string) (_ Payment, replayed bool, err error) {
	return l.changePayment(ctx, t, key, id, []string{"cancel", id}, func(ctx context.Context, c *paymentChange) (Payment, error) {
		return c.commit(ctx, func(tx *shards.Tx, p *Payment) error {
			switch p.Status {
			case Canceled:
				return nil
			case Succeeded, Failed:
				return paymentFinal(p, "it cannot be canceled")
			}
			canceled, err := l.giveUp(tx, t, p, c.at)
			if err == nil && !canceled {
				err = &Error{Kind: Conflict, Code: "payment_sent",
					Message: "the payment may have reached the processor; wait until it is settled, and refund it then"}
			}
			return err
		})
	})
}

// giveUp cancels p, if it is provably unsent, with all that follows: its order is let go, its
// source and what was to be sent are erased, its exposure ends. The waiting settle job finds the
// payment final and ends by itself.
func (l *Ledger) giveUp(tx *shards.Tx, t tenants.ID, p *Payment, now time.Time) (canceled bool, err error) {
	settled := l.settledAt(t, now)
	n, err := tx.Exec(`UPDATE payments SET status = 'canceled', sync = 'settled', settled_at = ?, source = NULL, last_error = NULL
		WHERE tenant = ? AND id = ? AND `+provablyUnsent, settled.UnixMilli(), string(t), string(p.ID))
	if err != nil || n == 0 {
		return false, err
	}
	// Attempts that are known to have had no effect have left the bytes that they sent.
	if _, err := tx.Exec(`UPDATE sends SET body = NULL WHERE tenant = ? AND record = ?`, string(t), string(p.ID)); err != nil {
		return false, err
	}
	unconfirmed := p.Status == RequiresConfirmation
	p.Status, p.Sync.State, p.Sync.LastError, p.SettledAt, p.MethodMissing = Canceled, Settled, nil, &now, false
	e := l.paymentEvent(t, PaymentCanceled, p, now)
	e.unexposed = unconfirmed
	tx.Attach(e)
	return true, l.settleOrder(tx, t, p, now)
}

// paymentFinal refuses a change of a payment that is what it will always be.
func paymentFinal(p *Payment, message string) error {
	return &Error{Kind: Conflict, Code: "payment_final", Message: fmt.Sprintf("the payment is %s; %s", p.Status, message)}
}

// Confirm lets an intent that was made unconfirmed be settled; method replaces its payment
// method, "" keeps it. From here on it is a payment that was taken: the offline policy is asked
// now, and it counts towards exposure. One that is confirmed already is returned as it is. key ""
// for none.
func (l *Ledger) Confirm(ctx context.Context, t tenants.ID, key IdempotencyKey, id, method string) (_ Payment, replayed bool, err error) {
	if err := checkToken("payment_method", method); err != nil {
		return Payment{}, false, err
	}
	return l.changePayment(ctx, t, key, id, []string{"confirm", id, method}, func(ctx context.Context, c *paymentChange) (Payment, error) {
		return l.confirm(ctx, c, method)
	})
}

func (l *Ledger) confirm(ctx context.Context, c *paymentChange, method string) (Payment, error) {
	tenant, err := l.tenants.Get(c.tenant)
	if err != nil {
		return Payment{}, notFound("tenant")
	}
	slot, _ := c.id.slot()
	l.confirming[slot].Lock()
	defer l.confirming[slot].Unlock()
	p, err := l.Payment(ctx, c.tenant, string(c.id))
	if err != nil {
		return Payment{}, err
	}
	if p.Status != RequiresConfirmation { // it never will be again
		return c.commit(ctx, func(_ *shards.Tx, p *Payment) error { return confirmed(p) })
	}
	p.TakenOffline = l.offline(&tenant)
	held, err := l.reserve(ctx, &tenant, &p)
	if err != nil {
		return Payment{}, err
	}
	var sealed any // NULL: the method that it was made with
	if method != "" {
		sealed = l.keyring.Seal(sourceRecord(c.tenant, c.id), []byte(method))
	}
	offline, moved, generation := p.TakenOffline, false, c.shard.Generation()
	p, err = c.commit(ctx, func(tx *shards.Tx, p *Payment) error {
		if moved = p.Status != RequiresConfirmation; moved {
			return confirmed(p)
		}
		n, err := tx.Exec(`UPDATE payments SET status = 'pending', source = coalesce(?, source), taken_offline = ?, resolve_first = resolve_first | ?
			WHERE tenant = ? AND id = ? AND status = 'requires_confirmation' AND coalesce(?, source) IS NOT NULL`,
			sealed, boolInt(offline), l.resolveFirst(c.shard, true), string(c.tenant), string(c.id), sealed)
		if err == nil && n == 0 {
			err = invalid("payment_method_missing", "payment_method", "the intent was made without one; name it now")
		}
		if err != nil {
			return err
		}
		p.Status, p.TakenOffline, p.MethodMissing = Pending, offline, false
		e := l.paymentEvent(c.tenant, PaymentConfirmed, p, c.at)
		e.reserved = true
		tx.Attach(e)
		return nil
	})
	switch {
	case errors.Is(err, shards.ErrUnknown):
		held.doubt(c.id, c.shard.ID(), generation)
	case err != nil, moved:
		held.release()
	}
	return p, err
}

// confirmed is the answer to confirming a payment that waits for no confirmation.
func confirmed(p *Payment) error {
	switch {
	case p.Status == Canceled:
		return paymentFinal(p, "it cannot be confirmed")
	case p.Means != ByMethod:
		return &Error{Kind: Conflict, Code: "payment_not_intent", Message: "the payment is paid by a source, and needs no confirmation"}
	}
	return nil
}

// paymentChange is a request that changes a payment.
type paymentChange struct {
	l      *Ledger
	tenant tenants.ID
	id     PaymentID
	shard  *shards.Shard
	at     time.Time
	row    *keyRow
}

// changePayment makes a change of a payment once for its key: the same request under the same key
// gets the payment as it is now.
func (l *Ledger) changePayment(ctx context.Context, t tenants.ID, key IdempotencyKey, id string, meaning []string,
	change func(context.Context, *paymentChange) (Payment, error)) (Payment, bool, error) {
	pid, ok := ParsePaymentID(id)
	if !ok {
		return Payment{}, false, notFound("payment")
	}
	return once(ctx, l, t, request[Payment]{key: key, meaning: meaning,
		read: func(ctx context.Context, id string) (Payment, error) { return l.Payment(ctx, t, id) },
		make: func(ctx context.Context, seen lookup) (Payment, error) {
			slot, _ := pid.slot()
			now := l.clock.now()
			return change(ctx, &paymentChange{l, t, pid, l.set.Shard(slot), now, newKeyRow(t, key, l.ids.change(now, slot, pid), seen)})
		}})
}

// commit reads the payment, changes it, and keeps the request's key with it, in one transaction.
func (c *paymentChange) commit(ctx context.Context, change func(tx *shards.Tx, p *Payment) error) (p Payment, err error) {
	err = c.shard.Update(ctx, func(tx *shards.Tx) error {
		if p, err = readPayment(tx, c.tenant, c.id); err != nil {
			return err
		}
		if err := change(tx, &p); err != nil {
			return err
		}
		return c.row.attach(tx)
	})
	c.l.keys.settled(c.row, err)
	if err != nil {
		return Payment{}, found("payment", err)
	}
	c.l.waiters.wake(c.id)
	return p, nil
}
