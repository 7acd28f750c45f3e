package webhook

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// schedule is the specification's: how long to wait after the first failed attempt, the second, and so on.
var schedule = [...]time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

const (
	// scheduleLasts is the sum of schedule. No job waits longer than that for an endpoint that is left in peace.
	scheduleLasts = 75*time.Hour + 35*time.Minute + 5*time.Second

	// retryAfterMax is how long an endpoint may ask its sender to wait: the schedule's longest step.
	retryAfterMax = 24 * time.Hour

	// jitterShare of a wait is added at most by chance, so that jobs that failed together do not return together.
	jitterShare = 0.1

	// pauseMin doubles with each pause in a row up to pauseMax: short enough to be there soon after an endpoint or the line is back,
	// long enough that thousands of jobs that wait do not wear out a memory card.
	pauseMin, pauseMax = 5 * time.Second, 5 * time.Minute
	// pauseAskedMax is how long an endpoint may keep all its jobs waiting with Retry-After.
	pauseAskedMax = time.Hour

	// lineWaitMax is how long a job waits for the line before its attempts count: a ship's longest voyage, about.
	lineWaitMax = 30 * 24 * time.Hour

	// pausesKept bounds what is remembered of endpoints that were removed while paused.
	pausesKept = 1000
)

// wait is how long to wait after failed attempt n (1 is the first), if the endpoint asked for asked (0: it did not).
func wait(n int, asked time.Duration) time.Duration {
	return jitter(max(schedule[min(max(n, 1), len(schedule))-1], min(asked, retryAfterMax)))
}

func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Float64()*jitterShare*float64(d))
}

// retryAfter reads both forms of Retry-After (RFC 9110, section 10.2.3). 0: none, or nothing that makes sense.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v != "" && strings.Trim(v, "0123456789") == "" {
		seconds, err := strconv.ParseInt(v, 10, 64)
		if err != nil || seconds > int64(retryAfterMax/time.Second) {
			return retryAfterMax
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date // its own clock knows best what it means
	}
	return min(max(at.Sub(now), 0), retryAfterMax)
}

// pauses are endpoints that are left in peace for a while. They live in memory: what they protect is the endpoint and the
// workers' time, not a promise.
type pauses struct {
	mu  sync.Mutex // guards the map and what is in it
	all map[string]*pause
}

type pause struct {
	until time.Time // by the monotonic clock
	last  time.Duration
}

// left is how long an endpoint is still to be left in peace.
func (p *pauses) left(endpoint string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.all[endpoint]; e != nil {
		return max(time.Until(e.until), 0)
	}
	return 0
}

// begin begins or lengthens an endpoint's pause and returns what is left of it. asked is what it asked for; 0: nothing. Attempts
// that were under way together count as one.
func (p *pauses) begin(endpoint string, asked time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.all[endpoint]
	if e == nil {
		p.forget()
		e = &pause{}
		p.all[endpoint] = e
	}
	now := time.Now()
	if !now.Before(e.until) {
		e.last = min(max(2*e.last, pauseMin), pauseMax)
		e.until = now.Add(e.last)
	}
	if end := now.Add(min(asked, pauseAskedMax)); end.After(e.until) {
		e.until = end
	}
	return e.until.Sub(now)
}

// end ends an endpoint's pause: it answered.
func (p *pauses) end(endpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, endpoint)
}

// forget makes room: pauses that are over go, with the knowledge of how long the next would be.
func (p *pauses) forget() {
	if p.all == nil {
		p.all = map[string]*pause{}
	}
	if len(p.all) < pausesKept {
		return
	}
	now := time.Now()
	for id, e := range p.all {
		if now.After(e.until) {
			delete(p.all, id)
		}
	}
}
