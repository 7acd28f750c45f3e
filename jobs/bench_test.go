package jobs_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"tenderbox/jobs"
)

// BenchmarkOutside leases and completes batches of 100 by 8 workers, without HTTP. `make bench-jobs` measures the rest.
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
