package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/panics"
	"golang.org/x/time/rate"

	"tenderbox/store"
)

const (
	concurrencyDefault  = 8
	drainTimeoutDefault = 10 * time.Second // within what service managers grant a stop

	// drainGrace is what handlers get to return after the drain's time is over and their context has ended.
	drainGrace = 2 * time.Second

	// runnerPoll is how often a runner looks even if nobody pokes it, while tenants are held back and in general.
	runnerPollHeld = time.Second
	runnerPoll     = 15 * time.Second

	settleRetryMin, settleRetryMax = 100 * time.Millisecond, 5 * time.Second

	// failuresLogged failed attempts of a queue are a line each, then one in failuresEvery: one tenant's endpoint that is down fails
	// thousands of jobs, and each of them knows its own history.
	failuresLogged = 20
	failuresEvery  = time.Second

	// outcomesPerSlot outcomes may be on their way to the disk for each slot. A slot is free as soon as its handler has returned, so that a disk
	// that is slow to sync does not keep handlers from working; what is on its way runs again after a crash, so it is bounded, too.
	outcomesPerSlot = 8

	// interruptionsFree is how often in a row an attempt may end with the process before the job has to back off: once
	// may be the power, twice is a suspicion.
	interruptionsFree = 1
)

// RunnerOptions configure a Runner.
type RunnerOptions struct {
	Queue        string // one that ships with the box; required
	Handler      Handler
	Handlers     map[string]Handler // instead of Handler: by the job's name. Jobs of other names stay waiting, for workers outside
	Concurrency  int                // attempts at a time; 0 and below: 8
	TenantMax    int                // of one tenant at a time; 0 and below: no limit
	DrainTimeout time.Duration      // for running attempts after Run's context ended; 0: 10 s; below 0: none

	// Ready says whether a tenant's jobs may be leased at present; nil: always. Jobs held back burn nothing. It is
	// asked often and must be quick. After its answer changed, call Poke.
	Ready func(tenant string) bool

	// Share says what a tenant's jobs need together with other tenants', such as an account somewhere, and how many of all those that need it may be
	// leased at a time: what is slow holds no more slots than it can use. of is comparable; nil: nothing is shared, and max does
	// not matter. nil: no job needs anything. It is asked after Ready, as often, and must be quick.
	Share func(tenant string) (of any, max int)
}

// Runner leases jobs of one queue and runs its handler on them.
type Runner struct {
	e *Engine
	o RunnerOptions
	w *waiter

	free      atomic.Int64  // slots without a job
	freed     chan struct{} // pokes the dispatcher
	work      *handout
	unwritten chan struct{} // holds one for each outcome on its way to the disk
	left      sync.WaitGroup
	leftN     atomic.Int64 // jobs leased and not yet settled

	shares shares

	failures *rate.Limiter // of lines in the log
	withheld atomic.Int64  // failures since the last of these lines
}

// NewRunner makes a runner; Run starts it.
func (e *Engine) NewRunner(o RunnerOptions) (*Runner, error) {
	if err := e.exists(o.Queue); err != nil {
		return nil, fmt.Errorf("runner: %w", err)
	}
	if (o.Handler == nil) == (len(o.Handlers) == 0) {
		return nil, fmt.Errorf("runner of %q: exactly one of Handler and Handlers is needed", o.Queue)
	}
	if o.Concurrency <= 0 {
		o.Concurrency = concurrencyDefault
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = drainTimeoutDefault
	}
	return &Runner{e: e, o: o, w: newWaiter(o.Queue), failures: rate.NewLimiter(rate.Every(failuresEvery), failuresLogged)}, nil
}

// Poke makes the runner look at once, as after Ready's answer changed.
func (r *Runner) Poke() { r.w.poke() }

// Run leases and runs jobs until ctx ends; then it waits for the running ones as long as DrainTimeout allows, ends their
// contexts, and releases them: they burn no attempt. It returns nil, or ErrDrain if handlers did not return even then.
func (r *Runner) Run(ctx context.Context) error {
	names := slices.Collect(maps.Keys(r.o.Handlers))
	if r.o.TenantMax > 0 || r.o.Ready != nil || r.o.Share != nil {
		r.e.lookAlone(r.w, names, r.o.TenantMax)
	} else if err := r.e.look(r.w, "", names, false); err != nil {
		return fmt.Errorf("runner of %q: %w", r.o.Queue, err)
	}
	defer r.e.unregister(r.w)

	r.freed, r.work = make(chan struct{}, 1), newHandout()
	r.unwritten = make(chan struct{}, outcomesPerSlot*r.o.Concurrency)
	hctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for range r.o.Concurrency {
		go r.worker(hctx, r.work)
	}
	r.free.Store(int64(r.o.Concurrency))
	r.dispatch(ctx)
	r.work.close()

	drained := make(chan struct{})
	go func() { r.left.Wait(); close(drained) }()
	for _, grace := range []time.Duration{max(r.o.DrainTimeout, 0), drainGrace} {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-drained:
			return nil
		case <-timer.C:
			stop()
		}
	}
	return fmt.Errorf("queue %q: %w: %d", r.o.Queue, ErrDrain, r.leftN.Load())
}

