package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	_ "modernc.org/sqlite"
)

// tamper changes a stopped box's shard file behind its back.
func (b *testBox) tamper(shard int, statement string) {
	b.t.Helper()
	b.stop()
	db, err := sql.Open("sqlite", b.set.All()[shard].Path())
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	r, err := db.Exec(statement)
	if err != nil {
		b.t.Fatal(err)
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		b.t.Fatalf("tampering changed nothing (%v)", err)
	}
}

// filled returns a stopped-and-relayed box with payments in every shard.
func filledBox(t *testing.T) *testBox {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	b.cut(true)
	for i := range 40 {
		b.pay(fmt.Sprint("k", i), validPayment())
	}
	b.relayed()
	return b
}

// relayed waits until every journal row has become jobs, and is anchored thereby.
func (b *testBox) relayed() {
	b.t.Helper()
	for _, p := range b.parts {
		for {
			c, _, err := b.jobs.Cursor(p.jobsSource())
			if err != nil {
				b.t.Fatal(err)
			}
			if c.Offset >= p.journal.currentHead().seq {
				break
			}
			if _, err := b.relayOnce(b.t.Context(), p, false); err != nil && b.t.Context().Err() != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func TestChangedJournalIsFound(t *testing.T) {
	for name, statement := range map[string]string{
		"changed data":      `UPDATE journal SET data = replace(data, '1999', '9991') WHERE seq = 2`,
		"changed type":      `UPDATE journal SET type = 'payment.failed' WHERE seq = 1`,
		"changed time":      `UPDATE journal SET occurred_at = occurred_at + 1 WHERE seq = 2`,
		"changed mac":       `UPDATE journal SET mac = zeroblob(16) WHERE seq = 2`,
		"missing row":       `DELETE FROM journal WHERE seq = 2`,
		"cut end":           `DELETE FROM journal WHERE seq >= (SELECT max(seq) FROM journal)`,
		"swapped rows":      `UPDATE journal SET seq = CASE seq WHEN 1 THEN -2 WHEN 2 THEN -1 END WHERE seq IN (1, 2)`,
		"erased everything": `DELETE FROM journal`,
	} {
		t.Run(name, func(t *testing.T) {
			b := filledBox(t)
			b.tamper(1, statement)
			if name == "swapped rows" {
				b.tamper(1, `UPDATE journal SET seq = -seq WHERE seq < 0`)
			}
			found := false
			for _, f := range b.audit() {
				found = found || f.Where == b.set.All()[1].Path()
			}
			if !found {
				t.Error("check finds nothing")
			}
			b = b.reopen(func(o *testOptions) { o.idle = true })
			for i, sh := range b.set.All() {
				if damaged := sh.Err() != nil; damaged != (i == 1) {
					t.Errorf("shard %d: %v", i, sh.Err())
				}
			}
			if ok, degraded := b.Ready(); !ok || !slices.Contains(degraded, "shard_isolated") {
				t.Errorf("ready %v, degraded %v", ok, degraded)
			}
		})
	}
}

// A shard out of service refuses what lives there; the others go on taking payments.
func TestIsolatedShardLeavesOthersServing(t *testing.T) {
	b := filledBox(t)
	b.tamper(1, `UPDATE journal SET type = 'payment.failed' WHERE seq = 1`)
	b = b.reopen(func(o *testOptions) { o.idle = true })
	taken, refused := 0, 0
	for i := range 60 {
		_, _, err := b.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("new", i)), validPayment())
		switch code(err) {
		case "<nil>":
			taken++
		case "shard_unavailable":
			refused++
		default:
			t.Fatal(err)
		}
	}
	if taken == 0 || refused == 0 {
		t.Fatalf("%d taken, %d refused", taken, refused)
	}
	// No key of the isolated shard is given to a second payment.
	for i := range 40 {
		_, replayed, err := b.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("k", i)), validPayment())
		if err == nil && !replayed {
			t.Fatalf("k%d was accepted a second time", i)
		}
	}
}

