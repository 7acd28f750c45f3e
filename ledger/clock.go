package ledger

import (
	"sync"
	"time"

	"tenderbox/tenants"
)

// clockSkewMax is how far another clock may be ahead of the box's before it is
// believed to be the better one.
const clockSkewMax = time.Minute

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

// settledAt is when what happens to a tenant's payment at now has ended, as far as anybody knows: a box whose clock is
// behind would call it older than it is once the clock is put right, and keys are kept by this time.
func (l *Ledger) settledAt(t tenants.ID, now time.Time) time.Time {
	var theirs time.Time
	if acc := l.accountOf(t); acc != nil {
		theirs = acc.Clock()
	}
	if known := l.clock.notBefore(theirs); known.Sub(now) > clockSkewMax {
		return known.Truncate(time.Millisecond)
	}
	return now
}
