package model

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tenderbox/ledger"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// Rule names what was broken; where RELIABILITY.md has a number for it, the name begins with that.
type Rule string

// The rules.
const (
	Lost       Rule = "INV-1 acknowledged record is missing"
	Changed    Rule = "INV-1 acknowledged record is changed"
	Kept       Rule = "INV-3 refused request left a record"
	Twice      Rule = "INV-4 two records for one request"
	Otherwise  Rule = "INV-4 request was answered with another's record"
	Overruled  Rule = "INV-5 another request under the same key was accepted"
	Unfit      Rule = "INV-5 request was refused without a reason"
	Doubled    Rule = "INV-6 payment took effect twice"
	GivenTwice Rule = "INV-6 refund took effect twice"
	Orphan     Rule = "INV-6 effect without a record"
	Unsettled  Rule = "INV-7 still on its way after quiet"
	Undecided  Rule = "INV-7 a person is asked, and the processor is healthy"
	Mismatched Rule = "INV-8 effect differs from its record"
	Unpaid     Rule = "INV-8 succeeded, without an effect"
	Effective  Rule = "INV-8 failed, canceled or not confirmed, with an effect"
	Misjudged  Rule = "INV-8 outcome is not what the processor said"
	Canceling  Rule = "INV-8 canceled by nobody, or not canceled although it was said"
	Revised    Rule = "INV-9 final state changed"
	Unbalanced Rule = "INV-10 sums differ"
	Overdrawn  Rule = "INV-10 more was given back than was paid"
	Exceeded   Rule = "INV-13 offline limit exceeded"
	StillOpen  Rule = "INV-13 exposure without an unsettled payment"
	Untold     Rule = "INV-16 events do not tell the record's story"
	Unasked    Rule = "record that nobody asked for"
	Unsound    Rule = "audit found something"
)

// Finding is one broken rule and what shows it.
type Finding struct {
	Rule Rule
	What string
}

func (f Finding) String() string { return string(f.Rule) + ": " + f.What }

// Judge compares what the clients, the processor and the box say, and returns everything that does not fit.
func Judge(e Evidence) []Finding {
	j := newJudgement(e)
	for _, f := range e.Findings {
		j.found(Unsound, "%v", f)
	}
	for _, c := range e.Cases {
		// Another amount in the processor's name is a person's, even if it was garbage: that is all that may be.
		if !e.Garbled || !strings.HasSuffix(c.Reason, "of another amount or currency") {
			j.found(Undecided, "%s: %s", c.Record, c.Reason)
		}
	}
	j.asked()
	j.acknowledged()
	j.refused()
	j.keyed()
	j.settled()
	j.givenBack()
	j.balanced()
	j.outstanding()
	j.seen()
	j.limited()
	j.told()
	j.reconciled()
	slices.SortStableFunc(j.findings, func(a, b Finding) int { return cmp.Compare(a.Rule, b.Rule) })
	return j.findings
}

// payment and refund are records in a shop's books.
type payment struct {
	ledger.Payment
	shop tenants.ID
	ask  Ask
}

type refund struct {
	ledger.Refund
	shop tenants.ID
	ask  Ask
}

// judgement is the evidence in the order in which it is looked for.
type judgement struct {
	e         Evidence
	sent      map[int][]Exchange // by ask
	payments  map[ledger.PaymentID]payment
	refunds   map[ledger.RefundID]refund
	charges   map[ledger.PaymentID][]simulator.Effect
	given     map[ledger.RefundID][]simulator.Effect
	confirmed map[ledger.PaymentID]bool // by their events
	findings  []Finding
}

