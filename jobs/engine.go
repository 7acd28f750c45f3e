// Package jobs keeps queues of work on disk and runs them: schedule, attempts, backoff, priorities, limits, fair turns, workers here and elsewhere.
//
// # Promise
//
// A job that Enqueue or EnqueueFrom answered is run until its worker says it is done, cancels it, or its attempts are used
// up, through any number of crashes: at least once, never under two live leases. EnqueueFrom stores jobs and the
// caller's cursor in one transaction: each batch exactly once. Tenants take turns; within a tenant the lower
// priority goes first, then the older job.
//
// # Types
//
// [Engine] holds the queues of one store: those that ship with the box ([QueueConfig]) and those that tenants declare ([Engine.Declare]).
// [NewJob] is a wish, [Job] what became of it. [Runner] leases jobs and hands them to a [Handler], whose returned error is its wish
// ([Cancel], [Snooze], [RetryIn], [Done]). [Engine.Lease] is for workers outside this process, which hold a token until a deadline and speak with
// it ([LeaseRef]). [Cursor] is a position in somebody else's log. [Schedule] makes jobs by the
// calendar. List, Retry, Promote, Remove, Drain, Log and Watch are for people and their tools.
//
// # After a crash
//
// Leases of the box's own workers die with the process: what they had is waiting again, at its old place. The start of an attempt is
// written unwaited in passing, so a crash may forget the last few milliseconds of starts; to stop a job that kills the
// process each time, starts are waited for after an unclean end until ten minutes went well, and from the second attempt in a
// row that ended with the process, the job backs off before it runs again. Leases of workers outside are on disk when Lease answers and hold until
// their deadline. DESIGN.md goes through every point of a crash.
//
// # Caveats
//
// Handlers and workers must be idempotent. Counts and turns live in memory and are rebuilt at Open from one pass over
// the keys. Delays use a clock that never runs backwards, also across restarts; a jump ahead makes delayed jobs due. Leases run out and rates
// fill by one that does not jump. [Schedule]s follow the machine's clock, and never repeat an occurrence.
// Lock order: Engine.mu, then the store's; a function given to the store may take Engine.mu, nobody
// who holds Engine.mu may wait for the store's writer or call a handler, Ready or Failed.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// QueueConfig names a queue and the defaults of its jobs. Zero fields mean the package's defaults, as in NewJob.
type QueueConfig struct {
	Name             string // a DNS label
	Attempts         int
	Backoff          Backoff
	Timeout          time.Duration
	RemoveOnComplete Retention
	RemoveOnFail     Retention

	Limits Limits

	ReadOnly bool // tenants may look, not change. Whoever speaks for a tenant heeds it; the box's own code enqueues here for tenants
	Internal bool // tenants do not see it
}

// Options configure an Engine.
type Options struct {
	Queues []QueueConfig    // those that ship with the box; what the store holds for unknown ones is kept and counted
	Now    func() time.Time // for tests of schedules; nil: the machine's clock, which may jump
	Logger *slog.Logger     // nil: silent. It gets ids and errors, never a job's data

	// Failed is called inside the transaction in which a job fails for good, and returns jobs to enqueue in it. It must be a
	// pure function: it may be called more than once. Its jobs must be valid; others are dropped and logged.
	Failed func(Job) []NewJob

	steady func() time.Duration // for tests: the clock that does not jump. Whoever turns it calls tick, too
}

