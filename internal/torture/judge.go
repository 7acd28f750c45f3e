package torture

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tenderbox/upstream/simulator"
)

// Rule names what was broken; where RELIABILITY.md has a number for it, the name begins with that.
type Rule string

const (
	Lost        Rule = "INV-1 acknowledged payment is missing"
	Changed     Rule = "INV-1 acknowledged payment is changed"
	Kept        Rule = "INV-3 refused request left a payment"
	Twice       Rule = "INV-4 two payments for one key"
	Replay      Rule = "INV-4 repetition was not answered as one"
	Overruled   Rule = "INV-5 another request under the same key was accepted"
	Doubled     Rule = "INV-6 payment took effect twice"
	Orphan      Rule = "INV-6 effect without a payment"
	Unsettled   Rule = "INV-7 payment is not settled"
	Mismatched  Rule = "INV-8 effect differs from its payment"
	Unpaid      Rule = "INV-8 succeeded without an effect"
	Misjudged   Rule = "INV-8 outcome is not what the processor said"
	Revised     Rule = "INV-9 final payment changed"
	SentAgain   Rule = "INV-9 final payment was sent"
	Unbalanced  Rule = "INV-10 sums differ"
	Unannounced Rule = "INV-11 something was sent for no payment"
	Resealed    Rule = "INV-11 one upstream key, two bodies"
	Untold      Rule = "INV-16 event of a journal is not in the stream"
	Disordered  Rule = "INV-16 events are told out of order"
	Invented    Rule = "INV-16 stream tells what no journal has"
	TenantLost  Rule = "INV-1 acknowledged tenant is missing"
	UserLost    Rule = "INV-1 acknowledged user is missing"
	MailLost    Rule = "mail of an event was never sent"
	Unasked     Rule = "payment that nobody asked for"
	Unfit       Rule = "valid request was refused"
	Internal    Rule = "INV-25 box answered that it is broken"
	Speechless  Rule = "INV-25 box dropped a request while it served"
	Failed      Rule = "box failed"
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
	for _, p := range e.Problems {
		j.found(Failed, "%s: %s", p.What, p.Detail)
	}
	j.answers()
	j.seals()
	if e.Collected {
		j.kept()
		j.acknowledged()
		j.refused()
		j.effects()
		j.sends()
		j.outcomes()
		j.sums()
	}
	if e.Announced {
		j.events()
	}
	if e.Inspected {
		j.made()
	}
	slices.SortStableFunc(j.findings, func(a, b Finding) int { return cmp.Compare(a.Rule, b.Rule) })
	return j.findings
}

// kept is a payment that the box holds, and whose.
type kept struct {
	Payment
	tenant string
}

func (k kept) ask() askID { return askID{k.tenant, k.Metadata[metadataKey]} }

type judgement struct {
	e        Evidence
	asks     map[askID]Ask
	by       map[askID][]Exchange          // all exchanges under a key, in the order of their sending
	payments map[string]kept               // by payment id
	took     map[string][]simulator.Effect // by payment id
	stuck    map[string]bool               // payment ids
	findings []Finding
}

func newJudgement(e Evidence) *judgement {
	j := &judgement{
		e: e, asks: map[askID]Ask{}, by: map[askID][]Exchange{}, payments: map[string]kept{},
		took: map[string][]simulator.Effect{}, stuck: stuck(e.Posts),
	}
	for _, a := range e.Asks {
		j.asks[a.id()] = a
	}
	for _, x := range e.Exchanges {
		j.by[x.id()] = append(j.by[x.id()], x)
	}
	for _, xs := range j.by {
		slices.SortStableFunc(xs, func(a, b Exchange) int { return a.Sent.Compare(b.Sent) })
	}
	for tenant, payments := range e.Kept {
		for _, p := range payments {
			j.payments[p.ID] = kept{p, tenant}
		}
	}
	for _, effect := range e.Effects {
		id := effect.Metadata["tenderbox_payment"]
		j.took[id] = append(j.took[id], effect)
	}
	return j
}