func newJudgement(e Evidence) *judgement {
	j := &judgement{e: e, sent: map[int][]Exchange{}, payments: map[ledger.PaymentID]payment{}, refunds: map[ledger.RefundID]refund{},
		charges: map[ledger.PaymentID][]simulator.Effect{}, given: map[ledger.RefundID][]simulator.Effect{}, confirmed: map[ledger.PaymentID]bool{}}
	for _, x := range e.Exchanges {
		j.sent[x.Ask] = append(j.sent[x.Ask], x)
	}
	for shop, books := range e.Shops {
		for _, p := range books.Payments {
			j.payments[p.ID] = payment{p, shop, j.askFor(string(p.ID), shop, p.Metadata, Pay, Intend)}
		}
		for _, e := range books.Events {
			if e.Type == ledger.PaymentConfirmed {
				j.confirmed[ledger.PaymentID(e.Subject)] = true
			}
		}
		for _, r := range books.Refunds {
			j.refunds[r.ID] = refund{r, shop, j.askFor(string(r.ID), shop, r.Metadata, Refund)}
		}
	}
	for _, c := range e.Charges {
		id := ledger.PaymentID(c.Metadata["tenderbox_payment"])
		j.charges[id] = append(j.charges[id], c)
	}
	for _, r := range e.Refunds {
		id := ledger.RefundID(r.Metadata["tenderbox_refund"])
		j.given[id] = append(j.given[id], r)
	}
	return j
}

func (j *judgement) found(rule Rule, format string, args ...any) {
	j.findings = append(j.findings, Finding{rule, fmt.Sprintf(format, args...)})
}

// askIn reads whose ask a record is.
func askIn(metadata map[string]string) (n int, ok bool) {
	n, err := strconv.Atoi(metadata[asker])
	return n, err == nil
}

// nobody is the ask of a record that has none.
var nobody = Ask{N: -1}

func (j *judgement) askFor(id string, shop tenants.ID, metadata map[string]string, kinds ...Kind) Ask {
	n, ok := askIn(metadata)
	if !ok || n < 0 || n >= len(j.e.Asks) || j.e.Asks[n].Shop != shop || !slices.Contains(kinds, j.e.Asks[n].Kind) {
		j.found(Unasked, "%s of %s", id, shop)
		return nobody
	}
	return j.e.Asks[n]
}

// asked looks at what the box holds: one record for a request, and what was asked for.
func (j *judgement) asked() {
	made := map[int]string{}
	once := func(id string, a Ask) {
		if other := made[a.N]; other != "" && a.N >= 0 {
			j.found(Twice, "%s and %s are for %v", other, id, a)
		}
		made[a.N] = id
	}
	for _, p := range j.payments {
		once(string(p.ID), p.ask)
		if p.ask.N >= 0 && (p.Amount != p.ask.Amount || p.Currency != p.ask.Money) {
			j.found(Changed, "%s has %d %s, asked for %v", p.ID, p.Amount, p.Currency, p.ask)
		}
	}
	for _, r := range j.refunds {
		once(string(r.ID), r.ask)
		if r.ask.N >= 0 && (string(r.PaymentID) != r.ask.Of || r.ask.Amount > 0 && r.Amount != r.ask.Amount) {
			j.found(Changed, "%s gives %d of %s back, asked for %v", r.ID, r.Amount, r.PaymentID, r.ask)
		}
	}
}

