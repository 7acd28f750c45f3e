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
	// allowanceCutMore: refusals one soon after the other cut so many times as much, up to allowanceCutMax, for the allowance has shrunk, or the first
	// guess was far too high: with a small bucket each further try costs a second's pause and is over in a tenth of one.
	allowanceCutMore = 4
	allowanceCutMax  = 0.5
	// allowanceClimb is the time back to the refused rate: short while that is a guess, allowanceSurer times as long after each refusal that confirms it,
	// up to allowanceClimbMax. A refusal costs a pause of a second (retryAfterMin): once in the longest it is under one hundredth. After one that came
	// soon the climb is twice as long, up to allowanceClimbSoon: it leads out of a deep cut.
	allowanceClimb     = 4 * time.Second
	allowanceSurer     = 4
	allowanceClimbMax  = 128 * time.Second
	allowanceClimbSoon = 16 * time.Second
	// allowanceUnder of a rate that was measured at a refusal is taken for what is allowed: the bucket's content is in the measure, and on a
	// plateau above what is allowed the bucket runs dry, below it there is no refusal until sending goes beyond.
	allowanceUnder = 0.99
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
	// allowanceCatchUp is how far they may when the disk was, or allowanceBurst requests, if the rate was learned: a processor's bucket holds that much, and
	// has filled meanwhile. An operator's rate is kept to the letter.
	allowanceCatchUp = 50 * time.Millisecond
	allowanceBurst   = 3
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
		if earliest := now.Add(-a.slack(rate)); a.next.Before(earliest) {
			a.next = earliest
		}
		a.next = a.next.Add(time.Duration(float64(time.Second) / rate))
	}
	a.last = now
	return 0
}

// slack is how far requests may catch up at a rate.
func (a *allowance) slack(rate float64) time.Duration {
	if a.fixed > 0 {
		return allowanceSlack
	}
	return max(allowanceCatchUp, time.Duration(allowanceBurst*float64(time.Second)/rate))
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
		a.ceiling, cut, climb = rate, min(allowanceCutMore*a.cut, allowanceCutMax), min(2*a.climb, allowanceClimbSoon)
		if passes >= allowanceFew {
			a.ceiling = min(rate, float64(passes)/active.Seconds())
		}
	case rate > 0:
		a.ceiling, climb = allowanceUnder*min(rate, a.recent.perSecond(now)), min(allowanceSurer*a.climb, allowanceClimbMax)
	default: // rather too high than too low: the next refusal comes sooner than the end of the climb
		a.ceiling = max(float64(passes+onWay)/max(active, allowanceBrief).Seconds(), allowanceGuess)
	}
	a.ceiling, a.cut, a.climb, a.since = max(a.ceiling, allowanceMin), cut, climb, now
}
