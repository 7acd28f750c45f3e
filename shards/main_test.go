package shards_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SHARDS_TEST_HOLD"); dir != "" {
		holdFolder(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

var ctx = context.Background()

// migrations of most tests: a table of keys and one that the group hook fills.
var migrations = []shards.Migration{
	{Version: 1, Name: "things", SQL: `CREATE TABLE things (id TEXT PRIMARY KEY, n INTEGER NOT NULL CHECK (n >= 0), pad BLOB) STRICT, WITHOUT ROWID`},
	{Version: 2, Name: "log", SQL: `CREATE TABLE log (seq INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT; CREATE INDEX log_line ON log (line)`},
}

func options() shards.Options { return shards.Options{Files: 1, Migrations: migrations} }

func put(sh *shards.Shard, id string, n int) error {
	return sh.Update(ctx, insert(id, n))
}

func insert(id string, n int) func(tx *shards.Tx) error {
	return func(tx *shards.Tx) error {
		_, err := tx.Exec("INSERT INTO things (id, n) VALUES (?, ?)", id, n)
		return err
	}
}

func count(t testing.TB, sh *shards.Shard) int {
	t.Helper()
	var n int
	err := sh.View(ctx, func(tx *shards.Tx) error { return tx.QueryRow("SELECT count(*) FROM things").Scan(&n) })
	if err != nil {
		t.Fatalf("count: %v", err)
	}
	return n
}

func has(t testing.TB, sh *shards.Shard, id string) bool {
	t.Helper()
	var n int
	err := sh.View(ctx, func(tx *shards.Tx) error { return tx.QueryRow("SELECT n FROM things WHERE id = ?", id).Scan(&n) })
	if err != nil && !errors.Is(err, shards.ErrNoRows) {
		t.Fatalf("reading %s: %v", id, err)
	}
	return err == nil
}

// group runs closures in one transaction: the writer is held by a first one until all
// the others wait. It returns their errors.
func group(t testing.TB, sh *shards.Shard, fns ...func(tx *shards.Tx) error) []error {
	t.Helper()
	running, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := sh.Update(ctx, func(*shards.Tx) error { close(running); <-release; return nil })
		if err != nil {
			t.Errorf("the closure that holds the writer: %v", err)
		}
	})
	<-running
	errs := make([]error, len(fns))
	for i, fn := range fns {
		want := i + 1
		wg.Go(func() { errs[i] = sh.Update(ctx, fn) })
		for sh.Stats().Queued < want { // in order
			yield()
		}
	}
	close(release)
	wg.Wait()
	return errs
}

func open(t testing.TB, o shards.Options) (*shards.Set, *shards.Shard) {
	t.Helper()
	s := shardstest.Open(t, o)
	return s, s.Shard(0)
}

func reopen(t testing.TB, s *shards.Set, dir string, o shards.Options) *shards.Set {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	return shardstest.OpenDir(t, dir, o)
}

func tempDir(t testing.TB) string { return filepath.Join(t.TempDir(), "shards") }

func mustPut(t testing.TB, sh *shards.Shard, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := put(sh, fmt.Sprintf("id-%06d", i), i); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
	}
}
