// Package store keeps bytes in one bbolt file and makes many small writers share one fsync.
//
// # Promise
//
// When Update returns nil, what its function wrote is on disk. When it returns any error but
// [ErrUnknown], the file does not hold it. Operations are applied in the order in which they came; each sees
// what its predecessors wrote; one that fails or panics is undone alone.
//
// # Types
//
// [Store] is the open file. [Store.Update] waits for the disk, [Store.Start] and [Store.Submit] do not, [Store.View] reads one
// snapshot. [CorruptError] names a damaged file and the way out. Package storetest opens stores for tests.
//
// # After a crash
//
// The file holds every answered operation, and of the unanswered ones a prefix of the groups, each whole. A new file
// appears under its name only when it is complete. What a crash leaves beside it (NAME.new, NAME.rescue) is
// removed by the next Open.
//
// # When the disk fails
//
// A failed write leaves the old state, and its group is told [ErrUnavailable] or [ErrFull]. After a failed fsync nothing can
// be trusted to be on disk: the store copies the file anew, syncs and renames the copy, goes on with it, and tells the
// group what the copy holds. Until that works, everything is refused, and it is tried again.
//
// # Caveats
//
// Functions given to Update and Submit may run more than once and must not keep state between runs, nor call the store.
// Slices read in a transaction die with it. A View that lasts keeps old pages from being reused, so the file grows.
// bbolt has no checksums on its data pages: Open verifies the structure (so that no damage can
// fault or hang the process later), but values must carry their own checksums. If one of the file's two headers
// is damaged, the last commit may be missing; a power cut during a commit looks the same, so Open goes on and logs it.
package store

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

const (
	lockTimeoutDefault = time.Second // long enough for a predecessor that is just leaving

	// batchMaxDefault operations share a commit at most. Beyond a thousand the fsync is
	// spread thin enough, and a failing neighbour would cost too long a second run.
	batchMaxDefault = 1000

	// queueMaxDefault operations wait at most: some eight groups, a second or two on the slowest disks.
	queueMaxDefault = 8192

	// submitWait is how long a submitted operation waits for others to ride with before it goes by itself.
	// Long enough to meet a neighbour on a busy box, short enough that an idle one is soon in order.
	submitWait = 5 * time.Millisecond
)

// Options tune a Store. The zero value works.
type Options struct {
	LockTimeout time.Duration // how long Open waits for another process to let go; 0: 1 s; below 0: not at all
	BatchMax    int           // operations in one commit; 0 and below: 1000
	QueueMax    int           // operations waiting, then ErrOverloaded; 0 and below: 8192
	Buckets     []string      // created by Open if missing
	Logger      *slog.Logger  // nil: silent
}

