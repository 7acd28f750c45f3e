package ledger

import (
	"database/sql"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// Tally is how often something happened, and the sum of the amounts, in minor units.
type Tally struct {
	Count  int64 `json:"count"`
	Amount int64 `json:"amount"`
}

// add adds o. A sum that leaves 64 bits stays at the largest number, which is
// none that anybody is shown.
func (t *Tally) add(o Tally) {
	t.Count += o.Count
	if t.Amount > math.MaxInt64-o.Amount {
		t.Amount = math.MaxInt64
	} else {
		t.Amount += o.Amount
	}
}

// full reports whether the sum has left 64 bits.
func (t Tally) full() bool { return t.Amount == math.MaxInt64 }

// counted is what analytics counts: by noun, the last words of its events' types.
// A thing counts in the hour of each event, not in that of its creation: a payment
// taken at 9:59 and settled at 10:01 is created in the ninth hour and succeeded in
// the tenth.
var counted = map[Noun][]string{
	PaymentNoun: {"created", "succeeded", "failed", "canceled"},
	RefundNoun:  {"created", "succeeded", "failed"},
	OrderNoun:   {"created", "paid", "completed", "canceled"},
	UserNoun:    {"created", "verified"},
}

// Noun is a kind of record that analytics counts.
type Noun string

// The nouns. Events of the others are passed over.
const (
	PaymentNoun Noun = "payment"
	RefundNoun  Noun = "refund"
	OrderNoun   Noun = "order"
	UserNoun    Noun = "user"
)

// isCounted reports whether the event is one that analytics counts.
func isCounted(t EventType) (noun Noun, what string, ok bool) {
	first, what, _ := strings.Cut(string(t), ".")
	for _, w := range counted[Noun(first)] {
		if w == what {
			return Noun(first), what, true
		}
	}
	return "", "", false
}

// sliceLength is the finest step of time that analytics keeps. Every time zone in
// use is a multiple of it away from UTC, so that days and hours of any of them are
// sums of slices.
const sliceLength = 15 * time.Minute

// slice is a quarter of an hour, counted from 1970.
type slice int64

// sliceOf returns the slice that t lies in.
func sliceOf(t time.Time) slice {
	const ms = int64(sliceLength / time.Millisecond)
	n := t.UnixMilli()
	if n < 0 { // before 1970, where division rounds the other way
		n -= ms - 1
	}
	return slice(n / ms)
}

// sliceFrom returns the first slice that begins at t or later.
func sliceFrom(t time.Time) slice { return sliceOf(t.Add(sliceLength - time.Millisecond)) }

func (s slice) start() time.Time { return instant(int64(s) * int64(sliceLength/time.Millisecond)) }

// tallyKey is what is counted apart.
type tallyKey struct {
	tenant   tenants.ID
	noun     Noun
	slice    slice
	currency string // "" of users, and of what was erased
	what     string
}

// feedBatch is what one transaction of analytics adds.
type feedBatch struct {
	tallies map[tallyKey]Tally
	rows    int
	last    head      // the last row
	odd     []EventID // events without an amount that can be read
}

// add counts an event. What was erased counts without currency and amount; so does
// what cannot be read, for one row must not stop the counting of all that follow.
func (b *feedBatch) add(e *Event) {
	b.rows++
	b.last = head{e.Seq, e.mac}
	noun, what, ok := isCounted(e.Type)
	if !ok {
		return
	}
	k, one := tallyKey{e.Tenant, noun, sliceOf(e.OccurredAt), "", what}, Tally{Count: 1}
	switch {
	case e.currency != "": // not read from the file
		k.currency, one.Amount = e.currency, e.amount
	case noun != UserNoun && e.Data != nil:
		var money struct {
			Amount   int64  `json:"amount"`
			Currency string `json:"currency"`
		}
		if err := json.Unmarshal(e.Data, &money); err != nil || money.Amount < 0 {
			b.odd = append(b.odd, e.ID)
		} else {
			k.currency, one.Amount = money.Currency, money.Amount
		}
	}
	b.tally(k, one)
}

func (b *feedBatch) tally(k tallyKey, more Tally) {
	if b.tallies == nil {
		b.tallies = map[tallyKey]Tally{}
	}
	t := b.tallies[k]
	t.add(more)
	b.tallies[k] = t
}

// talliesMax bounds what counts holds of a journal while analytics do not come for it: the sums of a thousand tenants, or of days.
const talliesMax = 10_000

// counts is what the relay has counted of a journal on its way and analytics have not stored yet: a second's rows, which under load are more than
// the tail holds, need not be read back from the file. It may be lost; then they are.
type counts struct {
	mu    sync.Mutex // guards what follows
	from  uint64     // the row before the batch's first
	batch feedBatch  // of no rows: none
}

// add takes the rows that follow from.
func (c *counts) add(from uint64, more *feedBatch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.batch.rows == 0 || c.batch.last.seq != from || len(c.batch.tallies) > talliesMax {
		c.from, c.batch = from, *more
		return
	}
	for k, t := range more.tallies {
		c.batch.tally(k, t)
	}
	c.batch.rows += more.rows
	c.batch.last, c.batch.odd = more.last, append(c.batch.odd, more.odd...)
}

// take hands over all that follows the row from. If that is not all it is asked for, b has no rows, and upTo says how far to read the journal so
// that the next take finds it; 0: to its end.
func (c *counts) take(from uint64) (b feedBatch, upTo uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.batch.rows == 0:
		return feedBatch{}, 0
	case from < c.from:
		return feedBatch{}, c.from
	case from > c.from:
		upTo = c.batch.last.seq
	default:
		b = c.batch
	}
	c.batch = feedBatch{}
	if upTo <= from {
		upTo = 0
	}
	return b, upTo
}