func (j *judgement) found(rule Rule, format string, args ...any) {
	j.findings = append(j.findings, Finding{rule, fmt.Sprintf(format, args...)})
}

// answers looks at the exchanges alone: what the box said, and whether it said the same again.
func (j *judgement) answers() {
	for id, xs := range j.by {
		ask, first := j.asks[id], Exchange{}
		for _, x := range xs {
			switch {
			case x.Status == 0 && !x.HungUp && j.served(x):
				j.found(Speechless, "%s: %s, sent at %s: %s", id, x.Act, clock(x.Sent), x.Error)
			case x.Status >= 500 && x.Status != 503 && x.Status != 507:
				j.found(Internal, "%s: %s was answered %d %s", id, x.Act, x.Status, x.Code)
			case x.Status/100 == 2 && x.Payment == nil:
				j.found(Internal, "%s: %s was answered %d with no payment in it: %s", id, x.Act, x.Status, x.Error)
			case x.Act == Contradict && x.Acknowledged():
				j.found(Overruled, "%s: answered %d with %s", id, x.Status, x.Payment.ID)
			case x.Act == Pay && ask.Refused && x.Acknowledged():
				j.found(Kept, "%s: an invalid request was answered %d with %s", id, x.Status, x.Payment.ID)
			case x.Act == Pay && !ask.Refused && x.Definite(), x.Act == Read && x.Definite():
				j.found(Unfit, "%s: %s was answered %d %s", id, x.Act, x.Status, x.Code)
			}
			if x.Act == Contradict || !x.Acknowledged() {
				continue
			}
			if p := x.Payment; p.Amount != ask.Amount || p.Currency != ask.Currency || p.Metadata[metadataKey] != id.Key || text(p.UserID) != ask.User {
				j.found(Changed, "%s: asked for %d %s for user %q, answered %d %s for %q in %s", id, ask.Amount, ask.Currency, ask.User, p.Amount, p.Currency, text(p.UserID), p.ID)
			}
			switch {
			case first.Payment == nil:
				first = x
			case first.Payment.ID != x.Payment.ID:
				j.found(Twice, "%s: answered with %s and with %s", id, first.Payment.ID, x.Payment.ID)
			case x.Act == Pay && !x.Replayed && x.Sent.After(first.Answered):
				j.found(Replay, "%s: %s was answered again without Idempotent-Replayed", id, x.Payment.ID)
			}
		}
	}
}

// served tells whether the box was there from the sending to the end of an exchange.
func (j *judgement) served(x Exchange) bool {
	return slices.ContainsFunc(j.e.Lives, func(l Life) bool { return x.Sent.After(l.From) && x.Answered.Before(l.To) })
}

// seals looks at what was sent: a key always goes with the same bytes, or the processor cannot know it again.
func (j *judgement) seals() {
	bodies := map[string][32]byte{}
	for _, p := range j.e.Posts {
		if p.Key == "" {
			j.found(Unannounced, "POST %s carried no idempotency key", p.Path)
			continue
		}
		if first, ok := bodies[p.Key]; ok && first != p.Body {
			j.found(Resealed, "%s", p.Key)
		}
		bodies[p.Key] = p.Body
	}
}

// kept looks at the box's payments: each was asked for, once.
func (j *judgement) kept() {
	seen := map[askID]string{}
	for _, id := range sorted(j.payments) {
		p := j.payments[id]
		ask, asked := j.asks[p.ask()]
		switch other, twice := seen[p.ask()]; {
		case !asked:
			j.found(Unasked, "%s of %s with key %q", id, p.tenant, p.Metadata[metadataKey])
			continue
		case twice:
			j.found(Twice, "%s: %s and %s are both kept", p.ask(), other, id)
		}
		seen[p.ask()] = id
		if p.Amount != ask.Amount || p.Currency != ask.Currency || text(p.UserID) != ask.User {
			j.found(Changed, "%s: asked for %d %s for user %q, kept as %d %s for %q in %s", p.ask(), ask.Amount, ask.Currency, ask.User, p.Amount, p.Currency, text(p.UserID), id)
		}
	}
}

