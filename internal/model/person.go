package model

import (
	"errors"
	"fmt"

	"tenderbox/ledger"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// A Case is what the box gave to a person, and why.
type Case struct {
	Record string
	Reason string
}

// decides lets a person decide what is in review: by the processor's books, as a person would.
func (w *World) decides() error {
	books := w.sim.Ledger()
	for _, shop := range shops {
		ours, err := w.box.books(w.box.ctx, shop)
		if err != nil {
			return err
		}
		for _, p := range ours.Payments {
			if p.Sync.State != ledger.Review {
				continue
			}
			v := verdict(books.Charges, "tenderbox_payment", string(p.ID))
			if p.Means == ledger.ByMethod && v.UpstreamID != "" {
				v.UpstreamID = books.Charges[place(books.Charges, "tenderbox_payment", string(p.ID))].PaymentIntent
			}
			if err := w.decide(shop, string(p.ID), p.Sync, v); err != nil {
				return err
			}
		}
		for _, r := range ours.Refunds {
			if r.Sync.State != ledger.Review {
				continue
			}
			if err := w.decide(shop, string(r.ID), r.Sync, verdict(books.Refunds, "tenderbox_refund", string(r.ID))); err != nil {
				return err
			}
		}
	}
	return nil
}

// verdict is what the processor's books say: it took place, or it is to be tried again.
func verdict(effects []simulator.Effect, mark, id string) ledger.Verdict {
	v := ledger.Verdict{Verdict: "resend", Reason: "the processor's books do not have it"}
	if i := place(effects, mark, id); i >= 0 {
		v = ledger.Verdict{Verdict: "succeeded", UpstreamID: effects[i].ID, Reason: "the processor's books have it"}
	}
	return v
}

func place(effects []simulator.Effect, mark, id string) int {
	for i, e := range effects {
		if e.Metadata[mark] == id {
			return i
		}
	}
	return -1
}

func (w *World) decide(shop tenants.ID, id string, s ledger.Sync, v ledger.Verdict) (err error) {
	w.log.tracef("a person decides about %s (%s): %s %s", id, why(s), v.Verdict, v.UpstreamID)
	w.log.review(Case{id, why(s)})
	w.tally.add("verdict " + v.Verdict)
	if id[:3] == "re_" {
		_, err = w.box.ResolveRefund(w.box.ctx, shop, id, v)
	} else {
		_, err = w.box.Resolve(w.box.ctx, shop, id, v)
	}
	var refusal *ledger.Error
	switch {
	case errors.As(err, &refusal) && refusal.Kind == ledger.Unavailable:
		w.log.tracef("not now: %v", err) // and is asked again
	case err != nil:
		return fmt.Errorf("verdict about %s: %w", id, err)
	}
	return nil
}
