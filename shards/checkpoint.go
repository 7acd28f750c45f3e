package shards

import (
	"fmt"
	"time"

	"github.com/sourcegraph/conc/panics"
)

const (
	// frameBytes is what one page takes in the WAL.
	frameBytes = pageSize + 24
	// probeClosures: the WAL's level is asked for after so many closures; that costs 5 µs.
	probeClosures = 64
	// passesMax: background passes until the writer has to copy the rest itself. Each
	// leaves what was written during it, a fraction of the one before.
	passesMax = 4
	// restFrames is a rest small enough for the writer.
	restFrames = 256
	// viewGrace is how long a View may go on when the WAL has reached twice its size.
	// Until it has started over, new Views are held back, else there would always be a
	// young one; gateMax bounds that, should the writes stop meanwhile.
	viewGrace = time.Second
	gateMax   = 2 * time.Second
	// readersWait is how long the writer then waits, each time, for readers to leave.
	readersWait = 20 * time.Millisecond
)

// level is what a checkpoint found and did.
type level struct {
	blocked bool  // a reader or another checkpoint kept it from finishing
	frames  int64 // in the WAL
	done    int64 // of them, already in the file
}

// checkpoint runs one of SQLite's: NOOP only reports, PASSIVE copies what it can while
// others write, RESTART and TRUNCATE also make the WAL start over.
func (c *conn) checkpoint(mode string) (level, error) {
	tx := &Tx{c: c, ctx: background}
	defer tx.end()
	rows, err := tx.pragma("PRAGMA wal_checkpoint(" + mode + ")")
	if err != nil {
		return level{}, err
	}
	var l level
	if !rows.Next() {
		return l, rows.Err()
	}
	if err := rows.Scan(&l.blocked, &l.frames, &l.done); err != nil {
		return l, err
	}
	return l, rows.Close()
}

// checkpointer copies the WAL back into the file in the background, on a connection
// of its own, so that commits do not pay for it.
type checkpointer struct {
	sh    *Shard
	poke  chan struct{} // the WAL is long enough
	ready chan struct{} // nearly all is copied: the writer may let the WAL start over
	c     *conn
}

func newCheckpointer(sh *Shard) *checkpointer {
	return &checkpointer{sh: sh, poke: make(chan struct{}, 1), ready: make(chan struct{}, 1)}
}

func (k *checkpointer) run() {
	defer k.close()
	for {
		select {
		case <-k.sh.stop:
			return
		case <-k.poke:
		}
		err := panics.Try(func() {
			if err := k.copy(); err != nil {
				k.failed(err)
			}
		}).AsError()
		if err != nil {
			k.failed(err)
		}
		wake(k.ready)
	}
}

// copy makes passes until little is left.
func (k *checkpointer) copy() error {
	if k.c == nil {
		c, err := openConn(background, k.sh.path, forCheckpoint)
		if err != nil {
			return err
		}
		k.c = c
	}
	last := int64(-1)
	for range passesMax {
		l, err := k.c.checkpoint("PASSIVE")
		if err != nil {
			return err
		}
		if l.frames-l.done < restFrames || l.done == last {
			break // done, or a reader holds the rest
		}
		last = l.done
	}
	return nil
}

// failed: nothing is lost, the WAL keeps all until a later pass succeeds. Damage found
// while copying isolates.
func (k *checkpointer) failed(err error) {
	k.close()
	if classOf(err) == classCorrupt {
		k.sh.isolate(err, true)
		return
	}
	k.sh.log.Warn("checkpoint failed, will be repeated", "shard", k.sh.id, "error", err)
}

func (k *checkpointer) close() {
	if k.c != nil {
		k.c.Close()
		k.c = nil
	}
}

// walLevel is the writer's view of its WAL.
type walLevel struct {
	closures uint64 // at the last probe
	next     int64  // frames at which the next restart may be tried
}

// probe measures the WAL every few closures, and has it written back when it is long.
func (l *walLevel) probe(w *writer) {
	sh := w.sh
	n := sh.counters.closures.Load()
	if w.c == nil || n-l.closures < probeClosures {
		return
	}
	l.closures = n
	now, err := w.c.checkpoint("NOOP")
	if err != nil {
		return // the connection is marked, and discarded before the next group
	}
	sh.counters.walBytes.Store(now.frames * frameBytes)
	soft := sh.o.CheckpointBytes / frameBytes
	switch {
	case now.frames < soft:
		l.next = 0
	case now.frames >= 2*soft && now.frames >= l.next:
		sh.log.Warn("WAL is long, ending its readers", "shard", sh.id, "bytes", now.frames*frameBytes)
		sh.readers.closeGate()
		sh.readers.endOlder(viewGrace)
		l.restartNow(w, now.frames, readersWait)
	default:
		wake(sh.ckpt.poke)
	}
}

// restart lets the WAL start over after the background has copied nearly all of it.
func (l *walLevel) restart(w *writer) {
	if w.c == nil {
		return
	}
	now, err := w.c.checkpoint("NOOP")
	if err != nil || now.frames < w.sh.o.CheckpointBytes/frameBytes || now.frames < l.next {
		return
	}
	l.restartNow(w, now.frames, 0)
}

// restartNow copies the rest and, if no reader is left in the WAL, has the next commit
// write at its beginning. If one is, it is tried again when the WAL has grown by a quarter.
func (l *walLevel) restartNow(w *writer, frames int64, wait time.Duration) {
	sh := w.sh
	err := w.c.run(fmt.Sprintf("PRAGMA busy_timeout = %d", wait.Milliseconds()))
	if err == nil {
		var now level
		now, err = w.c.checkpoint("RESTART")
		switch {
		case err == nil && !now.blocked:
			l.next = 0
			sh.readers.openGate()
			sh.counters.walBytes.Store(0)
			sh.counters.checkpoints.Add(1)
		default:
			l.next = frames + sh.o.CheckpointBytes/frameBytes/4
		}
	}
	if e := w.c.run("PRAGMA busy_timeout = 2000"); err == nil {
		err = e
	}
	if err != nil {
		sh.log.Warn("checkpoint failed, will be repeated", "shard", sh.id, "error", err)
	}
}

// wake signals without blocking; one pending signal is enough.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
