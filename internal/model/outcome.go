package model

import (
	"strings"

	"tenderbox/ledger"
	"tenderbox/upstream/simulator"
)

// settled looks at each payment's end: what it is here, what took effect at the processor, and what its token made likely.
func (j *judgement) settled() {
	for id, effects := range j.charges {
		if _, there := j.payments[id]; !there {
			j.found(Orphan, "%d charges for %q: %+v", len(effects), id, effects[0])
		}
	}
	for _, p := range j.payments {
		effects := j.charges[p.ID]
		if len(effects) > 1 {
			j.found(Doubled, "%s: %d charges", p.ID, len(effects))
		}
		for _, c := range effects {
			if c.Amount != p.Amount || c.Currency != p.Currency {
				j.found(Mismatched, "%s has %d %s, its charge %d %s", p.ID, p.Amount, p.Currency, c.Amount, c.Currency)
			}
		}
		switch {
		case p.Sync.State == ledger.Review:
			j.found(Undecided, "%s: %s", p.ID, why(p.Sync))
		case p.Status == ledger.Pending:
			j.found(Unsettled, "%s, %s: %s", p.ID, p.Sync.State, why(p.Sync))
		case p.Status == ledger.Succeeded && len(effects) == 0:
			j.found(Unpaid, "%s", p.ID)
		case p.Status != ledger.Succeeded && len(effects) > 0:
			j.found(Effective, "%s is %s", p.ID, p.Status)
		case p.Status == ledger.Succeeded && (p.UpstreamID == nil || *p.UpstreamID != effects[0].ID && *p.UpstreamID != effects[0].PaymentIntent):
			j.found(Mismatched, "%s names another object than %s", p.ID, effects[0].ID)
		}
		if (p.Status == ledger.Succeeded || p.Status == ledger.Failed) && (p.Status == ledger.Succeeded) != pays[p.ask.Token] {
			j.found(Misjudged, "%s, %v, is %s: %+v", p.ID, p.ask, p.Status, p.Failure)
		}
		if p.Status == ledger.Canceled && !j.givenUp(p) {
			j.found(Canceling, "%s, and nobody asked for it", p.ID)
		}
	}
}

func why(s ledger.Sync) string {
	if s.LastError == nil {
		return "no error"
	}
	return *s.LastError
}

// givenUp reports whether a client may have canceled a payment: by name, or by refunding all of it.
func (j *judgement) givenUp(p payment) bool {
	for _, x := range j.e.Exchanges {
		a := j.e.Asks[x.Ask]
		if a.Of == string(p.ID) && x.Said != Refused && (a.Kind == Cancel || a.Kind == Refund && (a.Amount == 0 || a.Amount == p.Amount)) {
			return true
		}
	}
	return false
}

// givenBack looks at each refund's end.
func (j *judgement) givenBack() {
	for id, effects := range j.given {
		if _, there := j.refunds[id]; !there {
			j.found(Orphan, "%d refunds for %q: %+v", len(effects), id, effects[0])
		}
	}
	sums := map[ledger.PaymentID]int64{}
	for _, r := range j.refunds {
		p, effects := j.payments[r.PaymentID], j.given[r.ID]
		voids := p.Status == ledger.Canceled
		if len(effects) > 1 {
			j.found(GivenTwice, "%s: %d refunds", r.ID, len(effects))
		}
		for _, e := range effects {
			if e.Amount != r.Amount || e.Currency != r.Currency || !j.of(e, p) {
				j.found(Mismatched, "%s gives %d %s of %s back, its refund %d %s of %s", r.ID, r.Amount, r.Currency, p.ID, e.Amount, e.Currency, e.Charge)
			}
		}
		switch {
		case r.Sync.State == ledger.Review:
			j.found(Undecided, "%s: %s", r.ID, why(r.Sync))
		case r.Status == ledger.RefundPending:
			j.found(Unsettled, "%s, %s: %s", r.ID, r.Sync.State, why(r.Sync))
		case voids && (r.Status != ledger.RefundDone || r.Amount != p.Amount):
			j.found(Changed, "%s of %s, which is canceled: %d, %s", r.ID, p.ID, r.Amount, r.Status)
		case !voids && p.Status != ledger.Succeeded:
			j.found(Overdrawn, "%s of %s, which is %q", r.ID, r.PaymentID, p.Status)
		case !voids && r.Status == ledger.RefundDone && len(effects) == 0:
			j.found(Unpaid, "%s", r.ID)
		case (voids || r.Status == ledger.RefundRefused) && len(effects) > 0:
			j.found(Effective, "%s is %s", r.ID, r.Status)
		case !voids && (r.Status == ledger.RefundRefused) != strings.HasSuffix(p.ask.Token, "pendingRefundFail"):
			j.found(Misjudged, "%s of %s, %v, is %s: %+v", r.ID, p.ID, p.ask, r.Status, r.Failure)
		}
		if !voids && r.Status != ledger.RefundRefused {
			sums[r.PaymentID] += r.Amount
		}
	}
	for _, p := range j.payments {
		if sums[p.ID] != p.AmountRefunded {
			j.found(Unbalanced, "%s says that %d were given back, its refunds %d", p.ID, p.AmountRefunded, sums[p.ID])
		}
		if sums[p.ID] > p.Amount {
			j.found(Overdrawn, "%d of %s, which has %d", sums[p.ID], p.ID, p.Amount)
		}
	}
}

// of reports whether a refund's effect is of the payment's charge.
func (j *judgement) of(e simulator.Effect, p payment) bool {
	for _, c := range j.charges[p.ID] {
		if c.ID == e.Charge {
			return true
		}
	}
	return false
}

// balanced adds the money up, on both sides.
func (j *judgement) balanced() {
	here, there := map[string]int64{}, map[string]int64{}
	for _, p := range j.payments {
		if p.Status == ledger.Succeeded {
			here[p.Currency] += p.Amount - p.AmountRefunded
		}
	}
	for _, c := range j.e.Charges {
		there[c.Currency] += c.Amount
	}
	for _, r := range j.e.Refunds {
		there[r.Currency] -= r.Amount
	}
	for _, sums := range []map[string]int64{here, there} {
		for currency := range sums {
			if here[currency] != there[currency] {
				j.found(Unbalanced, "%d %s here, %d at the processor", here[currency], currency, there[currency])
				there[currency] = here[currency] // told once
			}
		}
	}
}

// outstanding holds what the box says that it has not settled against its books.
func (j *judgement) outstanding() {
	open := map[string]ledger.Sum{}
	for _, p := range j.payments {
		if p.Status == ledger.Pending {
			s := open[p.Currency]
			open[p.Currency] = ledger.Sum{Count: s.Count + 1, Amount: s.Amount + p.Amount}
		}
	}
	for currency, s := range j.e.Exposed {
		if open[currency] != s {
			j.found(StillOpen, "%s: %+v, and %+v are unsettled", currency, s, open[currency])
		}
	}
}
