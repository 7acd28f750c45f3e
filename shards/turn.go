package shards

import "time"

const (
	// turnPlaces writers of a set commit at a time: while one waits for its fsync, the other uses the CPU. With one place a disk that takes half a
	// millisecond costs a seventh of the rate; with a place for each of four files groups are smaller by a quarter, and fsyncs a third more.
	turnPlaces = 2
	// turnWait is how long a writer waits for a place until it commits beside those who have one: about as long as a group takes on a fast disk.
	// On a slow one, where fsyncs of several files share the device's one flush, they soon go side by side, and a file whose disk hangs holds
	// nobody up for longer.
	turnWait = time.Millisecond
)

// turn lets a few writers of a set commit at a time, as long as that goes quickly: what waits meanwhile makes larger groups.
type turn chan struct{}

func newTurn(places int) turn { return make(turn, places) }

// take waits for a place, or for timer, which it sets. The caller gives back what it took.
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
