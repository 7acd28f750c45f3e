package jobs

import (
	"math/rand/v2"
	"time"
)

const (
	backoffDelayDefault = 2 * time.Second // Bull's custom; INTERFACE.md
	backoffMaxDefault   = time.Hour       // a job that fails all day is still tried often enough to be noticed
)

func (b Backoff) withDefaults(or Backoff) Backoff {
	if b.Type == "" && b.Delay == 0 && b.Max == 0 && b.Jitter == 0 {
		b = or
	}
	if b.Type == "" {
		b.Type = Exponential
	}
	if b.Delay == 0 {
		b.Delay = backoffDelayDefault
	}
	if b.Max == 0 {
		b.Max = max(backoffMaxDefault, b.Delay)
	}
	return b
}

func (b Backoff) validate() error {
	switch {
	case b.Type != Exponential && b.Type != Fixed:
		return invalid("backoff.type", "%q: use %q or %q", b.Type, Exponential, Fixed)
	case b.Delay < 0 || b.Delay > delayMax:
		return invalid("backoff.delay_ms", "use 0 to %v", delayMax)
	case b.Max < 0 || b.Max > delayMax:
		return invalid("backoff.max_ms", "use 0 to %v", delayMax)
	case !(b.Jitter >= 0 && b.Jitter <= 1):
		return invalid("backoff.jitter", "%v: use 0 to 1", b.Jitter)
	}
	return nil
}

// Wait returns how long to wait after failed attempt n (1 is the first): the full wait less a random part of
// up to Jitter of it, so that jobs that failed together do not return together.
func (b Backoff) Wait(n int) time.Duration {
	d := min(b.Delay, b.Max)
	if b.Type == Exponential {
		for ; n > 1 && d < b.Max; n-- {
			if d > b.Max/2 {
				d = b.Max
				break
			}
			d *= 2
		}
	}
	if random := time.Duration(float64(d) * b.Jitter); random > 0 {
		d -= rand.N(random + 1)
	}
	return d
}
