package shards_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

// A payment as the ledger writes it: a row of 20 columns, an idempotency key, and a
// journal row that is inserted for the whole group before COMMIT.
var benchMigrations = []shards.Migration{{Version: 1, Name: "bench", SQL: `
CREATE TABLE payments (
	tenant TEXT NOT NULL, id TEXT NOT NULL, amount INTEGER NOT NULL CHECK (amount > 0), currency TEXT NOT NULL,
	status TEXT NOT NULL, sync TEXT NOT NULL, attempts INTEGER NOT NULL, first_sent_at INTEGER, source_kind TEXT,
	last_error TEXT, user_id TEXT, taken_offline INTEGER NOT NULL, created_at INTEGER NOT NULL, description TEXT,
	fingerprint BLOB, upstream_id TEXT, settled_at INTEGER, version INTEGER NOT NULL, account TEXT,
	refunded INTEGER NOT NULL, PRIMARY KEY (tenant, id)) STRICT, WITHOUT ROWID;
CREATE TABLE keys (tenant TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, payment TEXT NOT NULL,
	created_at INTEGER NOT NULL, PRIMARY KEY (tenant, key)) STRICT, WITHOUT ROWID;
CREATE TABLE journal (seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL, type TEXT NOT NULL, subject TEXT NOT NULL,
	data BLOB NOT NULL, occurred_at INTEGER NOT NULL, mac BLOB NOT NULL) STRICT;`}}

type journalRow struct{ subject string }

// journalInsert returns the statement for n journal rows.
func journalInsert(n int) string {
	q := []byte("INSERT INTO journal (tenant, type, subject, data, occurred_at, mac) VALUES (?,?,?,?,?,?)")
	for range n - 1 {
		q = append(q, ",(?,?,?,?,?,?)"...)
	}
	return string(q)
}

var (
	journal16 = journalInsert(16)
	journal1  = journalInsert(1)
	benchBlob = make([]byte, 200)
)

func benchBeforeCommit(tx *shards.Tx, attached []any) error {
	var args [96]any
	for len(attached) > 0 {
		n, q := 1, journal1
		if len(attached) >= 16 {
			n, q = 16, journal16
		}
		row := args[:0]
		for _, a := range attached[:n] {
			row = append(row, "default", "payment.created", a.(journalRow).subject, benchBlob, int64(1_700_000_000_000), benchBlob[:32])
		}
		if _, err := tx.Exec(q, row...); err != nil {
			return err
		}
		attached = attached[n:]
	}
	return nil
}

func benchPayment(tx *shards.Tx, n uint64) error {
	id := fmt.Sprintf("pay_01J%020d", n)
	key := fmt.Sprintf("key-%016x", n*0x9E3779B97F4A7C15) // random order, as keys are
	if _, err := tx.Exec(`INSERT INTO keys VALUES (?,?,?,?,?)`, "default", key, benchBlob[:32], id, 1_700_000_000_000); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO payments VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		"default", id, 1999, "usd", "pending", "queued", 0, nil, "source", nil, "user_123", true, 1_700_000_000_000,
		"a description", benchBlob[:32], nil, nil, 1, "acct", 0); err != nil {
		return err
	}
	tx.Attach(journalRow{id})
	return nil
}

// fsyncProbe is the median time of a 4 KiB write and fdatasync in a folder: what rates
// must be compared by.
func fsyncProbe(tb testing.TB, dir string) time.Duration {
	f, err := os.CreateTemp(dir, "probe")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	var times []time.Duration
	for i := range 51 {
		began := time.Now()
		if _, err := f.WriteAt(page, int64(i)*4096); err != nil {
			tb.Fatal(err)
		}
		if err := datasync(f); err != nil {
			tb.Fatal(err)
		}
		times = append(times, time.Since(began))
	}
	for i := range times {
		for j := i; j > 0 && times[j] < times[j-1]; j-- {
			times[j], times[j-1] = times[j-1], times[j]
		}
	}
	return times[len(times)/2]
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkUpdate takes payments with 1, 64 and 256 clients over one and four files.
func BenchmarkUpdate(b *testing.B) {
	for _, files := range []int{1, 4} {
		for _, clients := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("files=%d/clients=%d", files, clients), func(b *testing.B) {
				benchUpdate(b, files, clients)
			})
		}
	}
}

func benchUpdate(b *testing.B, files, clients int) {
	dir := b.TempDir()
	s := shardstest.OpenDir(b, filepath.Join(dir, "shards"), shards.Options{Files: files, Migrations: benchMigrations, BeforeCommit: benchBeforeCommit})
	ctx := context.Background()
	probe := fsyncProbe(b, dir)
	runtime.GC()
	var next atomic.Uint64
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				n := next.Add(1)
				if n > uint64(b.N) {
					return
				}
				sh := s.Shard(shards.Slot(n * 7919 % shards.SlotCount))
				if err := sh.Update(ctx, func(tx *shards.Tx) error { return benchPayment(tx, n) }); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	cpu = cpuTime() - cpu
	b.StopTimer()
	var commits uint64
	for _, sh := range s.All() {
		commits += sh.Stats().Commits
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "payments/s")
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(commits)/float64(b.N), "fsyncs/op")
	b.ReportMetric(float64(probe.Microseconds()), "probe-µs")
}

// BenchmarkView reads one payment by its key.
func BenchmarkView(b *testing.B) {
	s := shardstest.Open(b, shards.Options{Files: 1, Migrations: benchMigrations, BeforeCommit: benchBeforeCommit})
	sh := s.Shard(0)
	ctx, cancel := context.WithCancel(context.Background()) // as a request's
	defer cancel()
	const rows = 20_000
	for n := uint64(1); n <= rows; {
		err := sh.Update(ctx, func(tx *shards.Tx) error {
			for range 500 {
				if err := benchPayment(tx, n); err != nil {
					return err
				}
				n++
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		id := fmt.Sprintf("pay_01J%020d", uint64(i)*7919%rows+1)
		var amount int64
		var status, currency string
		err := sh.View(ctx, func(tx *shards.Tx) error {
			return tx.QueryRow("SELECT amount, status, currency FROM payments WHERE tenant = ? AND id = ?", "default", id).Scan(&amount, &status, &currency)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
