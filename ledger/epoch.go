package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// keyLookup is how long after an epoch began a new payment or refund with an idempotency key is looked up by that key before its first
// send: its client may be repeating a request that the box had answered when these data had not been made yet, or no longer.
const keyLookup = 7 * 24 * time.Hour

// epoch is a life of the box's folder. Another begins when the folder turns out to be a copy, or was restored: what is not settled in it
// may have been sent since by a box that had the same data.
type epoch struct {
	n     uint64
	began time.Time // zero while no clock is known to be right
	seq   uint64    // the shard's last journal row of the epoch before
}

// firstEpoch is that of a folder which began empty.
const firstEpoch = 1

// looksUpKeys reports whether new records are looked up by their client's keys. now is a time that has certainly come; zero if none is known.
func (e *epoch) looksUpKeys(now time.Time) bool {
	return e.n > firstEpoch && (e.began.IsZero() || now.IsZero() || now.Sub(e.began) < keyLookup)
}

// readEpochs returns what the shard has lived through, in order.
func readEpochs(tx *shards.Tx) ([]epoch, error) {
	rows, err := tx.Query(`SELECT /* box */ epoch, began_at, seq FROM epochs ORDER BY epoch`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var es []epoch
	for rows.Next() {
		var n, seq int64
		var began sql.NullInt64
		if err := rows.Scan(&n, &began, &seq); err != nil {
			return nil, err
		}
		e := epoch{n: uint64(n), seq: uint64(seq)}
		if began.Valid {
			e.began = time.UnixMilli(began.Int64).UTC()
		}
		es = append(es, e)
	}
	return es, rows.Err()
}

// epochBefore returns the number of the last epoch that the shard knows before n; 0: none. Programs that wrote none down knew one.
func epochBefore(es []epoch, n uint64) uint64 {
	last := uint64(0)
	if n > firstEpoch {
		last = firstEpoch
	}
	for _, e := range es {
		if e.n < n {
			last = max(last, e.n)
		}
	}
	return last
}

// readEpochs reads what the shard has lived through.
func (l *Ledger) readEpochs(ctx context.Context, p *part) error {
	var es []epoch
	err := p.shard.View(ctx, func(tx *shards.Tx) (err error) {
		es, err = readEpochs(tx)
		return err
	})
	if err == nil {
		p.epochs.Store(&es)
	}
	return err
}

// relayed returns the journal's cursor in the queue's file and the epoch that it is kept under: this one, or the last that has one.
func (l *Ledger) relayed(ctx context.Context, p *part) (c jobs.Cursor, under uint64, found bool, err error) {
	for n := p.journal.epoch; n > 0 && !found && err == nil; n = epochBefore(*p.epochs.Load(), n) {
		c, found, err = l.cursor(ctx, jobsSource(p.shard.ID(), n))
		under = n
	}
	return c, under, found, err
}

// takeOver lets the journal's cursor in the queue's file go on in this epoch, so that nothing is derived twice. The epoch is written down in the
// shard before, so that each epoch that may hold a cursor is known.
func (l *Ledger) takeOver(ctx context.Context, p *part) error {
	_, under, found, err := l.relayed(ctx, p)
	if err == nil && !found && p.journal.currentHead().seq == 0 {
		// The position before the first row: without it, a crash between that row and the relay's first batch would look like a lost queue.
		if err := l.jobs.EnqueueFrom(ctx, p.jobsSource(), 0, jobs.Cursor{}, nil); err != nil {
			l.log.Warn("the queue's position is not written down yet", "shard", p.shard.ID(), "err", err)
		}
		return nil
	}
	if err != nil || !found || under == p.journal.epoch {
		return err
	}
	return l.jobs.TakeCursor(ctx, jobsSource(p.shard.ID(), under), p.jobsSource())
}

// beginEpoch writes down the epoch that the shard is in, once; in the same transaction all that is not settled becomes such that it is looked
// up before it may be sent. It also reads the journal's end and counts the shard's sums, as each first group does.
func (l *Ledger) beginEpoch(ctx context.Context, p *part) error {
	es := *p.epochs.Load()
	now := epoch{n: p.journal.epoch}
	known := slices.ContainsFunc(es, func(e epoch) bool { return e.n >= now.n })
	err := p.shard.UpdateAlone(ctx, func(tx *shards.Tx) error {
		tx.Attach(opening{})
		if known {
			return nil
		}
		head, err := readHead(tx)
		if err != nil {
			return err
		}
		now.seq = head.seq
		if now.n > firstEpoch {
			if err := l.mark(tx); err != nil {
				return err
			}
		}
		_, err = tx.Exec(`INSERT /* box */ INTO epochs (epoch, seq) VALUES (?, ?)`, int64(now.n), int64(now.seq))
		return err
	})
	if err == nil && !known {
		es = append(slices.Clone(es), now)
		p.epochs.Store(&es)
	}
	return err
}

// mark makes all that is not settled such that it is looked up before it may be sent, at the account that the tenant has now: a
// configuration that changes later must not send the box to look where nothing can be.
func (l *Ledger) mark(tx *shards.Tx) error {
	rows, err := tx.Query(`SELECT /* box */ DISTINCT tenant FROM payments INDEXED BY payments_open WHERE sync <> 'settled'
		UNION SELECT tenant FROM refunds INDEXED BY refunds_open WHERE sync <> 'settled'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var ts []tenants.ID
	for rows.Next() {
		var t tenants.ID
		if err := rows.Scan(&t); err != nil {
			return err
		}
		ts = append(ts, t)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, t := range ts {
		var account any // NULL: it has none
		if acc := l.accountOf(t); acc != nil {
			account = identity(acc)
		}
		for _, query := range []string{
			`UPDATE payments INDEXED BY payments_open SET resolve_first = ` + markedFirst + `, account = coalesce(account, ?) WHERE tenant = ? AND sync <> 'settled'`,
			`UPDATE refunds INDEXED BY refunds_open SET resolve_first = ` + markedFirst + `, account = coalesce(account,
				(SELECT p.account FROM payments p WHERE p.tenant = refunds.tenant AND p.id = refunds.payment_id), ?) WHERE tenant = ? AND sync <> 'settled'`,
		} {
			if _, err := tx.Exec(query, account, string(t)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ageEpochs dates the shards' epochs as soon as a processor has told the time: a box whose clock stands at 1970 does not know it, and would
// call the epoch old when its clock is put right.
func (l *Ledger) ageEpochs(ctx context.Context) {
	var told []time.Time
	for _, acc := range l.accounts.List() {
		if theirs := acc.Clock(); !theirs.IsZero() {
			told = append(told, theirs)
		}
	}
	for _, p := range l.parts {
		if p.shard.Err() != nil || p.epoch() == nil {
			continue
		}
		if len(told) > 0 {
			if err := l.dateEpoch(ctx, p, l.clock.notBefore(told...)); err != nil && ctx.Err() == nil {
				l.log.Warn("epoch not dated", "shard", p.shard.ID(), "err", err)
			}
		}
		l.alarmCopy(p)
	}
}

// dateEpoch writes down when the shard's epoch began, if it is not known yet.
func (l *Ledger) dateEpoch(ctx context.Context, p *part, known time.Time) error {
	es := *p.epochs.Load()
	e := p.epoch()
	if e == nil || !e.began.IsZero() {
		return nil
	}
	es = slices.Clone(es)
	es[len(es)-1].began = known.UTC().Truncate(time.Millisecond)
	err := p.shard.Update(ctx, func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE /* box */ epochs SET began_at = ? WHERE epoch = ? AND began_at IS NULL`, known.UnixMilli(), int64(e.n))
		return err
	})
	if err == nil {
		p.epochs.Store(&es)
	}
	return err
}

