package shards

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Derived is one SQLite file beside the shards that holds what can be computed anew,
// such as analytics.db. It has a shard's writer, readers, settings and checkpoints, and
// differs in three things: its commits are not synced one by one, so a power cut may take
// the last of them, whole and from the end, and who fills it keeps its cursor in the same
// transactions; a file that cannot be used is moved aside and begun anew, instead of
// waiting for a person; and it has no slots, no reserve of disk space, and no lock of its
// own: whoever opens it has locked the folder.
type Derived struct {
	*Shard
	set *Set
}

// Moved says that a derived file could not be used and an empty one took its place.
type Moved struct {
	To    string // where it stands now; "": it was not there any more
	Cause error
}

// OpenDerived opens the file at path, or makes it. of names what it is derived from: a
// file that was derived from something else counts as damaged. moved is not nil if the
// file that stood there could not be used. Of the options, those about slots, hooks and
// the reserve have no effect.
func OpenDerived(ctx context.Context, path, of string, o Options) (d *Derived, moved *Moved, err error) {
	o.Files, o.Reserve = 1, -1
	o.BeforeCommit, o.AfterCommit, o.OnIsolated, o.OnRestored = nil, nil, nil, nil
	o = o.withDefaults()
	o.Logger = o.Logger.With("file", filepath.Base(path)) // its number would be a shard's
	if err := o.validate(); err != nil {
		return nil, nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	if d, err = openDerived(ctx, path, of, o); err == nil || !unusable(err) {
		return d, nil, err
	}
	moved = &Moved{Cause: err}
	if corrupt := (*CorruptError)(nil); errors.As(err, &corrupt) {
		moved.Cause = corrupt.Cause // its own words advise what a shard needs
	}
	if moved.To, err = moveAside(path); err != nil {
		return nil, nil, fmt.Errorf("shards: %w", errors.Join(err, moved.Cause))
	}
	d, err = openDerived(ctx, path, of, o)
	return d, moved, err
}

// unusable tells faults of the file itself from those of the disk or the system, which pass.
func unusable(err error) bool {
	var mismatch *MismatchError
	return classOf(err) == classCorrupt || errors.As(err, &mismatch)
}

func openDerived(ctx context.Context, path, of string, o Options) (*Derived, error) {
	s := &Set{dir: filepath.Dir(path), o: o, stop: make(chan struct{}), turn: newTurn(turnPlaces), checking: newTurn(1),
		manifest: Manifest{BoxID: of, Hash: SlotHash, Slots: SlotCount, Files: []string{filepath.Base(path)}}}
	s.reserve = newReserve(s)
	if err := createDerived(ctx, path, s.manifest); err != nil {
		return nil, fmt.Errorf("shards: making %s: %w", path, err)
	}
	sh := s.newShard(0, path)
	sh.writes = forDerived
	s.shards = []*Shard{sh}
	err := sh.look(ctx, forReading)
	if err == nil {
		err = sh.start(ctx)
	}
	if err == nil && unusable(sh.Err()) {
		err = sh.Err()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Derived{sh, s}, nil
}

// Close finishes the writes in hand and writes the WAL back. Closing twice is fine.
func (d *Derived) Close() error { return d.set.Close() }

// MoveAside closes a file that was found damaged while open, and moves it out of the way.
func (d *Derived) MoveAside() (to string, err error) {
	_ = d.Close() // it is damaged: what else is wrong with it tells nothing new
	return moveAside(d.path)
}

// createDerived makes the file if it is not there: under another name first, so that a
// start that was interrupted leaves none that looks damaged. Side files whose file was
// deleted hold what must not get into the new one.
func createDerived(ctx context.Context, path string, m Manifest) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	making := path + ".new"
	for _, old := range []string{making, making + "-wal", making + "-shm", path + "-wal", path + "-shm"} {
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := createFile(ctx, making, m, 0); err != nil {
		return err
	}
	if err := os.Rename(making, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// moveAside renames the file, and its WAL with it. The file goes first: without its WAL
// it could look sound and be neither old nor new, while a WAL without its file is dropped
// by the next start.
func moveAside(path string) (to string, err error) {
	to = path + ".broken-" + time.Now().UTC().Format("20060102T150405.000Z")
	switch err := os.Rename(path, to); {
	case errors.Is(err, fs.ErrNotExist):
		to = ""
	case err != nil:
		return "", err
	default:
		if err := os.Rename(path+"-wal", to+"-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := os.Remove(path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return to, syncDir(filepath.Dir(path))
}
