package shards_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

// watched counts what the set reports.
type watched struct{ isolated, restored atomic.Int64 }

func (w *watched) options(files int) shards.Options {
	return shards.Options{
		Files: files, Migrations: migrations,
		OnIsolated: func(*shards.Shard, error) { w.isolated.Add(1) },
		OnRestored: func(*shards.Shard) { w.restored.Add(1) },
	}
}

func faulty(t testing.TB, o shards.Options) (*shardstest.Disk, *shards.Set, *shards.Shard) {
	t.Helper()
	dir := tempDir(t)
	d := shardstest.NewDisk(t, dir)
	s := shardstest.OpenDir(t, dir, o)
	return d, s, s.Shard(0)
}

// INV-14, fault 3: an error from a write or fsync of COMMIT means unknown, not failed;
// the shard opens its file anew and goes on, and reads never saw the unknown write.
func TestCommitFails(t *testing.T) {
	t.Parallel()
	for _, f := range []shardstest.Fault{
		{Op: shardstest.OpSync, Suffix: "-wal", Times: 1},
		{Op: shardstest.OpWrite, Suffix: "-wal", Times: 1},
		{Op: shardstest.OpWrite, Suffix: "-wal", Skip: 1, Times: 1, Outcome: shardstest.ShortWrite},
	} {
		t.Run(fmt.Sprint(f.Op, " ", f.Outcome), func(t *testing.T) {
			var w watched
			d, s, sh := faulty(t, w.options(2))
			mustPut(t, sh, 0, 5)
			gen := sh.Generation()
			fired := d.Fired()
			d.Fail(f)
			errs := group(t, sh, insert("a", 1), func(*shards.Tx) error { return errOwn }, insert("b", 1))
			if d.Fired() == fired {
				t.Fatal("the fault did not fire")
			}
			for i, err := range errs {
				if !errors.Is(err, shards.ErrUnknown) {
					t.Errorf("closure %d: %v, want ErrUnknown", i, err)
				}
			}
			if sh.Generation() == gen {
				t.Error("the generation did not grow")
			}
			if err := sh.Err(); err != nil {
				t.Errorf("the shard is out: %v", err)
			}
			mustPut(t, sh, 5, 10)
			mustPut(t, s.All()[1], 0, 5)
			a, b := has(t, sh, "a"), has(t, sh, "b")
			if a != b {
				t.Errorf("half of a group is there: a %v, b %v", a, b)
			}
			n := count(t, sh)
			if n != 10 && n != 12 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

// INV-4: once the shard serves again, a commit that failed does not come back with a start after a crash, also if a View kept the WAL
// from starting over and the failed frames stand behind its end. Who got ErrUnknown may have been served elsewhere since.
func TestFailedCommitStaysAway(t *testing.T) {
	t.Parallel()
	d, _, sh := faulty(t, options())
	mustPut(t, sh, 0, 5)
	viewing, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = sh.View(ctx, func(tx *shards.Tx) error {
			var n int
			err := tx.QueryRow("SELECT count(*) FROM things").Scan(&n)
			close(viewing)
			<-release
			return err
		})
	})
	<-viewing
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "-wal", Times: 1})
	if err := put(sh, "a", 1); !errors.Is(err, shards.ErrUnknown) || d.Fired() != 1 {
		t.Fatalf("%v after %d faults, want ErrUnknown after one", err, d.Fired())
	}
	if err := sh.Err(); err != nil {
		t.Fatalf("the shard is out: %v", err)
	}
	copied := tempDir(t) // what a kill would leave
	if err := os.CopyFS(copied, os.DirFS(filepath.Dir(sh.Path()))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(copied, filepath.Base(sh.Path())+"-shm")); err != nil {
		t.Fatal(err)
	}
	close(release)
	wg.Wait()
	after := shardstest.OpenDir(t, copied, options()).Shard(0)
	if n := count(t, after); n != 5 || has(t, after, "a") {
		t.Errorf("%d rows after the crash, want the 5 acknowledged", n)
	}
}

