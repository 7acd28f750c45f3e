package upstream

import (
	"sync"
	"time"
)

// processorClock is the processor's time as its answers tell it.
type processorClock struct {
	mu   sync.Mutex // guards what follows; a leaf
	date time.Time  // the Date of the latest answer
	at   time.Time  // when it came, by the monotonic clock

	wrongSince time.Time // since when this box's clock differs; zero: it does not
	ours       time.Time // its time when it last did
}

// clockWrongMin is how far the clocks may differ: what signatures and certificates of the field put up with. It is far beyond what
// an answer may take.
const clockWrongMin = 5 * time.Minute

func (c *processorClock) observe(r result, now time.Time) {
	if r.health != answered || r.Date.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date, c.at = r.Date, time.Now()
	if r.Date.Sub(now).Abs() < clockWrongMin {
		c.wrongSince = time.Time{}
		return
	}
	if c.ours = now; c.wrongSince.IsZero() {
		c.wrongSince = now
	}
}

// wrong says since when the clocks differ, and with which times; ok: they do.
func (c *processorClock) wrong() (since time.Time, evidence string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrongSince.IsZero() {
		return time.Time{}, "", false
	}
	return c.wrongSince, "the processor's clock said " + c.date.UTC().Format(time.RFC3339) + " when this box's said " + c.ours.UTC().Format(time.RFC3339), true
}

// Clock returns the processor's present time: the Date of its latest answer and what has passed since, which setting
// the wall clock does not change. Zero if no answer has carried one.
func (a *Account) Clock() time.Time {
	a.clock.mu.Lock()
	defer a.clock.mu.Unlock()
	if a.clock.date.IsZero() {
		return time.Time{}
	}
	return a.clock.date.Add(time.Since(a.clock.at))
}
