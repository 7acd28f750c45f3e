package powercut

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// unmountPause and unmountTries bound the wait for the kernel to let go of the files of a process that has just ended.
	unmountPause, unmountTries = 5 * time.Millisecond, 400
	// writeMax is how much one write(2) may hand over at once: all of it, so that a write is one operation here too.
	writeMax = 1 << 20
	// deviceFile is where the kernel's side is.
	deviceFile = "/dev/fuse"
)

// units are what a disk writes whole: a sector, or a page of the cache.
var units = []int64{512, 4096}

// Options describe a Disk.
type Options struct {
	Seed uint64 // of all that a cut leaves to chance
	// Lie, if set, tells which files (by their last name) are not made durable by a sync, though it says so: a missing fsync.
	Lie func(name string) bool
}

// Disk is a file system that knows what was synced. Its methods may be called from any goroutine, but Restore and Close only when nobody
// uses the folder.
type Disk struct {
	dir    string
	lie    func(name string) bool
	server *fuse.Server

	mu       sync.Mutex // guards what follows
	random   *rand.Rand
	tree     *tree
	left     int           // operations until the power goes; 0: it stays
	dark     chan struct{} // closed when the power is gone
	released chan struct{} // closed when what waits in the dark gets its error
	tolls    map[string]int64
}

// The kinds of a Disk's toll.
const (
	tollWriteLost = "unsynced write lost"
	tollWriteKept = "unsynced write kept"
	tollWriteTorn = "unsynced write torn"
	tollNameLost  = "unsynced name lost"
	tollNameKept  = "unsynced name kept"
	tollStrict    = "cut of a strict disk"
	tollJournal   = "cut of a journaling disk"
	tollSync      = "sync"
)

// Mount puts an empty disk on a folder, which is made if it is not there.
func Mount(dir string, o Options) (*Disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &Disk{dir: dir, lie: o.Lie, random: rand.New(rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "disk/%d", o.Seed)))), tree: newTree(), tolls: map[string]int64{}}
	for _, kind := range []string{tollWriteLost, tollWriteKept, tollWriteTorn, tollNameLost, tollNameKept, tollStrict, tollJournal, tollSync} {
		d.tolls[kind] = 0
	}
	return d, d.mount()
}

// mount begins a life of the disk, under a discipline of its own.
func (d *Disk) mount() error {
	d.mu.Lock()
	d.tree.discipline = Discipline(d.random.IntN(int(disciplines)))
	d.left, d.dark, d.released = 0, make(chan struct{}), make(chan struct{})
	d.mu.Unlock()
	server, err := fuse.NewServer(&raw{RawFileSystem: fuse.NewDefaultRawFileSystem(), d: d, lists: map[uint64][]fuse.DirEntry{}}, d.dir, &fuse.MountOptions{
		FsName: "powercut", Name: "powercut", DirectMountStrict: true, MaxWrite: writeMax, DisableXAttrs: true, DisableReadDirPlus: true,
		// Nobody but the kernel changes a file, so that its cache is always right. (Without EnableLocks it keeps the locks as well.)
		ExplicitDataCacheControl: true,
	})
	if err != nil {
		return fmt.Errorf("mounting %s by %s: %w", d.dir, deviceFile, err)
	}
	d.server = server
	go server.Serve() // until it is unmounted, which waits for it
	return errors.Join(server.WaitMount(), keepFromChildren())
}

// keepFromChildren sees to it that programs that are started do not inherit the kernel's side of the mount.
func keepFromChildren() error {
	open, err := os.ReadDir("/proc/self/fd")
	for _, fd := range open {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && to == deviceFile {
			var n int
			if _, err := fmt.Sscan(fd.Name(), &n); err != nil {
				return err
			}
			unix.CloseOnExec(n)
		}
	}
	return err
}

// Cut takes the power away with the change that is the after-th from now (counted are writes, sizes, names and syncs; it does not happen any
// more), or when ctx ends. From then on no operation comes back. dead is called, which must end whoever uses the folder: what they still wait for
// then fails, and what they do about that must reach nobody.
func (d *Disk) Cut(ctx context.Context, after int, dead func()) {
	d.mu.Lock()
	d.left = max(after, 1)
	dark, released := d.dark, d.released
	d.mu.Unlock()
	select {
	case <-dark:
	case <-ctx.Done():
		d.mu.Lock()
		d.douse()
		d.mu.Unlock()
	}
	dead()
	close(released)
}

// douse takes the power away. The caller holds mu.
func (d *Disk) douse() {
	d.left = 0
	select {
	case <-d.dark:
	default:
		close(d.dark)
	}
}

// enter begins an operation: the caller holds mu when it returns OK. In the dark it waits, and returns an error.
func (d *Disk) enter(changes bool) fuse.Status {
	d.mu.Lock()
	if changes && d.left > 0 {
		if d.left--; d.left == 0 {
			d.douse()
		}
	}
	select {
	case <-d.dark:
		d.mu.Unlock()
		<-d.released
		return fuse.EIO
	default:
		return fuse.OK
	}
}

// Restore gives the power back: the folder now holds what was synced, and of the rest what the cut left.
func (d *Disk) Restore() error {
	if err := d.unmount(); err != nil {
		return err
	}
	d.strike()
	return d.mount()
}

// strike decides what is left.
func (d *Disk) strike() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tree.discipline == Strict {
		d.tolls[tollStrict]++
	} else {
		d.tolls[tollJournal]++
	}
	lost, kept := d.tree.strikeNames(d.random)
	d.tolls[tollNameLost] += lost
	d.tolls[tollNameKept] += kept
	unit := units[d.random.IntN(len(units))]
	for _, n := range d.tree.rise() {
		t := n.strike(d.random, unit)
		d.tolls[tollWriteLost] += t.lost
		d.tolls[tollWriteKept] += t.kept
		d.tolls[tollWriteTorn] += t.torn
	}
}

// Toll counts by kind what cuts took and left.
func (d *Disk) Toll() map[string]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.tolls)
}

// sync makes a file's bytes durable, or a folder's names, and whatever the discipline makes durable with them. The caller holds mu.
func (d *Disk) sync(n *node, dataOnly bool) {
	d.tolls[tollSync]++
	if d.lie != nil && d.lie(n.name) {
		return
	}
	switch {
	case n.folder:
		d.tree.syncNames(n)
	case d.tree.discipline == Journal && (!dataOnly || n.resized() || d.tree.renamed(n)):
		d.tree.syncNames(nil)
	}
	n.content.sync()
}

func (d *Disk) unmount() error {
	for tries := 1; ; tries++ {
		err := d.server.Unmount()
		if err == nil || !errors.Is(err, syscall.EBUSY) || tries == unmountTries {
			return err
		}
		<-time.After(unmountPause)
	}
}

// Close takes the disk off its folder and leaves there, as plain files, what programs saw last.
func (d *Disk) Close() error {
	if err := d.unmount(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tree.root.save(d.dir)
}

// save writes what is below a folder into a real one.
func (n *node) save(dir string) error {
	for name, below := range n.names {
		at := filepath.Join(dir, name)
		if !below.folder {
			if err := os.WriteFile(at, below.seen, os.FileMode(below.mode&0o777)); err != nil {
				return err
			}
			continue
		}
		if err := errors.Join(os.Mkdir(at, 0o700), below.save(at)); err != nil {
			return err
		}
	}
	return nil
}