// analyticsMigrations is the schema of analytics.db.
var analyticsMigrations = []shards.Migration{{Version: 1, Name: "tallies", SQL: `
CREATE TABLE tallies (
	tenant   TEXT    NOT NULL,
	noun     TEXT    NOT NULL,
	slice    INTEGER NOT NULL,                  -- quarters of an hour since 1970 UTC
	currency TEXT    NOT NULL,
	what     TEXT    NOT NULL,                  -- last word of the event's type
	count    INTEGER NOT NULL CHECK (count > 0),
	amount   INTEGER NOT NULL CHECK (amount >= 0),
	PRIMARY KEY (tenant, noun, slice, currency, what)
) STRICT, WITHOUT ROWID;

-- How far each journal is counted. mac is the chain value of that row, which
-- stands for every row up to it: a journal that holds another there is another one.
CREATE TABLE cursors (
	shard INTEGER PRIMARY KEY,
	seq   INTEGER NOT NULL,
	mac   BLOB    NOT NULL
) STRICT;
`}}

// errCursorMoved tells a feeder that another one has counted its rows.
var errCursorMoved = errors.New("analytics: the rows were counted meanwhile")

// store adds the batch, whose rows follow from, and moves the shard's cursor behind it.
func (b *feedBatch) store(tx *shards.Tx, shard int, from head) error {
	if now, err := readCursor(tx, shard); err != nil || now.seq != from.seq {
		return errors.Join(err, errCursorMoved)
	}
	for k, t := range b.tallies {
		// SQLite would go on in floating point where 64 bits end.
		_, err := tx.Exec(`INSERT INTO tallies (tenant, noun, slice, currency, what, count, amount) VALUES (?,?,?,?,?,?,?)
			ON CONFLICT DO UPDATE SET count = count + excluded.count,
				amount = CASE WHEN amount > ? - excluded.amount THEN ? ELSE amount + excluded.amount END`,
			string(k.tenant), string(k.noun), int64(k.slice), k.currency, k.what, t.Count, t.Amount, int64(math.MaxInt64), int64(math.MaxInt64))
		if err != nil {
			return err
		}
	}
	_, err := tx.Exec(`INSERT /* box */ INTO cursors (shard, seq, mac) VALUES (?,?,?) ON CONFLICT DO UPDATE SET seq = excluded.seq, mac = excluded.mac`,
		shard, int64(b.last.seq), b.last.mac)
	return err
}

// readCursor returns how far a shard's journal is counted.
func readCursor(tx *shards.Tx, shard int) (at head, err error) {
	err = tx.QueryRow(`SELECT /* box */ seq, mac FROM cursors WHERE shard = ?`, shard).Scan(&at.seq, &at.mac)
	if errors.Is(err, sql.ErrNoRows) {
		return head{}, nil
	}
	return at, err
}
