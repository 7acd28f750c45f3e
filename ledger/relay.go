package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

const (
	// relayBatch is how many journal rows become jobs in one transaction of the
	// queue: enough to share the fsync, few enough that others get their turn.
	relayBatch = 500
	// relayJobsMax jobs go into one transaction of the queue: an event may make many,
	// one for each of its tenant's webhooks.
	relayJobsMax = 5000
	// relayBytesMax bounds their data: a job that tells a webhook holds the event, which may be an app's own and large.
	relayBytesMax = 4 << 20
	// relayGather is how long rows gather before they become jobs, unless someone
	// waits for an outcome: two fsyncs then serve many payments instead of few, on a
	// disk that the accepting of others needs.
	relayGather = 20 * time.Millisecond
	// strandedGather is the same while all that comes is payments that nobody can send, because their line is down: their jobs have time, and most
	// of the fsyncs go to those who pay.
	strandedGather = 200 * time.Millisecond
	// relayPoll is how long a missed wake-up can delay anything.
	relayPoll = 5 * time.Second
	// retryPause spaces repeats after a failed store or event log.
	retryPause = time.Second
)

// poke is a wake-up that never blocks the one who gives it and is never lost:
// poke for speed, poll for truth.
type poke chan struct{}

func newPoke() poke { return make(poke, 1) }

func (p poke) wake() {
	select {
	case p <- struct{}{}:
	default:
	}
}

// wait returns after a wake-up, after d, or with the context's error.
func (p poke) wait(ctx context.Context, d time.Duration) error {
	p.wokenWithin(ctx, d)
	return ctx.Err()
}

// wokenWithin waits likewise, and reports whether it was woken.
func (p poke) wokenWithin(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// pause waits for d, whatever happens meanwhile.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// relayJobs turns the shard's journal rows into jobs, in order, each exactly
// once: the jobs and the cursor move in one transaction of the queue's file. The
// cursor carries the journal's chain value, an anchor outside the shard.
func (l *Ledger) relayJobs(ctx context.Context, p *part) error {
	hurried := false
	for ctx.Err() == nil {
		took, err := l.relayOnce(ctx, p, hurried)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, shards.ErrUnavailable): // alarmed already
			_ = p.derive.wait(ctx, relayPoll)
		case err != nil:
			l.log.Warn("relay to the queues", "shard", p.shard.ID(), "err", err)
			_ = pause(ctx, retryPause)
		case took.rows < relayBatch:
			if !took.held {
				_ = p.derive.wait(ctx, relayPoll)
			}
			hurried = p.hurry.wokenWithin(ctx, l.gatherFor(took))
		}
	}
	return nil
}

// relayedBatch is what became jobs at once.
type relayedBatch struct {
	rows     int  // relayBatch if there are more
	held     bool // it stopped before a payment that had better be relayed a little later
	stranded bool // nothing but payments that cannot be sent at present, and work of the box's own
}

// gatherFor is how long rows gather after a batch.
func (l *Ledger) gatherFor(took relayedBatch) time.Duration {
	switch {
	case l.direct.unrelayed():
		return relayGather + directGather
	case took.stranded:
		return strandedGather
	}
	return relayGather
}

// relayOnce takes one batch. Unless somebody is waiting for what the queue does (hurried), payments on their way past the queue hold it up.
func (l *Ledger) relayOnce(ctx context.Context, p *part, hurried bool) (relayedBatch, error) {
	if err := l.refresh(ctx, p); err != nil {
		return relayedBatch{}, err
	}
	cursor, _, err := l.jobs.Cursor(p.jobsSource())
	if err != nil {
		return relayedBatch{}, err
	}
	end := p.journal.currentHead().seq
	if cursor.Offset >= end {
		return relayedBatch{}, nil
	}
	var took relayedBatch
	to, size := jobs.Cursor{}, 0
	js := make([]jobs.NewJob, 0, min(end-cursor.Offset, relayBatch)+1)
	var counted feedBatch
	shared := false
	err = l.follow(ctx, p, cursor.Offset, relayBatch, func(e *Event) error {
		if took.held = !hurried && l.direct.holdsUp(e); took.held {
			return errBatchFull
		}
		had := len(js)
		js, shared = l.jobsFor(js, e, shared)
		for i := range js[had:] {
			size += len(js[had+i].Data)
		}
		if had > 0 && (len(js) > relayJobsMax || size > relayBytesMax) {
			js = js[:had]
			return errBatchFull
		}
		js = append(js[:had], l.direct.relayed(e, js[had:])...)
		counted.add(e)
		to = jobs.Cursor{Offset: e.Seq, Anchor: e.mac}
		took.rows++
		return nil
	})
	full := errors.Is(err, errBatchFull)
	if err != nil && !full {
		return relayedBatch{}, err
	}
	if took.rows == 0 {
		return took, nil
	}
	took.stranded = l.stranded(js)
	if err := l.enqueueFrom(ctx, p.jobsSource(), cursor.Offset, to, js); err != nil {
		return relayedBatch{}, err
	}
	p.counts.add(cursor.Offset, &counted)
	if full && !took.held {
		took.rows = relayBatch // there is more
	}
	return took, nil
}

// stranded reports whether there are payments among the jobs, none of which can be sent at present, and else only work of the box's own.
func (l *Ledger) stranded(js []jobs.NewJob) bool {
	asked, found := "", false
	for _, j := range js {
		switch {
		case j.Tenant == "":
		case j.Queue != PaymentsQueue || j.Tenant != asked && l.ready(j.Tenant):
			return false
		default:
			asked, found = j.Tenant, true
		}
	}
	return found
}

var errBatchFull = errors.New("as much as goes at once")

