package model

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"tenderbox/ledger"
)

// send lets a client send its request to the box, once, and enters what it learns. wait is how long it wants to wait for the outcome;
// zero: it does not.
func (w *World) send(b *box, a Ask, wait time.Duration) {
	x := Exchange{Ask: a.N, Life: b.life, Sent: w.log.sent()}
	var err error
	switch a.Kind {
	case Refund:
		var r ledger.Refund
		if r, x.Replayed, err = b.CreateRefund(b.ctx, a.Shop, a.Key, a.refund()); err == nil {
			x.Refund = &r
		}
	default:
		var p ledger.Payment
		if p, x.Replayed, err = a.change(b.ctx, b, wait > 0); err == nil && wait > 0 {
			if later, failed := b.Await(b.ctx, a.Shop, p.ID, wait); failed == nil {
				p = later
			}
		}
		if err == nil {
			x.Payment = &p
		}
	}
	var refusal *ledger.Error
	switch {
	case b.dead.Load(): // whatever it was, the answer did not leave the box
		x = Exchange{Ask: a.N, Life: b.life, Sent: x.Sent, Said: Unknown, Code: "power cut"}
	case err == nil:
		x.Said = Accepted
	case errors.As(err, &refusal) && refusal.Kind != ledger.Unavailable && refusal.Kind != ledger.Full:
		x.Said, x.Code = Refused, refusal.Code
	case errors.As(err, &refusal):
		x.Said, x.Code = Unknown, refusal.Code
	default:
		x.Said, x.Code = Unknown, err.Error()
	}
	w.log.answered(a, x)
}

// change makes the request of an ask that ends in a payment. awaited: its client will wait for the outcome.
func (a Ask) change(ctx context.Context, b *box, awaited bool) (ledger.Payment, bool, error) {
	switch a.Kind {
	case Confirm:
		return b.Confirm(ctx, a.Shop, a.Key, a.Of, a.Token)
	case Cancel:
		return b.Cancel(ctx, a.Shop, a.Key, a.Of)
	}
	p := a.payment()
	p.Awaited = awaited
	return b.Pay(ctx, a.Shop, a.Key, p)
}

func (a Ask) payment() ledger.NewPayment {
	p := ledger.NewPayment{Amount: a.Amount, Currency: a.Money, Unconfirmed: a.Kind == Intend, Metadata: map[string]string{asker: strconv.Itoa(a.N)}}
	switch {
	case a.Kind == Intend: // its method comes with the confirmation
	case strings.HasPrefix(a.Token, "pm_"):
		p.PaymentMethod = a.Token
	default:
		p.Source = a.Token
	}
	return p
}

func (a Ask) refund() ledger.NewRefund {
	return ledger.NewRefund{PaymentID: a.Of, Amount: a.Amount, Metadata: map[string]string{asker: strconv.Itoa(a.N)}}
}

// look lets a client read a payment.
func (w *World) look(b *box, a Ask) {
	p, err := b.Payment(b.ctx, a.Shop, a.Of)
	if err == nil && !b.dead.Load() {
		w.log.saw(a.Shop, p)
	}
}
