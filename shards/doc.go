// Package shards keeps what belongs to users in a folder of SQLite files, routed by
// hash: 1024 slots for ever, spread over a few files.
//
// Its promise: an Update that returned nil is on disk, whole, whatever happens next; one
// that returned ErrUnknown is there whole or not at all; any other error means that
// nothing of it is. A file that is damaged is taken out of service by itself, while the
// others go on, and nothing is ever deleted or repaired without a person.
//
// Open gives a Set, which holds the folder's lock and its Manifest. Set.Shard finds the
// Shard of a Slot (SlotOf). Shard.Update runs a closure on a Tx: one goroutine a shard
// gathers those that wait, runs each in a savepoint of one transaction, and answers all
// after one fsync, so that a fsync of 5 ms is shared by everybody instead of paid by
// each. Shard.View reads one snapshot on a pool of read-only connections. Options hands
// in the schema (Migration) and the hooks that see each group: what a closure attaches
// (Tx.Attach) reaches BeforeCommit within the transaction and AfterCommit behind it.
// Audit opens a stopped box for reading and changes nothing. OpenDerived opens one file
// beside the shards, such as analytics.db, for what can be computed anew.
//
// After a crash the WAL is written anew and synced before anything is served, so that
// nothing is acknowledged that only the kernel's cache still knew; an interrupted first
// start or migration is completed by the next one.
//
// Caveats. A closure runs on the shard's only writing goroutine: it must not wait, nor
// write to the same shard through another Update. Do not open a shard's file by other
// means while the set is open: closing any descriptor of it drops SQLite's locks. A flipped
// bit in a row is not noticed here, since neither SQLite nor this package sums its pages:
// the chained journal of package ledger is for that. DESIGN.md tells why failures are
// handled the way they are.
package shards
