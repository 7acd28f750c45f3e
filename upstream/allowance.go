package upstream

import (
	"math"
	"time"
)

// What a processor allows is learned as the adaptive retries of cloud SDKs learn it: a refusal shows the rate that was too high, sending
// goes on a little below, climbs back to it slowly, lingers there and then goes beyond ever faster (the curve is TCP CUBIC's).
const (
	// allowanceCut is how far below a refused rate sending goes on. Less would be refused again by the next second's noise; more would waste
	// the allowance: the curve's mean below the ceiling is a quarter of it.
	allowanceCut = 0.04
	// allowanceCutMax: refusals one soon after the other double the cut up to this, for the allowance has shrunk.
	allowanceCutMax = 0.5
	// allowanceClimb is the time back to the refused rate: short while that is a guess, twice as long after each refusal that confirms it, up to
	// allowanceClimbMax. A refusal costs a pause of a second (retryAfterMin): once in the longest it is under one hundredth.
	allowanceClimb    = 4 * time.Second
	allowanceClimbMax = 128 * time.Second
	// allowanceBeyond is the time scale beyond the refused rate: twice that is tried after three of it, ten times after six.
	allowanceBeyond = 15 * time.Second
	// allowanceSoon after sending went on a refusal says more about the rate being too high than about a full bucket.
	allowanceSoon = 3 * time.Second
	// allowanceBrief is the shortest time of sending from which a rate is guessed: less is a bucket's content, not what it gets.
	allowanceBrief = 250 * time.Millisecond
	// allowanceMin requests a second are tried however often they are refused.
	allowanceMin = 0.1
	// allowanceFew answers before a refusal tell a rate; fewer only that it was too high.
	allowanceFew = 8
	// allowanceGuess is the least that the first refusal is taken for: what processors commonly allow.
	allowanceGuess = 100
	// allowanceIdle without a request the climb stands still: what is not used proves nothing.
	allowanceIdle = time.Second
	// allowanceSlack is how far requests may catch up when a timer was late. At 100 a second it is one request.
	allowanceSlack = 10 * time.Millisecond
)

// allowance is how many requests a second may be sent: as configured, or as the processor has taught.
type allowance struct {
	fixed   float64       // configured; 0: learn
	ceiling float64       // the rate that was last refused; 0: none ever was
	cut     float64       // how far below the ceiling sending went on
	climb   time.Duration // back to it
	since   time.Time
	next    time.Time // when the next request is due
	last    time.Time // when the latest was let go
	stopped bool      // by a refusal, or for want of payments
	resumed time.Time // when sending went on after a pause or began
	passes  int       // good answers since the latest refusal
	recent  meter
}

// known reports whether there is a limit.
func (a *allowance) known() bool { return a.fixed > 0 || a.ceiling > 0 }

// at is the rate at a time; 0: no limit is known.
func (a *allowance) at(now time.Time) float64 {
	if a.fixed > 0 || a.ceiling == 0 {
		return a.fixed
	}
	way := max(now.Sub(a.since), 0) - a.climb
	x := float64(way) / float64(a.climb)
	if way > 0 {
		x = float64(way) / float64(allowanceBeyond)
	}
	return max(a.ceiling*(1+a.cut*math.Pow(x, 3)), allowanceMin)
}

// take lets a request go, or says in how long.
func (a *allowance) take(now time.Time) time.Duration {
	if gap := now.Sub(a.last); gap > allowanceIdle {
		a.since, a.stopped = a.since.Add(gap), true
	}
	if a.stopped {
		a.resumed, a.stopped = now, false
	}
	rate := a.at(now)
	if rate > 0 {
		if wait := a.next.Sub(now); wait > 0 {
			return wait
		}
		if earliest := now.Add(-allowanceSlack); a.next.Before(earliest) {
			a.next = earliest
		}
		a.next = a.next.Add(time.Duration(float64(time.Second) / rate))
	}
	a.last = now
	return 0
}

// passed counts a good answer.
func (a *allowance) passed(now time.Time) {
	a.passes++
	a.recent.add(now)
}

// refused learns from a 429 that came while so many more requests were on their way.
func (a *allowance) refused(now time.Time, onWay int) {
	rate, passes, active := a.at(now), a.passes, now.Sub(a.resumed)
	a.passes, a.stopped = 0, true
	if a.fixed > 0 {
		return // the operator knows better, or is told by the alarm that not
	}
	cut, climb := allowanceCut, allowanceClimb
	switch {
	case rate > 0 && active < allowanceSoon:
		a.ceiling, cut = rate, min(2*a.cut, allowanceCutMax)
		if passes >= allowanceFew {
			a.ceiling = min(rate, float64(passes)/active.Seconds())
		}
	case rate > 0:
		a.ceiling, climb = min(rate, a.recent.perSecond(now)), min(2*a.climb, allowanceClimbMax)
	default: // rather too high than too low: the next refusal comes sooner than the end of the climb
		a.ceiling = max(float64(passes+onWay)/max(active, allowanceBrief).Seconds(), allowanceGuess)
	}
	a.ceiling, a.cut, a.climb, a.since = max(a.ceiling, allowanceMin), cut, climb, now
}
