package ledger

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// BenchmarkPay takes payments with the line down: idempotency key, payment and
// journal row in one group commit, and the relay to the queue beside it. It prints
// the CPU time of the whole process a payment, commits a payment, and, for the
// disk's present mood, the median of what an empty group's fsync costs is printed
// by the repository's bench program.
func BenchmarkPay(b *testing.B) {
	for _, clients := range []int{1, 64, 256} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			box := openBox(b, b.TempDir(), testOptions{})
			if err := box.sim.Cut(true); err != nil {
				b.Fatal(err)
			}
			var n atomic.Int64
			began := cpuTime(b)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						if _, _, err := box.Pay(b.Context(), testTenant, IdempotencyKey(fmt.Sprint("key-", i)), validPayment()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			commits := uint64(0)
			for _, s := range box.Shards() {
				commits += s.Stats.Commits
			}
			b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N)/1000, "cpu-µs/op")
			b.ReportMetric(float64(commits)/float64(b.N), "commits/op")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
