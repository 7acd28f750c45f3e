package model

import (
	"fmt"
	"time"

	"tenderbox/ledger"
	"tenderbox/upstream/simulator"
	"tenderbox/upstream/upstreamtest"
)

// happenings are what may happen in a step, and how often beside the others.
var happenings = []struct {
	weight int
	do     func(w *World)
}{
	{30, (*World).paysOne},
	{8, (*World).paysInAHerd},
	{10, (*World).repeatsAsk},
	{4, (*World).usesKeyForAnother},
	{6, (*World).intendsOne},
	{8, (*World).confirmsOne},
	{8, (*World).cancelsOne},
	{12, (*World).refundsOne},
	{6, (*World).looksAtOne},
	{12, (*World).changesLine},
	{12, (*World).changesProcessor},
	{4, (*World).setsClock},
	{5, (*World).losesPower},
	{6, (*World).losesPowerSoon},
	{3, (*World).restarts},
}

// tokens are what customers pay with, and what becomes of them at the processor.
var tokens = []string{
	"tok_visa", "tok_visa", "tok_visa", "tok_chargeDeclined", "tok_processing", "tok_processingFail", "tok_pendingRefund", "tok_pendingRefundFail",
	"pm_card_visa", "pm_card_visa", "pm_card_chargeDeclined", "pm_card_authenticationRequired", "pm_card_processing", "pm_card_processingFail",
}

// pays tells the fate of each token: whether a charge takes effect in the end.
var pays = map[string]bool{
	"tok_visa": true, "tok_processing": true, "tok_pendingRefund": true, "tok_pendingRefundFail": true, "pm_card_visa": true, "pm_card_processing": true,
}

func (w *World) newAsk(kind Kind) Ask {
	a := Ask{Shop: shops[w.random.IntN(len(shops))], Kind: kind}
	if w.random.IntN(8) > 0 {
		w.keys[a.Shop]++
		a.Key = ledger.IdempotencyKey(fmt.Sprint("k", w.keys[a.Shop]))
	}
	return a
}

func (w *World) newPayment(kind Kind) Ask {
	a := w.newAsk(kind)
	a.Amount = 1 + w.random.Int64N(5000)
	a.Money = []string{"usd", "usd", "eur", "jpy"}[w.random.IntN(4)]
	a.Token = tokens[w.random.IntN(len(tokens))]
	for kind == Intend && a.Token[:3] != "pm_" {
		a.Token = tokens[w.random.IntN(len(tokens))]
	}
	return w.log.ask(a)
}

// sends lets the client send and, one time in three, wait for the outcome while the world goes on.
func (w *World) sends(a Ask) {
	b := w.box
	if w.random.IntN(3) > 0 {
		w.send(b, a, 0)
		return
	}
	wait := w.below(10 * time.Second)
	b.calls.Go(func() { w.send(b, a, wait) })
}

func (w *World) paysOne()    { w.sends(w.newPayment(Pay)) }
func (w *World) intendsOne() { w.sends(w.newPayment(Intend)) }

func (w *World) paysInAHerd() {
	a, b := w.newPayment(Pay), w.box
	if a.Key == "" {
		w.send(b, a, 0)
		return
	}
	for range 2 + w.random.IntN(4) {
		b.calls.Go(func() { w.send(b, a, 0) })
	}
}

// earlier draws an ask that may be sent again.
func (w *World) earlier() (Ask, bool) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if len(w.log.asks) == 0 {
		return Ask{}, false
	}
	a := w.log.asks[w.random.IntN(len(w.log.asks))]
	return a, a.Key != ""
}

func (w *World) repeatsAsk() {
	if a, ok := w.earlier(); ok {
		w.sends(a)
	}
}

func (w *World) usesKeyForAnother() {
	if a, ok := w.earlier(); ok {
		other := w.newPayment(Pay)
		other = w.log.amend(other, func(o *Ask) { o.Shop, o.Key = a.Shop, a.Key })
		w.sends(other)
	}
}

// known draws a payment that a client has heard of.
func (w *World) known() (Sight, bool) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if len(w.log.sights) == 0 {
		return Sight{}, false
	}
	return w.log.sights[w.random.IntN(len(w.log.sights))], true
}

// of makes an ask about a known payment.
func (w *World) of(kind Kind, fill func(a *Ask, s Sight)) (Ask, bool) {
	s, ok := w.known()
	if !ok {
		return Ask{}, false
	}
	a := w.newAsk(kind)
	if a.Shop != s.Shop && a.Key != "" {
		a.Key = a.Key + ledger.IdempotencyKey("-"+string(a.Shop)) // the other shop may come to this number itself
	}
	a.Shop, a.Of = s.Shop, string(s.Payment.ID)
	if fill != nil {
		fill(&a, s)
	}
	return w.log.ask(a), true
}

