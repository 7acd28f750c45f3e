package ledger

import (
	"math"

	"tenderbox/tenants"
	"tenderbox/upstream"
)

// DrainState says what becomes of the payments that wait.
type DrainState string

// The states of a drain.
const (
	DrainIdle      DrainState = "idle"      // nothing is settled: nothing waits, or the line is down
	DrainRunning   DrainState = "draining"  // payments are settled as fast as the processor answers
	DrainThrottled DrainState = "throttled" // as fast as it allows: it asked to wait, or its rate is known
	DrainPaused    DrainState = "paused"    // the queue of payments is paused
)

// Drain is how fast what waits is settled.
type Drain struct {
	State       DrainState `json:"state" enum:"idle,draining,throttled,paused"`
	Concurrency int        `json:"concurrency" doc:"Payments that may be on their way at a time, at present."`
	PerS        float64    `json:"per_s" doc:"Payments that became final a second, over the last ten."`
	Rate        *float64   `json:"rate" doc:"Payments a second that the processor allows, set or learned; null: no limit is known."`
	EtaS        *int64     `json:"eta_s" doc:"Seconds until nothing is left, if nothing is added; null: nothing moves."`
}

// etaMax bounds an estimate: more is not worth a number.
const etaMax = 366 * 24 * 60 * 60

// Drain tells how the drain of a tenant's backlog, or ("") of all that the box has, stands.
func (l *Ledger) Drain(t tenants.ID) Drain {
	backlog := int64(0)
	for _, sum := range l.exposure.of(t) {
		backlog += sum.Count
	}
	return l.drain(t, l.accountOf(t), backlog)
}

// drain tells how the drain of a tenant's backlog, or ("") of all that the box has, stands.
func (l *Ledger) drain(t tenants.ID, own *upstream.Account, backlog int64) Drain {
	d := Drain{State: DrainIdle, PerS: math.Round(10*l.pulse.perSecond(t)) / 10}
	accounts := []*upstream.Account{own}
	if t == "" {
		accounts = l.accounts.List()
	}
	throttled, busy, ready := false, d.PerS > 0, false
	for _, a := range accounts {
		if a == nil || !a.Configured() {
			continue
		}
		p := a.Pace()
		d.Concurrency += p.Concurrency
		throttled, busy, ready = throttled || p.Throttled, busy || p.InUse > 0, ready || a.Ready()
		if p.Rate > 0 && len(accounts) == 1 {
			rate := math.Round(10*p.Rate) / 10
			d.Rate = &rate
		}
	}
	queue, err := l.jobs.Queue(string(t), PaymentsQueue)
	switch {
	case err == nil && queue.Paused:
		d.State = DrainPaused
	case backlog == 0:
	case throttled:
		d.State = DrainThrottled
	case busy && ready:
		d.State = DrainRunning
	}
	if backlog > 0 && d.PerS > 0 && (d.State == DrainRunning || d.State == DrainThrottled) {
		eta := min(int64(math.Ceil(float64(backlog)/d.PerS)), etaMax)
		d.EtaS = &eta
	}
	return d
}
