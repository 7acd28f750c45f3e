package model

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// Unequal: what the box says of its books beside the processor's lists, which the judge has compared too.
const Unequal Rule = "books and the processor's lists are not told to be equal"

// silentMax kept connections may have fallen silent when the line was a black hole last: each lets one comparison time out.
const silentMax = 5

// reconcile sets the machine's clock right and has the box compare all that was, for each shop.
func (w *World) reconcile(ctx context.Context) (map[tenants.ID]ledger.Reconciliation, error) {
	w.clocks.jump(0)
	all := map[tenants.ID]ledger.Reconciliation{}
	for _, shop := range shops {
		r, err := w.box.Reconcile(ctx, shop, w.log.began.Add(-time.Hour), time.Now())
		for i := 0; i < silentMax && err == nil && r.Status == ledger.Incomplete; i++ {
			w.tally.add("reconciled again")
			r, err = w.box.Reconcile(ctx, shop, w.log.began.Add(-time.Hour), time.Now())
		}
		var refusal *ledger.Error
		if errors.As(err, &refusal) && refusal.Code == "upstream_unreachable" {
			w.tally.add("reconciled not at all") // its last request was too many, and so on
			continue
		}
		if err != nil {
			return all, fmt.Errorf("reconcile %s: %w", shop, err)
		}
		w.tally.add("reconciled " + string(r.Status))
		all[shop] = r
	}
	return all, nil
}

// reconciled holds what the box has told of the comparison against what is known here.
func (j *judgement) reconciled() {
	for shop, r := range j.e.Compared {
		for _, d := range r.Differences {
			j.found(Unequal, "%s: %s of payment %s refund %s at the processor %s: here %+v, there %+v", shop, d.Kind, text((*string)(d.PaymentID)), text((*string)(d.RefundID)), text(d.UpstreamID), d.Ours, d.Theirs)
		}
		if r.Status == ledger.Incomplete {
			j.found(Unequal, "%s: incomplete: %s", shop, text(r.Reason))
		}
	}
}
