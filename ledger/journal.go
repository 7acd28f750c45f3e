package ledger

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"sync"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// EventType is the name of an event.
type EventType string

const (
	PaymentCreated   EventType = "payment.created"
	PaymentSucceeded EventType = "payment.succeeded"
	PaymentFailed    EventType = "payment.failed"
	PaymentInDoubt   EventType = "payment.in_doubt"
	PaymentReview    EventType = "payment.review"
	PaymentConfirmed EventType = "payment.confirmed" // an intent; from here on it is settled as any payment
	PaymentCanceled  EventType = "payment.canceled"
	RefundCreated    EventType = "refund.created"
	RefundSucceeded  EventType = "refund.succeeded"
	RefundFailed     EventType = "refund.failed"
)

// Event is one row of the journal: one change, written in the transaction that
// made it.
type Event struct {
	ID         EventID
	Tenant     tenants.ID
	Type       EventType
	Subject    string // id of the record that changed
	Slot       shards.Slot
	OccurredAt time.Time
	Data       []byte // JSON object; nil when erased

	Shard int    // file the row stands in
	Epoch uint64 // box epoch in which it was written
	Seq   uint64 // position in the file's journal, from 1

	amount   int64 // of the payment, for the live exposure
	currency string
	reserved bool // the exposure holds room for it, which its commit takes over
	// unexposed: of an intent that nobody has confirmed, which the exposure does not count.
	unexposed bool
	dataHash  []byte
	mac       []byte
}

// Sequence orders the events of a slot: zero-padded, so that it compares as text.
func (e *Event) Sequence() string {
	return fmt.Sprintf("%08d-%04d-%016d", e.Epoch, e.Shard, e.Seq)
}

// eventDataSize holds what most events tell of a payment.
const eventDataSize = 320

// eventData is what an event tells of a payment: no description, no metadata,
// no source, for those are a person's or a secret.
type eventData struct {
	ID           PaymentID  `json:"id"`
	Object       string     `json:"object"`
	Amount       int64      `json:"amount"`
	Currency     string     `json:"currency"`
	Status       Status     `json:"status"`
	UpstreamID   *string    `json:"upstream_id"`
	Failure      *Failure   `json:"failure"`
	OrderID      *string    `json:"order_id"`
	UserID       *string    `json:"user_id"`
	TakenOffline bool       `json:"taken_offline"`
	CreatedAt    time.Time  `json:"created_at"`
	SettledAt    *time.Time `json:"settled_at"`
}

// paymentEvent describes the change that p has just gone through.
func (l *Ledger) paymentEvent(t tenants.ID, typ EventType, p *Payment, at time.Time) *Event {
	slot, _ := p.ID.slot()
	data := eventData{p.ID, p.Object, p.Amount, p.Currency, p.Status, p.UpstreamID, p.Failure,
		p.OrderID, p.UserID, p.TakenOffline, p.CreatedAt, p.SettledAt}
	return &Event{ID: l.ids.event(at, slot), Tenant: t, Type: typ, Subject: string(p.ID), Slot: slot,
		OccurredAt: at, Data: data.appendJSON(make([]byte, 0, eventDataSize)), amount: p.Amount, currency: p.Currency}
}

// head is the end of a journal: the position and chain value of its last row.
type head struct {
	seq uint64
	mac []byte
}

// journal appends to and reads one shard's journal. Rows of one group commit
// are written together, just before COMMIT, in the order in which their
// closures ran: the chain needs one order, and one statement for many rows costs
// a fraction of one each.
type journal struct {
	epoch uint64
	chain *chain
	tail  tail

	headMu     sync.Mutex // guards the rest
	head       head       // the last durable row
	next       head       // what head becomes when the present group is durable
	generation uint64     // of the shard file that head was read from
	reread     bool       // head was read anew in the present group
}

// newJournal knows no head yet: its first group reads it.
func newJournal(epoch uint64, kr *tenants.Keyring) *journal {
	return &journal{epoch: epoch, chain: newChain(kr), generation: math.MaxUint64}
}

// macSize is how much of HMAC-SHA256 is kept: 128 bits are beyond forging.
const macSize = 16

// chain computes the rows' keyed hashes. Not safe for concurrent use.
type chain struct {
	mac hash.Hash
	buf []byte
}

func newChain(kr *tenants.Keyring) *chain {
	return &chain{mac: hmac.New(sha256.New, kr.Subkey("journal chain"))}
}

// link returns the mac of e, whose row follows the one with mac prev. It covers
// every column; of data its hash, so that the data can be erased later.
func (c *chain) link(prev []byte, e *Event) []byte {
	if e.Data != nil {
		sum := sha256.Sum256(e.Data)
		e.dataHash = sum[:]
	}
	b := c.buf[:0]
	b = append(b, prev...)
	for _, n := range []uint64{e.Seq, e.Epoch, uint64(e.Slot), uint64(e.OccurredAt.UnixMilli())} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, s := range []string{string(e.ID), string(e.Tenant), string(e.Type), e.Subject} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	b = append(b, e.dataHash...)
	c.buf = b
	c.mac.Reset()
	c.mac.Write(b)
	return c.mac.Sum(nil)[:macSize]
}

var insertJournal = newInsert(`INSERT OR FAIL INTO journal (seq, id, tenant, type, subject, slot, epoch, occurred_at, data, mac)`, `(?,?,?,?,?,?,?,?,?,?)`)

