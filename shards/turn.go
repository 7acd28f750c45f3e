package shards

import "time"

// turnWait is how long a writer lets others commit before it does so beside them. On a fast
// disk a group takes a fraction of it, and writers that take turns gather larger groups:
// half the fsyncs, a sixth of the CPU time of a small write less. On a slow disk, where
// fsyncs of several files share the device's one flush, they soon go side by side. A file
// whose disk hangs holds nobody up for longer.
const turnWait = 2 * time.Millisecond

// turn lets the writers of a set commit one after the other, as long as that goes quickly.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn, or for timer, which it sets. The caller gives back what it took.
func (t turn) take(timer *time.Timer) (taken bool) {
	select {
	case t <- struct{}{}:
		return true
	default:
	}
	timer.Reset(turnWait)
	select {
	case t <- struct{}{}:
		timer.Stop()
		return true
	case <-timer.C:
		return false
	}
}

func (t turn) give() { <-t }

// crowdMin operations must wait, in all files together, for writers to take turns: fewer make no groups that are worth a wait, and whoever waits
// for them is one of a few.
const crowdMin = 8

func (s *Set) crowded() bool {
	n := 0
	for _, sh := range s.shards {
		n += len(sh.queue)
	}
	return n >= crowdMin
}
