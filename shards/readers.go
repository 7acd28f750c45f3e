package shards

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// errViewEnded is the cause with which a View is ended so that the WAL can start over.
var errViewEnded = errors.New("the WAL had to start over")

// readers is a shard's pool of read-only connections.
type readers struct {
	sh     *Shard
	access access
	pool   chan *conn // one place a connection; nil stands for one not open

	viewsMu sync.Mutex
	views   map[*view]struct{}
	reopen  *time.Timer // opens the gate if the writer does not

	// gate, if not nil, holds back new Views until it is closed, so that those in
	// progress become fewer and the WAL can start over.
	gate atomic.Pointer[chan struct{}]
}

// view is a View in progress.
type view struct {
	since  time.Time
	cancel context.CancelCauseFunc
}

func newReaders(sh *Shard, a access, n int) *readers {
	r := &readers{sh: sh, access: a, pool: make(chan *conn, n), views: map[*view]struct{}{}}
	for range n {
		r.pool <- nil
	}
	return r
}

// View runs fn on one read-only snapshot of the shard: it sees every Update that
// returned before, and none that commits meanwhile. It ends with ErrViewTooLong when
// it takes longer than Options.ViewTimeout, or holds up a WAL that has grown too long.
// A View within a View of the same shard may wait for itself.
func (sh *Shard) View(ctx context.Context, fn func(tx *Tx) error) error {
	return sh.readers.with(ctx, func(c *conn) error { return sh.readers.snapshot(ctx, c, fn) })
}

// with lends out a connection, and discards it if it broke.
func (r *readers) with(ctx context.Context, fn func(c *conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-r.sh.stop:
		return ErrClosed
	default:
	}
	if gate := r.gate.Load(); gate != nil {
		select {
		case <-*gate:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.sh.stop:
			return ErrClosed
		}
	}
	if out := r.sh.outage.Load(); out != nil && out.final {
		return out.unavailable()
	}
	var c *conn
	select {
	case c = <-r.pool:
	case <-ctx.Done():
		return ctx.Err()
	case <-r.sh.stop:
		return ErrClosed
	}
	defer func() { r.pool <- c }()
	if c == nil {
		opened, err := openConn(background, r.sh.path, r.access)
		if err != nil {
			return r.failed(err)
		}
		c = opened
	}
	err := fn(c)
	if broken := c.broken; broken != nil {
		c.Close()
		c = nil
		return r.failed(broken)
	}
	return err
}

func (r *readers) failed(err error) error {
	switch classOf(err) {
	case classCorrupt:
		r.sh.isolate(err, true)
		return fmt.Errorf("%w: %w", ErrUnavailable, r.sh.corrupt(err))
	case classIO, classFull:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

func (r *readers) snapshot(ctx context.Context, c *conn, fn func(tx *Tx) error) (err error) {
	viewCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := &view{since: time.Now(), cancel: cancel}
	r.viewsMu.Lock()
	r.views[v] = struct{}{}
	r.viewsMu.Unlock()
	if d := r.sh.o.ViewTimeout; d > 0 {
		t := time.AfterFunc(d, func() { cancel(fmt.Errorf("longer than %v", d)) })
		defer t.Stop()
	}
	defer func() {
		r.viewsMu.Lock()
		delete(r.views, v)
		r.viewsMu.Unlock()
		if err != nil && viewCtx.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrViewTooLong, context.Cause(viewCtx))
		}
	}()

	if err := c.run("BEGIN"); err != nil {
		return err
	}
	tx := &Tx{sh: r.sh, c: c, ctx: viewCtx, readOnly: true}
	defer func() {
		tx.end()
		if e := c.run("ROLLBACK"); e != nil && c.broken == nil {
			c.broken = e
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	return fn(tx)
}

// endOlder ends Views that have lasted longer than d.
func (r *readers) endOlder(d time.Duration) {
	r.viewsMu.Lock()
	defer r.viewsMu.Unlock()
	for v := range r.views {
		if time.Since(v.since) > d {
			v.cancel(errViewEnded)
			r.sh.counters.viewsEnded.Add(1)
		}
	}
}

// closeGate holds back new Views for a while.
func (r *readers) closeGate() {
	r.viewsMu.Lock()
	defer r.viewsMu.Unlock()
	if r.gate.Load() != nil {
		return
	}
	gate := make(chan struct{})
	r.gate.Store(&gate)
	r.reopen = time.AfterFunc(gateMax, r.openGate)
}

func (r *readers) openGate() {
	r.viewsMu.Lock()
	defer r.viewsMu.Unlock()
	if gate := r.gate.Swap(nil); gate != nil {
		r.reopen.Stop()
		close(*gate)
	}
}

// close takes every connection out of the pool, waiting for Views in progress.
func (r *readers) close() error {
	r.openGate()
	r.viewsMu.Lock()
	for v := range r.views {
		v.cancel(ErrClosed)
	}
	r.viewsMu.Unlock()
	var all []error
	for range cap(r.pool) {
		if c := <-r.pool; c != nil {
			all = append(all, c.Close())
		}
	}
	return errors.Join(all...)
}
