package shards

import (
	"errors"
	"fmt"
)

// Errors to branch on. What a closure returns reaches its caller unchanged;
// these arise outside of it.
var (
	// ErrOverloaded: the shard's queue is full. Nothing was done.
	ErrOverloaded = errors.New("shards: too many writes are waiting")

	// ErrUnknown: COMMIT or an fsync failed, so the group may or may not be on
	// disk. The file is closed, opened anew and verified; ask it what became of
	// the write, or repeat the write under the same key.
	ErrUnknown = errors.New("shards: outcome of the commit is unknown")

	// ErrUnavailable: the shard is isolated (Shard.Err says why). Nothing was done.
	ErrUnavailable = errors.New("shards: shard unavailable")

	// ErrFull: the disk is full. Nothing was written; reads go on, and writes do
	// as soon as there is room.
	ErrFull = errors.New("shards: disk full")

	// ErrClosed: the set is closed or closing. Nothing was done.
	ErrClosed = errors.New("shards: closed")

	// ErrLocked: another process, or another Set of this one, has the folder.
	ErrLocked = errors.New("shards: folder is in use by another process")

	// ErrReadOnly: a write in a View, or in a Set opened by Audit.
	ErrReadOnly = errors.New("shards: read-only")

	// ErrViewTooLong: a View was ended, because it took longer than Options.ViewTimeout or
	// kept the WAL from starting over.
	ErrViewTooLong = errors.New("shards: view took too long")

	// ErrNoRows: QueryRow found nothing. It is sql.ErrNoRows.
	ErrNoRows = errNoRows
)

// CorruptError says that a file is damaged, missing or not the one that
// belongs there. The shard is isolated; nothing was deleted or repaired.
type CorruptError struct {
	Path  string
	Cause error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("shards: %s is damaged (restore it from a backup; the other shards go on): %v", e.Path, e.Cause)
}

func (e *CorruptError) Unwrap() error { return e.Cause }

// MismatchError says that a folder was made by another program, by a newer
// version, or with other settings. Nothing was changed in it.
type MismatchError struct {
	Path string // the file that tells
	What string // what differs: "format", "slots", "hash", "migration 3"…
	Want string // what this program knows
	Have string // what the folder holds
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("shards: %s: %s is %s, this program expects %s (use the version that wrote the folder, or a newer one)",
		e.Path, e.What, e.Have, e.Want)
}

// PanicError is what a caller gets whose closure panicked. Its writes and
// attachments are undone; its neighbours are not affected.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("shards: closure panicked: %v", e.Value) }
