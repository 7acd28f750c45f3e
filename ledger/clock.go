package ledger

import (
	"sync"
	"time"
)

// clock tells the time in the ledger's resolution, and ages that cannot be made
// younger by setting the wall clock back.
type clock struct {
	wall func() time.Time

	latestMu sync.Mutex // guards the rest
	latest   time.Time  // the greatest time that the box has written
	heard    time.Time  // when latest was heard of, by the monotonic clock
}

// now is the wall clock in milliseconds: what is stamped on records and ids.
func (c *clock) now() time.Time {
	return c.wall().UTC().Truncate(time.Millisecond)
}

// wrote remembers a time that stands in a store.
func (c *clock) wrote(t time.Time) {
	c.latestMu.Lock()
	defer c.latestMu.Unlock()
	if t.After(c.latest) {
		c.latest, c.heard = t, time.Now()
	}
}

// notBefore is the greatest of the wall clock, what the box last wrote (and what
// has passed since) and the times given (the processor's clock): a lower bound of the true time for
// deciding how old a send is. Overrating an age sends nothing; underrating it
// could charge twice.
func (c *clock) notBefore(others ...time.Time) time.Time {
	c.latestMu.Lock()
	t := c.latest
	if !t.IsZero() {
		t = t.Add(time.Since(c.heard))
	}
	c.latestMu.Unlock()
	for _, o := range append(others, c.now()) {
		if o.After(t) {
			t = o
		}
	}
	return t
}
