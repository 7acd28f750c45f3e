// Package powercut is a disk whose power can be cut, as a file system in user space, and the torture of the real box on it.
//
// # Promise
//
// Disk is mounted on a folder and keeps, for each file, what was written since its last sync, and for each folder which names came and went.
// When its power goes, no operation comes back any more; when it is restored, the folder holds what was synced and, left to chance and a
// seed, a part of the rest: each block of a file in any version that it had, so that writes are lost, torn at 512 or 4096 bytes and
// reordered, within a file and between files; each size that the file had; each name kept or lost. So a program that answers before its
// sync came back is found out, which kill -9 cannot do (RELIABILITY.md, rule 5; INV-2, 15, 16, fault 2).
//
// # Main types
//
// [Disk] with [Options]; [Discipline] says when names are durable, and is drawn anew each time that the power comes back. The tests play the rounds of
// internal/torture on it (`make torture-power`).
//
// # After a crash
//
// All is in memory: the harness's own crash takes the disk with it. Run under `unshare --mount`, as make does, it leaves no mount behind.
//
// # Caveats
//
// It needs /dev/fuse and root, and is a module of its own so that FUSE is not in the product's. The kernel keeps cache, mappings and
// locks, as for any file system, but writes through: each write(2) reaches Disk at once, what is written to a mapping when it is synced or let go. Modes
// and times are kept without a sync. A disk that loses what it has confirmed, or that damages what nobody wrote, is another fault
// (number 6), as is one that fails (3): shards/shardstest has those.
package powercut