// epoch is the one that the shard is in; nil while that is not known.
func (p *part) epoch() *epoch {
	es := p.epochs.Load()
	if es == nil || len(*es) == 0 {
		return nil
	}
	return &(*es)[len(*es)-1]
}

// endOf returns the last journal row of an epoch that the shard has behind it; false: it is in that epoch, or never was.
func (p *part) endOf(n uint64) (seq uint64, ok bool) {
	es := p.epochs.Load()
	if es == nil {
		return 0, false
	}
	for i, e := range *es {
		if e.n > n {
			return e.seq, i > 0 && (*es)[i-1].n == n || n == firstEpoch && i == 0
		}
	}
	return 0, false
}

// pastOrigin is a shard's journal in one epoch.
type pastOrigin struct {
	name string // see [Event.Origin]
	end  uint64 // its last row
}

// origins returns the journals of all epochs that the shard has lived through; the present one has no end. Those are known.
func (p *part) origins() []pastOrigin {
	os := []pastOrigin{{p.origin(), math.MaxUint64}}
	for n := epochBefore(*p.epochs.Load(), p.journal.epoch); n > 0; n = epochBefore(*p.epochs.Load(), n) {
		if end, ok := p.endOf(n); ok {
			os = append(os, pastOrigin{origin(p.shard.ID(), n), end})
		}
	}
	return os
}

// resolveFirst is what the column of a record of the shard is to hold when it is taken: those with a key are looked up by it in an epoch's
// first days. It is asked in the record's transaction: the epoch is known there.
func (l *Ledger) resolveFirst(sh *shards.Shard, keyed bool) int {
	e := l.parts[sh.ID()].epoch()
	if !keyed || e == nil || e.n == firstEpoch {
		return 0
	}
	if now, _ := l.surely(); e.looksUpKeys(now) {
		return lookUpByKey
	}
	return 0
}

// What the bits of the column resolve_first say; none: the record need not be looked up before it is sent.
const (
	lookUp      = 1 // by its own mark
	lookUpByKey = 2 // by its client's key too
	// lookUpOlder: it was to be looked up in an epoch before, and was not. Boxes that were parted from these data before then may have sent it,
	// so that nothing in these data dates what is looked for.
	lookUpOlder = 4

	// markedFirst is what the column becomes in a new epoch.
	markedFirst = `CASE resolve_first WHEN 0 THEN 1 ELSE resolve_first | 4 END`
)

// alarmCopy says that the folder began another epoch, for as long as that has consequences.
func (l *Ledger) alarmCopy(p *part) {
	k := alarmKey{code: "box_copied"}
	e := p.epoch()
	now, _ := l.surely()
	if e == nil || !e.looksUpKeys(now) {
		l.alarms.clear(k)
		return
	}
	l.raise(k, fmt.Sprintf("this data folder is a copy, or was restored (epoch %d): what was not settled in it is looked up before it is sent, and "+
		"new payments with a key are, for seven days; if the box that it was copied from still runs, stop one of the two", e.n))
}
