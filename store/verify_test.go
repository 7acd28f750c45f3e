package store

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// TestManyWalkersFindWhatOneFinds: of a file with trees of three levels, one page after the other is damaged. Several goroutines find it exactly
// when one does.
func TestManyWalkersFindWhatOneFinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file.db")
	s, err := Open(path, Options{Buckets: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Update(t.Context(), func(tx *bbolt.Tx) error {
		for i := range uint64(40_000) {
			key := binary.BigEndian.AppendUint64(bytes.Repeat([]byte{'k'}, 100), i) // long keys: few children a page
			if err := tx.Bucket([]byte("a")).Put(key, make([]byte, 10)); err != nil {
				return err
			}
		}
		inner, err := tx.Bucket([]byte("b")).CreateBucket([]byte("inner"))
		if err != nil {
			return err
		}
		return inner.Put([]byte("large"), make([]byte, 50_000))
	}); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := s.Backup(&file); err != nil {
		t.Fatal(err)
	}
	data := file.Bytes()
	m, damaged, err := readMetas(bytes.NewReader(data))
	if err != nil || damaged != nil {
		t.Fatal(err, damaged)
	}
	const many = 4
	for _, strict := range []bool{false, true} {
		for _, walkers := range []int{1, many} {
			if err := verify(bytes.NewReader(data), m, strict, walkers); err != nil {
				t.Errorf("sound, %d walkers: %v", walkers, err)
			}
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	found := 0
	page := func(id uint64) []byte { return data[int64(id)*m.pageSize:][:m.pageSize] }
	for id := uint64(2); id < m.highWater; id++ {
		was := bytes.Clone(page(id))
		switch random.IntN(3) {
		case 0: // another page in its place
			copy(page(id), page(2+random.Uint64N(m.highWater-2)))
		case 1:
			page(id)[random.IntN(pageHeader)] ^= 1 << random.IntN(8)
		default: // an element's position or length, or the key of a neighbour
			page(id)[pageHeader+random.IntN(200)] ^= 1 << random.IntN(8)
		}
		one := verify(bytes.NewReader(data), m, true, 1)
		if several := verify(bytes.NewReader(data), m, true, many); (one == nil) != (several == nil) {
			t.Errorf("page %d: one walker says %v, several say %v", id, one, several)
		}
		if one != nil {
			found++
		}
		copy(page(id), was)
		id += random.Uint64N(40) // some of them
	}
	if found < 10 {
		t.Errorf("%d damages found", found)
	}
}