// A group that is run one by one, because of a row that breaks a rule, goes on after a commit that fails: each closure that is told of
// success is there, its AfterCommit came once, and nobody else's did.
func TestCommitFailsOneByOne(t *testing.T) {
	t.Parallel()
	var after []any
	o := options()
	o.BeforeCommit = func(tx *shards.Tx, attached []any) error {
		for _, id := range attached {
			if _, err := tx.Exec("INSERT INTO things (id, n) VALUES (?, ?)", id, len(id.(string))-2); err != nil {
				return err
			}
		}
		return nil
	}
	o.AfterCommit = func(_ *shards.Shard, attached []any) { after = append(after, attached...) }
	d, _, sh := faulty(t, o)
	attach := func(id string) func(tx *shards.Tx) error {
		return func(tx *shards.Tx) error { tx.Attach(id); return nil }
	}
	mustPut(t, sh, 0, 1) // the WAL has its header
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "-wal", Skip: 1, Times: 1})
	ids := []string{"aa", "bb", "c", "dd", "ee"} // "c" has n -1, which the schema refuses
	errs := group(t, sh, attach("aa"), attach("bb"), attach("c"), attach("dd"), attach("ee"))
	var want []any
	for i, err := range errs {
		there := has(t, sh, ids[i])
		if there != (err == nil) {
			t.Errorf("%s: %v, and there: %v", ids[i], err, there)
		}
		if there {
			want = append(want, ids[i])
		}
	}
	if !errors.Is(errs[1], shards.ErrUnknown) || errs[2] == nil || d.Fired() != 1 || len(want) != 3 {
		t.Errorf("%v after %d faults; stored: %v", errs, d.Fired(), want)
	}
	if fmt.Sprint(after) != fmt.Sprint(want) {
		t.Errorf("AfterCommit came for %v, stored: %v", after, want)
	}
}

// The disk fails for ever: writes are refused at once, reads go on with what was
// acknowledged, and the shard comes back by itself.
func TestDiskFailsForAWhile(t *testing.T) {
	t.Parallel()
	var w watched
	d, s, sh := faulty(t, w.options(2))
	other := s.All()[1]
	mustPut(t, sh, 0, 5)
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0000.db-wal"})
	d.Fail(shardstest.Fault{Op: shardstest.OpWrite, Suffix: "0000.db-wal"})
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0000.db"})
	d.Fail(shardstest.Fault{Op: shardstest.OpWrite, Suffix: "0000.db"})
	if err := put(sh, "a", 1); !errors.Is(err, shards.ErrUnknown) {
		t.Errorf("the first write: %v, want ErrUnknown", err)
	}
	if err := put(sh, "b", 1); !errors.Is(err, shards.ErrUnavailable) {
		t.Errorf("the next write: %v, want ErrUnavailable", err)
	}
	if sh.Err() == nil || s.Healthy() != 1 || w.isolated.Load() != 1 {
		t.Errorf("Err %v, %d healthy, %d reported", sh.Err(), s.Healthy(), w.isolated.Load())
	}
	if n := count(t, sh); n != 5 || has(t, sh, "a") {
		t.Errorf("%d rows are read meanwhile, want the 5 acknowledged", n)
	}
	mustPut(t, other, 0, 5)
	d.Heal()
	for sh.Err() != nil {
		yield()
	}
	mustPut(t, sh, 5, 10)
	if n := count(t, sh); n != 10 || w.restored.Load() != 1 {
		t.Errorf("%d rows afterwards, want 10; %d times reported", n, w.restored.Load())
	}
}

// An I/O error within a closure, before COMMIT: certainly nothing was written.
func TestReadFailsInUpdate(t *testing.T) {
	t.Parallel()
	d, _, sh := faulty(t, options())
	// More than the page cache holds, so that reading goes to the file.
	pad := func(tx *shards.Tx) error {
		_, err := tx.Exec(`WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 10000)
			INSERT INTO things (id, n, pad) SELECT printf('pad-%06d', x), x, zeroblob(3000) FROM c`)
		return err
	}
	if err := sh.Update(ctx, pad); err != nil {
		t.Fatal(err)
	}
	fired := d.Fired()
	d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0000.db-wal", Times: 1})
	scan := func(tx *shards.Tx) error {
		var n int
		return tx.QueryRow("SELECT sum(length(pad)) FROM things").Scan(&n)
	}
	errs := group(t, sh, insert("a", 1), scan, insert("b", 1))
	if d.Fired() == fired {
		t.Fatal("the fault did not fire")
	}
	for i, err := range errs {
		if !errors.Is(err, shards.ErrUnavailable) || errors.Is(err, shards.ErrUnknown) {
			t.Errorf("closure %d: %v, want ErrUnavailable", i, err)
		}
	}
	if has(t, sh, "a") || has(t, sh, "b") {
		t.Error("a part of the group was written")
	}
	if err := put(sh, "c", 1); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0000.db-wal", Times: 1})
	if err := sh.View(ctx, scan); !errors.Is(err, shards.ErrUnavailable) {
		t.Errorf("a View: %v, want ErrUnavailable", err)
	}
	if err := sh.View(ctx, scan); err != nil {
		t.Errorf("the next View: %v", err)
	}
}

