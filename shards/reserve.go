package shards

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/panics"
	"golang.org/x/sys/unix"
)

const (
	reserveName = "reserve"
	// reserveDefault holds the outcomes of some thousand payments that were accepted
	// before the disk was full.
	reserveDefault = 16 << 20
	// reservePoll is how often a full disk is looked at for room.
	reservePoll = 250 * time.Millisecond
)

// reserve is a file that takes up space until the disk is full. Then it is emptied, and
// only what must be written, by UpdateReserved, is let through, until there is room for
// it again. A free-space limit would not do: other programs would use up what is below it.
type reserve struct {
	set  *Set
	path string
	size int64

	short atomic.Bool // the disk was found full; Update is refused

	mu      sync.Mutex
	waiting bool           // a goroutine looks for room
	closed  bool           // none may start any more
	done    sync.WaitGroup // that goroutine
}

func newReserve(s *Set) *reserve {
	return &reserve{set: s, path: filepath.Join(s.dir, reserveName), size: s.o.Reserve}
}

// fill makes the file take up its space. It is never written to.
func (r *reserve) fill() error {
	if r.size <= 0 {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err = allocate(f, r.size); err != nil {
		err = errors.Join(err, f.Truncate(0))
	}
	return errors.Join(err, f.Close())
}

// zeros is allocate for file systems that cannot do so without writing.
func zeros(f *os.File, size int64) error {
	block := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		n, err := f.WriteAt(block[:min(int64(len(block)), size-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return f.Sync()
}

// open is fill at the start. Without room for it the set starts as on a full disk.
func (r *reserve) open() {
	if err := r.fill(); err != nil {
		r.set.o.Logger.Warn("no room for the reserve of disk space", "error", err)
		r.full()
	}
}

// full empties the reserve and refuses Update until there is room again.
func (r *reserve) full() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting || r.closed {
		return
	}
	r.waiting = true
	r.short.Store(true)
	r.set.o.Logger.Error("disk full: only what was accepted before is written", "folder", r.set.dir)
	if r.size > 0 {
		if err := os.Truncate(r.path, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.set.o.Logger.Error("the reserve of disk space cannot be freed", "error", err)
		}
	}
	r.done.Add(1)
	go func() {
		defer r.done.Done()
		if err := panics.Try(r.waitForRoom).AsError(); err != nil {
			r.set.o.Logger.Error("panic", "in", "reserve", "error", err)
		}
	}()
}

// waitForRoom ends when there is room for twice the reserve, and it is filled.
func (r *reserve) waitForRoom() {
	tick := time.NewTicker(reservePoll)
	defer tick.Stop()
	for {
		select {
		case <-r.set.stop:
			return
		case <-tick.C:
		}
		if !r.room() || r.fill() != nil {
			continue
		}
		r.mu.Lock()
		r.waiting = false
		r.short.Store(false)
		r.mu.Unlock()
		r.set.o.Logger.Info("disk has room again", "folder", r.set.dir)
		return
	}
}

func (r *reserve) room() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(r.set.dir, &st); err != nil {
		return false
	}
	return int64(st.Bavail) > 2*max(r.size, pageSize)/int64(st.Bsize)
}

// close waits for the search for room, after the set's stop is closed.
func (r *reserve) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.done.Wait()
}

// UpdateReserved is Update for what must be written although the disk is full: the
// outcome of what was accepted before. It may use the reserve of disk space that is
// kept for this, and returns ErrFull only when that is used up too, or by the write
// that finds the disk full. Try it again then.
func (sh *Shard) UpdateReserved(ctx context.Context, fn func(tx *Tx) error) error {
	return sh.update(ctx, fn, true)
}

// UpdateAlone is UpdateReserved in a group of its own: BeforeCommit sees what fn attached, and nothing else.
func (sh *Shard) UpdateAlone(ctx context.Context, fn func(tx *Tx) error) error {
	return sh.submit(ctx, fn, true, true)
}

// Short tells whether the disk was found full and Update is refused for it.
func (s *Set) Short() bool { return s.reserve.short.Load() }

func full(cause error) error { return fmt.Errorf("%w: %w", ErrFull, cause) }
