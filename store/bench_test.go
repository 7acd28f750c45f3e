package store_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"go.etcd.io/bbolt"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

// BenchmarkPut is a durable put of 300 bytes under growing keys. FIGURES.md has 45k/s with 64 submitters and 125k/s
// with 256 for a bare loop that gathers 1000 operations.
func BenchmarkPut(b *testing.B) {
	for _, submitters := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("submitters=%d", submitters), func(b *testing.B) {
			s := storetest.Open(b, options)
			var next atomic.Int64
			value := make([]byte, 300)
			before := s.Stats()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range submitters {
				wg.Go(func() {
					for {
						i := next.Add(1)
						if i > int64(b.N) {
							return
						}
						key := binary.BigEndian.AppendUint64(nil, uint64(i))
						if err := s.Update(b.Context(), func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put(key, value) }); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			after := s.Stats()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			b.ReportMetric(float64(after.Operations-before.Operations)/float64(after.Commits-before.Commits), "ops/commit")
		})
	}
}

// BenchmarkOpen is the cost of verifying a file of about 36 MB.
func BenchmarkOpen(b *testing.B) {
	s := storetest.Open(b, options)
	for i := range 100 {
		if err := s.Update(b.Context(), func(tx *bbolt.Tx) error {
			for j := range 1000 {
				key := binary.BigEndian.AppendUint64(nil, uint64(1000*i+j))
				if err := tx.Bucket(bucket).Put(key, make([]byte, 300)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(s.Stats().Bytes)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := store.Open(s.Path(), options)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
