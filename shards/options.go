package shards

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"
)

// Limits and defaults.
const (
	// filesDefault: two files already keep two cores busy (27k payments/s); four leave
	// room for more cores, eight worsen the tail.
	filesDefault = 4
	// filesMax: more files than that only cost fsyncs and descriptors.
	filesMax = 64
	// batchDefault: closures a group. Large enough that one fsync of 5 ms is shared by
	// all of 256 clients, small enough that a group's CPU stays near 20 ms.
	batchDefault = 512
	// queueDefault: writes that wait for a shard. At 20k/s it is a fifth of a second;
	// what comes on top is refused at once instead of timing out later.
	queueDefault = 4096
	// checkpointDefault: WAL size at which the background checkpoint starts. Measured
	// on a filled file: 1.9 times the write rate of SQLite's own default of 4 MiB.
	checkpointDefault = 40 << 20
	// viewDefault: how long one View may hold its snapshot. Every snapshot keeps the
	// WAL from starting over, so none may be held for ever.
	viewDefault = 30 * time.Second
)

// Options of Open and Audit. The zero value works.
type Options struct {
	// Files is the number of shards that the first start creates (default 4, at most 64).
	// Later starts take it from the manifest.
	Files int

	// Migrations bring each file to the program's schema, in ascending order of Version.
	Migrations []Migration

	// BatchMax is the number of closures that share a commit at most (default 512).
	BatchMax int

	// QueueMax is the number of writes that wait for one shard at most (default 4096);
	// beyond it Update returns ErrOverloaded.
	QueueMax int

	// ReadConns is the number of concurrent Views a shard (default: the number of CPUs,
	// at least 2 and at most 8). Further ones wait.
	ReadConns int

	// ViewTimeout is how long a View may take at most (default 30 s; negative: no limit).
	ViewTimeout time.Duration

	// CheckpointBytes is the size of the WAL at which it is written back to the file in
	// the background (default 40 MiB). Twice this, and the writer waits for it.
	CheckpointBytes int64

	// Reserve is the disk space in bytes that is kept for UpdateReserved (default 16 MiB;
	// negative: none).
	Reserve int64

	// Erase overwrites with zeros what an Update replaces or deletes; SQLite otherwise leaves the bytes where they
	// were until the place is used again. It is for secrets, and costs writes.
	Erase bool

	// BeforeCommit runs once a group, inside its transaction, after all closures and
	// before COMMIT, with what the successful closures attached, in order. An error or
	// panic rolls the whole group back and is what all its callers get; but if a row breaks
	// a constraint, each closure runs again, with BeforeCommit, in a transaction of its own.
	// It does not run if no closure changed or attached anything.
	BeforeCommit func(tx *Tx, attached []any) error

	// AfterCommit runs after a durable commit and before the callers are answered, on the
	// writer's goroutine: it must be quick, and must not call the shard's Update.
	AfterCommit func(sh *Shard, attached []any)

	// OnIsolated is told when a shard is taken out of service, also by Open before it
	// returns. It runs on the goroutine that met the fault, so it must not wait for the shard.
	OnIsolated func(sh *Shard, err error)

	// OnRestored is told when an isolated shard serves again: after I/O errors it is
	// tried anew with growing pauses. Damage is never retried.
	OnRestored func(sh *Shard)

	// Logger gets what nobody is returned (default: nothing is logged).
	Logger *slog.Logger
}

// Migration is one step of the schema. It runs once a file, in one transaction with the
// record that it ran. SQL may hold several statements, and must not change once released.
type Migration struct {
	Version int // 1, 2, 3…
	Name    string
	SQL     string
}

func (o Options) withDefaults() Options {
	if o.Files == 0 {
		o.Files = filesDefault
	}
	if o.BatchMax == 0 {
		o.BatchMax = batchDefault
	}
	if o.QueueMax == 0 {
		o.QueueMax = queueDefault
	}
	if o.ReadConns == 0 {
		o.ReadConns = min(max(runtime.GOMAXPROCS(0), 2), 8)
	}
	if o.ViewTimeout == 0 {
		o.ViewTimeout = viewDefault
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = checkpointDefault
	}
	if o.Reserve == 0 {
		o.Reserve = reserveDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("shards: "+format, args...))
	}
	if o.Files < 1 || o.Files > filesMax {
		bad("Files is %d, want 1 to %d", o.Files, filesMax)
	}
	if o.BatchMax < 1 {
		bad("BatchMax is %d, want at least 1", o.BatchMax)
	}
	if o.QueueMax < 1 {
		bad("QueueMax is %d, want at least 1", o.QueueMax)
	}
	if o.ReadConns < 1 {
		bad("ReadConns is %d, want at least 1", o.ReadConns)
	}
	if o.CheckpointBytes < 0 {
		bad("CheckpointBytes is %d, want a positive size", o.CheckpointBytes)
	}
	for i, m := range o.Migrations {
		if m.Version != i+1 {
			bad("migration %q has version %d, want %d: versions count from 1 without gaps", m.Name, m.Version, i+1)
		}
		if m.Name == "" || m.SQL == "" {
			bad("migration %d lacks a name or its SQL", m.Version)
		}
	}
	return errors.Join(problems...)
}