func (o Options) withDefaults() Options {
	o.LockTimeout = cmp.Or(o.LockTimeout, lockTimeoutDefault)
	if o.BatchMax <= 0 {
		o.BatchMax = batchMaxDefault
	}
	if o.QueueMax <= 0 {
		o.QueueMax = queueMaxDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is an open file with one writer. Its methods may be called from any goroutine.
type Store struct {
	path string
	o    Options

	file   atomic.Pointer[file]    // replaced by a rescue
	broken atomic.Pointer[failure] // why nothing is accepted at present; nil: all is well

	queue      queue
	writerDone chan struct{}  // closed when the writer has left
	retired    sync.WaitGroup // files that a rescue replaced and that wait for their last readers

	closeOnce sync.Once
	closeErr  error

	commits, operations, rescues atomic.Uint64
}

type failure struct{ err error }

// Open opens the file at path, or creates it, and starts the writer. Errors to branch on: ErrLocked, *CorruptError.
// It reads the whole file once to verify its structure (about half a second a GiB, on two processors).
func Open(path string, o Options) (*Store, error) {
	o = o.withDefaults()
	f, err := openFile(path, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &Store{path: path, o: o, writerDone: make(chan struct{})}
	s.file.Store(f)
	s.queue.init(o)
	if err := s.createBuckets(f); err != nil {
		f.close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	go s.write()
	return s, nil
}

// createBuckets commits only if a bucket is missing: opening a file costs no write.
func (s *Store) createBuckets(f *file) error {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	return guard(s.path, func() error {
		tx, err := f.begin(true)
		if err != nil {
			return err
		}
		missing := false
		for _, name := range s.o.Buckets {
			if tx.Bucket([]byte(name)) != nil {
				continue
			}
			missing = true
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				_ = tx.Rollback()
				return fmt.Errorf("bucket %q: %w", name, err)
			}
		}
		if !missing {
			return tx.Rollback()
		}
		return tx.Commit()
	})
}

// Path is the file's path as given to Open.
func (s *Store) Path() string { return s.path }

// Err says why the store accepts nothing at present: nil, ErrClosed, a *CorruptError (for good), or
// ErrUnavailable while a rescue is due (it heals by itself).
func (s *Store) Err() error {
	if f := s.broken.Load(); f != nil {
		return f.err
	}
	return nil
}

// Update runs fn in the next group's transaction and returns when the group is on disk. An error of fn undoes
// its own writes only and is returned as it is. fn may run twice. If ctx ends before fn began, fn will not run and ctx's error is
// returned; later, ctx is no longer heeded, because the answer would be a guess.
func (s *Store) Update(ctx context.Context, fn func(tx *bbolt.Tx) error) error {
	return s.UpdateThen(ctx, fn, nil)
}

// UpdateThen is Update, and calls then with the answer on the writer's goroutine before it returns it: in commit order,
// before the next group begins. It is for callers that keep in memory what they store. then is
// called exactly once if fn was accepted and ctx did not end first; it must be quick and must not wait for the store.
func (s *Store) UpdateThen(ctx context.Context, fn func(tx *bbolt.Tx) error, then func(error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{fn: fn, then: then, done: make(chan error, 1)}
	if err := s.enqueue(o); err != nil {
		return err
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opWaiting, opAbandoned) {
			return ctx.Err()
		}
		return <-o.done
	}
}

// Start is UpdateThen without the wait: fn runs in the next group all the same. then, if not nil, is called exactly once, as UpdateThen
// calls it; if the store refuses (ErrClosed, ErrOverloaded, …), from within Start.
func (s *Store) Start(fn func(tx *bbolt.Tx) error, then func(error)) {
	if err := s.enqueue(&op{fn: fn, then: then}); err != nil && then != nil {
		then(err)
	}
}

// Submit is Start without the hurry: fn rides in the next group, or goes by itself after a few milliseconds.
// done, if not nil, is called exactly once, as UpdateThen calls then; if the store
// refuses (ErrClosed, ErrOverloaded, …), from within Submit.
func (s *Store) Submit(fn func(tx *bbolt.Tx) error, done func(error)) {
	o := &op{fn: fn, then: done, lazy: true}
	if err := s.enqueue(o); err != nil && done != nil {
		done(err)
	}
}

// View runs fn on a read-only snapshot of what is on disk.
func (s *Store) View(fn func(tx *bbolt.Tx) error) error {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	for {
		if err := s.Err(); err != nil {
			return err
		}
		f := s.file.Load()
		tx, err := f.beginRead()
		if err != nil {
			if s.file.Load() != f {
				continue // a rescue replaced the file in this moment
			}
			if closed := s.Err(); closed != nil {
				return closed
			}
			return err
		}
		defer func() { _ = tx.Rollback() }()
		return guard(s.path, func() error { return fn(tx) })
	}
}

// Backup writes a consistent copy of the file, itself a bbolt file, and returns its length.
func (s *Store) Backup(w io.Writer) (int64, error) {
	var n int64
	err := s.View(func(tx *bbolt.Tx) (err error) {
		n, err = tx.WriteTo(w)
		return err
	})
	if err != nil {
		return n, fmt.Errorf("backup of %s: %w", s.path, err)
	}
	return n, nil
}

// Trim takes a large file's pages out of resident memory, as after a pass over all of it. It happens by itself now and then while
// the file is written.
func (s *Store) Trim() { s.file.Load().trim() }

// Check verifies the structure of the open file: each page used once or free, keys in order.
func (s *Store) Check() error {
	return s.View(func(tx *bbolt.Tx) error { return s.file.Load().checkTx(tx) })
}

// Stats are counts since Open.
type Stats struct {
	Commits    uint64 // groups committed; each costs two fsyncs
	Operations uint64 // operations in them
	Rescues    uint64 // times a failed fsync was healed by a fresh copy
	Waiting    int    // operations in the queue now
	Bytes      int64  // size of the file's contents
}

// Stats returns the counts as they are now.
func (s *Store) Stats() Stats {
	st := Stats{Commits: s.commits.Load(), Operations: s.operations.Load(), Rescues: s.rescues.Load(), Waiting: s.queue.len()}
	_ = s.View(func(tx *bbolt.Tx) error { st.Bytes = tx.Size(); return nil })
	return st
}

// Close lets the writer finish what was accepted, waits for readers, and lets go of the file. Closing twice is fine.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.queue.close()
		<-s.writerDone
		s.broken.Store(&failure{fmt.Errorf("%s: %w", s.path, ErrClosed)})
		s.closeErr = s.file.Load().close()
		s.retired.Wait()
	})
	return s.closeErr
}
