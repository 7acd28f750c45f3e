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
}

func (c *processorClock) observe(r result) {
	if r.health != answered || r.Date.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date, c.at = r.Date, time.Now()
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