// Data can be erased for a person's sake; the chain holds on to its hash.
func TestErasedDataKeepsTheChain(t *testing.T) {
	b := filledBox(t)
	var e Event
	err := readJournal(t.Context(), b.set.All()[1], 0, 1, func(row *Event) error { e = *row; return nil })
	if err != nil {
		t.Fatal(err)
	}
	c := newChain(b.keyring)
	c.link(nil, &e)
	b.tamper(1, fmt.Sprintf(`UPDATE journal SET data = NULL, data_hash = x'%x' WHERE seq = 1`, e.dataHash))
	b = b.reopen(func(o *testOptions) { o.idle = true })
	if err := b.set.All()[1].Err(); err != nil {
		t.Fatal(err)
	}
}

// memoryLog is an event log in memory that can fail after it took a batch, and be lost.
type memoryLog struct {
	mu       sync.Mutex
	life     int
	base     int // position before the first row of this life
	rows     []logRow
	failOnce bool // the next batch is stored, and its answer lost
	news     poke
}

type logRow struct {
	origin string
	seq    uint64
	id     EventID
}

func newMemoryLog() *memoryLog { return &memoryLog{news: newPoke()} }

func (m *memoryLog) BatchMax() int { return 7 }

func (m *memoryLog) Incarnation() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint("life", m.life)
}

func (m *memoryLog) Publish(_ context.Context, events []*Event) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range events {
		m.rows = append(m.rows, logRow{e.Origin(), e.Seq, e.ID})
	}
	m.news.wake()
	if m.failOnce {
		m.failOnce = false
		return 0, errors.New("answer lost")
	}
	return uint64(m.base + len(m.rows)), nil
}

func (m *memoryLog) Tail(_ context.Context, after uint64) (map[string]uint64, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := map[string]uint64{}
	for i, r := range m.rows {
		if uint64(m.base+i+1) > after {
			last[r.origin] = r.seq
		}
	}
	return last, uint64(m.base + len(m.rows)), nil
}

func (m *memoryLog) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows, m.life, m.base = nil, m.life+1, m.base+len(m.rows)
}

// await returns the rows once there are n.
func (m *memoryLog) await(t *testing.T, n int) []logRow {
	t.Helper()
	for {
		m.mu.Lock()
		rows := slices.Clone(m.rows)
		m.mu.Unlock()
		if len(rows) >= n {
			return rows
		}
		select {
		case <-m.news:
		case <-t.Context().Done():
			t.Fatalf("%d events published, want %d", len(rows), n)
		}
	}
}

// check requires that each origin's rows stand in order without a gap, once each.
func checkRows(t *testing.T, rows []logRow, want int) {
	t.Helper()
	next := map[string]uint64{}
	for _, r := range rows {
		if r.seq != next[r.origin]+1 {
			t.Fatalf("%s: row %d follows %d", r.origin, r.seq, next[r.origin])
		}
		next[r.origin] = r.seq
	}
	total := uint64(0)
	for n := range maps.Values(next) {
		total += n
	}
	if total != uint64(want) {
		t.Fatalf("%d events, want %d", total, want)
	}
}

func TestEveryEventIsPublishedInOrder(t *testing.T) {
	log := newMemoryLog()
	b := openBox(t, t.TempDir(), testOptions{events: log})
	var ids []PaymentID
	for i := range 30 {
		ids = append(ids, b.pay(fmt.Sprint("k", i), validPayment()).ID)
		if i == 10 {
			log.mu.Lock()
			log.failOnce = true // stored, unanswered: the relay looks at the tail and does not repeat it
			log.mu.Unlock()
		}
	}
	for _, id := range ids {
		b.settled(id)
	}
	checkRows(t, log.await(t, 60), 60)

	// A log that was lost is refilled from the journals.
	b.stop()
	log.lose()
	b = b.reopen(nil)
	checkRows(t, log.await(t, 60), 60)

	// A restart repeats nothing.
	b = b.reopen(nil)
	b.settled(b.pay("last", validPayment()).ID)
	checkRows(t, log.await(t, 62), 62)
	b.sound()
}