func (o Options) validate() error {
	var errs []error
	seen := map[string]bool{}
	for _, q := range o.Queues {
		if !isLabel(q.Name) {
			errs = append(errs, fmt.Errorf("queue %q: the name is not a DNS label", q.Name))
		}
		if seen[q.Name] {
			errs = append(errs, fmt.Errorf("queue %q: named twice", q.Name))
		}
		seen[q.Name] = true
		if err := q.Backoff.withDefaults(Backoff{}).validate(); err != nil {
			errs = append(errs, fmt.Errorf("queue %q: %w", q.Name, err))
		}
		if err := q.Limits.validate(); err != nil {
			errs = append(errs, fmt.Errorf("queue %q: %w", q.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Engine is the queues of one store. Its methods may be called from any goroutine.
type Engine struct {
	st  *store.Store
	o   Options
	log *slog.Logger

	clock      clock
	startsWait startsWait // whether attempt starts are waited for

	stop      context.CancelFunc
	done      <-chan struct{} // closed when the engine is
	scheduled chan struct{}   // closed when the scheduler has left
	wake      chan struct{}   // pokes the scheduler
	closeOnce sync.Once
	closeErr  error

	mu        sync.Mutex // guards what follows, and everything inside
	queues    map[string]*queue
	tokens    map[string]*lease // leases from outside, by token
	deadlines deadlines         // of the same
	tickAt    time.Duration     // steady time at which the scheduler looks again
	nextTok   uint64
	looks     uint64   // how often somebody looked through a view
	starts    []*lease // begun, not yet written
	riding    bool     // a write of starts is on its way
	stale     bool     // memory and file may differ; the scheduler reads anew
	closed    bool
	plans     plans

	watchers   watchers
	statistics statistics
}

var (
	metaClean = []byte("clean") // present while nobody has the file open
	metaClock = []byte("clock") // the schedule's clock, now and then
)

// Open reads the store's queues and starts the scheduler. The store stays the caller's, who closes it after the engine.
func Open(st *store.Store, o Options) (*Engine, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("open jobs: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		st: st, o: o, log: o.Logger,
		scheduled: make(chan struct{}), wake: make(chan struct{}, 1),
		queues: map[string]*queue{}, tokens: map[string]*lease{},
	}
	for _, c := range o.Queues {
		e.queues[c.Name] = newQueue(c, true)
	}
	var last time.Time
	var clean, fresh bool
	var c census
	err := st.Update(context.Background(), func(tx *bbolt.Tx) error {
		fresh = tx.Bucket(bMeta) == nil
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bMeta)
		clean = meta.Get(metaClean) != nil
		if b := meta.Get(metaClock); len(b) == 8 {
			last = timeOf(be.Uint64(b))
		}
		c = takeCensus(tx)
		return meta.Delete(metaClean)
	})
	if err != nil {
		return nil, fmt.Errorf("open jobs: %w", err)
	}
	st.Trim() // the census read all of it
	if !c.delays() {
		last = time.Time{} // nothing depends on how far it had come
	}
	e.clock.runs = o.steady
	e.clock.init(o.Now, last)
	e.install(c)
	e.statistics.init(e.clock.steady())
	e.startsWait.init(!clean && !fresh)
	ctx, cancel := context.WithCancel(context.Background())
	e.stop, e.done = cancel, ctx.Done()
	if o.steady == nil {
		go e.schedule(ctx)
	} else {
		close(e.scheduled)
	}
	return e, nil
}

// Close stops the scheduler and notes that the end was orderly. Runners must have returned.
// It does not close the store. Closing twice is fine.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() {
		e.stop()
		<-e.scheduled
		e.watchers.close()
		e.mu.Lock()
		e.closed = true
		orderly := true
		for _, q := range e.queues {
			if q.alarm != nil {
				q.alarm.Stop()
			}
			for _, l := range q.lines {
				for _, le := range l.leases {
					orderly = orderly && le.out != nil // workers outside go on, and come back
				}
			}
		}
		e.mu.Unlock()
		now := e.clock.now()
		err := e.st.Update(context.Background(), func(tx *bbolt.Tx) error {
			meta := tx.Bucket(bMeta)
			if orderly {
				if err := meta.Put(metaClean, []byte{1}); err != nil {
					return err
				}
			}
			return meta.Put(metaClock, be.AppendUint64(nil, nanos(now)))
		})
		if err != nil {
			e.closeErr = fmt.Errorf("close jobs: %w", err)
		}
	})
	return e.closeErr
}

// applied ends a change: after it is on disk, do brings memory up to date. It returns the callback for the store, which runs it
// in commit order. If nobody knows whether the file holds the change, all is read anew.
func (e *Engine) applied(do func()) func(error) {
	return func(err error) {
		if err != nil && !isUnknown(err) {
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if err != nil {
			e.stale = true
			e.poke()
			return
		}
		do()
	}
}

func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}
