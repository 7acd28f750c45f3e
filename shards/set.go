package shards

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sourcegraph/conc/panics"
	"golang.org/x/sync/errgroup"
)

// Set is an open folder of shards.
type Set struct {
	dir      string
	o        Options
	manifest Manifest
	lock     *folderLock
	shards   []*Shard
	table    [SlotCount]int
	stop     chan struct{}
	turn     turn
	checking turn // one large file at a time is checked
	reserve  *reserve
	leftover []string // side files that Audit's reading made

	closeOnce sync.Once
	closeErr  error
}

// Open opens the folder, or makes it on the first start. It returns ErrLocked while
// another process has it, and *MismatchError, with nothing changed, if it belongs to
// another program, to a newer version, or to one that routes differently.
//
// A shard that is damaged or cannot be read is isolated, reported to OnIsolated, and no
// reason to fail; Healthy tells how many serve.
func Open(ctx context.Context, dir string, o Options) (*Set, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("shards: %w", err)
	}
	s, err := begin(dir, o, true)
	if err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Audit opens the folder of a stopped box for reading: it makes, migrates and writes
// back nothing. Updates return ErrReadOnly. The folder's lock is held until Close.
func Audit(ctx context.Context, dir string, o Options) (*Set, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	s, err := begin(dir, o, false)
	if err != nil {
		return nil, err
	}
	if err := s.audit(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// begin takes the lock and reads the manifest.
func begin(dir string, o Options, create bool) (*Set, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	lock, err := lockFolder(dir, create)
	if err != nil {
		return nil, err
	}
	s := &Set{dir: dir, o: o, lock: lock, stop: make(chan struct{}), turn: newTurn(turnPlaces), checking: newTurn(1)}
	s.reserve = newReserve(s)
	if create {
		s.manifest, err = loadOrCreate(dir, o.Files)
	} else {
		s.manifest, err = readManifest(dir)
	}
	if err == nil {
		s.table, err = s.manifest.table()
	}
	if err != nil {
		return nil, errors.Join(err, lock.release())
	}
	for id, name := range s.manifest.Files {
		s.shards = append(s.shards, s.newShard(id, filepath.Join(dir, name)))
	}
	return s, nil
}

func (s *Set) newShard(id int, path string) *Shard {
	sh := &Shard{
		id: id, path: path, set: s, o: &s.o, log: s.o.Logger,
		queue: make(chan *op, s.o.QueueMax), stop: s.stop, stopped: make(chan struct{}),
	}
	if s.o.Erase {
		sh.writes = forErasing
	}
	sh.readers = newReaders(sh, forReading, s.o.ReadConns)
	sh.ckpt = newCheckpointer(sh)
	return sh
}

func (s *Set) open(ctx context.Context) error {
	if !s.manifest.created {
		for _, sh := range s.shards {
			if err := createFile(ctx, sh.path, s.manifest, sh.id); err != nil {
				if classOf(err) == classFull {
					err = full(err)
				}
				return fmt.Errorf("shards: first start: %w", err)
			}
		}
		m := s.manifest.clone()
		m.created = true
		if err := errors.Join(syncDir(s.dir), m.write(s.dir)); err != nil {
			return err
		}
		s.manifest = m
	}

	// First all are looked at, then any is touched: a folder of a newer version is
	// refused as it is.
	if err := s.each(func(sh *Shard) error { return sh.look(ctx, forReading) }); err != nil {
		return err
	}
	if err := s.settle(); err != nil {
		return err
	}
	s.reserve.open()
	return s.each(func(sh *Shard) error { return sh.start(ctx) })
}

func (s *Set) audit(ctx context.Context) error {
	if !s.manifest.created {
		return &MismatchError{Path: s.dir, What: "folder", Want: "a box that has started once", Have: "an interrupted first start"}
	}
	for _, sh := range s.shards {
		if fi, err := os.Stat(sh.path + "-wal"); errors.Is(err, fs.ErrNotExist) || (err == nil && fi.Size() == 0) {
			sh.readers.access = forAuditClean
			continue
		}
		sh.readers.access = forAudit
		if _, err := os.Stat(sh.path + "-shm"); errors.Is(err, fs.ErrNotExist) {
			s.leftover = append(s.leftover, sh.path+"-shm")
		}
	}
	return s.each(func(sh *Shard) error { return sh.look(ctx, sh.readers.access) })
}

// each runs a step on all shards at once, since a start is mostly waiting for the disk.
func (s *Set) each(step func(sh *Shard) error) error {
	var g errgroup.Group
	for _, sh := range s.shards {
		g.Go(func() (err error) {
			if p := panics.Try(func() { err = step(sh) }); p != nil {
				return p.AsError()
			}
			return err
		})
	}
	return g.Wait()
}

// look reads what the file says about itself. Damage isolates the shard; what this
// program must not touch is an error.
func (sh *Shard) look(ctx context.Context, a access) error {
	_, err := statFile(sh.path)
	if err == nil {
		var c *conn
		if c, err = openConn(ctx, sh.path, a); err == nil {
			err = inspect(c, sh.path, sh.set.manifest, sh.id, sh.o.Migrations)
			err = errors.Join(err, c.Close())
		}
	}
	switch classOf(err) {
	case classCorrupt:
		sh.isolate(err, true)
		return nil
	case classIO, classFull:
		sh.isolate(err, false)
		return nil
	}
	return err
}

// start opens the file for writing and starts the shard's goroutines.
func (sh *Shard) start(ctx context.Context) error {
	if out := sh.outage.Load(); out != nil && out.final {
		return nil
	}
	size, err := statFile(sh.path)
	if err != nil {
		return err
	}
	w := newWriter(sh)
	if err := w.open(true); err != nil {
		switch classOf(err) {
		case classCorrupt:
			sh.isolate(err, true)
			return nil
		case classIO, classFull:
			sh.isolate(err, false)
			w.pause = retryFirst
			w.retry.Reset(w.pause)
		default:
			return err
		}
	} else {
		sh.restored()
	}
	sh.writer = w
	if w.c != nil && size <= checkInlineMax {
		if err := w.c.check(ctx, sh.path, "PRAGMA quick_check(5)"); err != nil {
			if classOf(err) != classCorrupt {
				return err
			}
			sh.isolate(err, true)
		}
	} else if w.c != nil {
		sh.background("check", sh.checkLater)
	}
	sh.background("checkpoint", sh.ckpt.run)
	sh.waiting.Add(1)
	go func() {
		defer sh.waiting.Done()
		defer close(sh.stopped)
		finished := false
		defer func() {
			if !finished { // a panic of this package, or a closure that called runtime.Goexit
				sh.isolate(errors.New("the writing goroutine ended; restart the box"), false)
			}
		}()
		if err := panics.Try(w.run).AsError(); err != nil {
			sh.log.Error("writer panicked", "shard", sh.id, "error", err)
			return
		}
		finished = true
	}()
	return nil
}

// background starts a goroutine that Close waits for.
func (sh *Shard) background(name string, f func()) {
	sh.waiting.Add(1)
	go func() {
		defer sh.waiting.Done()
		if err := panics.Try(f).AsError(); err != nil {
			sh.log.Error("panic", "in", name, "shard", sh.id, "error", err)
		}
	}()
}

// checkDelay lets a box start: what it has to read first must not share the cores with checks of large files, which take seconds.
const checkDelay = 5 * time.Second

// checkLater is checkTables, after a while and one file after the other.
func (sh *Shard) checkLater() {
	delay := time.NewTimer(checkDelay)
	defer delay.Stop()
	select {
	case <-delay.C:
	case <-sh.set.stop:
		return
	}
	select {
	case sh.set.checking <- struct{}{}:
		defer sh.set.checking.give()
	case <-sh.set.stop:
		return
	}
	sh.checkTables()
}

// checkTables looks for damage in a large file, table by table, so that no snapshot
// lasts longer than one table takes.
func (sh *Shard) checkTables() {
	var names []string
	err := sh.View(background, func(tx *Tx) error {
		rows, err := tx.Query("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0")
		if err != nil {
			return err
		}
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		return rows.Err()
	})
	for _, name := range names {
		if err != nil {
			break
		}
		err = sh.readers.with(background, func(c *conn) error {
			return c.check(background, sh.path, "PRAGMA quick_check('"+name+"')")
		})
	}
	switch {
	case err == nil, errors.Is(err, ErrClosed):
	case classOf(err) == classCorrupt:
		sh.isolate(err, true)
	default:
		sh.log.Warn("check after the start did not finish", "shard", sh.id, "error", err)
	}
}

// Shard returns the shard in which a slot lives. It panics for a slot that does not exist.
func (s *Set) Shard(slot Slot) *Shard { return s.shards[s.table[slot]] }

// All returns every shard, isolated ones too, by id.
func (s *Set) All() []*Shard { return slices.Clone(s.shards) }

// Healthy returns how many shards take writes.
func (s *Set) Healthy() int {
	n := 0
	for _, sh := range s.shards {
		if sh.Err() == nil {
			n++
		}
	}
	return n
}

// Manifest returns what the folder says about itself.
func (s *Set) Manifest() Manifest { return s.manifest.clone() }

// Close finishes the writes in hand, waits for the Views in progress, writes the WALs
// back and releases the folder. Closing twice is fine.
func (s *Set) Close() error {
	s.closeOnce.Do(func() {
		close(s.stop)
		s.reserve.close()
		var g errgroup.Group
		errs := make([]error, len(s.shards))
		for i, sh := range s.shards {
			g.Go(func() error { errs[i] = sh.close(); return nil })
		}
		g.Wait()
		for _, path := range s.leftover {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		s.closeErr = errors.Join(append(errs, s.lock.release())...)
	})
	return s.closeErr
}

// close ends the shard. The connection that writes goes last and takes the WAL with it;
// after a failure it goes first, so that nothing is written any more.
func (sh *Shard) close() error {
	sh.waiting.Wait()
	var err error
	if sh.writer != nil && sh.outage.Load() != nil {
		err = sh.writer.close()
	}
	err = errors.Join(err, sh.readers.close())
	if sh.anchor != nil {
		err = errors.Join(err, sh.anchor.Close())
	}
	if sh.writer != nil {
		sh.writer.retry.Stop()
		err = errors.Join(err, sh.writer.close())
	}
	return err
}

// makeDir makes the folder, durably, if it does not exist.
func makeDir(dir string) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return fmt.Errorf("%s is not a folder", dir)
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
