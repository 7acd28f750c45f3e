package shards_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tenderbox/shards"
)

func openDerived(t testing.TB, path, of string) (*shards.Derived, *shards.Moved) {
	t.Helper()
	d, moved, err := shards.OpenDerived(ctx, path, of, shards.Options{Migrations: migrations})
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing %s: %v", path, err)
		}
	})
	return d, moved
}

// filledDerived makes a closed file with rows.
func filledDerived(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "derived.db")
	d, moved := openDerived(t, path, "box")
	if moved != nil {
		t.Fatalf("a new file was moved: %+v", moved)
	}
	err := d.Update(ctx, func(tx *shards.Tx) error {
		for i := range filled {
			if err := insert(strings.Repeat("x", 40)+string(rune('a'+i%26))+string(rune('0'+i/26)), i)(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDerivedKeepsWhatItHolds(t *testing.T) {
	path := filledDerived(t)
	d, moved := openDerived(t, path, "box")
	if moved != nil || count(t, d.Shard) != filled {
		t.Fatalf("opened again with %d rows, moved %+v", count(t, d.Shard), moved)
	}
}

// A derived file that cannot be used never keeps the box from starting: it is moved aside, whole.
func TestDerivedIsBegunAnewWhenUnusable(t *testing.T) {
	for name, damage := range damages {
		if name == "another shard's" {
			continue // there is none; below, it was derived from something else
		}
		t.Run(name, func(t *testing.T) {
			path := filledDerived(t)
			damage(t, path)
			_, missing := os.Lstat(path)
			d, moved := openDerived(t, path, "box")
			if n := count(t, d.Shard); n != 0 {
				t.Errorf("%d rows are left", n)
			}
			if missing != nil {
				if moved != nil {
					t.Errorf("a deleted file was moved to %s", moved.To)
				}
				return
			}
			if moved == nil || moved.Cause == nil || strings.Contains(moved.Cause.Error(), "backup") {
				t.Fatalf("moved: %+v", moved)
			}
			if _, err := os.Lstat(moved.To); err != nil {
				t.Errorf("what was there is gone: %v", err)
			}
			mustPut(t, d.Shard, 0, 3)
		})
	}
	for name, o := range map[string]shards.Options{
		"schema of a newer program":   {Migrations: migrations[:1]},
		"schema of another program":   {Migrations: []shards.Migration{{Version: 1, Name: "other", SQL: "CREATE TABLE other (x INTEGER) STRICT"}, migrations[1]}},
		"derived from something else": {Migrations: migrations},
	} {
		t.Run(name, func(t *testing.T) {
			path := filledDerived(t)
			of := "box"
			if name == "derived from something else" {
				of = "another box"
			}
			d, moved, err := shards.OpenDerived(ctx, path, of, o)
			if err != nil {
				t.Fatal(err)
			}
			if moved == nil || moved.To == "" {
				t.Errorf("moved: %+v", moved)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a WAL holds whose file was deleted must not get into the new file; an interrupted start leaves
// nothing that counts as damage.
func TestDerivedDropsWhatABreakLeftBehind(t *testing.T) {
	path := filledDerived(t)
	d, _ := openDerived(t, path, "box")
	mustPut(t, d.Shard, 0, 10)
	wal, err := os.ReadFile(path + "-wal") // as kill -9 leaves it
	if err != nil || len(wal) == 0 {
		t.Fatalf("no WAL: %v", err)
	}
	if err := errors.Join(d.Close(), os.Remove(path), os.WriteFile(path+"-wal", wal, 0o600), os.WriteFile(path+".new", []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	d, moved := openDerived(t, path, "box")
	if n := count(t, d.Shard); n != 0 || moved != nil {
		t.Errorf("%d rows, moved %+v", n, moved)
	}
}

func TestDerivedIsMovedAsideWhileOpen(t *testing.T) {
	path := filledDerived(t)
	d, _ := openDerived(t, path, "box")
	d.Isolate(errors.New("found damaged"))
	if err := put(d.Shard, "a", 1); !errors.Is(err, shards.ErrUnavailable) {
		t.Errorf("a write into a damaged file: %v", err)
	}
	to, err := d.MoveAside()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(to); err != nil {
		t.Error(err)
	}
	d, moved := openDerived(t, path, "box")
	if moved != nil || count(t, d.Shard) != 0 {
		t.Errorf("%d rows, moved %+v", count(t, d.Shard), moved)
	}
	// And one that somebody deleted under it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if to, err := d.MoveAside(); err != nil || to != "" {
		t.Errorf("moved to %q: %v", to, err)
	}
}