// acknowledged follows every payment that a client was told of: it is there, and what was final still is.
func (j *judgement) acknowledged() {
	for _, id := range sortedAsks(j.by) {
		told := map[string]bool{}
		for _, x := range j.by[id] {
			if !x.Acknowledged() || x.Act == Contradict {
				continue
			}
			now, there := j.payments[x.Payment.ID]
			if !there || now.tenant != id.Tenant {
				if !told[x.Payment.ID] {
					j.found(Lost, "%s: %s, %d %s, acknowledged at %s", id, x.Payment.ID, x.Payment.Amount, x.Payment.Currency, clock(x.Answered))
				}
				told[x.Payment.ID] = true
				continue
			}
			if was := x.Payment; was.final() && (was.Status != now.Status || text(was.UpstreamID) != text(now.UpstreamID)) {
				j.found(Revised, "%s: %s was %s (%s) at %s and is %s (%s) now", id, was.ID, was.Status, text(was.UpstreamID), clock(x.Answered), now.Status, text(now.UpstreamID))
			}
		}
	}
}

// refused looks at keys to which the box only ever said a definite no.
func (j *judgement) refused() {
	left := map[askID]string{}
	for id, p := range j.payments {
		left[p.ask()] = id
	}
	for _, id := range sortedAsks(j.by) {
		definite := true
		for _, x := range j.by[id] {
			definite = definite && (x.Act != Pay || x.Definite())
		}
		if payment, ok := left[id]; ok && definite {
			j.found(Kept, "%s: every answer was a 4xx, and yet there is %s", id, payment)
		}
	}
}

// effects looks at the money that moved: once a payment, for a payment, and as much.
func (j *judgement) effects() {
	for _, id := range sorted(j.took) {
		took := j.took[id]
		p, there := j.payments[id]
		if !there {
			for _, effect := range took {
				j.found(Orphan, "%s of %d %s under key %q names payment %q", effect.ID, effect.Amount, effect.Currency, effect.IdempotencyKey, id)
			}
			continue
		}
		if len(took) > 1 {
			var names []string
			for _, effect := range took {
				names = append(names, fmt.Sprintf("%s under %s", effect.ID, effect.IdempotencyKey))
			}
			j.found(Doubled, "%s, %d %s: %s", id, p.Amount, p.Currency, strings.Join(names, ", "))
		}
		for _, effect := range took {
			switch {
			case effect.Amount != p.Amount || effect.Currency != p.Currency:
				j.found(Mismatched, "%s is of %d %s, its payment %s of %d %s", effect.ID, effect.Amount, effect.Currency, id, p.Amount, p.Currency)
			case !isKeyOf(effect.IdempotencyKey, id):
				j.found(Mismatched, "%s was made under key %q, which is none of its payment's, %s", effect.ID, effect.IdempotencyKey, id)
			case p.Status == "succeeded" && text(p.UpstreamID) != effect.ID && text(p.UpstreamID) != effect.PaymentIntent:
				j.found(Mismatched, "%s says that it is %s upstream, and is %s", id, text(p.UpstreamID), effect.ID)
			}
		}
	}
}

// isKeyOf reports whether a payment is sent under the key: its id, for the confirmation of an intent with its step; behind
// either, from the second on, the number of its series.
func isKeyOf(key, payment string) bool {
	rest, ok := strings.CutPrefix(key, payment)
	rest = strings.TrimPrefix(rest, ":confirm")
	if number, found := strings.CutPrefix(rest, ":"); found {
		n, err := strconv.Atoi(number)
		return ok && err == nil && n > 1
	}
	return ok && rest == ""
}