// write is part of the shard's BeforeCommit: it numbers, chains and stores the group's rows.
func (j *journal) write(tx *shards.Tx, events []*Event) error {
	j.headMu.Lock()
	defer j.headMu.Unlock()
	if g := tx.Shard().Generation(); g != j.generation {
		h, err := readHead(tx)
		if err != nil {
			return err
		}
		j.head, j.generation, j.reread = h, g, true
	}
	j.next = j.head
	for _, e := range events {
		e.Shard, e.Epoch, e.Seq = tx.Shard().ID(), j.epoch, j.next.seq+1
		e.mac = j.chain.link(j.next.mac, e)
		j.next = head{e.Seq, e.mac}
	}
	err := insertJournal.exec(tx, len(events), func(args []any, i int) []any {
		e := events[i]
		return append(args, int64(e.Seq), string(e.ID), string(e.Tenant), string(e.Type), e.Subject,
			int64(e.Slot), int64(e.Epoch), e.OccurredAt.UnixMilli(), string(e.Data), e.mac)
	})
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// committed is part of the shard's AfterCommit: the group is durable. It reports
// whether the file was opened anew since the group before.
func (j *journal) committed(events []*Event) (reread bool) {
	j.tail.add(events)
	j.headMu.Lock()
	defer j.headMu.Unlock()
	reread, j.reread = j.reread, false
	j.head = j.next
	return reread
}

// stale reports whether the file was opened anew since head was read.
func (j *journal) stale(generation uint64) bool {
	j.headMu.Lock()
	defer j.headMu.Unlock()
	return j.generation != generation
}

func (j *journal) currentHead() head {
	j.headMu.Lock()
	defer j.headMu.Unlock()
	return j.head
}

func readHead(tx *shards.Tx) (h head, err error) {
	err = tx.QueryRow(`SELECT /* box */ seq, mac FROM journal ORDER BY seq DESC LIMIT 1`).Scan(&h.seq, &h.mac)
	if errors.Is(err, sql.ErrNoRows) {
		return head{}, nil
	}
	return h, err
}

const journalColumns = `seq, id, tenant, type, subject, slot, epoch, occurred_at, data, data_hash, mac`

func scanEvent(row scanner, shard int) (Event, error) {
	e, at := Event{Shard: shard}, int64(0)
	err := row.Scan(&e.Seq, &e.ID, &e.Tenant, &e.Type, &e.Subject, &e.Slot, &e.Epoch, &at, &e.Data, &e.dataHash, &e.mac)
	e.OccurredAt = instant(at)
	return e, err
}

// readJournal calls fn with up to limit rows after seq, in order, from the file.
func readJournal(ctx context.Context, sh *shards.Shard, after uint64, limit int, fn func(e *Event) error) error {
	return sh.View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT /* box */ `+journalColumns+` FROM journal WHERE seq > ? ORDER BY seq LIMIT ?`, int64(after), limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e, err := scanEvent(rows, sh.ID())
			if err != nil {
				return err
			}
			if err := fn(&e); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// ErrJournal says that a journal is not what was written: a row was changed, is
// missing, or the end was cut off.
var ErrJournal = errors.New("journal damaged")

// verifyBatch is how many rows one read transaction of a verification covers: a
// long one would hold back the checkpoints.
const verifyBatch = 1000

// verifyJournal checks the rows after from (whose mac is from.mac; the zero head
// is the beginning) to the end, and that the anchor row, if it lies in between,
// carries the anchor's mac. pause is called between batches.
func verifyJournal(ctx context.Context, sh *shards.Shard, c *chain, from, anchor head, pause func() error) (head, error) {
	at := from
	for {
		n := 0
		err := readJournal(ctx, sh, at.seq, verifyBatch, func(e *Event) error {
			n++
			if e.Seq != at.seq+1 {
				return fmt.Errorf("%w: row %d is missing", ErrJournal, at.seq+1)
			}
			mac := c.link(at.mac, e)
			if !hmac.Equal(mac, e.mac) {
				return fmt.Errorf("%w: row %d does not fit its keyed hash", ErrJournal, e.Seq)
			}
			if e.Seq == anchor.seq && !hmac.Equal(mac, anchor.mac) {
				return fmt.Errorf("%w: row %d is not the one that was anchored", ErrJournal, e.Seq)
			}
			at = head{e.Seq, mac}
			return nil
		})
		if err != nil {
			return at, err
		}
		if n < verifyBatch {
			break
		}
		if pause != nil {
			if err := pause(); err != nil {
				return at, err
			}
		}
	}
	if at.seq < anchor.seq {
		return at, fmt.Errorf("%w: it ends at row %d, but row %d was anchored", ErrJournal, at.seq, anchor.seq)
	}
	return at, nil
}

// startTail is how many of a journal's last rows are verified before the shard
// serves; the scrubber reads the rest while it does.
const startTail = 1000

// tailStart returns the head to begin from so that the last startTail rows are verified.
func tailStart(ctx context.Context, sh *shards.Shard) (h head, err error) {
	err = sh.View(ctx, func(tx *shards.Tx) error {
		end, err := readHead(tx)
		if err != nil || end.seq <= startTail {
			return err
		}
		h.seq = end.seq - startTail
		err = tx.QueryRow(`SELECT /* box */ mac FROM journal WHERE seq = ?`, int64(h.seq)).Scan(&h.mac)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: row %d is missing", ErrJournal, h.seq)
		}
		return err
	})
	return h, err
}
