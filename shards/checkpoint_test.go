package shards_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"tenderbox/shards"
)

func walSize(t testing.TB, sh *shards.Shard) int64 {
	t.Helper()
	fi, err := os.Stat(sh.Path() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// writePages changes about n pages in one group's time.
func writePages(t testing.TB, sh *shards.Shard, from, n int) {
	t.Helper()
	err := sh.Update(ctx, func(tx *shards.Tx) error {
		for i := range n {
			if _, err := tx.Exec("INSERT INTO things (id, n, pad) VALUES (?, ?, zeroblob(3000))", fmt.Sprintf("page-%08d", from+i), i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Many times the limit is written; the WAL starts over again and again, and the file
// never grows far beyond it.
func TestWALStaysShort(t *testing.T) {
	t.Parallel()
	o := options()
	o.CheckpointBytes = 1 << 20
	_, sh := open(t, o)
	const steps = 64 * 60
	for i := range steps {
		writePages(t, sh, i*3, 3)
	}
	if n := sh.Stats().Checkpoints; n < 5 {
		t.Errorf("the WAL started over %d times", n)
	}
	if got := walSize(t, sh); got > 3*o.CheckpointBytes {
		t.Errorf("the WAL has %d bytes, limit %d", got, o.CheckpointBytes)
	}
}

// The same with Views that overlap each other all the time: each keeps the WAL from
// starting over, those that last too long are ended.
func TestWALStaysShortUnderReaders(t *testing.T) {
	t.Parallel()
	o := options()
	o.CheckpointBytes = 1 << 20
	o.ReadConns = 4
	_, sh := open(t, o)
	mustPut(t, sh, 0, 1)
	stop := make(chan struct{})
	ended := make(chan error, 3)
	for range 3 {
		go func() {
			for {
				err := sh.View(ctx, func(tx *shards.Tx) error {
					const q = "SELECT count(*) FROM things WHERE id = 'id-000000'"
					var n int
					if err := tx.QueryRow(q).Scan(&n); err != nil { // the snapshot is taken
						return err
					}
					select {
					case <-stop:
						return nil
					case <-tx.Context().Done():
						return tx.QueryRow(q).Scan(&n)
					}
				})
				if err == nil || !errors.Is(err, shards.ErrViewTooLong) {
					ended <- err
					return
				}
			}
		}()
	}
	var longest int64
	for i := 0; sh.Stats().Checkpoints < 2; i += 3 {
		writePages(t, sh, i, 3)
		longest = max(longest, walSize(t, sh))
	}
	close(stop)
	for range 3 {
		if err := <-ended; err != nil {
			t.Errorf("a View: %v", err)
		}
	}
	if n := sh.Stats().ViewsEnded; n < 3 {
		t.Errorf("%d Views ended", n)
	}
	t.Logf("the WAL grew to %d bytes, limit %d: what is written in about a second comes on top", longest, o.CheckpointBytes)
}

// Short Views, however many, need not be ended.
func TestShortViewsAreLeftAlone(t *testing.T) {
	o := options()
	o.CheckpointBytes = 200 << 10
	_, sh := open(t, o)
	stop := make(chan struct{})
	ended := make(chan error, 3)
	for range 3 {
		go func() {
			for {
				yield()
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				err := sh.View(ctx, func(tx *shards.Tx) error {
					var n int
					return tx.QueryRow("SELECT count(*) FROM things WHERE id < 'page-00000100'").Scan(&n)
				})
				if err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	for i := range 400 {
		writePages(t, sh, i*3, 3)
	}
	close(stop)
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if st := sh.Stats(); st.Checkpoints == 0 {
		t.Errorf("the WAL never started over: %+v", st)
	}
}
