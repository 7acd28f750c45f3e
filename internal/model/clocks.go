package model

import (
	"sync"
	"time"
)

// clocks are the machine's clocks. True time is the bubble's, which is the processor's too; the machine's wall clock may be set.
type clocks struct {
	mu   sync.Mutex // guards the rest
	set  time.Duration
	base time.Time // the schedule's, when it was last read
	read time.Time
}

func newClocks() *clocks {
	now := time.Now()
	return &clocks{base: now.Round(0), read: now}
}

// wall is what the machine says that it is. It has no monotonic reading, which would give the true time away.
func (c *clocks) wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *clocks) now() time.Time { return time.Now().Round(0).Add(c.set) }

// schedule is what jobs.Options.Now must be for the engine to see what it would see of this machine's clock if it were not given one: the wall
// clock when that jumps ahead, and true time passing when it is set back.
func (c *clocks) schedule() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.base, c.read = c.base.Add(now.Sub(c.read)), now
	if wall := c.now(); wall.After(c.base) {
		c.base = wall
	}
	return c.base
}

// jump sets the wall clock so far from the true time.
func (c *clocks) jump(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set = by
}
