package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

const (
	fileMode = 0o600

	// mapBytes of address space are mapped from the start on 64-bit machines (it costs no memory), because bbolt has to wait
	// for every reader before it can map more.
	mapBytes = 1 << 30

	// allocBytes is how much a file grows at a time; each growth costs an fsync of its own.
	allocBytes = 4 << 20

	// freelistPagesMax free pages are listed in each commit, what fits into one page (8 bytes each). A longer list is left out and rebuilt by the
	// next Open: a file that was drained of a million records would write the whole list with each commit, and that costs a third of
	// the throughput at a few thousand entries already.
	freelistPagesMax = 500

	// A file larger than trimAbove lets go of its resident pages every trimEvery while it is written. They stay in the machine's page cache; but a
	// box with a million records must not look (to a memory limit, to a person) as if it needed them all.
	trimAbove = 64 << 20
	trimEvery = 500 * time.Millisecond

	lockPoll  = 10 * time.Millisecond
	openTries = 16 // times that the file may be replaced under our hands before we give up
)

// file is one open bbolt file. A rescue replaces a Store's file by a fresh copy.
type file struct {
	path string
	os   *os.File // holds the lock
	db   *bbolt.DB

	beginMu sync.Mutex // guards db.Begin: if it panics, bbolt keeps its locks for ever
	dead    error      // why db must not be touched any more
}

// openFile locks, verifies and opens the file at path; it creates it if there is none.
func openFile(path string, o Options) (*file, error) {
	f, err := lockFile(path, o)
	if err != nil {
		return nil, err
	}
	for _, left := range []string{path + ".new", path + ".rescue"} {
		if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
			_ = f.Close()
			return nil, err
		}
	}
	if err := verifyFile(f, path, o.Logger); err != nil {
		_ = f.Close()
		return nil, err
	}
	return mapFile(path, f)
}

// lockFile opens the file and takes the lock, bbolt's own: flock follows the description that bbolt is given later.
func lockFile(path string, o Options) (*os.File, error) {
	for range openTries {
		f, err := os.OpenFile(path, os.O_RDWR, fileMode)
		if errors.Is(err, fs.ErrNotExist) {
			if err = createFile(path, o); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		if same, err := lock(f, path, syscall.LOCK_EX, o.LockTimeout); err != nil || !same {
			_ = f.Close()
			if err != nil {
				return nil, err
			}
			continue
		}
		return f, nil
	}
	return nil, fmt.Errorf("%w: it is replaced again and again", ErrLocked)
}

// lock takes an advisory lock and says whether f is still the file of that name.
func lock(f *os.File, path string, how int, timeout time.Duration) (same bool, err error) {
	for end := time.Now().Add(timeout); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return false, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		if !time.Now().Before(end) {
			return false, ErrLocked
		}
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return err == nil && os.SameFile(mine, named), nil
}

// createFile makes an empty database under another name and gives it its own when it is whole and synced: an empty or
// half-written file at path is therefore always damage, never a start that was cut short.
func createFile(path string, o Options) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	if same, err := lock(f, tmp, syscall.LOCK_EX, o.LockTimeout); err != nil || !same {
		_ = f.Close()
		return err
	}
	if err := f.Truncate(0); err != nil {
		_ = f.Close()
		return err
	}
	n, err := mapFile(tmp, f)
	if err != nil {
		return err
	}
	defer n.close()
	switch err := os.Link(tmp, path); {
	case err == nil:
		err = os.Remove(tmp)
		if err != nil {
			return err
		}
	case errors.Is(err, fs.ErrExist):
		err := os.Remove(tmp) // somebody was quicker: theirs it is
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	case errors.Is(err, fs.ErrNotExist):
		return nil // and has tidied up already
	default: // a file system without links, an SD card's
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	return syncDir(path)
}

// mapFile hands a locked file to bbolt, which writes the first pages of an empty one. It owns f, also on error.
func mapFile(path string, f *os.File) (*file, error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	n := &file{path: path, os: f}
	o := bbolt.Options{
		FreelistType: bbolt.FreelistMapType,
		OpenFile:     func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	}
	if math.MaxInt > math.MaxInt32 {
		o.InitialMmapSize = mapBytes
	}
	err := guard(path, func() (err error) {
		n.db, err = bbolt.Open(path, fileMode, &o)
		return err
	})
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	n.db.AllocSize = allocBytes
	return n, nil
}

// begin starts a transaction. The caller guards against panics of what it does with it.
func (f *file) begin(writable bool) (*bbolt.Tx, error) {
	f.beginMu.Lock()
	defer f.beginMu.Unlock()
	if f.dead != nil {
		return nil, f.dead
	}
	var tx *bbolt.Tx
	err := guard(f.path, func() (err error) {
		tx, err = f.db.Begin(writable)
		return err
	})
	if isPanic(err) {
		f.dead = err
	}
	return tx, err
}

func (f *file) beginRead() (*bbolt.Tx, error) { return f.begin(false) }

// abandon gives the file up after a panic that may have left bbolt's locks taken.
func (f *file) abandon(cause error) {
	f.beginMu.Lock()
	defer f.beginMu.Unlock()
	if f.dead == nil {
		f.dead = cause
	}
}

// close waits for transactions and lets go of the file. Of an abandoned one it only drops the lock: its mapping stays, because
// bbolt's own Close could wait for ever.
func (f *file) close() error {
	f.beginMu.Lock()
	dead := f.dead
	f.dead = ErrClosed
	f.beginMu.Unlock()
	if dead != nil {
		return f.os.Close()
	}
	return guard(f.path, f.db.Close)
}

// tuneFreelist decides, between commits, whether the next one writes the list of free pages.
func (f *file) tuneFreelist() {
	st := f.db.Stats()
	f.db.NoFreelistSync = st.FreePageN+st.PendingPageN > freelistPagesMax
}

// trim takes the file's pages out of the process's resident memory. Whoever reads one gets it back from the page cache.
func (f *file) trim() {
	tx, err := f.beginRead() // holds the mapping where it is
	if err != nil {
		return
	}
	defer func() { _ = tx.Rollback() }()
	if size := tx.Size(); size > trimAbove {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, f.db.Info().Data, uintptr(size), unix.MADV_DONTNEED)
	}
}

func isPanic(err error) bool {
	var corrupt *CorruptError
	var panicked *PanicError
	return errors.As(err, &corrupt) || errors.As(err, &panicked)
}

// syncDir makes the names in path's folder durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// openRead locks a stopped box's file for reading and verifies it.
func openRead(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if _, err := lock(f, path, syscall.LOCK_SH, 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	if err := verifyFile(f, path, slog.New(slog.DiscardHandler)); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// CheckFile verifies a file that nobody has open. It writes nothing. Errors to branch on: fs.ErrNotExist, ErrLocked, *CorruptError.
func CheckFile(path string) error {
	f, err := openRead(path)
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	defer f.Close()
	m, _, err := readMetas(f)
	if err == nil {
		err = verify(f, m, true, min(runtime.GOMAXPROCS(0), walkersMax))
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", path, &CorruptError{path, err})
	}
	return nil
}

// ViewFile verifies a file that nobody has open and runs fn on it. It writes nothing.
func ViewFile(path string, fn func(tx *bbolt.Tx) error) error {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	f, err := openRead(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	err = guard(path, func() error {
		db, err := bbolt.Open(path, fileMode, &bbolt.Options{
			ReadOnly: true,
			OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		})
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(fn)
	})
	_ = f.Close() // bbolt closed it, unless it panicked
	return err
}
