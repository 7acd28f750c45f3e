package email

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// An outage is waited for as long as it has lasted so far, within these bounds: soon at first, because most are short, and never so
	// rarely that mail lies about for long once the line is back.
	pauseMin, pauseMax = time.Minute, 10 * time.Minute

	// pauseJitter is the share of a pause that is added at random, so that a thousand mails do not come back in one second.
	pauseJitter = 0.2

	// lostPatience is for how long connections that die on the way cost a mail nothing. Beyond it the mail itself is the likelier reason, and its attempts
	// count. RFC 5321 (4.5.4.1) gives mail up after four to five days.
	lostPatience = 5 * 24 * time.Hour
)

// clockSane: a box without a battery for its clock starts in 1970, and what it then wrote down has no age.
var clockSane = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// outage remembers that the server was found unusable. While it lasts nobody tries before the next try is due.
type outage struct {
	mu    sync.Mutex // guards what follows
	since time.Time  // zero: none
	next  time.Time
	why   string
}

// begin notes a failure. news: the outage is new, or has another reason.
func (o *outage) begin(now time.Time, why string) (news bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	news = o.since.IsZero() || o.why != why
	if o.since.IsZero() {
		o.since = now
	}
	o.why = why
	o.next = now.Add(min(max(now.Sub(o.since), pauseMin), pauseMax))
	return news
}

// trouble notes what one mail met; others go on. news: it is something else than before.
func (o *outage) trouble(why string) (news bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	news = o.why != why
	o.why = why
	return news
}

// end notes that a server was usable, and tells the outage's length if there was one.
func (o *outage) end(now time.Time) (lasted time.Duration, was bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		lasted, was = now.Sub(o.since), true
	}
	o.since, o.next, o.why = time.Time{}, time.Time{}, ""
	return lasted, was
}

// left is how long nobody tries yet.
func (o *outage) left(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return 0
	}
	return min(o.next.Sub(now), pauseMax)
}

func (o *outage) told() (since, next time.Time, why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since, o.next, o.why
}

// jittered adds its random share to a pause.
func jittered(d time.Duration) time.Duration {
	return d + rand.N(time.Duration(float64(d)*pauseJitter)+1)
}
