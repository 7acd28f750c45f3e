package shards

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
)

// Shard is one SQLite file with its writer, its readers and its checkpoints. Its
// methods are safe for concurrent use.
type Shard struct {
	id    int
	path  string
	set   *Set
	o     *Options
	log   *slog.Logger
	queue chan *op
	ops   sync.Pool // of *op

	writes access // the writer's: forWriting, unless the file is a Derived

	stop    chan struct{} // closed when the set closes
	stopped chan struct{} // closed when the writer has answered its last caller

	writer  *writer // nil in a Set opened by Audit, and if the shard was damaged at Open
	readers *readers
	ckpt    *checkpointer

	// anchor is a connection that is never used. While it is open the WAL's index lives,
	// which knows only commits whose fsync succeeded; without it, reopening the file after
	// a failed commit would recover the WAL and take up the commit that failed.
	anchor *conn

	outage atomic.Pointer[outage]

	generation atomic.Uint64
	counters   counters
	waiting    sync.WaitGroup // background goroutines
}

// outage is why a shard does not take writes.
type outage struct {
	err   error
	final bool // damage: reads are refused as well, and only a person can mend it
}

type counters struct {
	commits, closures, failed, overloaded, checkpoints, viewsEnded atomic.Uint64
	walBytes                                                       atomic.Int64
}

// Stats counts since Open.
type Stats struct {
	Commits     uint64 // durable commits; one fsync each
	Closures    uint64 // closures that ran in them
	Failed      uint64 // closures that failed, panicked or were rolled back with their group
	Overloaded  uint64 // writes refused because the queue was full
	Checkpoints uint64 // times the WAL was written back
	ViewsEnded  uint64 // Views ended because the WAL had to start over
	Queued      int    // writes that wait now
	WALBytes    int64  // the part of the WAL in use, measured every few groups
}

// ID is the shard's number, its index in Set.All and in Manifest.Files.
func (sh *Shard) ID() int { return sh.id }

// Path is the shard's file. It must not be opened while the set is: closing any other
// descriptor of it would drop SQLite's locks.
func (sh *Shard) Path() string { return sh.path }

// Err is nil, or why the shard does not take writes. If it is a *CorruptError, it
// serves no reads either.
func (sh *Shard) Err() error {
	if out := sh.outage.Load(); out != nil {
		return out.err
	}
	return nil
}

// Generation grows each time the writer's connection is opened anew, at Open and after
// every failure that could have changed what the file holds: what was derived from the
// file before must be read again.
func (sh *Shard) Generation() uint64 { return sh.generation.Load() }

// Stats returns the counters.
func (sh *Shard) Stats() Stats {
	c := &sh.counters
	return Stats{
		Commits:     c.commits.Load(),
		Closures:    c.closures.Load(),
		Failed:      c.failed.Load(),
		Overloaded:  c.overloaded.Load(),
		Checkpoints: c.checkpoints.Load(),
		ViewsEnded:  c.viewsEnded.Load(),
		Queued:      len(sh.queue),
		WALBytes:    c.walBytes.Load(),
	}
}

// unavailable is what callers get during an outage.
func (out *outage) unavailable() error { return fmt.Errorf("%w: %w", ErrUnavailable, out.err) }

// isolate takes the shard out of service. Damage replaces a passing fault, never the
// other way round.
func (sh *Shard) isolate(err error, final bool) {
	if final {
		err = sh.corrupt(err)
	}
	next := &outage{err, final}
	for {
		old := sh.outage.Load()
		if old != nil && (old.final || !final) {
			return
		}
		if sh.outage.CompareAndSwap(old, next) {
			break
		}
	}
	sh.log.Error("shard isolated", "shard", sh.id, "damaged", final, "error", err)
	if f := sh.o.OnIsolated; f != nil {
		f(sh, err)
	}
}

func (sh *Shard) corrupt(err error) error {
	var c *CorruptError
	if errors.As(err, &c) {
		return c
	}
	return &CorruptError{Path: sh.path, Cause: err}
}

// restored puts the shard back into service after a passing fault.
func (sh *Shard) restored() {
	out := sh.outage.Load()
	if out == nil || out.final || !sh.outage.CompareAndSwap(out, nil) {
		return
	}
	sh.log.Info("shard serves again", "shard", sh.id)
	if f := sh.o.OnRestored; f != nil {
		f(sh)
	}
}

