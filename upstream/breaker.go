package upstream

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// The breaker's states, in the words of the field.
//
//	closed     calls pass → open, by failures (Config.BreakerFailures) or by force
//	open       calls are held back → half-open, when Config.BreakerOpen has passed; if forced: by ForceBreaker only
//	half-open  one call passes, a probe if a payment is not quicker → closed, by its success · → open, by its failure
const (
	BreakerClosed   = "closed"
	BreakerOpen     = "open"
	BreakerHalfOpen = "half-open"
)

// BreakerStatus is the breaker's state for a status page.
type BreakerStatus struct {
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// Failures counts those in the window; while open or half-open, those that opened it.
	Failures int `json:"failures"`
	// Forced: opened by the operator; it stays so until the operator closes it.
	Forced bool `json:"forced,omitempty"`
}

// breakerBuckets cut the window, so that failures leave it one part at a time, not all at once.
const breakerBuckets = 12

// errFailed and errAbandoned carry a result's meaning through gobreaker.
var (
	errFailed    = errors.New("failed")
	errAbandoned = errors.New("abandoned")
)

// breaker is gobreaker, plus what it lacks: forcing, the time of the last change, the count that opened it, and
// the knowledge whether the processor or only the line failed.
type breaker struct {
	cfg *Config

	mu       sync.Mutex // guards what follows; a leaf, never held while gobreaker is called
	inner    *gobreaker.CircuitBreaker[result]
	since    time.Time
	openedAt time.Time
	tripped  int  // failures that opened it
	forced   bool // by the operator
	ailing   bool // some failure since it last closed was an answer of the processor
}

func newBreaker(cfg *Config) *breaker {
	b := &breaker{cfg: cfg, since: cfg.Now()}
	b.inner = b.build()
	return b
}

func (b *breaker) build() *gobreaker.CircuitBreaker[result] {
	var self *gobreaker.CircuitBreaker[result]
	self = gobreaker.NewCircuitBreaker[result](gobreaker.Settings{
		MaxRequests:  1,
		Interval:     b.cfg.BreakerWindow,
		BucketPeriod: max(b.cfg.BreakerWindow/breakerBuckets, 1),
		Timeout:      b.cfg.BreakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			limit := uint32(b.cfg.BreakerFailures)
			if c.ConsecutiveFailures < limit && (c.TotalFailures < limit || 2*c.TotalFailures < c.Requests) {
				return false
			}
			b.mu.Lock()
			b.tripped = int(c.TotalFailures)
			b.mu.Unlock()
			return true
		},
		// Called under gobreaker's lock.
		OnStateChange: func(_ string, _, to gobreaker.State) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.inner != self {
				return // replaced by reset meanwhile
			}
			b.since = b.cfg.Now()
			switch to {
			case gobreaker.StateOpen:
				b.openedAt = time.Now() // gobreaker's clock
			case gobreaker.StateClosed:
				b.ailing = false
			}
		},
		IsSuccessful: func(err error) bool { return err == nil },
		IsExcluded:   func(err error) bool { return errors.Is(err, errAbandoned) },
	})
	return self
}

// do runs f if the breaker lets it pass.
func (b *breaker) do(f func() result) (result, bool) {
	b.mu.Lock()
	inner, forced := b.inner, b.forced
	b.mu.Unlock()
	if forced {
		return result{}, false
	}
	r, err := inner.Execute(func() (result, error) {
		r := f()
		switch {
		case r.health == abandoned:
			return r, errAbandoned
		case r.failed():
			if r.health == ailing {
				b.mu.Lock()
				b.ailing = true
				b.mu.Unlock()
			}
			return r, errFailed
		}
		return r, nil
	})
	return r, !errors.Is(err, gobreaker.ErrOpenState) && !errors.Is(err, gobreaker.ErrTooManyRequests)
}

func (b *breaker) status() BreakerStatus {
	b.mu.Lock()
	inner := b.inner
	b.mu.Unlock()
	state, counts := inner.State(), inner.Counts()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BreakerStatus{State: state.String(), Since: b.since, Failures: b.tripped, Forced: b.forced}
	switch {
	case b.forced:
		s.State = BreakerOpen
	case state == gobreaker.StateClosed:
		s.Failures = int(counts.TotalFailures)
	}
	return s
}

// remaining is how long the breaker stays open by itself; zero if it is not open or was forced.
func (b *breaker) remaining() time.Duration {
	if s := b.status(); s.State != BreakerOpen || s.Forced {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// gobreaker moves on strictly after its time.
	return max(b.cfg.BreakerOpen-time.Since(b.openedAt)+time.Nanosecond, 1)
}

// force opens the breaker until reset.
func (b *breaker) force() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.forced {
		b.forced, b.since = true, b.cfg.Now()
	}
}

// reset closes the breaker and forgets all failures; calls under way count no more.
func (b *breaker) reset() {
	inner := b.build()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inner, b.forced, b.ailing, b.tripped = inner, false, false, 0
	b.since = b.cfg.Now()
}

// lineReturned closes a breaker that opened only because the line was gone: what it was to protect, the
// processor, never failed. One that the processor's own failures opened keeps its time.
func (b *breaker) lineReturned() {
	if b.status().State == BreakerClosed {
		return
	}
	b.mu.Lock()
	keep := b.forced || b.ailing
	b.mu.Unlock()
	if !keep {
		b.reset()
	}
}
