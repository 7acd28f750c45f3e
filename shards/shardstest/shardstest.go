// Package shardstest opens shards for tests and looks at every file when the test
// ends, whatever the test was about. Its Disk injects faults below SQLite.
package shardstest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"tenderbox/shards"
)

// Open opens a Set in a new folder. When the test ends the Set is closed, if it is not
// yet, and every file must pass a full integrity check.
func Open(t testing.TB, o shards.Options) *shards.Set {
	t.Helper()
	return OpenDir(t, filepath.Join(t.TempDir(), "shards"), o)
}

// OpenDir is Open in a folder of the caller's.
func OpenDir(t testing.TB, dir string, o shards.Options) *shards.Set {
	t.Helper()
	s, err := shards.Open(context.Background(), dir, o)
	if err != nil {
		t.Fatalf("opening %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing %s: %v", dir, err)
		}
		Check(t, dir, o)
	})
	return s
}

// Check opens a closed folder as Audit does and checks every file. A folder that the
// test has opened again, under another Set, is left to that one's check.
func Check(t testing.TB, dir string, o shards.Options) {
	t.Helper()
	o.OnIsolated, o.OnRestored = nil, nil
	s, err := shards.Audit(context.Background(), dir, o)
	if errors.Is(err, shards.ErrLocked) {
		return
	}
	if err != nil {
		t.Errorf("auditing %s: %v", dir, err)
		return
	}
	for _, sh := range s.All() {
		if err := sh.Check(context.Background()); err != nil {
			t.Errorf("shard %d: %v", sh.ID(), err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing the audit of %s: %v", dir, err)
	}
}