// dispatch leases jobs whenever slots are free, and hands them to the workers, until ctx ends.
func (r *Runner) dispatch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		n := int(r.free.Load())
		if n == 0 {
			select {
			case <-ctx.Done():
			case <-r.freed:
			}
			continue
		}
		les, held := r.lease(n)
		r.free.Add(-int64(len(les)))
		r.left.Add(len(les))
		r.leftN.Add(int64(len(les)))
		r.work.put(les)
		if len(les) == n {
			continue
		}
		timer.Reset(held)
		select { // nothing more to lease: wait for news
		case <-ctx.Done():
		case <-r.w.poked:
		case <-timer.C:
		}
	}
}

// worker takes leased jobs through their attempts, one after the other. If a handler ends its goroutine, another worker goes on.
func (r *Runner) worker(ctx context.Context, work *handout) {
	var le *lease
	defer func() {
		if le != nil {
			r.over(ctx, le, wish(&le.job, errGoexit, ctx.Err() != nil))
			go r.worker(ctx, work)
		}
	}()
	for le = work.take(); le != nil; le = work.take() {
		o := r.attend(ctx, le)
		done := le
		le = nil // from here on nothing ends this goroutine
		r.over(ctx, done, o)
	}
}

// handout gives leased jobs to workers strictly in the order of their turns. A channel would hand a job to a parked worker, and it would have to wait
// for that one to run while a busy one passes it by.
type handout struct {
	mu     sync.Mutex // guards what follows
	some   sync.Cond
	jobs   []*lease
	closed bool
}

func newHandout() *handout {
	h := &handout{}
	h.some.L = &h.mu
	return h
}

func (h *handout) put(les []*lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.jobs = append(h.jobs, les...)
	for range les {
		h.some.Signal()
	}
}

// take waits for a job; nil: there will be none.
func (h *handout) take() *lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.jobs) == 0 {
		if h.closed {
			return nil
		}
		h.some.Wait()
	}
	le := h.jobs[0]
	h.jobs[0] = nil
	h.jobs = h.jobs[1:]
	return le
}

func (h *handout) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.some.Broadcast()
}

var errGoexit = errors.New("the handler ended its goroutine")

// over frees a slot and has the outcome of its job written. It waits only if too many outcomes are on their way.
func (r *Runner) over(ctx context.Context, le *lease, o outcome) {
	if o.state == Failed || o.state == Delayed && o.attempt == counted {
		r.logFailure(le, o)
	}
	r.unwritten <- struct{}{}
	if r.shares.give(le.share) {
		r.w.poke()
	}
	r.free.Add(1)
	select {
	case r.freed <- struct{}{}:
	default:
	}
	r.e.settleThen(le, o, func(err error) {
		if err == nil {
			r.settled()
			return
		}
		go func() { // not on the store's goroutine
			defer r.settled()
			r.write(ctx, le, o, err)
		}()
	})
}

// logFailure writes a line about an attempt that failed, or only counts it when there are too many.
func (r *Runner) logFailure(le *lease, o outcome) {
	if !r.failures.Allow() {
		r.withheld.Add(1)
		return
	}
	attrs := []any{slog.Int("attempt", le.job.AttemptsMade), slog.String("state", string(o.state)), slog.Duration("retry_in", o.delay),
		slog.Any("err", o.err)}
	if n := r.withheld.Swap(0); n > 0 {
		attrs = append(attrs, slog.Int64("withheld", n))
	}
	r.logOf(le).Warn("jobs: an attempt failed", attrs...)
}

func (r *Runner) settled() {
	<-r.unwritten
	r.leftN.Add(-1)
	r.left.Done()
}

func (r *Runner) logOf(le *lease) *slog.Logger {
	return r.e.log.With(slog.String("queue", le.job.Queue), slog.String("tenant", le.job.Tenant), slog.String("job", le.job.ID))
}

// lease leases up to n jobs and says when to look again if there are fewer.
func (r *Runner) lease(n int) (les []*lease, again time.Duration) {
	again = runnerPoll
	var roomOf func(tenant string) *room
	asked := r.shares.ask()
	if r.o.Ready != nil || r.o.Share != nil {
		roomOf = func(tenant string) (left *room) {
			left = noRoom
			if p := panics.Try(func() { left = r.room(asked, tenant) }); p != nil {
				r.e.log.Error("jobs: Ready or Share panicked", slog.String("queue", r.o.Queue), slog.Any("err", p.AsError()))
			}
			if left == noRoom {
				again = runnerPollHeld
			}
			return left
		}
	}
	les, err := r.e.take(r.w, n, math.MaxInt, roomOf)
	if err != nil {
		again = runnerPollHeld
	}
	if asked.took(les) {
		r.w.poke()
	}
	return les, again
}

