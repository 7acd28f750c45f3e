package upstream

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/sourcegraph/conc/panics"
)

// Account is one account at one processor: what is sent there, and whether sending makes sense now.
// All methods may be called at any time from any goroutine.
type Account struct {
	owner *Accounts
	cfg   *Config
	id    identity
	wire  *wire

	judge   *judge
	breaker *breaker
	hold    *hold
	clock   processorClock
	pace    *pace
	poke    chan struct{} // wakes the watch; holds one token

	mu       sync.Mutex // guards what follows; a leaf
	key      string
	keyTurn  int      // counts its replacements
	told     snapshot // what OnChange was last called with
	telling  bool     // a goroutine is calling OnChange
	tellMore bool     // and must look again when it is done
}

// snapshot is what OnChange reports changes of.
type snapshot struct {
	link    LinkState
	breaker string
	ready   bool
}

func newAccount(owner *Accounts, id identity, key string) *Account {
	cfg := &owner.cfg
	a := &Account{
		owner:   owner,
		cfg:     cfg,
		id:      id,
		wire:    newWire(cfg),
		judge:   newJudge(cfg, id.url != ""),
		breaker: newBreaker(cfg),
		hold:    newHold(cfg),
		poke:    make(chan struct{}, 1),
		key:     key,
	}
	a.pace = newPace(cfg, a.admits)
	a.told = a.snapshot()
	return a
}

// URL returns the base URL, normalized; empty if unconfigured. With Name it identifies the account for ever.
func (a *Account) URL() string { return a.id.url }

// Name returns the account's name at the processor.
func (a *Account) Name() string { return a.id.account }

// Configured reports whether there is anything to send to.
func (a *Account) Configured() bool { return a.id.url != "" }

// Timeout returns how long one call takes at most, its retries included.
func (a *Account) Timeout() time.Duration { return a.cfg.Timeout }

// Ready reports whether a payment may be sent now: the link judge says online or degraded, the breaker is
// closed, and no hold is in force. It is cheap.
func (a *Account) Ready() bool { return a.snapshot().ready }

// Link returns what the link judge says.
func (a *Account) Link() Link {
	link := a.judge.link()
	if _, evidence, wrong := a.clock.wrong(); wrong && link.Cause == "" && link.State != Unconfigured {
		link.Cause, link.Evidence = ClockWrong, link.Evidence+"; "+evidence
	}
	return link
}

// ForceLink makes the line offline by word ("offline"), for a drill: nothing is sent but probes, whatever they find; or ends
// that ("auto"). Any other word is an error. A new process knows nothing of it.
func (a *Account) ForceLink(state string) error {
	offline, err := forcedOffline(state)
	if err != nil {
		return err
	}
	a.judge.force(offline)
	a.wake()
	a.tell()
	return nil
}

func forcedOffline(word string) (bool, error) {
	if word != string(Offline) && word != "auto" {
		return false, errors.New(`link: want "offline" or "auto"`)
	}
	return word == string(Offline), nil
}

// Breaker returns the breaker's state.
func (a *Account) Breaker() BreakerStatus { return a.breaker.status() }

// ForceBreaker opens the breaker until further notice ("open"), or closes it, forgetting failures ("close" or
// "closed"). Any other word is an error.
func (a *Account) ForceBreaker(state string) error {
	switch state {
	case BreakerOpen:
		a.breaker.force()
	case BreakerClosed, "close":
		a.breaker.reset()
	default:
		return errors.New(`breaker: want "open" or "close"`)
	}
	a.wake()
	a.tell()
	return nil
}

// rotate replaces the key. The hold that the old key earned is not the new key's.
func (a *Account) rotate(key string) {
	a.mu.Lock()
	changed := a.key != key
	if changed {
		a.key = key
		a.keyTurn++
	}
	a.mu.Unlock()
	if changed {
		a.hold.keyChanged()
		a.wake() // the watch tells; the caller holds the set's lock
	}
}

func (a *Account) currentKey() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.key
}

// Post sends body, exactly, to path below the base URL, under the idempotency key, and retries a connection that
// failed before an answer with the same bytes and key. It holds the request back (Retryable, MaybeSent
// false) while the breaker is open or a hold is in force; what the link judge says does not stop it.
func (a *Account) Post(ctx context.Context, path string, body []byte, idempotencyKey string) Answer {
	if idempotencyKey == "" || len(idempotencyKey) > 255 || !headerSafe(idempotencyKey) {
		return Answer{Outcome: Retryable, Reason: "not sent: idempotency key empty, too long or not printable ASCII"}
	}
	return a.send(ctx, call{method: http.MethodPost, path: path, body: body, idempotencyKey: idempotencyKey, retries: postRetriesMax})
}

// Get looks something up: an object by its id, or a list. It proves what the object that is shown proves, and nothing
// else: one that is not shown (Answer.Missing) is Unknown.
func (a *Account) Get(ctx context.Context, path string) Answer {
	return a.send(ctx, call{method: http.MethodGet, path: path, retries: getRetriesMax})
}

