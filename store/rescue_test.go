package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
)

func openTest(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "a.db"), Options{Buckets: []string{"b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := CheckFile(s.path); err != nil {
			t.Error(err)
		}
	})
	// Free pages, so that no commit of the tests has to grow the file.
	for _, v := range []string{strings.Repeat("x", 40_000), "acknowledged"} {
		if err := write(s, "old", v); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func write(s *Store, k, v string) error {
	return s.Update(context.Background(), func(tx *bbolt.Tx) error { return tx.Bucket([]byte("b")).Put([]byte(k), []byte(v)) })
}

func read(t *testing.T, s *Store, k string) (v string) {
	t.Helper()
	if err := s.View(func(tx *bbolt.Tx) error {
		v = string(tx.Bucket([]byte("b")).Get([]byte(k)))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestFailedLastSync: the header was written and its sync failed. The operation is in force in the page cache only; the
// copy makes it durable, and only then is it acknowledged.
func TestFailedLastSync(t *testing.T) {
	s := openTest(t)
	f := s.file.Load()
	tx, err := f.begin(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Bucket([]byte("b")).Put([]byte("k"), []byte("late")); err != nil {
		t.Fatal(err)
	}
	id := tx.ID()
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.resolve(f, id, syscall.EIO); err != nil {
		t.Fatalf("got %v, want nil: the copy holds it", err)
	}
	if s.Stats().Rescues != 1 || read(t, s, "k") != "late" {
		t.Fatalf("%+v", s.Stats())
	}
}

// TestLongFreelistIsLeftOut: see freelistPagesMax.
func TestLongFreelistIsLeftOut(t *testing.T) {
	s := openTest(t)
	big := strings.Repeat("x", (freelistPagesMax+100)*os.Getpagesize())
	for _, v := range []string{big, "", "", ""} {
		if err := write(s, "big", v); err != nil {
			t.Fatal(err)
		}
	}
	m, _, err := readMetas(s.file.Load().os)
	if err != nil || m.freelist != noFreelist {
		t.Fatalf("list at page %d, %v", m.freelist, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if v := read(t, again, "old"); v != "acknowledged" {
		t.Fatalf("old = %q", v)
	}
}
