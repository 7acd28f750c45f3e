// Package storetest opens stores for tests and checks their files afterwards.
//
// Promise: a test that leaves a file structurally damaged, or a store that does not close, fails.
// [Open] is most of it; [Reopen] opens the same file again, as after a restart; [FailDisk] injects faults of the disk.
package storetest

import (
	"errors"
	"path/filepath"
	"testing"

	"tenderbox/store"
)

// Open opens a store on a fresh folder. When the test ends the store is checked and closed, and its file checked
// once more as `tenderbox check` would.
func Open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	return Reopen(t, filepath.Join(t.TempDir(), "test.db"), o)
}

// Reopen opens the store at path, with the checks of Open.
func Reopen(t testing.TB, path string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(path, o)
	if err != nil {
		t.Fatalf("storetest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Check(); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("storetest: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("storetest: close %s: %v", path, err)
		}
		if err := store.CheckFile(path); err != nil && !errors.Is(err, store.ErrLocked) {
			t.Errorf("storetest: %v", err)
		}
	})
	return s
}
