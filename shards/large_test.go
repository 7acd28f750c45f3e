package shards_test

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/shards"
)

// INV-19: damage in a file that is too large to be read before it serves is found a while after the start, and isolates its shard.
func TestLargeFileIsCheckedLater(t *testing.T) {
	dir := tempDir(t)
	s, err := shards.Open(ctx, dir, shards.Options{Files: 2, Migrations: migrations})
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 2000)
	for _, sh := range s.All() {
		err := sh.Update(ctx, func(tx *shards.Tx) error {
			for range 10_000 {
				if _, err := tx.Exec("INSERT INTO log (line) VALUES (?)", line); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "0001.db")
	if size(t, path) <= 16<<20 {
		t.Fatalf("%d bytes: not large", size(t, path))
	}
	patch(t, path, 2000*4096, make([]byte, 100*4096))
	synctest.Test(t, func(t *testing.T) {
		isolated := make(chan int, 2)
		s, err := shards.Open(ctx, dir, shards.Options{Migrations: migrations, OnIsolated: func(sh *shards.Shard, _ error) { isolated <- sh.ID() }})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if n := s.Healthy(); n != 2 {
			t.Errorf("%d shards serve at first, want 2", n)
		}
		if id := <-isolated; id != 1 || time.Since(began) < time.Second {
			t.Errorf("shard %d was isolated after %s, want the damaged one, and not while the box starts", id, time.Since(began))
		}
		if n := s.Healthy(); n != 1 {
			t.Errorf("%d shards serve, want 1", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
