package shards_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

const filled = 3000

// fill makes a stopped box of three shards with rows in each.
func fill(t testing.TB) (dir string) {
	t.Helper()
	dir = tempDir(t)
	s, err := shards.Open(ctx, dir, shards.Options{Files: 3, Migrations: migrations})
	if err != nil {
		t.Fatal(err)
	}
	for _, sh := range s.All() {
		err := sh.Update(ctx, func(tx *shards.Tx) error {
			for i := range filled {
				if err := insert(fmt.Sprintf("id-%06d", i), i)(tx); err != nil {
					return err
				}
				if _, err := tx.Exec("INSERT INTO log (line) VALUES (?)", fmt.Sprint("line ", i)); err != nil {
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
	return dir
}

// damage does something to a file of a stopped box.
var damages = map[string]func(t testing.TB, path string){
	"missing": func(t testing.TB, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	},
	"empty":           func(t testing.TB, path string) { truncate(t, path, 0) },
	"half a page":     func(t testing.TB, path string) { truncate(t, path, 2048) },
	"cut in half":     func(t testing.TB, path string) { truncate(t, path, 20*4096) },
	"cut by one page": func(t testing.TB, path string) { truncate(t, path, size(t, path)-4096) },
	"cut by one byte": func(t testing.TB, path string) { truncate(t, path, size(t, path)-1) },
	"zeroed header":   func(t testing.TB, path string) { patch(t, path, 0, make([]byte, 100)) },
	"zeroed page":     func(t testing.TB, path string) { patch(t, path, 10*4096, make([]byte, 4096)) },
	"noise in pages": func(t testing.TB, path string) {
		rng := rand.New(rand.NewPCG(1, 2))
		for page := int64(1); page < size(t, path)/4096; page++ {
			var b [4]byte
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			patch(t, path, page*4096+int64(rng.IntN(8)), b[:]) // the page's own header
		}
	},
	"text": func(t testing.TB, path string) {
		if err := os.WriteFile(path, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
	},
	"a folder": func(t testing.TB, path string) {
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
	},
	"another shard's": func(t testing.TB, path string) { copyFile(t, filepath.Join(filepath.Dir(path), "0002.db"), path) },
	"another box's":   func(t testing.TB, path string) { copyFile(t, filepath.Join(fill(t), "0001.db"), path) },
}

func size(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func truncate(t testing.TB, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// INV-19, fault 6: a damaged shard is isolated, the others serve, nothing is deleted
// or repaired.
func TestDamagedShardIsIsolated(t *testing.T) {
	t.Parallel()
	for name, spoil := range damages {
		t.Run(name, func(t *testing.T) {
			dir := fill(t)
			path := filepath.Join(dir, "0001.db")
			spoil(t, path)
			before := snapshot(t, dir)
			var reported []int
			s, err := shards.Open(ctx, dir, shards.Options{Migrations: migrations, OnIsolated: func(sh *shards.Shard, err error) {
				reported = append(reported, sh.ID())
			}})
			if err != nil {
				t.Fatal(err)
			}
			bad := s.All()[1]
			var corrupt *shards.CorruptError
			if err := bad.Err(); !errors.As(err, &corrupt) || corrupt.Path != path {
				t.Errorf("Err: %v, want a CorruptError about the file", err)
			}
			if s.Healthy() != 2 || len(reported) != 1 || reported[0] != 1 {
				t.Errorf("%d healthy, reported %v", s.Healthy(), reported)
			}
			if err := put(bad, "x", 1); !errors.Is(err, shards.ErrUnavailable) {
				t.Errorf("Update: %v, want ErrUnavailable", err)
			}
			if err := bad.View(ctx, func(*shards.Tx) error { return nil }); !errors.Is(err, shards.ErrUnavailable) {
				t.Errorf("View: %v, want ErrUnavailable", err)
			}
			for _, id := range []int{0, 2} {
				if n := count(t, s.All()[id]); n != filled {
					t.Errorf("shard %d has %d rows", id, n)
				}
				mustPut(t, s.All()[id], filled, filled+3)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if after := snapshot(t, dir); after["0001.db"] != before["0001.db"] {
				t.Error("the damaged file was changed")
			}
			a, err := shards.Audit(ctx, dir, shards.Options{Migrations: migrations})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			finding := a.All()[1].Err()
			if finding == nil {
				finding = a.All()[1].Check(ctx)
			}
			if !errors.As(finding, &corrupt) {
				t.Errorf("Audit finds %v, want a CorruptError", finding)
			}
		})
	}
}

func TestAllShardsDamaged(t *testing.T) {
	dir := fill(t)
	for i := range 3 {
		damages["zeroed header"](t, filepath.Join(dir, fmt.Sprintf("%04d.db", i)))
	}
	s, err := shards.Open(ctx, dir, shards.Options{Migrations: migrations})
	if err != nil {
		t.Fatal(err)
	}
	if s.Healthy() != 0 {
		t.Errorf("%d healthy", s.Healthy())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// What only the caller can see, such as a broken chain of its own, isolates as well.
func TestIsolateByTheCaller(t *testing.T) {
	s := shardstest.Open(t, shards.Options{Files: 2, Migrations: migrations})
	sh := s.All()[1]
	mustPut(t, sh, 0, 3)
	sh.Isolate(errOwn)
	var corrupt *shards.CorruptError
	if err := sh.Err(); !errors.As(err, &corrupt) || !errors.Is(err, errOwn) {
		t.Errorf("Err: %v", err)
	}
	if err := put(sh, "x", 1); !errors.Is(err, shards.ErrUnavailable) || !errors.Is(err, errOwn) {
		t.Errorf("Update: %v", err)
	}
	if err := sh.View(ctx, func(*shards.Tx) error { return nil }); !errors.Is(err, shards.ErrUnavailable) {
		t.Errorf("View: %v", err)
	}
	mustPut(t, s.All()[0], 0, 3)
}

// Damage that comes while the box runs isolates the shard when it is met.
func TestDamageWhileRunning(t *testing.T) {
	t.Parallel()
	read := func(tx *shards.Tx) error {
		var n int
		return tx.QueryRow("SELECT sum(n) FROM things WHERE id > 'id-0001'").Scan(&n)
	}
	for name, meet := range map[string]func(sh *shards.Shard) []error{
		"by a View":    func(sh *shards.Shard) []error { return []error{sh.View(ctx, read)} },
		"by the check": func(sh *shards.Shard) []error { return []error{sh.Check(ctx)} },
		"by the writer": func(sh *shards.Shard) []error {
			return group(t, sh, insert("a", 1), func(tx *shards.Tx) error { read(tx); return nil }, insert("b", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := fill(t)
			d := shardstest.NewDisk(t, dir)
			s, err := shards.Open(ctx, dir, shards.Options{Migrations: migrations})
			if err != nil {
				t.Fatal(err)
			}
			sh := s.All()[1]
			// The writer has read the whole file at the start; a failed commit gives it a new,
			// empty cache.
			d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0001.db-wal", Times: 1})
			if err := put(sh, "x", 1); !errors.Is(err, shards.ErrUnknown) {
				t.Fatal(err)
			}
			f, err := os.OpenFile(sh.Path(), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close() // after the set: closing it drops SQLite's locks
			garbage := []byte(strings.Repeat("\xff", 4096))
			for page := range size(t, sh.Path())/4096 - 1 {
				if _, err := f.WriteAt(garbage, (page+1)*4096); err != nil {
					t.Fatal(err)
				}
			}
			var corrupt *shards.CorruptError
			for i, err := range meet(sh) {
				if !errors.As(err, &corrupt) || (name != "by the check" && !errors.Is(err, shards.ErrUnavailable)) {
					t.Errorf("%d: %v, want ErrUnavailable because of a CorruptError", i, err)
				}
			}
			if err := sh.Err(); !errors.As(err, &corrupt) || s.Healthy() != 2 {
				t.Errorf("Err: %v, %d healthy", err, s.Healthy())
			}
			if err := put(sh, "x", 1); !errors.Is(err, shards.ErrUnavailable) {
				t.Errorf("Update: %v, want ErrUnavailable", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A WAL of which bytes were flipped loses what follows the first of them, and is no
// reason for the shard to be out; the chain of the journal finds what is gone.
func TestDamagedWAL(t *testing.T) {
	dir := tempDir(t)
	s, err := shards.Open(ctx, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s.Shard(0), 0, 100)
	killed := tempDir(t)
	copyFolder(t, dir, killed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join(killed, "0000.db-wal")
	patch(t, wal, size(t, wal)/2, []byte{0xff, 0xfe, 0xfd})
	s = shardstest.OpenDir(t, killed, options())
	n := count(t, s.Shard(0))
	if n == 0 || n >= 100 {
		t.Errorf("%d rows, want those before the damage", n)
	}
	for i := range n {
		if !has(t, s.Shard(0), fmt.Sprintf("id-%06d", i)) {
			t.Errorf("row %d of %d is missing", i, n)
		}
	}
}
