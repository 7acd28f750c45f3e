package store

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
	"golang.org/x/sys/unix"
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

// replaceDisk puts a device in the place of the store's descriptor: /dev/full refuses writes as a full disk does; /dev/null
// loses them and refuses fsync, as a dying disk does. The mapping still shows the file. The lock stays with a duplicate.
func replaceDisk(t *testing.T, s *Store, device string) (restore func()) {
	t.Helper()
	fd := int(s.file.Load().os.Fd())
	keep, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := unix.Dup3(int(dev.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f := s.file.Load()
	return func() {
		if s.file.Load() == f {
			if err := unix.Dup3(keep, fd, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
		_ = unix.Close(keep)
	}
}

func TestDiskFull(t *testing.T) {
	s := openTest(t)
	restore := replaceDisk(t, s, "/dev/full")
	for range 3 {
		if err := write(s, "k", "v"); !errors.Is(err, ErrFull) || errors.Is(err, ErrUnknown) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v", err)
		}
		if v := read(t, s, "old"); v != "acknowledged" {
			t.Fatalf("reads do not go on: %q", v)
		}
	}
	restore()
	if err := write(s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats().Rescues; got != 0 {
		t.Fatalf("%d rescues for a refused write", got)
	}
}

func TestFailedSync(t *testing.T) {
	s := openTest(t)
	restore := replaceDisk(t, s, "/dev/null")
	defer restore()
	err := write(s, "k", "lost")
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknown) {
		t.Fatalf("got %v", err)
	}
	if err := s.Err(); err != nil {
		t.Fatalf("not healed: %v", err)
	}
	if got := s.Stats().Rescues; got != 1 {
		t.Fatalf("%d rescues", got)
	}
	if read(t, s, "old") != "acknowledged" || read(t, s, "k") != "" {
		t.Fatal("the copy is not what was acknowledged")
	}
	if err := write(s, "k", "second"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ViewFile(s.path, func(tx *bbolt.Tx) error {
		if v := string(tx.Bucket([]byte("b")).Get([]byte("k"))); v != "second" {
			t.Errorf("after reopen: %q", v)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
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

func TestReadersOutliveARescue(t *testing.T) {
	s := openTest(t)
	restore := replaceDisk(t, s, "/dev/null")
	defer restore()
	if err := s.View(func(tx *bbolt.Tx) error {
		if err := write(s, "k", "v"); !errors.Is(err, ErrUnavailable) {
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
		s := openTest(t)
		obstacle := filepath.Join(s.path+".rescue", "obstacle")
		if err := os.MkdirAll(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		restore := replaceDisk(t, s, "/dev/null")
		defer restore()
		if err := write(s, "k", "v"); !errors.Is(err, ErrUnknown) {
			t.Fatalf("got %v", err)
		}
		for range 3 {
			if err := write(s, "k", "v"); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknown) {
				t.Fatalf("while out of service: %v", err)
			}
			if err := s.View(func(*bbolt.Tx) error { return nil }); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("a read while out of service: %v", err)
			}
			time.Sleep(10 * time.Second)
		}
		if err := os.RemoveAll(s.path + ".rescue"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := s.Err(); err != nil {
			t.Fatalf("not healed: %v", err)
		}
		if err := write(s, "k", "v"); err != nil {
			t.Fatal(err)
		}
		if v := read(t, s, "old"); v != "acknowledged" {
			t.Fatalf("old = %q", v)
		}
	})
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