// enqueueFrom enqueues derived jobs and moves the cursor. A job that the queue
// does not take must not hold up those of the events behind it, the settling of
// payments above all: it is left out, and an alarm says so.
func (l *Ledger) enqueueFrom(ctx context.Context, source string, from uint64, to jobs.Cursor, js []jobs.NewJob) error {
	for {
		err := l.jobs.EnqueueFrom(ctx, source, from, to, js)
		if err == nil || !errors.Is(err, jobs.ErrInvalid) && !errors.Is(err, jobs.ErrUnknownQueue) {
			return err
		}
		bad := jobs.Refused(err)
		if len(bad) == 0 && len(js) == 1 {
			bad = []int{0}
		}
		if len(bad) == 0 {
			return err
		}
		for _, i := range slices.Backward(bad) {
			l.log.Error("derived job left out", "queue", js[i].Queue, "tenant", js[i].Tenant, "job", js[i].ID, "err", err)
			l.raise(alarmKey{tenant: tenants.ID(js[i].Tenant), code: "job_left_out", subject: js[i].Queue},
				"a job of queue "+js[i].Queue+" that follows from an event was not taken; the log says why")
			js = slices.Delete(js, i, i+1)
		}
	}
}

// startCursor makes sure that the shard has a cursor in the queue's file. One
// that has none, though its journal has rows, lost its queue: every unsettled
// payment gets its job again (under the payment's id, so twice is once); other
// jobs are not derived anew from old events, which an alarm says.
func (l *Ledger) startCursor(ctx context.Context, p *part) error {
	_, found, err := l.cursor(ctx, p.jobsSource())
	if err != nil || found {
		return err
	}
	end := p.journal.currentHead()
	if end.seq == 0 {
		return nil
	}
	l.raise(alarmKey{code: "queue_lost", subject: p.origin()}, fmt.Sprintf(
		"the queue held no position for shard %d; unsettled payments were queued again, other jobs of events 1 to %d may be missing", p.shard.ID(), end.seq))
	if err := l.requeueOpen(ctx, p.shard); err != nil {
		return err
	}
	return l.jobs.EnqueueFrom(ctx, p.jobsSource(), 0, jobs.Cursor{Offset: end.seq, Anchor: end.mac}, nil)
}

// cursor reads a cursor at start. A damaged one counts as lost: the queue's file
// can be rebuilt, and must not keep the box from selling.
func (l *Ledger) cursor(ctx context.Context, source string) (jobs.Cursor, bool, error) {
	c, found, err := l.jobs.Cursor(source)
	if !errors.Is(err, jobs.ErrDamaged) {
		return c, found, err
	}
	l.log.Error("damaged cursor dropped", "source", source, "err", err)
	return jobs.Cursor{}, false, l.jobs.DropCursor(ctx, source)
}

// requeueOpen gives every unsettled payment and refund of the shard that has no job its job.
func (l *Ledger) requeueOpen(ctx context.Context, sh *shards.Shard) error {
	for _, query := range []string{
		`SELECT /* box */ tenant, id FROM payments INDEXED BY payments_open
			WHERE sync <> 'settled' AND sync <> 'review' AND (status = 'pending' OR resolve_first > 0) AND (tenant, id) > (?, ?) ORDER BY tenant, id LIMIT ?`,
		`SELECT /* box */ tenant, id FROM refunds INDEXED BY refunds_open
			WHERE sync <> 'settled' AND sync <> 'review' AND (tenant, id) > (?, ?) ORDER BY tenant, id LIMIT ?`,
	} {
		if err := l.requeue(ctx, sh, query); err != nil {
			return err
		}
	}
	return l.alarmReviews(ctx, sh)
}

// requeue gives the records that query pages through their job, where they have none.
func (l *Ledger) requeue(ctx context.Context, sh *shards.Shard, query string) error {
	var t, id string
	for {
		n := 0
		var missing []jobs.NewJob
		err := sh.View(ctx, func(tx *shards.Tx) error {
			rows, err := tx.Query(query, t, id, relayBatch)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				if err := rows.Scan(&t, &id); err != nil {
					return err
				}
				n++
				// A damaged job is parked; adding it again replaces it.
				if _, err := l.jobs.Get(t, PaymentsQueue, id); errors.Is(err, jobs.ErrNotFound) || errors.Is(err, jobs.ErrDamaged) {
					missing = append(missing, settleJob(&Event{Tenant: tenants.ID(t), Subject: id})...)
				} else if err != nil {
					return err
				}
			}
			return rows.Err()
		})
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			if _, err := l.jobs.Enqueue(ctx, missing...); err != nil {
				return err
			}
		}
		if n < relayBatch {
			return nil
		}
	}
}

// verifyAnchor checks a shard before it serves: the row that the queue's file
// anchored is there, unchanged, and the journal's end is whole.
func (l *Ledger) verifyAnchor(ctx context.Context, p *part) error {
	cursor, _, found, err := l.relayed(ctx, p)
	if err != nil {
		return err
	}
	anchor := head{cursor.Offset, cursor.Anchor}
	if found && anchor.seq > 0 {
		row := head{}
		err := readJournal(ctx, p.shard, anchor.seq-1, 1, func(e *Event) error {
			row = head{e.Seq, bytes.Clone(e.mac)}
			return nil
		})
		if err != nil {
			return err
		}
		if row.seq != anchor.seq || !bytes.Equal(row.mac, anchor.mac) {
			return fmt.Errorf("%w: row %d was anchored and is missing or changed", ErrJournal, anchor.seq)
		}
	}
	from, err := tailStart(ctx, p.shard)
	if err != nil {
		return err
	}
	if from.seq > anchor.seq {
		anchor = head{} // checked above; the tail begins behind it
	}
	_, err = verifyJournal(ctx, p.shard, newChain(l.keyring), from, anchor, nil)
	return err
}