// Check reads the whole file and compares every index with its table. Damage isolates
// the shard, and the *CorruptError lists the first findings. On a large file it takes
// long, and the snapshot it holds lets the WAL grow: it is for stopped or quiet boxes.
func (sh *Shard) Check(ctx context.Context) error {
	err := sh.readers.with(ctx, func(c *conn) error { return c.check(ctx, sh.path, "PRAGMA integrity_check(20)") })
	if classOf(err) == classCorrupt {
		sh.isolate(err, true)
	}
	return err
}

// Update runs fn in a transaction and returns once it is on disk. Closures that wait
// at the same time share one transaction and one fsync; each is undone alone if it
// returns an error, which its caller gets unchanged, or panics (*PanicError).
//
// If ctx ends before fn starts, fn does not run and ctx's error is returned. After
// that Update waits for the outcome, whatever ctx says. ErrUnknown is returned only if
// the outcome is really unknown. When the group's transaction fails, every closure of
// the group gets that failure, also those that returned an error of their own, because
// what they saw of their neighbours is void.
//
// fn runs on the shard's one writing goroutine: it must not wait for anything, nor call
// Update on the same shard.
func (sh *Shard) Update(ctx context.Context, fn func(tx *Tx) error) error {
	return sh.update(ctx, fn, false)
}

func (sh *Shard) update(ctx context.Context, fn func(tx *Tx) error, reserved bool) error {
	return sh.submit(ctx, fn, reserved, false)
}

func (sh *Shard) submit(ctx context.Context, fn func(tx *Tx) error, reserved, alone bool) error {
	if err := sh.admit(ctx, reserved); err != nil {
		return err
	}
	o := sh.newOp(ctx, fn)
	o.alone = alone
	select {
	case sh.queue <- o:
	default:
		o.free()
		sh.counters.overloaded.Add(1)
		return ErrOverloaded
	}
	return o.wait(sh.stopped)
}

func (sh *Shard) admit(ctx context.Context, reserved bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if sh.writer == nil && sh.outage.Load() == nil {
		return ErrReadOnly // a stopped box, opened by Audit
	}
	select {
	case <-sh.stop:
		return ErrClosed
	default:
	}
	if out := sh.outage.Load(); out != nil {
		return out.unavailable()
	}
	if !reserved && sh.set.reserve.short.Load() {
		return ErrFull
	}
	return nil
}

// Operation states.
const (
	opWaiting   = iota // in the queue; caller or writer may take it
	opStarted          // the writer has it; the caller waits
	opAbandoned        // the caller left first; the writer skips it
)

// op is one Update in the queue.
type op struct {
	home  *sync.Pool
	ctx   context.Context
	fn    func(tx *Tx) error
	state atomic.Int32
	alone bool // its group is its own
	err   error
	done  chan struct{} // capacity 1: answering never blocks the writer
}

// newOp takes an operation of the shard's own: with those of all shards in one pool, its channel might be of another bubble in a test.
func (sh *Shard) newOp(ctx context.Context, fn func(tx *Tx) error) *op {
	o, ok := sh.ops.Get().(*op)
	if !ok {
		o = &op{home: &sh.ops, done: make(chan struct{}, 1)}
	}
	o.ctx, o.fn, o.err, o.alone = ctx, fn, nil, false
	o.state.Store(opWaiting)
	return o
}

// free returns an operation that nobody else can see any more.
func (o *op) free() {
	o.ctx, o.fn = nil, nil
	o.home.Put(o)
}

func (o *op) start() bool   { return o.state.CompareAndSwap(opWaiting, opStarted) }
func (o *op) abandon() bool { return o.state.CompareAndSwap(opWaiting, opAbandoned) }

func (o *op) answer(err error) {
	o.err = err
	o.done <- struct{}{}
}

func (o *op) wait(stopped <-chan struct{}) error {
	ctx := o.ctx // an abandoned operation is the writer's: it frees it at any moment
	select {
	case <-o.done:
	case <-ctx.Done():
		if o.abandon() {
			return ctx.Err()
		}
		return o.outcome(stopped)
	case <-stopped:
		if o.abandon() {
			return ErrClosed
		}
		return o.outcome(stopped)
	}
	err := o.err
	o.free()
	return err
}

// outcome waits for an operation that has started.
func (o *op) outcome(stopped <-chan struct{}) error {
	select {
	case <-o.done:
	case <-stopped:
		// The writer answers before it stops, unless a closure ended its goroutine.
		select {
		case <-o.done:
		default:
			return ErrUnknown
		}
	}
	err := o.err
	o.free()
	return err
}
