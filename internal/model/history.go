package model

import (
	"slices"
	"strings"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// seen holds everything that a client ever read against the end: what was final stays, and what a payment is never changes.
func (j *judgement) seen() {
	for _, s := range j.e.Sights {
		p, there := j.payments[s.Payment.ID]
		if !there || p.shop != s.Shop {
			j.found(Lost, "%s, which %s was shown", s.Payment.ID, s.Shop)
			continue
		}
		if p.Amount != s.Payment.Amount || p.Currency != s.Payment.Currency || !p.CreatedAt.Equal(s.Payment.CreatedAt) || p.Means != s.Payment.Means {
			j.found(Changed, "%+v was shown, %+v is kept", s.Payment, p.Payment)
		}
		if s.Payment.Status.Final() && (p.Status != s.Payment.Status || text(p.UpstreamID) != text(s.Payment.UpstreamID)) {
			j.found(Revised, "%s was %s (%s), and is %s (%s)", p.ID, s.Payment.Status, text(s.Payment.UpstreamID), p.Status, text(p.UpstreamID))
		}
		if s.Payment.AmountRefunded > s.Payment.Amount {
			j.found(Overdrawn, "%d of %s, which has %d", s.Payment.AmountRefunded, p.ID, p.Amount)
		}
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// limited holds what was taken offline against the shop's limits. In an outage nothing is settled; so what was accepted in it, and not given up, was
// outstanding together.
func (j *judgement) limited() {
	for _, p := range j.payments {
		limits := j.e.Limits[p.shop]
		if limits == nil || !p.TakenOffline || p.ask.Kind == Intend && !j.confirmed[p.ID] {
			continue
		}
		limit, named := limits[p.Currency]
		switch {
		case !named:
			j.found(Exceeded, "%s, in %s, which is not taken offline", p.ID, p.Currency)
		case limit.MaxAmount > 0 && p.Amount > limit.MaxAmount:
			j.found(Exceeded, "%s has %d %s, the most is %d", p.ID, p.Amount, p.Currency, limit.MaxAmount)
		}
	}
	for _, o := range j.e.Outages {
		type in struct {
			shop  tenants.ID
			money string
		}
		sums := map[in]ledger.Sum{}
		for _, p := range j.payments {
			if p.TakenOffline && p.Status != ledger.Canceled && j.within(p, o) {
				k := in{p.shop, p.Currency}
				sums[k] = ledger.Sum{Count: sums[k].Count + 1, Amount: sums[k].Amount + p.Amount}
			}
		}
		for k, s := range sums {
			limit := j.e.Limits[k.shop][k.money]
			if limit.MaxTotal > 0 && s.Amount > limit.MaxTotal || limit.MaxCount > 0 && s.Count > limit.MaxCount {
				j.found(Exceeded, "%s took %d payments, %d %s, in one outage; allowed are %+v", k.shop, s.Count, s.Amount, k.money, limit)
			}
		}
	}
}

// taking are the exchanges in which a payment may have been taken: made, or if it was made unconfirmed, confirmed.
func (j *judgement) taking(p payment) (xs []Exchange) {
	if p.ask.Kind != Intend {
		return j.sent[p.ask.N]
	}
	for _, x := range j.e.Exchanges {
		if a := j.e.Asks[x.Ask]; a.Kind == Confirm && a.Of == string(p.ID) {
			xs = append(xs, x)
		}
	}
	return xs
}

// within reports whether a payment was certainly taken within an outage.
func (j *judgement) within(p payment, o Outage) bool {
	first, answered := 0, 0
	for _, x := range j.taking(p) {
		if first == 0 || x.Sent < first {
			first = x.Sent
		}
		if x.Said == Accepted && (answered == 0 || x.Answered < answered) {
			answered = x.Answered
		}
	}
	return first > o.From && answered > 0 && (o.To == 0 || answered < o.To)
}

// told looks at the events of each record: one that it was made, one of its end, in that order.
func (j *judgement) told() {
	stories := map[string][]string{}
	ids := map[ledger.EventID]bool{}
	for shop, books := range j.e.Shops {
		for _, e := range books.Events {
			if e.Tenant != shop || ids[e.ID] {
				j.found(Untold, "%s is told twice, or to another", e.ID)
			}
			ids[e.ID] = true
			if noun, verb, _ := strings.Cut(string(e.Type), "."); noun == "payment" || noun == "refund" {
				stories[e.Subject] = append(stories[e.Subject], verb)
			}
		}
	}
	for _, p := range j.payments {
		want := []string{"created"}
		settled := p.Status == ledger.Succeeded || p.Status == ledger.Failed
		if p.ask.Kind == Intend && (settled || p.Status == ledger.Pending || j.confirmed[p.ID]) { // a canceled one may have been confirmed
			want = append(want, "confirmed")
		}
		if p.Status.Final() {
			want = append(want, string(p.Status))
		}
		j.story(string(p.ID), stories, want)
	}
	for _, r := range j.refunds {
		want := []string{"created"}
		switch {
		case j.payments[r.PaymentID].Status == ledger.Canceled:
			want = nil
		case r.Status.Final():
			want = append(want, string(r.Status))
		}
		j.story(string(r.ID), stories, want)
	}
	for subject := range stories {
		j.found(Untold, "%s: %v, and there is no such record", subject, stories[subject])
	}
}

// story compares what is told of a record, but for its doubts, and strikes it off.
func (j *judgement) story(id string, stories map[string][]string, want []string) {
	var told []string
	for i, verb := range stories[id] {
		if doubt := verb == "in_doubt" || verb == "review"; doubt && i > 0 && i < len(stories[id])-1 {
			continue // between its making and its end
		}
		told = append(told, verb)
	}
	if !slices.Equal(told, want) {
		j.found(Untold, "%s: %v, want %v", id, stories[id], want)
	}
	delete(stories, id)
}
