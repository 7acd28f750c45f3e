package shards_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"tenderbox/shards"
)

// Without room for its new epoch a copy is refused as it is, and by the name of what is missing. The disk is one that only this thread sees.
func TestNewEpochOnFullDisk(t *testing.T) {
	dir := tempDir(t)
	s, err := shards.Open(ctx, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	small := t.TempDir()
	mounted := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never again: the thread ends with the goroutine, and its mount with it
		err := syscall.Unshare(syscall.CLONE_NEWNS)
		if err == nil {
			err = errors.Join(syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), syscall.Mount("none", small, "tmpfs", 0, "size=64k"))
		}
		if mounted <- err; err != nil {
			return
		}
		file := filepath.Join(small, "manifest.json")
		if err := os.WriteFile(file, manifest, 0o600); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(small, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the disk does not fill: %v", err)
		}
		if _, err := shards.NewEpoch(small); !errors.Is(err, shards.ErrFull) {
			t.Errorf("got %v, want %v", err, shards.ErrFull)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, manifest) {
			t.Errorf("the manifest was changed: %s, %v", got, err)
		}
		if err := os.Remove(filepath.Join(small, "filler")); err != nil {
			t.Error(err)
		}
		if epoch, err := shards.NewEpoch(small); err != nil || epoch <= 1 {
			t.Errorf("with room again: epoch %d, %v", epoch, err)
		}
	}()
	<-done
	if err := <-mounted; err != nil {
		t.Skipf("no disk can be mounted here: %v", err)
	}
}
