package jobs

import (
	"bytes"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// The last key of a line is found where the transaction has emptied the pages beside it. Taken for a line without finished jobs, two jobs
// would get the same ordinal, and the second one's record the first one's place.
func TestLastInBesideEmptiedPages(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const lines, each = 3, 400
	prefixes := [lines][]byte{[]byte("a\x00"), []byte("b\x00"), []byte("c\x00")}
	key := func(line, n int) []byte { return be.AppendUint64(bytes.Clone(prefixes[line]), uint64(n)) }
	fill := func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("finished"))
		for line := range lines {
			for n := 1; n <= each && err == nil; n++ {
				err = b.Put(key(line, n), make([]byte, 100))
			}
		}
		return err
	}
	if err := db.Update(fill); err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("finished"))
		for n := each; n > 0; n-- { // the newest first: the pages before the next line's become empty
			if got, want := lastIn(b.Cursor(), prefixes[1]), key(1, n); !bytes.Equal(got, want) {
				t.Fatalf("%x is the last, not %x", want, got)
			}
			if err := b.Delete(key(1, n)); err != nil {
				return err
			}
		}
		if got := lastIn(b.Cursor(), prefixes[1]); got != nil {
			t.Errorf("%x is the last of none", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
