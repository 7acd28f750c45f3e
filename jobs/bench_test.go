package jobs_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

const producers = 64

// produce calls do n times from 64 goroutines.
func produce(n int, do func(i int)) time.Duration {
	start := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range producers {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > n {
					return
				}
				do(i)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// bare is what a queue at least has to do on this disk: one grouped put a job.
func bare(b *testing.B, s *store.Store, n int, run func(bucket *bbolt.Bucket, key []byte) error) time.Duration {
	return produce(n, func(i int) {
		key := binary.BigEndian.AppendUint64(nil, uint64(i))
		if err := s.Update(b.Context(), func(tx *bbolt.Tx) error { return run(tx.Bucket([]byte("bare")), key) }); err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkJobs enqueues jobs of 200 bytes from 64 producers, one a call, then runs them to completion at concurrency 64; and
// beside it the bare loop: put, and later delete, one key a job in the same kind of file. ratios are to the bare loop's rate.
func BenchmarkJobs(b *testing.B) {
	for _, keep := range []string{"none", "last10"} {
		b.Run("keep="+keep, func(b *testing.B) {
			e, s := open(b, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q", RemoveOnComplete: jobs.Retention{Remove: keep == "none"}}}})
			data := make([]byte, 200)
			b.ResetTimer()
			before := s.Stats()
			enqueue := produce(b.N, func(i int) {
				if _, err := e.Enqueue(b.Context(), jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprintf("pay_%020d", i), Data: data}); err != nil {
					b.Error(err)
				}
			})
			middle := s.Stats()
			drain := runAll(b, e, b.N, jobs.RunnerOptions{Queue: "q", Concurrency: 64})
			after := s.Stats()
			b.StopTimer()

			bs := storetest.Open(b, store.Options{Buckets: []string{"bare"}})
			barePut := bare(b, bs, b.N, func(bk *bbolt.Bucket, k []byte) error { return bk.Put(k, data) })
			bareDelete := bare(b, bs, b.N, func(bk *bbolt.Bucket, k []byte) error { return bk.Delete(k) })

			rate := func(d time.Duration) float64 { return float64(b.N) / d.Seconds() }
			b.ReportMetric(rate(enqueue), "enqueue/s")
			b.ReportMetric(rate(drain), "run/s")
			b.ReportMetric(rate(barePut), "bareput/s")
			b.ReportMetric(bareDelete.Seconds()/drain.Seconds(), "run-ratio")
			b.ReportMetric(barePut.Seconds()/enqueue.Seconds(), "enqueue-ratio")
			b.ReportMetric(2*float64(middle.Commits-before.Commits)/float64(b.N), "fsync/enqueue")
			b.ReportMetric(2*float64(after.Commits-middle.Commits)/float64(b.N), "fsync/run")
		})
	}
}

// BenchmarkEnqueueBulk enqueues 1000 jobs a call.
func BenchmarkEnqueueBulk(b *testing.B) {
	e, _ := open(b, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}}})
	batch := make([]jobs.NewJob, 1000)
	for i := range batch {
		batch[i] = jobs.NewJob{Queue: "q", Tenant: "t", Data: make([]byte, 200)}
	}
	for b.Loop() {
		if _, err := e.Enqueue(b.Context(), batch...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkOutside leases and completes batches of 100 by 8 workers.
func BenchmarkOutside(b *testing.B) {
	e, _ := open(b, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}}})
	batch := make([]jobs.NewJob, 1000)
	for i := range batch {
		batch[i] = jobs.NewJob{Queue: "q", Tenant: "t", Data: make([]byte, 200)}
	}
	for n := 0; n < b.N; n += len(batch) {
		if _, err := e.Enqueue(b.Context(), batch[:min(len(batch), b.N-n)]...); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				js, err := e.Lease(b.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t", Max: 100, For: time.Minute})
				if err != nil || len(js) == 0 {
					if err != nil {
						b.Error(err)
					}
					return
				}
				ends := make([]jobs.Completion, len(js))
				for i, j := range js {
					ends[i].LeaseRef = ref(j)
				}
				if _, errs := e.CompleteMany(b.Context(), ends); errors.Join(errs...) != nil {
					b.Error(errors.Join(errs...))
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// runAll runs a do-nothing handler until n jobs are done.
func runAll(b *testing.B, e *jobs.Engine, n int, o jobs.RunnerOptions) time.Duration {
	start := time.Now()
	ctx, cancel := context.WithCancel(b.Context())
	var done atomic.Int64
	o.Handler = func(context.Context, *jobs.Job) error {
		if done.Add(1) == int64(n) {
			cancel()
		}
		return nil
	}
	r, err := e.NewRunner(o)
	if err != nil {
		b.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
