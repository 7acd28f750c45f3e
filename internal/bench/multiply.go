package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/store"
	"tenderbox/tenants"
)

// A box that holds a million settled payments would take a quarter of an hour to settle them. So a real box settles some, is stopped,
// and what it wrote is copied: all rows of a payment, in all tables, under other ids, keys and times, each with its rows in the
// journal, which are chained with the box's own key as the ledger chains them. What comes out is a folder with which `tenderbox check`
// finds no fault, and the measurement asks it.

const (
	// copiedOver is how far back the copies lie: within the week for which idempotency keys are kept, so that all of them are.
	copiedOver = 6 * 24 * time.Hour
	// copyBatch payments are one transaction of the copying.
	copyBatch = 10_000
	// insertRows are stored by one statement.
	insertRows         = 32
	paymentPrefixBytes = len("pay_")
)

// copied tables, with the column that names the payment. The journal is chained and goes apart.
var copiedTables = []struct{ name, payment string }{
	{"payments", "id"}, {"payment_extras", "payment_id"}, {"idempotency_keys", "record"}, {"sends", "record"}, {"attempts", "record"},
}

// row is one of a table's.
type row struct {
	table   string
	columns []string
	values  []any
}

func (r *row) value(column string) any {
	for i, name := range r.columns {
		if name == column {
			return r.values[i]
		}
	}
	return nil
}

func (r *row) text(column string) string {
	s, _ := r.value(column).(string)
	return s
}

// pattern is a settled payment with all its rows.
type pattern struct {
	tenant, id, key, upstream string
	user                      bool // its slot is its user's
	createdAt                 int64
	settledAt                 int64
	rows                      []*row
	events                    []*row // in the journal, in order
}

// folder is a stopped box's data.
type folder struct {
	dir      string
	keyring  *tenants.Keyring
	epoch    uint64
	files    []*sql.DB
	shardOf  [shards.SlotCount]int
	patterns []*pattern
}

