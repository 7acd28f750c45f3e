package shards

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
)

var background = context.Background()

const (
	// retryFirst and retryLast bound the pauses between attempts to reopen a file
	// after I/O errors: a cable that was put back is noticed soon, a dead disk costs little.
	retryFirst = 100 * time.Millisecond
	retryLast  = 15 * time.Second
)

// writer owns a shard's one write connection. All its methods run on its goroutine.
type writer struct {
	sh       *Shard
	c        *conn // nil during an outage
	batch    []*op
	attached []any
	pause    time.Duration // before the next attempt to reopen
	retry    *time.Timer
	patience *time.Timer // for a turn
	wal      walLevel
}

func newWriter(sh *Shard) *writer {
	w := &writer{sh: sh, retry: time.NewTimer(time.Hour), patience: time.NewTimer(time.Hour)}
	w.retry.Stop()
	w.patience.Stop()
	return w
}

// run gathers what waits, commits it as one group, and answers, until the shard stops.
func (w *writer) run() {
	sh := w.sh
	for {
		select {
		case o := <-sh.queue:
			w.gather(o)
		case <-sh.ckpt.ready:
			w.wal.restart(w)
		case <-w.retry.C:
			w.reopen(true)
		case <-sh.stop:
			for {
				select {
				case o := <-sh.queue:
					w.gather(o)
				default:
					return
				}
			}
		}
	}
}

// gather takes what else is waiting. Clients that were just answered are about to ask
// again: letting them run first makes groups of all of them, instead of a group of one
// whose fsync the others wait for.
func (w *writer) gather(first *op) {
	for first != nil {
		first = w.commitFrom(first)
	}
}

// commitFrom gathers and commits one group. It returns the operation that it has met and that the group could not take; nil if there was none.
func (w *writer) commitFrom(first *op) (left *op) {
	w.batch = append(w.batch[:0], first)
	if w.sh.set.crowded() && w.sh.set.turn.take(w.patience) {
		defer w.sh.set.turn.give()
	}
	runtime.Gosched()
	for len(w.batch) < w.sh.o.BatchMax && !first.alone {
		select {
		case o := <-w.sh.queue:
			if o.alone {
				left = o
				break
			}
			w.batch = append(w.batch, o)
			continue
		default:
		}
		break
	}
	w.group()
	clear(w.batch)
	clear(w.attached)
	w.attached = w.attached[:0]
	w.wal.probe(w)
	return left
}

// group runs the batch in one transaction and answers every caller.
func (w *writer) group() {
	sh := w.sh
	started := w.batch[:0]
	for _, o := range w.batch {
		if !o.start() {
			o.free()
			continue
		}
		started = append(started, o)
	}
	w.batch = started
	if len(w.batch) == 0 {
		return
	}
	if w.c != nil && w.c.broken != nil {
		w.reopen(false) // a checkpoint failed: commits go to the WAL, which need not be affected
	}
	if out := sh.outage.Load(); out != nil || w.c == nil {
		if out == nil { // restored and broken again is answered by the next round
			out = &outage{err: errors.New("the file is being reopened")}
		}
		w.answer(out.unavailable())
		return
	}
	w.transact()
}

// transact runs the batch's closures in one transaction and answers.
func (w *writer) transact() {
	sh := w.sh
	if err := w.c.run("BEGIN IMMEDIATE"); err != nil {
		w.c.broken = err // whatever it was, without it nothing works
		w.failed(err, false)
		return
	}

	changed, succeeded := false, false
	for _, o := range w.batch {
		if o.err = o.ctx.Err(); o.err != nil {
			continue
		}
		did, err := w.closure(o.fn)
		if w.c.broken != nil {
			w.failed(w.c.broken, false)
			return
		}
		if o.err = err; err == nil {
			changed = changed || did
			succeeded = true
		}
	}
	if succeeded && (changed || len(w.attached) > 0) {
		did, err := w.beforeCommit()
		if w.c.broken != nil {
			w.failed(w.c.broken, false)
			return
		}
		if isConstraint(err) && len(w.batch) > 1 {
			w.oneByOne(err)
			return
		}
		if err != nil {
			w.failed(err, false)
			return
		}
		changed = changed || did
	}
	if err := w.c.run("COMMIT"); err != nil {
		w.failed(err, true)
		return
	}
	if changed {
		sh.counters.commits.Add(1)
	}
	if succeeded && (changed || len(w.attached) > 0) {
		w.afterCommit()
	}
	w.answerEach()
}

