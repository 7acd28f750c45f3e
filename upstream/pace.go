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
	// Without a setting, the maximum is as many as make paceOwn payments a second at the time that answers take at best, which is what two
	// cores can seal and record: more would wait at the processor instead of here. At 20 ms these are paceMaxLeast, of whom each of as many
	// tills waits for its own payment only; at 300 ms paceMaxMore are twice the hundred a second that processors allow.
	paceOwn      = 1600
	paceMaxLeast = 32
	paceMaxMore  = 64
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
	// sealPart: beside each request that is allowed at a time, at most so much of another may be about to be: its seal is being
	// written. How many follows from how long that takes beside an answer.
	sealPart = 0.5
	// gateMax is how long a sealed payment waits at most for one before it to be answered: a group of seals becomes durable at once, and is not to
	// arrive at once. With sealPart the wait is half the time of an answer, unless answers suddenly take longer.
	gateMax = 250 * time.Millisecond
	// Once a rate is known, requests also leave by it: when a slow disk makes many seals durable at once, a processor's small bucket would
	// refuse what comes at once, and a refusal costs a pause. aheadMin may be between place and wire then, or twice as many as are as a rule, so that
	// such a pile stays small.
	aheadMin  = 4
	aheadPart = 2

	// paceForget lets the best time rise towards what is usual by one part in so many an answer: a processor that has become slower for good is
	// not congested for ever.
	paceForget = 1 << 16
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
	arrived int        // of them: sealed, and handed to Post
	onWire  int        // of these: sent, and not answered
	looks   int        // places taken by what is not sealed
	unsent  float64    // smoothed: places taken and not arrived
	wireDue time.Time  // when the next request may leave
	gate    sync.Cond  // an answer came, or the wait is over
	sealing float64    // smoothed: places taken and not arrived, as a part of those on the wire
	queue   list.List  // of *ticket, first come first
	timer   *time.Timer
	rate    allowance
	cutAt   time.Time // answers to what was sent before say nothing new
	smooth  time.Duration
	best    time.Duration
	judged  int   // answers in smooth since the last cut
	good    meter // answers that count
}

// ticket is somebody who waits for a place.
type ticket struct {
	ready chan struct{} // closed when it is decided
	err   error
	at    *list.Element // nil: decided
}

func newPace(cfg *Config, open func() (time.Duration, error)) *pace {
	p := &pace{cfg: cfg, open: open, limit: paceStart}
	p.gate.L = &p.mu
	p.limit = min(p.limit, p.most())
	p.quick = paceMaxMost
	p.good.span, p.rate.recent.span = paceSpan, allowanceSoon
	return p
}

// most is what limit grows to.
func (p *pace) most() float64 {
	if p.cfg.Concurrency > 0 {
		return float64(p.cfg.Concurrency)
	}
	return min(max(paceOwn*p.best.Seconds(), paceMaxLeast), paceMaxMore)
}

// Enter waits for a place among the requests that the account is sent at a time, for its turn under the rate cap, and for the end of
// a pause that the processor asked for. It is taken before an attempt is sealed, so that nothing waits between the seal and the send.
// leave gives the place back; calling it again does nothing. The error is
// ctx's, or [ErrNotReady].
func (a *Account) Enter(ctx context.Context) (leave func(), err error) { return a.pace.enter(ctx) }

// TryEnter takes a place as Enter does, but only if there is one now and nobody waits for it. ok: it was taken.
func (a *Account) TryEnter() (leave func(), ok bool) {
	p := a.pace
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.Len() > 0 {
		return nil, false
	}
	t := p.wait()
	if t.at != nil {
		p.decide(t, ErrNotReady)
	}
	if t.err != nil {
		return nil, false
	}
	return p.leaving(), true
}

// wait puts somebody at the end of the queue. mu is held.
func (p *pace) wait() *ticket {
	t := &ticket{ready: make(chan struct{})}
	t.at = p.queue.PushBack(t)
	p.admit()
	return t
}

func (p *pace) enter(ctx context.Context) (leave func(), err error) {
	p.mu.Lock()
	t := p.wait()
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
	return p.leaving(), nil
}

// leaving returns what gives one place back.
func (p *pace) leaving() (leave func()) {
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.places--
		p.admit()
	})
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
		if wait <= 0 && (p.places >= p.room() || p.rate.known() && p.places-p.onWire-p.looks >= p.ahead()) {
			wait = forEver // leave comes back, or begin
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

// room is how many places there are.
func (p *pace) room() int {
	return max(int(p.limit*(1+min(p.sealing, sealPart))), paceMin)
}

// ahead is how many may have a place and not be on the wire.
func (p *pace) ahead() int { return max(int(math.Ceil(aheadPart*p.unsent)), aheadMin) }

// beginLook is begin for what is not sealed.
func (p *pace) beginLook() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	p.admit()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.looks--
	}
}

// begin waits, a little, until no more than limit are on their way, this one among them, and its turn under the rate has come. end follows
// the answer.
func (p *pace) begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arrived++
	if wait := p.turn(time.Now()); wait > 0 {
		p.mu.Unlock()
		time.Sleep(wait)
		p.mu.Lock()
	}
	if p.onWire >= p.wide() {
		late := false
		timer := time.AfterFunc(gateMax, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			late = true
			p.gate.Broadcast()
		})
		for p.onWire >= p.wide() && !late {
			p.gate.Wait()
		}
		timer.Stop()
	}
	p.onWire++
	p.admit()
	return p.end
}

// turn takes the next turn on the wire and says in how long that is.
func (p *pace) turn(now time.Time) time.Duration {
	rate := p.rate.at(now)
	if rate <= 0 {
		return 0
	}
	if earliest := now.Add(-p.rate.slack(rate)); p.wireDue.Before(earliest) {
		p.wireDue = earliest
	}
	p.wireDue = p.wireDue.Add(time.Duration(float64(time.Second) / rate))
	return min(p.wireDue.Sub(now), gateMax)
}

func (p *pace) wide() int { return max(int(p.limit), paceMin) }

func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := float64(max(p.places-p.arrived, 0)) / float64(p.onWire)
	p.sealing += (now - p.sealing) / paceSmooth
	p.unsent += (float64(max(p.places-p.arrived-p.looks, 0)) - p.unsent) / paceSmooth
	p.arrived--
	p.onWire--
	p.gate.Signal()
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

// SetRate sets how many payments a second the account is sent at most; 0: what the processor allows is learned from its 429s.
func (a *Account) SetRate(perSecond int) {
	p := a.pace
	p.mu.Lock()
	defer p.mu.Unlock()
	if fixed := float64(max(perSecond, 0)); p.rate.fixed != fixed {
		p.rate.fixed = fixed
		p.admit()
	}
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
	return 2*n + paceAhead
}

// paceAhead payments wait for places at least, however few there are.
const paceAhead = 4
