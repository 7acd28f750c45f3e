package shards

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const lockName = "lock"

// folderLock keeps a second box off the folder. SQLite's own locks would let two
// processes take turns, and each would believe that its index of recent keys is
// complete. It is an flock, so it ends with the process however that ends.
type folderLock struct{ file *os.File }

// lockFolder takes the lock or returns ErrLocked. Without create, a folder that has
// no lock file was never in use and is not given one: the lock is then empty.
func lockFolder(dir string, create bool) (*folderLock, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), flags, 0o600)
	if err != nil {
		if !create && errors.Is(err, os.ErrNotExist) {
			return &folderLock{}, nil
		}
		return nil, fmt.Errorf("shards: lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s (stop the other one first)", ErrLocked, dir)
		}
		return nil, fmt.Errorf("shards: lock %s: %w", dir, err)
	}
	return &folderLock{f}, nil
}

func (l *folderLock) release() error {
	if l == nil || l.file == nil {
		return nil
	}
	return l.file.Close() // the last descriptor of an flock releases it
}
