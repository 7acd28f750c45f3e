package storetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"tenderbox/store"
)

// A Disk is what takes the place of a store's disk. The store's mapping still shows the file as it was.
type Disk string

const (
	Full  Disk = "/dev/full" // refuses writes
	Dying Disk = "/dev/null" // loses writes and refuses fsync
)

// FailDisk puts d in the place of the store's descriptor until restore is called. The store keeps its lock. After a rescue
// the store has another descriptor, and restore has nothing to do. Linux only.
func FailDisk(t testing.TB, s *store.Store, d Disk) (restore func()) {
	t.Helper()
	fd, err := descriptor(s.Path())
	if err != nil {
		t.Fatalf("storetest: %v", err)
	}
	kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("storetest: dup: %v", err)
	}
	dev, err := os.OpenFile(string(d), os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("storetest: %v", err)
	}
	defer dev.Close()
	if err := unix.Dup3(int(dev.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatalf("storetest: dup: %v", err)
	}
	return func() {
		t.Helper()
		defer unix.Close(kept)
		if now, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); now != string(d) {
			return
		}
		if err := unix.Dup3(kept, fd, unix.O_CLOEXEC); err != nil {
			t.Errorf("storetest: dup: %v", err)
		}
	}
}

// descriptor finds the process's descriptor of an open file.
func descriptor(path string) (int, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && target == path {
			return strconv.Atoi(e.Name())
		}
	}
	return 0, fmt.Errorf("%s is not open", path)
}
