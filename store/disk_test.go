package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

// withFreePages opens a store that can commit a few times without growing its file.
func withFreePages(t *testing.T) *store.Store {
	t.Helper()
	s := storetest.Open(t, options)
	fatalIf(t, update(s, "old", strings.Repeat("x", 40_000)))
	fatalIf(t, update(s, "old", "acknowledged"))
	return s
}

func update(s *store.Store, k, v string) error { return s.Update(context.Background(), put(k, v)) }

func TestDiskFull(t *testing.T) {
	s := withFreePages(t)
	restore := storetest.FailDisk(t, s, storetest.Full)
	for range 3 {
		if err := update(s, "k", "v"); !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUnknown) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v", err)
		}
		if v := get(t, s, "old"); v != "acknowledged" {
			t.Fatalf("reads do not go on: %q", v)
		}
	}
	restore()
	if err := update(s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats().Rescues; got != 0 {
		t.Fatalf("%d rescues for a refused write", got)
	}
}

func TestFailedSync(t *testing.T) {
	s := withFreePages(t)
	restore := storetest.FailDisk(t, s, storetest.Dying)
	defer restore()
	err := update(s, "k", "lost")
	if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
		t.Fatalf("got %v", err)
	}
	if err := s.Err(); err != nil {
		t.Fatalf("not healed: %v", err)
	}
	if got := s.Stats().Rescues; got != 1 {
		t.Fatalf("%d rescues", got)
	}
	if get(t, s, "old") != "acknowledged" || get(t, s, "k") != "" {
		t.Fatal("the copy is not what was acknowledged")
	}
	if err := update(s, "k", "second"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := store.ViewFile(s.Path(), func(tx *bbolt.Tx) error {
		if v := string(tx.Bucket([]byte("b")).Get([]byte("k"))); v != "second" {
			t.Errorf("after reopen: %q", v)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestReadersOutliveARescue(t *testing.T) {
	s := withFreePages(t)
	restore := storetest.FailDisk(t, s, storetest.Dying)
	defer restore()
	if err := s.View(func(tx *bbolt.Tx) error {
		if err := update(s, "k", "v"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		if v := string(tx.Bucket([]byte("b")).Get([]byte("old"))); v != "acknowledged" {
			t.Errorf("the snapshot changed: %q", v)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestRescueIsTriedUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := withFreePages(t)
		obstacle := filepath.Join(s.Path()+".rescue", "obstacle")
		if err := os.MkdirAll(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		restore := storetest.FailDisk(t, s, storetest.Dying)
		defer restore()
		if err := update(s, "k", "v"); !errors.Is(err, store.ErrUnknown) {
			t.Fatalf("got %v", err)
		}
		for range 3 {
			if err := update(s, "k", "v"); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
				t.Fatalf("while out of service: %v", err)
			}
			if err := s.View(func(*bbolt.Tx) error { return nil }); !errors.Is(err, store.ErrUnavailable) {
				t.Fatalf("a read while out of service: %v", err)
			}
			time.Sleep(10 * time.Second)
		}
		if err := os.RemoveAll(s.Path() + ".rescue"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := s.Err(); err != nil {
			t.Fatalf("not healed: %v", err)
		}
		if err := update(s, "k", "v"); err != nil {
			t.Fatal(err)
		}
		if v := get(t, s, "old"); v != "acknowledged" {
			t.Fatalf("old = %q", v)
		}
	})
}