// oneByOne runs each closure again in a transaction of its own: something that one of
// them attached breaks a rule of the schema, and the others must not fail with it.
func (w *writer) oneByOne(cause error) {
	if err := w.c.rollback(); err != nil {
		w.c.broken = err
		w.failed(cause, false)
		return
	}
	all := w.batch
	for i := range all {
		clear(w.attached)
		w.attached, w.batch = w.attached[:0], all[i:i+1]
		if w.c == nil || w.sh.outage.Load() != nil { // the closure before broke the connection
			w.batch = all[i:]
			w.answer(w.outcome(false, cause))
			break
		}
		w.transact()
	}
	w.batch = all
}

// closure runs one closure. Alone in its group it needs no savepoint: undoing the
// transaction undoes it.
func (w *writer) closure(fn func(tx *Tx) error) (changed bool, err error) {
	mark := len(w.attached)
	tx := &Tx{sh: w.sh, c: w.c, ctx: background, attached: &w.attached, needsSavepoint: len(w.batch) > 1}
	err = w.guard(tx, fn)
	if w.c.broken != nil {
		return tx.changed, err
	}
	if err != nil {
		clear(w.attached[mark:])
		w.attached = w.attached[:mark]
	}
	// A savepoint that is gone means that the closure ended the transaction, for
	// instance by INSERT OR ROLLBACK: nothing of the group is left.
	var undo error
	switch {
	case tx.hasSavepoint && err != nil:
		if undo = w.c.run("ROLLBACK TO closure"); undo == nil {
			undo = w.c.run("RELEASE closure")
		}
	case tx.hasSavepoint:
		undo = w.c.run("RELEASE closure")
	case tx.changed && err != nil:
		if undo = w.c.rollback(); undo == nil {
			undo = w.c.run("BEGIN IMMEDIATE")
		}
	}
	if undo != nil {
		w.c.broken = fmt.Errorf("a closure ended the transaction: %w", undo)
	}
	return tx.changed && err == nil, err
}

// guard turns a panic into an error.
func (w *writer) guard(tx *Tx, fn func(tx *Tx) error) (err error) {
	defer tx.end()
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fn(tx)
}

func (w *writer) beforeCommit() (changed bool, err error) {
	f := w.sh.o.BeforeCommit
	if f == nil {
		return false, nil
	}
	tx := &Tx{sh: w.sh, c: w.c, ctx: background}
	err = w.guard(tx, func(tx *Tx) error { return f(tx, w.attached) })
	return tx.changed, err
}

// afterCommit cannot undo anything, so its panic is only logged.
func (w *writer) afterCommit() {
	if f := w.sh.o.AfterCommit; f != nil {
		err := w.guard(&Tx{}, func(*Tx) error { f(w.sh, w.attached); return nil })
		if err != nil {
			w.sh.log.Error("AfterCommit panicked", "shard", w.sh.id, "error", err)
		}
	}
}

func (w *writer) answerEach() {
	failed := 0
	for _, o := range w.batch {
		if o.err != nil {
			failed++
		}
		o.answer(o.err)
	}
	w.count(failed)
}

func (w *writer) answer(err error) {
	for _, o := range w.batch {
		o.answer(err)
	}
	w.count(len(w.batch))
}

func (w *writer) count(failed int) {
	w.sh.counters.closures.Add(uint64(len(w.batch)))
	w.sh.counters.failed.Add(uint64(failed))
}

// failed ends a group whose transaction cannot be committed, or whose COMMIT failed.
func (w *writer) failed(cause error, committing bool) {
	sh := w.sh
	rolledBack := w.c.rollback()
	switch class := classOf(cause); {
	case class == classFull:
		// Also at COMMIT this is certain: the commit record is the last write of the
		// group, so it is not whole. SQLite reports a failed fsync differently.
		sh.set.reserve.full()
		w.reopen(false)
		w.answer(full(cause))

	case class == classCorrupt:
		sh.isolate(cause, true)
		w.answer(w.outcome(committing, sh.corrupt(cause)))

	case class == classIO, w.c.broken != nil, rolledBack != nil, committing && !isConstraint(cause):
		sh.log.Error("transaction failed, reopening the file", "shard", sh.id, "committing", committing, "error", cause)
		w.reopen(true)
		w.answer(w.outcome(committing, cause))

	default: // BeforeCommit refused, or a deferred constraint did
		w.answer(cause)
	}
}

