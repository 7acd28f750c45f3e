package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/sourcegraph/conc/panics"
	"go.etcd.io/bbolt"
)

const (
	// A rescue that failed is tried again after rescueWaitMin, then ever more seldom up to rescueWaitMax: each
	// try copies the file, and a disk in trouble deserves rest.
	rescueWaitMin = time.Second
	rescueWaitMax = 30 * time.Second

	// copyBytes is how much of a file a rescue copies in one transaction: it bounds its memory.
	copyBytes = 4 << 20
)

// commit commits tx, which carries n operations, and finds out what became of it.
func (s *Store) commit(f *file, tx *bbolt.Tx, n int) error {
	id := tx.ID()
	err := guard(s.path, tx.Commit)
	if err == nil {
		s.commits.Add(1)
		s.operations.Add(uint64(n))
		return nil
	}
	if isPanic(err) {
		return s.fail(f, err)
	}
	return s.resolve(f, id, err)
}

// resolve finds out, after the commit of transaction id failed with cause, whether the file holds it.
//
// bbolt writes data pages to free places, syncs, writes one header, syncs. If a write failed and the old header is in force,
// nothing that counts was touched: the file is as good as before. In any other case a sync failed: the page
// cache may show what the disk does not hold, so nothing is believed until a copy of it is on disk.
func (s *Store) resolve(f *file, id int, cause error) error {
	applied, seen := s.applied(f, id)
	if seen == nil && !applied && isWriteError(cause) {
		return s.refused(cause)
	}
	s.broken.Store(&failure{fmt.Errorf("%s: %w: %w", s.path, ErrUnavailable, cause)})
	s.o.Logger.Error("store: a sync failed, copying the file anew", slog.String("file", s.path), slog.Any("err", cause))
	if err := errors.Join(seen, s.rescue()); err != nil {
		s.o.Logger.Error("store: the file is out of service until it can be copied",
			slog.String("file", s.path), slog.Any("err", err))
		return fmt.Errorf("%s: %w: %w", s.path, ErrUnknown, cause)
	}
	s.broken.Store(nil)
	if !applied {
		return s.refused(cause)
	}
	return nil // the copy holds it and is on disk
}

// refused words the error of an operation that the file provably does not hold.
func (s *Store) refused(cause error) error {
	if isFull(cause) {
		return fmt.Errorf("%s: %w: %w", s.path, ErrFull, cause)
	}
	return fmt.Errorf("%s: %w: %w", s.path, ErrUnavailable, cause)
}

// isWriteError tells a refused write or growth (nothing reached the file's live pages) from a failed sync.
func isWriteError(err error) bool {
	var pe *fs.PathError
	return isFull(err) || errors.As(err, &pe) && pe.Op == "write" ||
		errors.Is(err, syscall.EFBIG) || errors.Is(err, os.ErrClosed)
}

// applied says whether transaction id is in force as the page cache shows it.
func (s *Store) applied(f *file, id int) (bool, error) {
	tx, err := f.beginRead()
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }()
	return tx.ID() >= id, nil
}

// fail takes a file out of service after a panic inside bbolt, which may have left its locks taken.
func (s *Store) fail(f *file, err error) error {
	f.abandon(err)
	s.broken.Store(&failure{err})
	s.o.Logger.Error("store: the file is out of service", slog.String("file", s.path), slog.Any("err", err))
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// heal tries the rescue again. It says whether the store is in service.
func (s *Store) heal() bool {
	if err := s.rescue(); err != nil {
		return false // said once, when it broke; Err tells who asks
	}
	s.broken.Store(nil)
	return true
}

// rescue writes all that the file shows to a new one, syncs it, gives it the file's name and goes on with it.
func (s *Store) rescue() error {
	old := s.file.Load()
	tmp := s.path + ".rescue"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n, err := copyTo(tmp, old)
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := errors.Join(os.Rename(tmp, s.path), syncDir(s.path)); err != nil {
		_ = n.close()
		return err
	}
	n.path = s.path
	s.file.Store(n)
	s.rescues.Add(1)
	s.o.Logger.Warn("store: the file was copied anew and is in service", slog.String("file", s.path))
	s.retired.Add(1)
	go func() {
		defer s.retired.Done()
		_ = panics.Try(func() { _ = old.close() }) // waits for the last readers; its content is superseded
	}()
	return nil
}

// copyTo copies what src shows into a new file, synced and locked.
func copyTo(path string, src *file) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	if _, err := lock(f, path, syscall.LOCK_EX, 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	dst, err := mapFile(path, f)
	if err != nil {
		return nil, err
	}
	dst.db.NoSync = true // one sync at the end
	err = guard(src.path, func() error { return bbolt.Compact(dst.db, src.db, copyBytes) })
	if err == nil {
		err = errors.Join(dst.db.Sync(), dst.os.Sync())
	}
	if err != nil {
		_ = dst.close()
		return nil, err
	}
	dst.db.NoSync = false
	return dst, nil
}