// sends looks at every request to the processor: there is a payment behind it with an attempt on record. And at every
// payment that a client saw final: no attempt was added later. (When a request arrived says nothing: one of a box that
// was killed may be read late.)
func (j *judgement) sends() {
	told := map[string]bool{}
	for _, post := range j.e.Posts {
		p, there := j.payments[post.Payment]
		if there && p.Sync.Attempts > 0 || told[post.Payment] {
			continue
		}
		told[post.Payment] = true
		j.found(Unannounced, "POST %s at %s under key %q names payment %q, of which there is no attempt", post.Path, clock(post.At), post.Key, post.Payment)
	}
	for _, x := range j.e.Exchanges {
		if !x.Acknowledged() || !x.Payment.final() || told[x.Payment.ID] {
			continue
		}
		if now, there := j.payments[x.Payment.ID]; there && now.Sync.Attempts != x.Payment.Sync.Attempts {
			told[x.Payment.ID] = true
			j.found(SentAgain, "%s was final after %d attempts at %s, and has %d now", now.ID, x.Payment.Sync.Attempts, clock(x.Answered), now.Sync.Attempts)
		}
	}
}

// outcomes looks at how each payment ended. One to whose key the processor answers 500 for ever may stay in doubt, or be found in its list.
func (j *judgement) outcomes() {
	for _, id := range sorted(j.payments) {
		p, took := j.payments[id], len(j.took[id])
		declined := j.asks[p.ask()].Declined
		switch {
		case !p.final() && j.stuck[id]:
		case !p.final():
			j.found(Unsettled, "%s is %s, %s after %d attempts: %s", id, p.Status, p.Sync.State, p.Sync.Attempts, text(p.Sync.LastError))
		case p.Sync.State != "settled":
			j.found(Misjudged, "%s is %s and yet %s", id, p.Status, p.Sync.State)
		case p.Status == "succeeded" && took == 0:
			j.found(Unpaid, "%s, %d %s", id, p.Amount, p.Currency)
		case p.Status == "failed" && took > 0:
			j.found(Misjudged, "%s failed, and yet took effect", id)
		case p.Status == "succeeded" && declined, p.Status == "failed" && !declined:
			j.found(Misjudged, "%s: token %s ended %s", id, j.asks[p.ask()].Token, p.Status)
		}
	}
}

// sums adds up each currency three times: at the processor, over the payments, and in the box's own report.
func (j *judgement) sums() {
	moved, succeeded := map[string]int64{}, map[string]int64{}
	for _, effect := range j.e.Effects {
		moved[effect.Currency] += effect.Amount
	}
	type line struct{ tenant, currency, status string }
	listed, reported := map[line]ReportRow{}, map[line]ReportRow{}
	for id, p := range j.payments {
		if p.Status == "succeeded" {
			succeeded[p.Currency] += p.Amount
		} else if j.stuck[id] {
			for _, effect := range j.took[id] { // moved, and the box is right not to be sure
				succeeded[effect.Currency] += effect.Amount
			}
		}
		at := line{p.tenant, p.Currency, p.Status}
		row := listed[at]
		listed[at] = ReportRow{p.Currency, p.Status, row.Count + 1, row.Amount + p.Amount, 0}
	}
	for _, currency := range sorted(union(moved, succeeded)) {
		if moved[currency] != succeeded[currency] {
			j.found(Unbalanced, "%s: the processor moved %d, the box's payments are %d", currency, moved[currency], succeeded[currency])
		}
	}
	for tenant, rows := range j.e.Reports {
		for _, row := range rows {
			reported[line{tenant, row.Currency, row.Status}] = row
		}
	}
	for at := range union(listed, reported) {
		if listed[at] != reported[at] {
			j.found(Unbalanced, "%s %s %s: listed %d payments of %d, reported %d of %d", at.tenant, at.currency, at.status, listed[at].Count, listed[at].Amount, reported[at].Count, reported[at].Amount)
		}
	}
}