func (w *writer) outcome(committing bool, cause error) error {
	if committing {
		return fmt.Errorf("%w: %w", ErrUnknown, cause)
	}
	return fmt.Errorf("%w: nothing was written: %w", ErrUnavailable, cause)
}

// reopen discards the connection and opens another one. Readers stay, and so does the
// WAL's index: it knows only commits whose fsync succeeded.
//
// With verify, a checkpoint must succeed before the shard takes writes again: it proves
// that the disk takes them.
func (w *writer) reopen(verify bool) {
	sh := w.sh
	w.discard()
	w.retry.Stop()
	if out := sh.outage.Load(); out != nil && out.final {
		return
	}
	err := w.open(verify)
	switch {
	case err == nil:
		w.pause = 0
		sh.restored()
	case classOf(err) == classCorrupt:
		sh.isolate(err, true)
	default:
		w.pause = min(max(2*w.pause, retryFirst), retryLast)
		w.retry.Reset(w.pause)
		sh.isolate(err, false)
	}
}

func (w *writer) discard() {
	if w.c != nil {
		w.c.Close() // it failed before: its error tells nothing new
		w.c = nil
	}
}

// open opens the file for writing and brings it to the program's schema.
func (w *writer) open(verify bool) error {
	sh := w.sh
	if _, err := statFile(sh.path); err != nil {
		return err
	}
	if sh.anchor == nil { // nothing of ours has the file open
		if err := rewriteWAL(sh.path); err != nil {
			return &ioError{err}
		}
	}
	c, err := openConn(background, sh.path, sh.writes)
	if err != nil {
		return err
	}
	if err = w.prepare(c, verify); err != nil {
		c.Close()
		return err
	}
	if c.broken != nil { // the disk is full
		c.Close()
		if c, err = openConn(background, sh.path, sh.writes); err != nil {
			return err
		}
	}
	w.c = c
	sh.generation.Add(1)
	return nil
}

// prepare checks a new connection's file. The first one of a start also migrates it, and
// lays the anchor.
func (w *writer) prepare(c *conn, verify bool) error {
	sh := w.sh
	if err := inspect(c, sh.path, sh.set.manifest, sh.id, sh.o.Migrations); err != nil {
		return err
	}
	first := sh.anchor == nil
	if first {
		if err := migrate(c, sh.path, sh.o.Migrations); err != nil {
			return err
		}
		anchor, err := openConn(background, sh.path, forReading)
		if err != nil {
			return err
		}
		var one int // a connection maps the index with its first read
		if err := anchor.value(&one, "SELECT one FROM _shard"); err != nil {
			anchor.Close()
			return err
		}
		sh.anchor = anchor
	}
	if verify {
		// A View may keep the WAL from starting over: that is no failure. Nor is a full
		// disk: what is there can be read, and the next commit says by itself.
		if _, err := c.checkpoint("TRUNCATE"); err != nil && classOf(err) != classFull {
			return err
		}
		if !first && c.broken == nil {
			if err := c.supersede(); err != nil && classOf(err) != classFull {
				return err
			}
		}
	}
	return nil
}

// supersede commits something that changes nothing. Behind the end of the WAL, or on the disk alone if the WAL was cut, a commit
// that failed may still stand whole, and a start after a crash would take it up. What is durable in its place ends that: from now on
// its callers' repeats may go to other files.
func (c *conn) supersede() error {
	for _, text := range []string{
		"BEGIN IMMEDIATE",
		"UPDATE _shard SET slots = slots + 1", // a page that is changed and changed back is written all the same
		"UPDATE _shard SET slots = slots - 1",
		"COMMIT",
	} {
		if err := c.run(text); err != nil {
			return err
		}
	}
	return nil
}

// close ends the writer's connection after run has returned. After a failure the WAL
// is left as it is.
func (w *writer) close() error {
	if w.c == nil {
		return nil
	}
	if w.sh.outage.Load() != nil {
		w.discard()
		return nil
	}
	_, err := w.c.checkpoint("TRUNCATE")
	err = errors.Join(err, w.c.Close())
	w.c = nil
	return err
}
