package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
)

// ProcessingQueue is the queue of the work that keeps analytics up to date.
const ProcessingQueue = "data-processing"

const (
	// feedDelay is how long events gather before they are counted: one job and one
	// transaction then serve all of a second.
	feedDelay = time.Second
	// feedRows is how many journal rows one transaction counts: a snapshot of some
	// 10 ms, and a few hundred sums.
	feedRows = 1000
	// feedRowsMax is how many rows one attempt counts before others get their turn.
	feedRowsMax = 100_000
	// analyticsPoll is how often analytics looks for rows that no job was enqueued for.
	analyticsPoll = 10 * time.Second
	// analyticsViewMax bounds one question. A year by the day, traded in every quarter of
	// an hour in two currencies, takes a twentieth of it.
	analyticsViewMax = 5 * time.Second
	// analyticsReaders is how many questions are answered at a time, one of each tenant:
	// they are a page that somebody looks at, not a till's path.
	analyticsReaders = 2
	// analyticsWAL is the size at which the WAL is written back and synced: what a power
	// cut can take is counted again in seconds.
	analyticsWAL = 8 << 20
)

// Analytics keeps, in a file of its own, sums of what the journals tell: payments,
// refunds, orders and users by tenant, currency and quarter of an hour.
//
// Each event is counted once, because the sums and the cursor (shard, seq and the
// chain value of that row, which stands for the epoch and for every row before) move in
// one transaction, which checks that the cursor stands where its rows begin. A crash
// before the commit counts nothing, one after it everything; a power cut may take the
// last commits back, and with them their cursors. A file that is missing, damaged, or
// derived from other journals is begun anew and filled from the first row of each.
//
// The work is done by jobs of [ProcessingQueue], at most one a shard, which call
// [Analytics.Feed]. Its methods are safe for concurrent use.
type Analytics struct {
	l    *Ledger
	path string
	rows int // of one transaction

	news    poke            // look at once
	turns   sync.Map        // tenants.ID → chan struct{}: held by the tenant's question in hand
	checked []atomic.Uint64 // by shard: the generation of the file whose cursor was held against the journal
	lives   atomic.Uint64   // of the file since start: which one is open

	mu   sync.Mutex // guards what follows
	file *shards.Derived
}

var errAnalytics = &Error{Kind: Unavailable, Code: "analytics_unavailable", RetryAfter: analyticsPoll,
	Message: "analytics.db is out of service and tried again; payments are not concerned"}

// OpenAnalytics opens the file, or leaves that to [Analytics.Run] if it cannot be
// done now: what is derived never keeps the box from starting.
func (l *Ledger) OpenAnalytics(ctx context.Context, path string) *Analytics {
	a := &Analytics{l: l, path: path, rows: feedRows, news: newPoke(), checked: make([]atomic.Uint64, len(l.parts))}
	a.mend(ctx)
	return a
}

// current returns the open file.
func (a *Analytics) current() (*shards.Derived, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil, errAnalytics
	}
	return a.file, nil
}

var (
	// analyticsOut is raised while sums cannot be written or read.
	analyticsOut = alarmKey{code: "analytics_unavailable"}
	// analyticsReplaced tells that the sums were begun anew; it stays until the next start.
	analyticsReplaced = alarmKey{code: "analytics_replaced"}
)

// mend opens the file, and replaces one that turned out to be damaged.
func (a *Analytics) mend(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file != nil {
		var corrupt *shards.CorruptError
		err := a.file.Err()
		if err == nil {
			return
		}
		if !errors.As(err, &corrupt) { // its writer tries again by itself
			a.l.raise(analyticsOut, err.Error())
			return
		}
		to, err := a.file.MoveAside()
		if a.file = nil; err != nil {
			a.l.raise(analyticsOut, err.Error())
			return
		}
		a.replaced(&shards.Moved{To: to, Cause: corrupt.Cause})
	}
	file, moved, err := shards.OpenDerived(ctx, a.path, a.l.BoxID(), shards.Options{
		Migrations: analyticsMigrations, ReadConns: analyticsReaders, ViewTimeout: analyticsViewMax, CheckpointBytes: analyticsWAL, Logger: a.l.log})
	if moved != nil {
		a.replaced(moved)
	}
	if err != nil {
		a.l.raise(analyticsOut, err.Error())
		return
	}
	a.file = file
	a.lives.Add(1)
	a.l.alarms.clear(analyticsOut)
}

func (a *Analytics) replaced(m *shards.Moved) {
	a.l.raise(analyticsReplaced, fmt.Sprintf("analytics are counted anew from the journals; the former file was moved to %q: %v", m.To, m.Cause))
}

// Run sees to it that every journal row is counted some day, whatever became of its
// job, and that the file is mended. It never gives up and never stops the box.
func (a *Analytics) Run(ctx context.Context) error {
	return a.l.keepRunning(ctx, "analytics", func(ctx context.Context) error {
		for {
			a.mend(ctx)
			if err := a.lookAfter(ctx); err != nil && ctx.Err() == nil {
				a.l.log.Warn("analytics: not looked after", "err", err)
			}
			if a.news.wait(ctx, analyticsPoll) != nil {
				return nil
			}
		}
	})
}

// lookAfter gives each journal that is not counted to its end its job.
func (a *Analytics) lookAfter(ctx context.Context) error {
	if a.l.set.Short() {
		return nil // what room there is belongs to settling
	}
	cursors, err := a.cursors(ctx)
	if err != nil {
		return err
	}
	var js []jobs.NewJob
	for i, p := range a.l.parts {
		if p.readable() && (cursors[i].seq != p.journal.currentHead().seq || a.unchecked(i, cursors[i])) {
			js = append(js, feedJob(i))
		}
	}
	if len(js) == 0 {
		return nil
	}
	_, err = a.l.jobs.Enqueue(ctx, js...)
	return err
}

