package bus

import (
	"strconv"
	"syscall"
	"testing"
	"time"
)

// processCPU is the time that this process has been on a CPU, in user and kernel mode.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkPublish measures a durable batch of events of 300 bytes. CPU a message is
// the figure that competes with taking payments; the rate is the disk's.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 10, 100, BatchMax} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			bus := open(b, Options{Dir: b.TempDir()})
			seq := uint64(1)
			var cpu, wall time.Duration
			for b.Loop() {
				b.StopTimer()
				ms := messages("1/0", seq, n)
				seq += uint64(n)
				b.StartTimer()
				before, start := processCPU(b), time.Now()
				if _, err := bus.Publish(b.Context(), ms); err != nil {
					b.Fatal(err)
				}
				cpu += processCPU(b) - before
				wall += time.Since(start)
			}
			msgs := float64(b.N) * float64(n)
			b.ReportMetric(float64(cpu.Nanoseconds())/msgs, "cpu-ns/msg")
			b.ReportMetric(msgs/wall.Seconds(), "msg/s")
			b.ReportMetric(float64(len(messages("1/0", 1, 1)[0].Event.AppendJSON(nil))), "json-bytes/msg")
		})
	}
}

// BenchmarkTail measures reading one message of the tail.
func BenchmarkTail(b *testing.B) {
	bus := open(b, Options{Dir: b.TempDir()})
	for range 10 {
		publish(b, bus, messages("1/0", 1, BatchMax))
	}
	for b.Loop() {
		if _, _, err := bus.Tail(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*10*BatchMax), "ns/msg")
}

// BenchmarkOpen measures start and stop: of a new folder, and of one with 100,000 events.
func BenchmarkOpen(b *testing.B) {
	for name, batches := range map[string]int{"new": 0, "100k": 100} {
		b.Run(name, func(b *testing.B) {
			o := Options{Dir: b.TempDir()}
			bus := open(b, o)
			for i := range batches {
				publish(b, bus, messages("1/0", uint64(i)*BatchMax+1, BatchMax))
			}
			for b.Loop() {
				bus = reopen(b, bus, o)
			}
		})
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	e := messages("1/0", 1, 1)[0].Event
	var buf []byte
	for b.Loop() {
		buf = e.AppendJSON(buf[:0])
	}
}
