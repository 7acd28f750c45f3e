package jobs

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock is the schedule's time. It follows the machine's clock ahead but never back: set back by a day, a retry due in a
// second must not wait for a day and a second.
type clock struct {
	outside func() time.Time     // nil: the machine's clock
	runs    func() time.Duration // what steady adds to; nil: the machine's monotonic clock
	since   time.Time            // of init, with a monotonic reading

	mu   sync.Mutex // guards base and read
	base time.Time  // the latest time that was told, without a monotonic reading
	read time.Time  // when, by the machine's monotonic clock; not used if outside is set
}

func (c *clock) init(outside func() time.Time, last time.Time) {
	c.outside, c.read = outside, time.Now()
	c.since = c.read
	c.base = c.read.Round(0) // of one reading with read: between two of them the process may have to wait, and the clock would be ahead by that
	if outside != nil {
		c.base = c.wall()
	}
	if last.After(c.base) {
		c.base = last.Round(0)
	}
}

// wall is what people are shown.
func (c *clock) wall() time.Time {
	if c.outside != nil {
		return c.outside().Round(0)
	}
	return time.Now().Round(0)
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var wall time.Time
	if c.outside == nil {
		read := time.Now()
		c.base, c.read = c.base.Add(read.Sub(c.read)), read
		wall = read.Round(0)
	} else {
		wall = c.wall()
	}
	if wall.After(c.base) {
		c.base = wall
	}
	return c.base
}

// steady is how long the engine has been open, a nanosecond at least: deadlines of leases and rates go by it, because it does not jump.
func (c *clock) steady() time.Duration {
	if c.runs != nil {
		return 1 + c.runs()
	}
	return 1 + time.Since(c.since)
}

// startsWait says whether starts of attempts are waited for: after an unclean end, until ten minutes went well.
type startsWait struct{ until atomic.Pointer[time.Time] }

// cleanAfter is how long a box must run until a job that killed its predecessor is no longer suspected. DESIGN.md, sharp edges.
const cleanAfter = 10 * time.Minute

func (s *startsWait) init(unclean bool) {
	if unclean {
		t := time.Now().Add(cleanAfter)
		s.until.Store(&t)
	}
}

func (s *startsWait) on() bool {
	t := s.until.Load()
	if t == nil {
		return false
	}
	if time.Now().Before(*t) { // compares monotonic readings
		return true
	}
	s.until.Store(nil)
	return false
}