func (a *Account) send(ctx context.Context, c call) Answer {
	if !a.Configured() {
		return Answer{Outcome: Retryable, Reason: "not sent: no upstream configured"}
	}
	if !requestPath(c.path) {
		return Answer{Outcome: Retryable, Reason: "not sent: malformed path"}
	}
	if a.judge.isForced() {
		return Answer{Outcome: Retryable, Reason: "not sent: offline by the operator's word"}
	}
	if reason, remaining := a.hold.inForce(); remaining > 0 {
		return Answer{Outcome: Retryable, Reason: "not sent: " + reason, RetryAfter: remaining}
	}
	var from time.Time
	if c.method == http.MethodPost {
		end := a.pace.begin()
		defer end()
		from = time.Now()
		if reason, remaining := a.hold.inForce(); remaining > 0 { // it came meanwhile
			return Answer{Outcome: Retryable, Reason: "not sent: " + reason, RetryAfter: remaining}
		}
	} else {
		end := a.pace.beginLook()
		defer end()
	}
	r, ok := a.breaker.do(func() result { return a.ask(ctx, c) })
	if !ok {
		a.tell() // asking may have moved it from open to half-open
		return Answer{Outcome: Retryable, Reason: "not sent: circuit breaker open", RetryAfter: a.breaker.remaining()}
	}
	a.learn(r)
	if c.method == http.MethodPost {
		a.pace.observe(from, r)
	}
	return r.Answer
}

// ask does one call with the key of the moment.
func (a *Account) ask(ctx context.Context, c call) result {
	key := a.currentKey()
	r := a.wire.do(ctx, a.id.url, key, c)
	r.keyReplaced = a.currentKey() != key
	return r
}

// learn lets the instruments see what a call or probe met.
func (a *Account) learn(r result) {
	a.clock.observe(r, a.cfg.Now())
	a.hold.observe(r)
	moved := a.judge.observe(r)
	if moved.returned {
		// What closed connections hide: none of them is known to have survived.
		a.breaker.lineReturned()
	}
	if moved.lost {
		a.closeIdle() // a kept-alive connection over a dead line swallows the next request
	}
	if moved.suspect {
		a.wake()
	}
	a.tell()
}

// watch probes and lets time-driven changes be told, until ctx ends.
func (a *Account) watch(ctx context.Context) {
	if !a.Configured() {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.poke:
		case <-timer.C:
		}
		a.tell()
		trial := a.breaker.status().State == BreakerHalfOpen
		if trial || a.judge.probeDue() <= 0 {
			a.probe(ctx, trial)
		}
		timer.Reset(max(a.nextWake(), wakeMin))
	}
}

// wakeMin keeps rounding from turning the watch into a busy loop.
const wakeMin = time.Millisecond

// nextWake is when the watch must look again by itself.
func (a *Account) nextWake() time.Duration {
	next := a.judge.probeDue()
	if _, remaining := a.hold.inForce(); remaining > 0 {
		next = min(next, remaining)
	}
	if remaining := a.breaker.remaining(); remaining > 0 {
		next = min(next, remaining)
	}
	return next
}

// probe asks for the probe path once. As the half-open breaker's trial it counts there, else not.
func (a *Account) probe(ctx context.Context, trial bool) {
	// Short, so that a black hole does not delay the next probe; not so short that a slow line never answers.
	deadline := min(a.cfg.Timeout, max(a.cfg.ProbeInterval, time.Second))
	a.judge.probing()
	ask := func() result {
		return a.ask(ctx, call{method: http.MethodGet, path: a.cfg.ProbePath, probe: true, timeout: deadline})
	}
	var r result
	if trial {
		var ok bool
		if r, ok = a.breaker.do(ask); !ok {
			r = ask() // a payment was quicker and is the trial
		}
	} else {
		r = ask()
	}
	if ctx.Err() == nil {
		a.learn(r)
	}
}

// wake makes the watch look now.
func (a *Account) wake() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

func (a *Account) closeIdle() { a.wire.closeIdle() }

func (a *Account) snapshot() snapshot {
	s := snapshot{link: a.judge.link().State, breaker: a.breaker.status().State}
	_, held := a.hold.inForce()
	s.ready = (s.link == Online || s.link == Degraded) && s.breaker == BreakerClosed && held <= 0
	return s
}

// tell calls OnChange's functions if anything changed. One goroutine at a time does so; another that
// arrives meanwhile leaves its change to the first and goes on, so that a function may use the account.
func (a *Account) tell() {
	a.mu.Lock()
	if a.telling {
		a.tellMore = true
		a.mu.Unlock()
		return
	}
	a.telling = true
	a.mu.Unlock()
	for {
		now := a.snapshot()
		a.mu.Lock()
		changed := now != a.told
		if !changed && !a.tellMore {
			a.telling = false
			a.mu.Unlock()
			return
		}
		before := a.told
		a.told, a.tellMore = now, false
		a.mu.Unlock()
		if changed {
			a.wake() // what changed may end by itself: the watch has to set its clock
			a.announce(before, now)
		}
	}
}

// admits says whether a payment may be made ready: nil and 0; in how long, if the processor asked to wait; [ErrNotReady] if it would be held back;
// errLineDown if it could be tried, but nobody should wait for it.
func (a *Account) admits() (wait time.Duration, err error) {
	s := a.snapshot()
	if s.ready {
		return 0, nil
	}
	reason, _ := a.hold.inForce()
	wait = a.hold.pause()
	switch {
	case s.breaker == BreakerOpen, a.judge.isForced(), reason != "" && wait <= 0:
		return 0, ErrNotReady
	case s.link == Offline:
		return wait, errLineDown
	}
	return wait, nil
}

func (a *Account) announce(before, now snapshot) {
	a.pace.look()
	link := a.Link()
	a.cfg.Logger.Info("upstream changed", "account", a.id.account, "link", now.link, "was", before.link,
		"breaker", now.breaker, "ready", now.ready, "evidence", link.Evidence)
	a.owner.mu.Lock()
	callbacks := a.owner.callbacks
	a.owner.mu.Unlock()
	for _, f := range callbacks {
		if err := panics.Try(func() { f(a, link) }).AsError(); err != nil {
			a.cfg.Logger.Error("upstream change callback panicked", "account", a.id.account, "error", err)
		}
	}
}