// acknowledged looks for everything that a client was told of.
func (j *judgement) acknowledged() {
	for _, x := range j.e.Exchanges {
		if x.Said != Accepted {
			continue
		}
		a := j.e.Asks[x.Ask]
		if a.Kind == Refund {
			r, there := j.refunds[x.Refund.ID]
			switch {
			case !there || r.shop != a.Shop:
				j.found(Lost, "%s, the answer to %v", x.Refund.ID, a)
			case r.ask.N != a.N:
				j.found(Otherwise, "%s, the answer to %v, is for %v", r.ID, a, r.ask)
			case r.Amount != x.Refund.Amount || r.PaymentID != x.Refund.PaymentID || !r.CreatedAt.Equal(x.Refund.CreatedAt):
				j.found(Changed, "%+v was answered, %+v is kept", *x.Refund, r.Refund)
			}
			continue
		}
		p, there := j.payments[x.Payment.ID]
		switch {
		case !there || p.shop != a.Shop:
			j.found(Lost, "%s, the answer to %v", x.Payment.ID, a)
		case a.Of == "" && p.ask.N != a.N, a.Of != "" && string(p.ID) != a.Of:
			j.found(Otherwise, "%s, the answer to %v, is for %v", p.ID, a, p.ask)
		case a.Kind == Confirm && p.Status == ledger.RequiresConfirmation:
			j.found(Lost, "the confirmation of %s, %v", p.ID, a)
		case a.Kind == Cancel && p.Status != ledger.Canceled:
			j.found(Canceling, "%s is %s after %v", p.ID, p.Status, a)
		}
	}
}

// refusals are the reasons for which a well-formed request may be refused.
var refusals = map[Kind][]string{
	Pay:     {"offline_limit"},
	Intend:  nil,
	Confirm: {"offline_limit", "payment_final"},
	Cancel:  {"payment_final", "payment_sent"},
	Refund:  {"payment_final", "payment_not_settled", "refund_exceeds"},
}

// refused looks for what a refused request left behind, and for its reason.
func (j *judgement) refused() {
	made := map[int]string{}
	for _, p := range j.payments {
		made[p.ask.N] = string(p.ID)
	}
	for _, r := range j.refunds {
		made[r.ask.N] = string(r.ID)
	}
	for n, xs := range j.sent {
		a := j.e.Asks[n]
		if id := made[n]; id != "" && !slices.ContainsFunc(xs, func(x Exchange) bool { return x.Said != Refused }) {
			j.found(Kept, "%s, of %v, which was always refused: %s", id, a, xs[0].Code)
		}
		for _, x := range xs {
			if x.Said == Refused && !j.reason(a, x) {
				j.found(Unfit, "%v: %s", a, x.Code)
			}
		}
	}
}

// reason reports whether a refusal is one that the request may meet.
func (j *judgement) reason(a Ask, x Exchange) bool {
	switch x.Code {
	case "idempotency_key_in_use": // another is under way under the key
		return a.Key != "" && j.rival(a, func(_ Ask, y Exchange) bool { return y.Sent < x.Answered && y.Answered > x.Sent && y.Sent != x.Sent })
	case "idempotency_mismatch": // another was sent under the key
		return a.Key != "" && j.rival(a, func(b Ask, y Exchange) bool { return b.N != a.N && y.Sent < x.Answered && y.Said != Refused })
	case "offline_limit":
		return slices.Contains(refusals[a.Kind], x.Code) && j.e.Limits[a.Shop] != nil
	}
	return slices.Contains(refusals[a.Kind], x.Code)
}

// rival looks for an exchange under the same key.
func (j *judgement) rival(a Ask, is func(Ask, Exchange) bool) bool {
	return slices.ContainsFunc(j.e.Exchanges, func(y Exchange) bool {
		b := j.e.Asks[y.Ask]
		return b.Shop == a.Shop && b.Key == a.Key && is(b, y)
	})
}

// keyed looks for two requests that had their way under one key.
func (j *judgement) keyed() {
	type key struct {
		shop tenants.ID
		key  ledger.IdempotencyKey
	}
	won := map[key]Ask{}
	win := func(a Ask) {
		if a.Key == "" || a.N < 0 {
			return
		}
		k := key{a.Shop, a.Key}
		if other, taken := won[k]; taken && other.N != a.N {
			j.found(Overruled, "%v and %v", other, a)
		}
		won[k] = a
	}
	for _, p := range j.payments {
		win(p.ask)
	}
	for _, r := range j.refunds {
		win(r.ask)
	}
	for _, x := range j.e.Exchanges {
		if x.Said == Accepted {
			win(j.e.Asks[x.Ask])
		}
	}
}
