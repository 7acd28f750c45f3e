package jobs

import (
	"cmp"
	"time"

	"golang.org/x/time/rate"
)

// RateLimit bounds starts of jobs: Count in each Per, as a bucket that holds Count and fills evenly. After a quiet Per, Count jobs may
// start at once.
type RateLimit struct {
	Count int           // 0: no limit
	Per   time.Duration // 0: a second
}

// Limits of a queue. The zero value limits nothing. They hold for the box's own workers and for those outside together.
type Limits struct {
	Active       int       // jobs active at a time, all tenants together; 0: no limit
	TenantActive int       // of one tenant; 0: no limit
	Rate         RateLimit // starts, all tenants together
	TenantRate   RateLimit // starts of one tenant
}

const (
	activeLimitMax = 1_000_000 // beyond what a box can hold leased it limits nothing
	rateCountMax   = 1_000_000 // beyond what a box can start in a second it limits nothing
	ratePerMax     = 24 * time.Hour
	ratePerMin     = time.Millisecond
)

type limiter = *rate.Limiter

func (r RateLimit) perSecond() float64 {
	return float64(r.Count) / cmp.Or(r.Per, time.Second).Seconds()
}

func (r RateLimit) limiter() limiter {
	if r.Count <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(r.perSecond()), r.Count)
}

// tokenIn says in how long l lets a job start; 0: now.
func tokenIn(l limiter, now time.Time) time.Duration {
	if l == nil {
		return 0
	}
	missing := 1 - l.TokensAt(now)
	if missing <= 1e-9 { // floating point: one that is almost there is there
		return 0
	}
	return time.Duration(missing/float64(l.Limit())*float64(time.Second)) + time.Nanosecond
}

func (l Limits) validate() error {
	for _, n := range []struct {
		field string
		value int
	}{{"active", l.Active}, {"tenant_active", l.TenantActive}} {
		if n.value < 0 || n.value > activeLimitMax {
			return invalid(n.field, "%d: use 0 (no limit) to %d", n.value, activeLimitMax)
		}
	}
	for _, r := range []struct {
		field string
		value RateLimit
	}{{"rate", l.Rate}, {"tenant_rate", l.TenantRate}} {
		if r.value.Count < 0 || r.value.Count > rateCountMax {
			return invalid(r.field+".count", "%d: use 0 (no limit) to %d", r.value.Count, rateCountMax)
		}
		if r.value.Per != 0 && (r.value.Per < ratePerMin || r.value.Per > ratePerMax) {
			return invalid(r.field+".per_ms", "%v: use %v to %v", r.value.Per, ratePerMin, ratePerMax)
		}
	}
	return nil
}
