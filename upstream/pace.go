package upstream

import (
	"container/list"
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// ErrNotReady is Enter's answer when nothing may be sent: the breaker is open, the key is refused; and to who would have to wait
// while the line is down. Without a wait the line may be tried: the judge's word is a view, not a proof.
var ErrNotReady = errors.New("upstream account: not ready")

var errLineDown = errors.New("line down")

// The number of requests at a time follows AIMD, as TCP's window and Netflix's concurrency-limits do: it grows while answers are good and
// is halved when the processor says, or shows, that it is too much.
const (
	// paceStart is few enough not to frighten a processor after an outage, and doubled within every round of answers it takes a
	// fifth of a second to the maximum at 40 ms each.
	paceStart = 4
	// paceMin keeps asking: with none on its way nobody would learn that the processor has recovered.
	paceMin = 1
	// paceMaxDefault at 20 ms an answer are more requests a second than two cores can seal and record. What a box sends
	// beyond it would wait at the processor instead of here.
	paceMaxDefault = 64
	// paceMaxMost is Config.Concurrency's own limit; each request may hold a connection, and 64 of them are kept alive.
	paceMaxMost = 1024
	// paceCut is the multiplicative decrease. TCP's half: a backlog has time, and a processor in trouble has none.
	paceCut = 0.5
	// paceUsed: the limit grows only while at least this part of it is in use (as in Netflix's limiters), else a trickle of payments
	// would raise it without proving anything.
	paceUsed = 0.5

	// An answer is slow if, smoothed, it takes paceSlowTimes as long as the processor's best, and is slower than paceSlowMin: card
	// networks answer now in 300 ms, now in a second, and that is no congestion. One that takes Timeout/slowPart is slow by itself.
	paceSlowTimes = 3
	paceSlowMin   = 250 * time.Millisecond
	// paceSmooth is the weight of one answer in the smoothed time, TCP's for its round trip; as many answers are looked at
	// before a verdict.
	paceSmooth = 8
	// paceForget lets the best time rise towards what is usual by one part in so many an answer: a processor that has become slower for good is
	// not congested for ever.
	paceForget = 4096

	// sealPart: at most so many places are given for each request at a time that is allowed, to make up for the time between Enter and
	// the first byte, in which the seal is written.
	sealPart = 2
)

// paceSpan is what PaceStatus.PerSecond is about: long enough to pass over a pause of a second.
const paceSpan = 10 * time.Second

// pace says when the next request may be made ready: how many are on their way at a time, and how many a second.
//
// A place is taken before an attempt is sealed and given back after its answer. Who comes first is served first.
type pace struct {
	cfg  *Config
	open func() (wait time.Duration, err error) // Account.admits; asked with mu held

	mu      sync.Mutex // guards what follows; before the leaves that open takes
	limit   float64    // requests at a time
	quick   float64    // up to here the limit grows by one an answer, beyond by one a round of them
	places  int        // taken
	queue   list.List  // of *ticket, first come first
	timer   *time.Timer
	rate    allowance
	cutAt   time.Time // answers to what was sent before say nothing new
	smooth  time.Duration
	best    time.Duration
	judged  int           // answers in smooth since the last cut
	held    time.Duration // smoothed: how long a place is taken
	posting time.Duration // smoothed: how long of it a request is on its way
	good    meter         // answers that count
}

// ticket is somebody who waits for a place.
type ticket struct {
	ready chan struct{} // closed when it is decided
	err   error
	at    *list.Element // nil: decided
}

func newPace(cfg *Config, open func() (time.Duration, error)) *pace {
	p := &pace{cfg: cfg, open: open, limit: paceStart}
	p.limit = min(p.limit, p.most())
	p.quick = p.most()
	p.rate.fixed = float64(cfg.Rate)
	p.good.span, p.rate.recent.span = paceSpan, allowanceSoon
	return p
}

func (p *pace) most() float64 { return float64(p.cfg.Concurrency) }

// Enter waits for a place among the requests that the account is sent at a time, for its turn under the rate cap, and for the end of
// a pause that the processor asked for. It is taken before an attempt is sealed, so that nothing waits between the seal and the send.
// leave gives the place back; calling it again does nothing. The error is
// ctx's, or [ErrNotReady].
func (a *Account) Enter(ctx context.Context) (leave func(), err error) { return a.pace.enter(ctx) }

func (p *pace) enter(ctx context.Context) (leave func(), err error) {
	t := &ticket{ready: make(chan struct{})}
	p.mu.Lock()
	t.at = p.queue.PushBack(t)
	p.admit()
	p.mu.Unlock()
	select {
	case <-t.ready:
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		if t.at != nil {
			p.decide(t, ctx.Err())
			return nil, t.err
		}
		if t.err == nil { // too late to say no
			p.places--
			p.admit()
		}
		return nil, ctx.Err()
	}
	if t.err != nil {
		return nil, t.err
	}
	from := time.Now()
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.places--
		p.held = smoothed(p.held, time.Since(from))
		p.admit()
	}), nil
}

