package store

import (
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// An operation's state settles the race between the writer that takes it and the caller that leaves.
const (
	opWaiting int32 = iota
	opTaken
	opAbandoned
)

// op is one operation: a function for the next transaction and those who wait for its answer.
type op struct {
	fn    func(tx *bbolt.Tx) error
	then  func(error) // called on the writer's goroutine
	done  chan error  // buffered; nil if nobody waits
	lazy  bool        // may wait for company
	state atomic.Int32

	err error // the answer so far, while its group is under way
}

// queue holds the operations that wait for the writer.
type queue struct {
	batchMax, queueMax int

	wake chan struct{} // poked when the writer may have something to do

	mu      sync.Mutex // guards what follows
	waiting []*op
	urgent  bool      // somebody waits for one of them
	lazyAt  time.Time // when the first of them goes even if nobody waits
	closed  bool
}

func (q *queue) init(o Options) {
	q.batchMax, q.queueMax = o.BatchMax, o.QueueMax
	q.wake = make(chan struct{}, 1)
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// put appends o. Only the first operation, and the first that is in a hurry, have to wake the writer.
func (q *queue) put(o *op) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	if len(q.waiting) >= q.queueMax {
		return ErrOverloaded
	}
	if len(q.waiting) == 0 {
		q.lazyAt = time.Now().Add(submitWait)
		q.poke()
	}
	if !o.lazy && !q.urgent {
		q.urgent = true
		q.poke()
	}
	q.waiting = append(q.waiting, o)
	return nil
}

// take moves a group's worth of operations to into. If none is due it says how long to wait for
// the first (0: until poked). closed: there will be no more.
func (q *queue) take(into []*op) (ops []*op, wait time.Duration, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.waiting)
	if n == 0 {
		return into, 0, q.closed
	}
	if !q.urgent && !q.closed && n < q.batchMax {
		if wait := time.Until(q.lazyAt); wait > 0 {
			return into, wait, false
		}
	}
	k := min(n, q.batchMax)
	for _, o := range q.waiting[:k] {
		if o.state.CompareAndSwap(opWaiting, opTaken) {
			into = append(into, o)
		}
	}
	rest := copy(q.waiting, q.waiting[k:])
	clear(q.waiting[rest:])
	q.waiting = q.waiting[:rest]
	q.urgent = rest > 0
	return into, 0, false
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.poke()
}
