package jobs

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

func TestRatesOfTheLastMinute(t *testing.T) {
	var s statistics
	s.init(time.Hour)
	now := time.Hour
	for range 600 { // ten minutes, one a second, of another tenant ten
		now += time.Second
		s.count("q", "t", eventAdded, 0, now)
		s.count("q", "t", eventStarted, 10*time.Millisecond, now)
		s.count("q", "t", eventCompleted, time.Second, now)
		for range 10 {
			s.count("q", "u", eventFailed, time.Minute, now)
		}
	}
	near := func(got, want float64) bool { return got > 0.95*want && got < 1.05*want }
	r := s.rates("q", "t", false, now)
	if !near(r.Added, 1) || !near(r.Started, 1) || !near(r.Completed, 1) || r.Failed != 0 {
		t.Errorf("%+v", r)
	}
	if max(r.WaitP50-10*time.Millisecond, 10*time.Millisecond-r.WaitP50) > 10*time.Millisecond/8 || max(r.RunP99-time.Second, time.Second-r.RunP99) > time.Second/8 {
		t.Errorf("%+v", r)
	}
	if r := s.rates("q", "", true, now); !near(r.Failed, 10) || !near(r.Completed, 1) || r.RunP50 < 50*time.Second || r.RunP50 > 70*time.Second {
		t.Errorf("the queue: %+v", r)
	}
	if r := s.rates("p", "t", false, now); r != (QueueRates{}) {
		t.Errorf("another queue: %+v", r)
	}
	if r := s.rates("q", "t", false, now+30*time.Second); !near(r.Added, 0.5) {
		t.Errorf("half a minute later: %+v", r)
	}
	if r := s.rates("q", "t", false, now+66*time.Second); r.Added != 0 || r.WaitP50 == 0 {
		t.Errorf("a minute later: %+v", r)
	}
	if r := s.rates("q", "t", false, now+3*time.Minute); r != (QueueRates{}) {
		t.Errorf("three minutes later: %+v", r)
	}
}

func TestRatesSinceTheStart(t *testing.T) {
	var s statistics
	s.init(0)
	for range 100 {
		s.count("q", "t", eventAdded, 0, time.Millisecond)
	}
	for after, want := range map[time.Duration]float64{time.Second: 20, 10 * time.Second: 10, 50 * time.Second: 2} {
		if r := s.rates("q", "t", false, after); r.Added != want {
			t.Errorf("after %v: %+v, want %v", after, r, want)
		}
	}
}

// TestQuantiles: the answer is never off by more than an eighth of what it should be, or a microsecond.
func TestQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "d"))
		if rapid.Bool().Draw(t, "small") {
			d %= time.Second
		}
		var m magnitude
		m[bucketOf(d)]++
		got := m.quantile(0.99)
		if diff := max(got-d, d-got); diff > d/8+time.Microsecond {
			t.Fatalf("%v is told as %v", d, got)
		}
	})
	for _, d := range []time.Duration{-time.Hour, 1<<63 - 1} {
		if i := bucketOf(d); i < 0 || i >= magnitudes {
			t.Errorf("%v is in bucket %d", d, i)
		}
	}
	var m magnitude
	for i := range 1000 {
		m[bucketOf(time.Duration(i)*time.Millisecond)]++
	}
	if p50, p99 := m.quantile(0.5), m.quantile(0.99); p50 < 440*time.Millisecond || p50 > 560*time.Millisecond || p99 < 900*time.Millisecond || p99 > 1100*time.Millisecond {
		t.Errorf("%v, %v", p50, p99)
	}
}

func TestManyTenantsAreMeasuredInBoundedMemory(t *testing.T) {
	var s statistics
	s.init(0)
	for i := range 3 * measuresMax {
		s.count("q", fmt.Sprint(i), eventAdded, 0, time.Second)
	}
	if len(s.lines) != measuresMax || unsafe.Sizeof(measure{}) > 3<<10 {
		t.Errorf("%d lines of %d bytes", len(s.lines), unsafe.Sizeof(measure{}))
	}
	if r := s.rates("q", "", true, time.Second); r.Added != 3*measuresMax/5. {
		t.Errorf("the queue: %+v", r)
	}
	s.count("q", "late", eventAdded, 0, 10*time.Minute)
	if r := s.rates("q", "late", false, 10*time.Minute); r.Added == 0 || len(s.lines) > 2 {
		t.Errorf("who was quiet makes room: %+v, %d lines", r, len(s.lines))
	}
}