// Fault 4: a full disk is an answer of its own, certain, and passes by itself.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d, s, sh := faulty(t, options())
	mustPut(t, sh, 0, 5)
	d.Limit(t, 40<<10)
	stored := 5
	var err error
	for i := 0; err == nil; i++ {
		if err = put(sh, fmt.Sprintf("full-%d", i), i); err == nil {
			stored++
		}
	}
	if !errors.Is(err, shards.ErrFull) || errors.Is(err, shards.ErrUnknown) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	if stored < 6 {
		t.Error("the limit was no room at all: the test shows nothing")
	}
	if sh.Err() != nil || s.Healthy() != 1 {
		t.Errorf("the shard is out: %v", sh.Err())
	}
	if err := put(sh, "again", 1); !errors.Is(err, shards.ErrFull) || !s.Short() {
		t.Errorf("while full: %v", err)
	}
	// What was accepted before is still settled, from the reserve.
	for i := range 100 {
		settle := func() error { return sh.UpdateReserved(ctx, insert(fmt.Sprintf("settled-%d", i), i)) }
		err := settle()
		// The real disk has room, so the reserve is filled again now and then; the write
		// that finds it so gets ErrFull.
		for errors.Is(err, shards.ErrFull) {
			yield()
			err = settle()
		}
		if err != nil {
			t.Fatalf("from the reserve: %v", err)
		}
		stored++
	}
	if n := count(t, sh); n != stored {
		t.Errorf("%d rows, %d acknowledged", n, stored)
	}
	d.Heal()
	for err = put(sh, "room", 1); errors.Is(err, shards.ErrFull); err = put(sh, "room", 1) {
		yield()
	}
	if err != nil {
		t.Errorf("with room again: %v", err)
	}
	if n := count(t, sh); n != stored+1 {
		t.Errorf("%d rows, want %d", n, stored+1)
	}
}

// A full disk at the start: what is there can be read, and writes come back.
func TestOpenOnFullDisk(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s, err := shards.Open(ctx, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s.Shard(0), 0, 5)
	killed := tempDir(t)
	copyFolder(t, dir, killed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d := shardstest.NewDisk(t, killed)
	d.Limit(t, 1)
	s = shardstest.OpenDir(t, killed, options())
	if n := count(t, s.Shard(0)); n != 5 {
		t.Errorf("%d rows, want 5", n)
	}
	d.Heal()
	for err = put(s.Shard(0), "room", 1); errors.Is(err, shards.ErrFull); err = put(s.Shard(0), "room", 1) {
		yield()
	}
	if err != nil {
		t.Error(err)
	}
}

// A checkpoint that fails loses nothing and is repeated.
func TestCheckpointFails(t *testing.T) {
	t.Parallel()
	o := options()
	o.CheckpointBytes = 200 << 10
	d, s, sh := faulty(t, o)
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0000.db", Times: 3})
	d.Fail(shardstest.Fault{Op: shardstest.OpWrite, Suffix: "0000.db", Times: 3})
	mustPut(t, sh, 0, 600)
	if d.Fired() == 0 {
		t.Fatal("no fault fired")
	}
	for n := 600; sh.Stats().Checkpoints == 0; n += 100 {
		mustPut(t, sh, n, n+100)
	}
	if sh.Err() != nil {
		t.Errorf("the shard is out: %v", sh.Err())
	}
	if s.Healthy() != 1 {
		t.Errorf("%d healthy", s.Healthy())
	}
}

// A slow fsync: the queue fills, the excess is refused, nothing is lost.
func TestSlowSync(t *testing.T) {
	o := options()
	o.QueueMax = 5
	d, _, sh := faulty(t, o)
	inSync, release := make(chan struct{}), make(chan struct{})
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "-wal", Times: 1, Do: func() { close(inSync); <-release }})
	var (
		wg    sync.WaitGroup
		acked atomic.Int64
	)
	try := func(id string) {
		wg.Go(func() {
			switch err := put(sh, id, 1); {
			case err == nil:
				acked.Add(1)
			case !errors.Is(err, shards.ErrOverloaded):
				t.Error(err)
			}
		})
	}
	try("first")
	<-inSync
	if has(t, sh, "first") {
		t.Error("a write is visible before its fsync")
	}
	for i := range 50 {
		try(fmt.Sprint(i))
	}
	for sh.Stats().Overloaded < 45 {
		yield()
	}
	close(release)
	wg.Wait()
	if n := count(t, sh); n != int(acked.Load()) || n != 6 {
		t.Errorf("%d rows, %d acknowledged, want 6", n, acked.Load())
	}
}