// room is how many jobs of a tenant may be leased at present.
func (r *Runner) room(asked *asking, tenant string) *room {
	if r.o.Ready != nil && !r.o.Ready(tenant) {
		return noRoom
	}
	if r.o.Share == nil {
		return nil
	}
	of, most := r.o.Share(tenant)
	if of == nil {
		return nil
	}
	return asked.room(of, most)
}

// attend takes a leased job through one attempt and says what becomes of it.
func (r *Runner) attend(ctx context.Context, le *lease) outcome {
	if o, ok := suspect(le); ok {
		r.logOf(le).Error("jobs: attempts ended with the process", slog.Int("in_a_row", le.job.interruptions), slog.String("state", string(o.state)))
		return o
	}
	j, err := r.e.begin(ctx, le)
	if err != nil {
		r.logOf(le).Warn("jobs: the start of an attempt cannot be written, so it does not start", slog.Any("err", err))
		return outcome{state: Waiting, attempt: undone}
	}
	return wish(&j, r.call(ctx, &j), ctx.Err() != nil)
}

// suspect decides about a job whose last attempt ended with the process: failed when its attempts are used up; made to wait
// before it tries again when that was not the first time in a row.
func suspect(le *lease) (outcome, bool) {
	j := &le.job
	if !le.interrupted {
		return outcome{}, false
	}
	o := outcome{attempt: notBegun, err: fmt.Errorf("the process ended during attempt %d", j.AttemptsMade)}
	switch {
	case j.Attempts > 0 && j.AttemptsMade >= j.Attempts:
		o.state = Failed
	case j.interruptions > interruptionsFree:
		o.state, o.delay = Delayed, j.Backoff.Wait(j.AttemptsMade)
	default:
		return outcome{}, false
	}
	return o, true
}

// call runs the handler. A panic is an error.
func (r *Runner) call(ctx context.Context, j *Job) (err error) {
	if j.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, j.Timeout)
		defer cancel()
	}
	handler := r.handler(j.Name)
	if p := panics.Try(func() { err = handler(ctx, j) }); p != nil {
		err = fmt.Errorf("panic: %v", p.Value)
		r.e.log.Error("jobs: a handler panicked", slog.String("queue", j.Queue), slog.String("job", j.ID), slog.String("stack", string(p.Stack)))
	}
	return err
}

func (r *Runner) handler(name string) Handler {
	if r.o.Handler != nil {
		return r.o.Handler
	}
	return r.o.Handlers[name]
}

// wish turns what a handler returned into an outcome. stopped: the drain's time is over.
func wish(j *Job, err error, stopped bool) outcome {
	var done *doneError
	var cancel *cancelError
	var snooze *snoozeError
	switch {
	case err == nil:
		return outcome{state: Completed}
	case errors.As(err, &done):
		if len(done.result) > dataBytesMax {
			return outcome{state: Failed, err: fmt.Errorf("result of %d bytes, up to %d are kept", len(done.result), dataBytesMax)}
		}
		return outcome{state: Completed, result: done.result}
	case errors.As(err, &cancel):
		return outcome{state: Failed, err: cancel.err}
	case errors.As(err, &snooze):
		return outcome{state: Delayed, attempt: undone, delay: snooze.d}
	case stopped:
		return outcome{state: Waiting, attempt: undone}
	case j.Attempts > 0 && j.AttemptsMade >= j.Attempts:
		return outcome{state: Failed, err: err}
	default:
		return outcome{state: Delayed, err: err, delay: retryWait(j, err)}
	}
}

// write writes an outcome that the store refused with err, again and again while the disk refuses: the work is done, and doing it
// twice is worse than waiting. It gives up when the drain is over; then the job runs again after the next start.
func (r *Runner) write(ctx context.Context, le *lease, o outcome, err error) {
	log := r.logOf(le)
	for wait := settleRetryMin; err != nil; wait = min(2*wait, settleRetryMax) {
		if errors.Is(err, ErrStaleLease) || isUnknown(err) || errors.Is(err, store.ErrClosed) || ctx.Err() != nil {
			log.Error("jobs: an outcome was not written; the job may run again", slog.Any("err", err))
			return
		}
		log.Warn("jobs: an outcome cannot be written, trying again", slog.Any("err", err), slog.Duration("in", wait))
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done(): // one more try
		case <-timer.C:
		}
		timer.Stop()
		err = r.e.settle(context.WithoutCancel(ctx), le, o)
	}
}
