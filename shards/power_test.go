package shards_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

// INV-2, INV-28, fault 2: after a power cut at any write or fsync, with the unsynced
// writes lost, reordered or torn, every acknowledged write is there, every group is
// there whole or not at all, and the file is sound.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	step := 7
	if testing.Short() {
		step = 41
	}
	cuts := 0
	for at := 1; at < 400; at += step {
		happened, problems := powerCut(t, at, false)
		for _, p := range problems {
			t.Errorf("cut %d: %s", at, p)
		}
		if !happened {
			break
		}
		cuts++
	}
	if cuts < 5 {
		t.Errorf("only %d cuts happened", cuts)
	}
	t.Logf("%d cuts, each with several outcomes", cuts)
}

// On a disk that lies about fsync the same test must find losses.
func TestPowerCutOnLyingDisk(t *testing.T) {
	t.Parallel()
	for at := 60; at < 400; at += 20 {
		if _, problems := powerCut(t, at, true); len(problems) > 0 {
			return
		}
	}
	t.Error("no loss was noticed")
}

// powerCut runs a workload, cuts the power in its n-th operation, opens what is left,
// and tells what is wrong with it. There may be fewer operations than that.
func powerCut(t *testing.T, at int, lie bool) (happened bool, problems []string) {
	t.Helper()
	o := options()
	o.CheckpointBytes = 60 << 10 // several checkpoints happen
	dir := tempDir(t)
	d := shardstest.NewDisk(t, dir)
	s, err := shards.Open(ctx, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mustPut(t, s.Shard(0), 0, 3)
	var (
		mu           sync.Mutex
		acked, atCut []string
		image        shardstest.Image
		over         bool
	)
	d.Record(t)
	if lie {
		d.Lie()
	}
	d.CutAt(at, func(i shardstest.Image) {
		mu.Lock()
		defer mu.Unlock()
		image, over = i, true
		atCut = append(atCut, acked...)
	})
	isOver := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return over
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; i < 60 && !isOver(); i++ {
				id := fmt.Sprintf("%d-%d", w, i)
				err := s.Shard(0).Update(ctx, func(tx *shards.Tx) error { // two rows, both or none
					if err := insert(id+"-a", 1)(tx); err != nil {
						return err
					}
					return insert(id+"-b", 1)(tx)
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked = append(acked, id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if !over {
		return false, nil
	}
	for seed := range uint64(4) {
		after := filepath.Join(t.TempDir(), "shards")
		if err := image.Restore(after, seed); err != nil {
			t.Fatal(err)
		}
		for _, p := range inspectAfterCut(t, after, o, atCut) {
			problems = append(problems, fmt.Sprintf("outcome %d: %s", seed, p))
		}
	}
	return true, problems
}

// inspectAfterCut opens a folder and compares it with what was acknowledged.
func inspectAfterCut(t *testing.T, dir string, o shards.Options, acked []string) (problems []string) {
	s, err := shards.Open(ctx, dir, o)
	if err != nil {
		return []string{err.Error()}
	}
	defer s.Close()
	sh := s.Shard(0)
	if err := sh.Err(); err != nil {
		return []string{err.Error()}
	}
	for _, id := range acked {
		if !has(t, sh, id+"-a") || !has(t, sh, id+"-b") {
			problems = append(problems, id+" was acknowledged and is lost")
		}
	}
	var halves int
	err = sh.View(ctx, func(tx *shards.Tx) error {
		return tx.QueryRow(`SELECT count(*) FROM things AS x WHERE (id LIKE '%-a' OR id LIKE '%-b')
			AND NOT EXISTS (SELECT 1 FROM things WHERE id = substr(x.id, 1, length(x.id) - 1) || iif(x.id LIKE '%-a', 'b', 'a'))`).Scan(&halves)
	})
	if err != nil || halves != 0 {
		problems = append(problems, fmt.Sprintf("%d groups are there in part (%v)", halves, err))
	}
	if err := sh.Check(ctx); err != nil {
		problems = append(problems, err.Error())
	}
	if err := put(sh, "after", 1); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}

// The model of the power cut must be able to lose something: without fsync, what was
// written last is gone in one of its outcomes.
func TestPowerCutModelLoses(t *testing.T) {
	o := options()
	dir := tempDir(t)
	d := shardstest.NewDisk(t, dir)
	s, err := shards.Open(ctx, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d.Record(t)
	var image shardstest.Image
	d.CutAt(4, func(i shardstest.Image) { image = i }) // WAL header, its sync, frame header, frame
	mustPut(t, s.Shard(0), 0, 3)
	lost, kept := 0, 0
	sizes := map[int]bool{}
	for seed := range uint64(16) {
		after := filepath.Join(t.TempDir(), "shards")
		if err := image.Restore(after, seed); err != nil {
			t.Fatal(err)
		}
		n := len(snapshot(t, after)["0000.db-wal"])
		sizes[n] = true
		if n < 4096 {
			lost++
		} else {
			kept++
		}
	}
	if lost == 0 || kept == 0 || len(sizes) < 3 {
		t.Errorf("unsynced writes: lost %d times, kept %d times, %d different sizes", lost, kept, len(sizes))
	}
}

// A migration that is cut anywhere is completed by the next start, and runs once.
func TestPowerCutInMigration(t *testing.T) {
	t.Parallel()
	first := shards.Options{Files: 1, Migrations: migrations[:1]}
	more := shards.Options{Files: 1, Migrations: append(append([]shards.Migration{}, migrations...),
		shards.Migration{Version: 3, Name: "double", SQL: "UPDATE things SET n = n * 2; ALTER TABLE things ADD COLUMN extra TEXT; UPDATE things SET extra = 'x'"})}
	for at := 1; ; at++ {
		dir := tempDir(t)
		d := shardstest.NewDisk(t, dir)
		s, err := shards.Open(ctx, dir, first)
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, s.Shard(0), 0, 50)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		d.Record(t)
		var image shardstest.Image
		happened := false
		d.CutAt(at, func(i shardstest.Image) { image, happened = i, true })
		if s, err = shards.Open(ctx, dir, more); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !happened {
			if at < 10 {
				t.Errorf("a migration of %d operations", at)
			}
			return
		}
		for seed := range uint64(3) {
			after := filepath.Join(t.TempDir(), "shards")
			if err := image.Restore(after, seed); err != nil {
				t.Fatal(err)
			}
			s, err := shards.Open(ctx, after, more)
			if err != nil {
				t.Fatalf("cut %d seed %d: %v", at, seed, err)
			}
			var sum, steps int
			err = s.Shard(0).View(ctx, func(tx *shards.Tx) error {
				if err := tx.QueryRow("SELECT sum(n) FROM things WHERE extra = 'x'").Scan(&sum); err != nil {
					return err
				}
				return tx.QueryRow("SELECT count(*) FROM _migrations").Scan(&steps)
			})
			if err != nil || sum != 2*49*50/2 || steps != 3 {
				t.Errorf("cut %d seed %d: sum %d, %d steps, %v", at, seed, sum, steps, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