// Writers take turns, but a file whose disk hangs holds up no other.
func TestHangingFileHoldsUpNobody(t *testing.T) {
	o := options()
	o.Files = 3
	d, s, first := faulty(t, o)
	inSync, release := make(chan struct{}), make(chan struct{})
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0000.db-wal", Times: 1, Do: func() { close(inSync); <-release }})
	hung := make(chan error, 1)
	go func() { hung <- put(first, "hangs", 1) }()
	<-inSync
	for _, sh := range s.All()[1:] {
		if err := put(sh, "beside it", 1); err != nil {
			t.Errorf("shard %d: %v", sh.ID(), err)
		}
	}
	close(release)
	if err := <-hung; err != nil {
		t.Error(err)
	}
}

// Any operation below SQLite may fail at any time: the model is that an acknowledged
// write is there, a failed one is not, an unknown one either.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			randomFaults(t, seed)
		})
	}
}

func randomFaults(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	o := options()
	o.CheckpointBytes = 100 << 10
	dir := tempDir(t)
	d := shardstest.NewDisk(t, dir)
	s, err := shards.Open(ctx, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	const (
		absent = iota
		present
		either
	)
	state := map[string]int{}
	ops := []shardstest.Op{shardstest.OpOpen, shardstest.OpRead, shardstest.OpWrite, shardstest.OpSync, shardstest.OpTruncate}
	for i := range 400 {
		if rng.IntN(15) == 0 {
			d.Fail(shardstest.Fault{
				Op: ops[rng.IntN(len(ops))], Skip: rng.IntN(10), Times: 1 + rng.IntN(3),
				Outcome: shardstest.IOError + shardstest.Outcome(rng.IntN(3)),
			})
		}
		if rng.IntN(40) == 0 {
			d.Heal()
		}
		id := fmt.Sprint("id-", i)
		sh := s.Shard(0)
		switch err := put(sh, id, i); {
		case err == nil:
			state[id] = present
		case errors.Is(err, shards.ErrUnknown):
			state[id] = either
		case errors.Is(err, shards.ErrUnavailable), errors.Is(err, shards.ErrFull):
			state[id] = absent
			if rng.IntN(3) == 0 {
				d.Heal()
				for sh.Err() != nil {
					yield()
				}
			}
		default:
			t.Fatalf("step %d: %v", i, err)
		}
		if rng.IntN(100) == 0 {
			s.Close() // may fail, as the disk does
			d.Heal()
			if s, err = shards.Open(ctx, dir, o); err != nil {
				t.Fatalf("step %d: reopening: %v", i, err)
			}
		}
	}
	d.Heal()
	s.Close()
	s = shardstest.OpenDir(t, dir, o)
	n := map[int]int{}
	for id, want := range state {
		n[want]++
		if got := has(t, s.Shard(0), id); want != either && got != (want == present) {
			t.Errorf("%s: there is %v, want %v", id, got, want == present)
		}
	}
	t.Logf("%d faults fired; %d acknowledged, %d refused, %d unknown", d.Fired(), n[present], n[absent], n[either])
	if d.Fired() == 0 {
		t.Error("no fault fired")
	}
}