// decide ends a wait. mu is held.
func (p *pace) decide(t *ticket, err error) {
	p.queue.Remove(t.at)
	t.at, t.err = nil, err
	close(t.ready)
}

// admit gives places to those who wait, as many as there are now, and comes back when time alone makes more. mu is held.
func (p *pace) admit() {
	for p.queue.Len() > 0 {
		wait, err := p.open()
		if err != nil && !errors.Is(err, errLineDown) {
			p.refuseAll()
			return
		}
		if wait <= 0 && p.places >= p.room() {
			wait = forEver // leave comes back
		} else if wait <= 0 {
			wait = p.rate.take(time.Now())
		}
		switch {
		case wait <= 0:
			p.places++
			p.decide(p.queue.Front().Value.(*ticket), nil)
		case err != nil:
			p.refuseAll()
			return
		default:
			if wait < forEver {
				p.wakeIn(wait)
			}
			return
		}
	}
}

const forEver = time.Duration(math.MaxInt64)

func (p *pace) refuseAll() {
	for e := p.queue.Front(); e != nil; e = p.queue.Front() {
		p.decide(e.Value.(*ticket), ErrNotReady)
	}
}

func (p *pace) wakeIn(d time.Duration) {
	if p.timer == nil {
		p.timer = time.AfterFunc(d, p.look)
		return
	}
	p.timer.Reset(d)
}

// look lets those who wait see what has changed outside.
func (p *pace) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.open(); err != nil {
		p.refuseAll()
	}
	p.admit()
}

// room is how many places there are: enough that limit requests are on their way, and the seals of the next are being written.
func (p *pace) room() int {
	part := 1.0
	if p.posting > 0 {
		part = min(max(float64(p.held)/float64(p.posting), 1), sealPart)
	}
	return max(int(math.Round(math.Floor(p.limit)*part)), paceMin)
}

// observe learns from the answer to a payment that was sent at the time given.
func (p *pace) observe(from time.Time, r result) {
	if r.health == abandoned {
		return
	}
	now := time.Now()
	took := now.Sub(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case r.throttled():
		if from.After(p.cutAt) {
			p.rate.refused(now, p.places)
			was := p.limit
			p.cut(now)
			// How many are on their way is not what was refused, once the rate is known: it may come back at once.
			if p.rate.known() {
				p.quick = was
			}
		}
	case r.failed():
		if from.After(p.cutAt) {
			p.cut(now)
		}
	default:
		p.answered(now, from, took)
	}
	p.admit()
}

// answered counts an answer of the processor that was none of the above.
func (p *pace) answered(now, from time.Time, took time.Duration) {
	p.good.add(now)
	p.rate.passed(now)
	p.posting = smoothed(p.posting, took)
	if !from.After(p.cutAt) {
		return
	}
	p.smooth = smoothed(p.smooth, took)
	p.judged++
	if p.judged >= paceSmooth {
		if p.best == 0 || p.smooth < p.best {
			p.best = p.smooth
		} else {
			p.best += (p.smooth - p.best) / paceForget
		}
		if p.smooth > paceSlowMin && p.smooth > paceSlowTimes*p.best {
			p.cut(now)
			return
		}
	}
	if took > p.cfg.Timeout/slowPart {
		p.cut(now)
		return
	}
	if float64(p.places) < paceUsed*p.limit {
		return
	}
	if p.limit < p.quick {
		p.limit = min(p.limit+1, p.quick)
	} else {
		p.limit += 1 / p.limit
	}
	p.limit = min(p.limit, p.most())
}

// cut halves the number at a time. What was sent before tells of the time before.
func (p *pace) cut(now time.Time) {
	p.limit = max(p.limit*paceCut, paceMin)
	p.quick = p.limit
	p.cutAt, p.smooth, p.judged = now, 0, 0
}

func smoothed(mean, next time.Duration) time.Duration {
	if mean == 0 {
		return next
	}
	return mean + (next-mean)/paceSmooth
}

// PaceStatus is how fast an account is sent to.
type PaceStatus struct {
	Concurrency int     // requests at a time that are allowed at present
	InUse       int     // places taken
	Waiting     int     // for a place
	Rate        float64 // requests a second that are allowed, learned or set; 0: no limit is known
	PerSecond   float64 // payments answered a second, of late
	Throttled   bool    // the processor's limit, not the line, is what holds payments back
}

// Pace returns how fast the account is sent to.
func (a *Account) Pace() PaceStatus {
	held := a.hold.pause()
	p := a.pace
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	return PaceStatus{
		Concurrency: int(p.limit), InUse: p.places, Waiting: p.queue.Len(), Rate: p.rate.at(now), PerSecond: p.good.perSecond(now),
		Throttled: held > 0 || p.queue.Len() > 0 && p.rate.at(now) > 0 && p.places < p.room(),
	}
}

// Room is how many payments it makes sense to have in hand for the account: those on their way, those whose outcome is being
// written, and some that wait, so that a place never does.
func (a *Account) Room() int {
	p := a.pace
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.room()
	return n + n/2 + paceAhead
}

// paceAhead payments wait for places at least, however few there are.
const paceAhead = 4