func openFolder(ctx context.Context, data string) (*folder, error) {
	f := &folder{dir: data}
	var err error
	if f.keyring, err = tenants.LoadKeyring(filepath.Join(data, "box.key")); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(filepath.Join(data, "shards", "manifest.json"))
	if err != nil {
		return nil, err
	}
	var manifest struct {
		Epoch      uint64             `json:"epoch"`
		Files      []string           `json:"files"`
		Assignment []shards.SlotRange `json:"assignment"`
	}
	if err := json.Unmarshal(content, &manifest); err != nil {
		return nil, err
	}
	f.epoch = manifest.Epoch
	for _, r := range manifest.Assignment {
		for slot := r.First; slot <= r.Last; slot++ {
			f.shardOf[slot] = r.Shard
		}
	}
	for _, name := range manifest.Files {
		// Not synced: a machine that goes down meanwhile has lost a benchmark.
		db, err := sql.Open("sqlite", "file:"+filepath.Join(data, "shards", name)+"?mode=rw&_pragma=synchronous(0)&_pragma=cache_size(-65536)")
		if err == nil {
			db.SetMaxOpenConns(1)
			f.files = append(f.files, db)
			err = f.read(ctx, db)
		}
		if err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	if len(f.patterns) == 0 {
		return nil, errors.Join(errors.New("the box holds no settled payment to copy"), f.close())
	}
	return f, nil
}

func (f *folder) close() (err error) {
	for _, db := range f.files {
		err = errors.Join(err, db.Close())
	}
	return err
}

// read takes the settled payments of a file for patterns.
func (f *folder) read(ctx context.Context, db *sql.DB) error {
	by := map[string]*pattern{}
	for _, table := range copiedTables {
		err := readRows(ctx, db, table.name, "1", func(r *row) {
			id := r.text(table.payment)
			if table.name == "payments" {
				if r.value("status") != "succeeded" {
					return
				}
				p := &pattern{tenant: r.text("tenant"), id: id, upstream: r.text("upstream_id"), user: r.value("user_id") != nil}
				p.createdAt, _ = r.value("created_at").(int64)
				p.settledAt, _ = r.value("settled_at").(int64)
				by[id] = p
				f.patterns = append(f.patterns, p)
			}
			if p := by[id]; p != nil {
				p.rows = append(p.rows, r)
				if table.name == "idempotency_keys" {
					p.key = r.text("key")
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return readRows(ctx, db, "journal", "subject LIKE 'pay_%' ORDER BY seq", func(r *row) {
		if p := by[r.text("subject")]; p != nil {
			p.events = append(p.events, r)
		}
	})
}

func readRows(ctx context.Context, db *sql.DB, table, where string, each func(*row)) error {
	rows, err := db.QueryContext(ctx, `SELECT * FROM `+table+` WHERE `+where)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		r := &row{table: table, columns: columns, values: make([]any, len(columns))}
		into := make([]any, len(columns))
		for i := range into {
			into[i] = &r.values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		each(r)
	}
	return rows.Err()
}

// multiply adds n settled payments to the box whose folder this is. It was stopped in good order.
func multiply(ctx context.Context, data string, n int) (err error) {
	f, err := openFolder(ctx, data)
	if err != nil {
		return err
	}
	ends := make([]end, len(f.files))
	all, working := errgroup.WithContext(ctx)
	for shard := range f.files {
		all.Go(func() (err error) {
			ends[shard], err = f.copyInto(working, shard, n)
			return err
		})
	}
	if err := errors.Join(all.Wait(), f.close()); err != nil {
		return err
	}
	return f.anchor(ctx, ends)
}

// end of a journal.
type end struct {
	seq int64
	mac []byte
}

// copyInto writes those of n copies that belong into a file.
func (f *folder) copyInto(ctx context.Context, shard, n int) (at end, err error) {
	w := &copier{db: f.files[shard], statements: map[string]*sql.Stmt{}, waiting: map[string][]*row{}}
	if err := w.db.QueryRowContext(ctx, `SELECT seq, mac FROM journal ORDER BY seq DESC LIMIT 1`).Scan(&at.seq, &at.mac); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return at, err
	}
	chain := hmac.New(sha256.New, f.keyring.Subkey("journal chain"))
	random := rand.New(rand.NewPCG(uint64(n), uint64(shard)))
	now := time.Now()
	if err := w.begin(ctx); err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, w.end(err)) }()
	for i := range n {
		p := f.patterns[i%len(f.patterns)]
		c := newCopy(p, fmt.Sprintf("kept-%d", i), now.Add(-copiedOver+copiedOver/time.Duration(n)*time.Duration(i)), random)
		if f.shardOf[c.slot] != shard {
			continue
		}
		for _, r := range p.rows {
			if err := w.insert(ctx, c.of(r)); err != nil {
				return at, err
			}
		}
		for _, r := range p.events {
			e := c.of(r)
			at.seq++
			for i, column := range e.columns {
				switch column {
				case "seq":
					e.values[i] = at.seq
				case "id":
					e.values[i] = "evt_" + c.ulid(random).String()
				case "slot":
					e.values[i] = int64(c.slot)
				}
			}
			at.mac = link(chain, at.mac, e)
			for i, column := range e.columns {
				if column == "mac" {
					e.values[i] = at.mac
				}
			}
			if err := w.insert(ctx, e); err != nil {
				return at, err
			}
		}
		if w.payments++; w.payments%copyBatch == 0 {
			if err := errors.Join(w.end(nil), w.begin(ctx)); err != nil {
				return at, err
			}
		}
	}
	return at, nil
}

// paymentCopy is what is different in a copy.
type paymentCopy struct {
	*pattern
	slot    shards.Slot
	at      time.Time
	later   int64 // milliseconds
	newID   string
	newKey  string
	replace *strings.Replacer
}

func newCopy(p *pattern, key string, at time.Time, random *rand.Rand) *paymentCopy {
	c := &paymentCopy{pattern: p, at: at, newKey: key, later: at.UnixMilli() - p.createdAt}
	c.slot = shards.SlotOf(p.tenant, "key\x00"+key)
	if old, err := ulid.ParseStrict(p.id[paymentPrefixBytes:]); p.user && err == nil {
		c.slot = shards.Slot(old[6])<<2 | shards.Slot(old[7]>>6)
	}
	id := c.ulid(random).String()
	c.newID = "pay_" + id
	c.replace = strings.NewReplacer(p.id, c.newID, p.upstream, p.upstream[:3]+id,
		eventTime(p.createdAt), eventTime(p.createdAt+c.later), eventTime(p.settledAt), eventTime(p.settledAt+c.later))
	return c
}

// eventTime is a time as events tell it.
func eventTime(ms int64) string { return `"` + time.UnixMilli(ms).UTC().Format(time.RFC3339Nano) + `"` }

// ulid carries the time and the slot.
func (c *paymentCopy) ulid(random *rand.Rand) (id ulid.ULID) {
	_ = id.SetTime(ulid.Timestamp(c.at)) // fails only after the year 10889
	binary.BigEndian.PutUint64(id[6:], random.Uint64())
	binary.BigEndian.PutUint16(id[14:], uint16(random.Uint32()))
	id[6], id[7] = byte(c.slot>>2), byte(c.slot<<6)|id[7]&0x3f
	return id
}

// of is a row of the copy.
func (c *paymentCopy) of(r *row) *row {
	out := &row{table: r.table, columns: r.columns, values: make([]any, len(r.values))}
	for i, v := range r.values {
		column := r.columns[i]
		switch v := v.(type) {
		case string:
			out.values[i] = v
			switch {
			case column == "key":
				out.values[i] = c.newKey
			case v == c.id:
				out.values[i] = c.newID
			case column == "upstream_id" || column == "data" || column == "evidence" || column == "upstream_key" || column == "path":
				out.values[i] = c.replace.Replace(v)
			}
		case int64:
			if out.values[i] = v; strings.HasSuffix(column, "_at") || column == "their_time" {
				out.values[i] = v + c.later
			}
		default:
			out.values[i] = v
		}
	}
	return out
}

// link is the keyed hash of a journal's row that follows the one with mac before; ledger/journal.go says what it covers.
func link(chain hash.Hash, before []byte, e *row) []byte {
	b := append([]byte(nil), before...)
	for _, column := range []string{"seq", "epoch", "slot", "occurred_at"} {
		n, _ := e.value(column).(int64)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	for _, column := range []string{"id", "tenant", "type", "subject"} {
		s := e.text(column)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	sum := sha256.Sum256([]byte(e.text("data")))
	b = append(b, sum[:]...)
	chain.Reset()
	_, _ = chain.Write(b) // a hash never fails
	return chain.Sum(nil)[:16]
}

// copier writes rows into a file.
type copier struct {
	db         *sql.DB
	tx         *sql.Tx
	statements map[string]*sql.Stmt
	waiting    map[string][]*row // by table
	payments   int
}

func (w *copier) begin(ctx context.Context) (err error) {
	w.tx, err = w.db.BeginTx(ctx, nil)
	clear(w.statements)
	return err
}

// end commits, or gives up after an error.
func (w *copier) end(err error) error {
	if err != nil {
		return w.tx.Rollback()
	}
	for _, rows := range w.waiting {
		for _, r := range rows {
			if err := w.store(context.Background(), r); err != nil {
				return errors.Join(err, w.tx.Rollback())
			}
		}
	}
	clear(w.waiting)
	return w.tx.Commit()
}

// insert stores rows in portions.
func (w *copier) insert(ctx context.Context, r *row) error {
	rows := append(w.waiting[r.table], r)
	if len(rows) < insertRows {
		w.waiting[r.table] = rows
		return nil
	}
	w.waiting[r.table] = rows[:0]
	return w.store(ctx, rows...)
}

func (w *copier) store(ctx context.Context, rows ...*row) error {
	one := "(" + strings.TrimSuffix(strings.Repeat("?,", len(rows[0].columns)), ",") + ")"
	text := `INSERT INTO ` + rows[0].table + ` (` + strings.Join(rows[0].columns, ",") + `) VALUES ` + strings.TrimSuffix(strings.Repeat(one+",", len(rows)), ",")
	statement := w.statements[text]
	if statement == nil {
		var err error
		if statement, err = w.tx.PrepareContext(ctx, text); err != nil {
			return err
		}
		w.statements[text] = statement
	}
	var values []any
	for _, r := range rows {
		values = append(values, r.values...)
	}
	_, err := statement.ExecContext(ctx, values...)
	return err
}

// anchor tells the queue's file that the journals have become jobs up to their ends: what is settled has none.
func (f *folder) anchor(ctx context.Context, ends []end) (err error) {
	s, err := store.Open(filepath.Join(f.dir, "jobs.db"), store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	e, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: benchQueue}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	for shard, to := range ends {
		source := fmt.Sprintf("journal/%d/%d", f.epoch, shard)
		at, _, err := e.Cursor(source)
		if err == nil {
			err = e.EnqueueFrom(ctx, source, at.Offset, jobs.Cursor{Offset: uint64(to.seq), Anchor: to.mac}, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