// unchecked reports whether the open file's cursor was not yet held against the journal.
func (a *Analytics) unchecked(shard int, at head) bool {
	return at.seq > 0 && a.checked[shard].Load() != a.lives.Load()
}

// readable reports whether the journal can be read and its head is known.
func (p *part) readable() bool { return p.shard.Err() == nil && p.verified.Load() }

// Close releases the file. Run, and the runner that calls Feed, must have returned.
func (a *Analytics) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

// Journals is how many journals there are to feed from.
func (a *Analytics) Journals() int { return len(a.l.parts) }

// Feed counts what one journal holds beyond its cursor. more: there is more than
// one attempt should take. A shard out of service is left for later; so is everything
// while the disk is full, for what room there is belongs to settling.
func (a *Analytics) Feed(ctx context.Context, journal int) (more bool, err error) {
	p := a.l.parts[journal]
	stuck := alarmKey{code: analyticsOut.code, subject: p.origin()}
	for rows := 0; rows < feedRowsMax; {
		if err := ctx.Err(); err != nil {
			return true, err
		}
		if !p.readable() || a.l.set.Short() {
			return false, nil
		}
		n, done, err := a.feed(ctx, p)
		if errors.Is(err, errCursorMoved) {
			continue // whoever did it goes on as well, and one of us is done first
		}
		if err != nil {
			if ctx.Err() == nil {
				a.l.raise(stuck, err.Error())
				a.news.wake() // the file may need mending
			}
			return true, err
		}
		if done {
			a.l.alarms.clear(stuck)
			return false, nil
		}
		rows += n
	}
	return true, nil
}

// feed counts one batch. done: there is no more, but for rows that have not become jobs yet, whose own will come.
func (a *Analytics) feed(ctx context.Context, p *part) (n int, done bool, err error) {
	file, err := a.current()
	if err != nil {
		return 0, false, err
	}
	shard, life := p.shard.ID(), a.lives.Load()
	var from head
	err = file.View(ctx, func(tx *shards.Tx) error {
		from, err = readCursor(tx, shard)
		return err
	})
	if err != nil {
		return 0, false, err
	}
	if a.unchecked(shard, from) {
		if err := a.check(ctx, p, file, from); err != nil {
			return 0, false, err
		}
		a.checked[shard].Store(life)
	}
	if from.seq >= p.journal.currentHead().seq {
		return 0, true, nil
	}
	b, upTo := p.counts.take(from.seq)
	if done = b.rows > 0; !done {
		rows := a.rows
		if upTo > 0 {
			rows = int(min(upTo-from.seq, uint64(rows)))
		}
		err = a.l.follow(ctx, p, from.seq, rows, func(e *Event) error {
			b.add(e)
			return nil
		})
		if err != nil || b.rows == 0 {
			return 0, true, err
		}
	}
	for _, id := range b.odd {
		a.l.log.Error("analytics: an event's amount cannot be read, it counts without", "event", id)
	}
	return b.rows, done, file.Update(ctx, func(tx *shards.Tx) error { return b.store(tx, shard, from) })
}

// check holds the cursor against the journal: the row that it names must be there.
// A journal that holds another one, or has become shorter, was put back from a
// backup, and nobody can tell which of the sums it tells of.
func (a *Analytics) check(ctx context.Context, p *part, file *shards.Derived, at head) error {
	row := head{}
	err := readJournal(ctx, p.shard, at.seq-1, 1, func(e *Event) error {
		row = head{e.Seq, bytes.Clone(e.mac)}
		return nil
	})
	if err != nil || row.seq == at.seq && bytes.Equal(row.mac, at.mac) {
		return err
	}
	a.l.raise(analyticsReplaced, fmt.Sprintf("analytics are counted anew: shard %d's journal is not the one that was counted up to row %d", p.shard.ID(), at.seq))
	if err := clearTallies(ctx, file); err != nil {
		return err
	}
	return errCursorMoved // to the beginning
}

func clearTallies(ctx context.Context, file *shards.Derived) error {
	return file.Update(ctx, func(tx *shards.Tx) error {
		_, err := tx.Exec(`DELETE /* box */ FROM tallies`)
		if err == nil {
			_, err = tx.Exec(`DELETE /* box */ FROM cursors`)
		}
		return err
	})
}

// Rebuild forgets every sum and has the journals counted from their first rows, in
// the background. Until then, answers say how far they are.
func (a *Analytics) Rebuild(ctx context.Context) error {
	if a.l.set.Short() {
		return unavailable(shards.ErrFull)
	}
	file, err := a.current()
	if err != nil {
		return err
	}
	if err := clearTallies(ctx, file); err != nil {
		return outOfService(err)
	}
	a.news.wake()
	return nil
}

// countJob has the event's journal counted, if the event counts. Its id is the
// journal's: while one waits, however many events follow, there is one.
func countJob(e *Event) []jobs.NewJob {
	if _, _, ok := isCounted(e.Type); !ok {
		return nil
	}
	return []jobs.NewJob{feedJob(e.Shard)}
}

func feedJobID(shard int) string { return "analytics-" + strconv.Itoa(shard) }

func feedJob(shard int) jobs.NewJob {
	return jobs.NewJob{
		Queue: ProcessingQueue, ID: feedJobID(shard), Name: "process-data", Data: fmt.Appendf(nil, `{"kind":"analytics","journal":%d}`, shard),
		Delay: feedDelay,
		// Attempts and backoff are the queue's. Run enqueues again what is still due after the last attempt.
		RemoveOnComplete: jobs.Retention{Remove: true}, RemoveOnFail: jobs.Retention{Remove: true},
	}
}