// confirmsOne confirms the intent that was made last, half of the time, with what it was meant to be paid with.
func (w *World) confirmsOne() {
	intents := w.log.intents()
	if len(intents) == 0 {
		return
	}
	s := intents[len(intents)-1]
	if w.random.IntN(2) == 0 {
		s = intents[w.random.IntN(len(intents))]
	}
	a := w.newAsk(Confirm)
	if a.Shop != s.Shop && a.Key != "" {
		a.Key += ledger.IdempotencyKey("-" + string(a.Shop))
	}
	a.Shop, a.Of, a.Token = s.Shop, string(s.Payment.ID), w.log.askOf(s.Payment).Token
	w.sends(w.log.ask(a))
}

func (w *World) cancelsOne() {
	if a, ok := w.of(Cancel, nil); ok {
		w.sends(a)
	}
}

func (w *World) refundsOne() {
	a, ok := w.of(Refund, func(a *Ask, s Sight) {
		switch w.random.IntN(6) {
		case 0, 1, 2: // all that is left
		case 3, 4:
			a.Amount = 1 + w.random.Int64N(s.Payment.Amount)
		case 5:
			a.Amount = s.Payment.Amount + 1
		}
	})
	if ok {
		w.sends(a)
	}
}

func (w *World) looksAtOne() {
	if s, ok := w.known(); ok {
		w.look(w.box, Ask{Shop: s.Shop, Of: string(s.Payment.ID)})
	}
}

func (w *World) changesLine() {
	w.set([]upstreamtest.Mode{upstreamtest.Up, upstreamtest.Up, upstreamtest.Refused, upstreamtest.BlackHole}[w.random.IntN(4)])
}

// set changes the line. It is noted as down once it is, and as up before it is: an outage is a time in which nothing can have come.
func (w *World) set(m upstreamtest.Mode) {
	name := map[upstreamtest.Mode]string{upstreamtest.Up: "up", upstreamtest.Refused: "refused", upstreamtest.BlackHole: "a black hole"}[m]
	w.log.tracef("the line is %s", name)
	w.tally.add("line " + name)
	w.mode = m
	if m == upstreamtest.Up {
		w.log.line(false)
	}
	w.box.line.Set(m)
	if m != upstreamtest.Up {
		w.log.line(true)
	}
}

// changesProcessor draws how the processor behaves from now on.
func (w *World) changesProcessor() {
	f := simulator.Faults{}
	if w.random.IntN(3) > 0 {
		for _, p := range []*float64{&f.Refuse, &f.Hang, &f.Error429, &f.Error503, &f.Error500, &f.Error500AfterEffect,
			&f.DropAfterEffect, &f.HangAfterEffect, &f.SlowBody, &f.Garbage} {
			if w.random.IntN(4) == 0 {
				*p = w.random.Float64() / 2
			}
		}
		if w.random.IntN(2) == 0 {
			f.DeclineRepeat = w.random.Float64() // often, because it takes a repeat
		}
		if w.random.IntN(5) == 0 {
			f.CaptivePortal = []float64{0.3, 1}[w.random.IntN(2)]
		}
	}
	retryAfter := []string{"", "0", "-1", "7", "1000000000000", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"}[w.random.IntN(7)]
	w.log.tracef("the processor: %+v, Retry-After %q", f, retryAfter)
	if err := w.sim.SetFaults(f); err != nil {
		w.t.Error(err)
	}
	w.control(`{"retry_after":%q,"latency_ms":%d,"settle_polls":%d,"settle_ms":%d}`, retryAfter, 1+w.random.IntN(1500), w.random.IntN(4), w.random.IntN(120_000))
}

func (w *World) setsClock() {
	jumps := map[string]time.Duration{"right": 0, "a day back": -24 * time.Hour, "an hour ahead": time.Hour, "ten years ahead": 3652 * 24 * time.Hour,
		"in 1970": -time.Since(time.Unix(0, 0))}
	name := []string{"right", "a day back", "an hour ahead", "ten years ahead", "in 1970"}[w.random.IntN(5)]
	w.log.tracef("the wall clock is %s", name)
	w.tally.add("clock " + name)
	w.clocks.jump(jumps[name])
}

func (w *World) losesPower() {
	w.log.tracef("power cut")
	w.box.cut()
}

// losesPowerSoon lets the power go at a write that is still to come.
func (w *World) losesPowerSoon() {
	n := 1 + w.random.IntN(80)
	w.log.tracef("power cut in %d changes of the disk", n)
	w.tally.add("power cut in a write, armed")
	w.box.cutAt(n)
}

func (w *World) restarts() {
	w.log.tracef("restart")
	w.tally.add("restart")
	w.box.disk.CutAt(0, nil)
	if err := w.reopen(0); err != nil {
		w.t.Fatalf("restart: %v", err)
	}
}
