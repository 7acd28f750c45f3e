package jobs

import (
	"math/bits"
	"sync"
	"time"
)

// QueueRates are what happened in the last minute, in memory and since the start at most. Times are those of the
// last one to two minutes, a tenth exact.
type QueueRates struct {
	Added, Started, Completed, Failed float64       // a second
	WaitP50, WaitP99                  time.Duration // from due to start
	RunP50, RunP99                    time.Duration // from start to outcome
}

const (
	rateSlice  = 5 * time.Second
	rateSlices = 12 // a minute; the slice that is being filled comes on top

	// Durations are counted by magnitude: four buckets to a doubling, from a microsecond to three days. 600 bytes a
	// histogram; HDR histograms, which are more exact, take tens of thousands.
	magnitudeBits = 2
	magnitudes    = 37 << magnitudeBits

	// measuresMax lines (tenants in queues) are measured at a time, with some 3 KiB each. Of more, the box as a whole has
	// other worries; a line that was quiet for two minutes makes room.
	measuresMax = 4096
)

// event is what statistics count.
type event int

const (
	eventAdded event = iota
	eventStarted
	eventCompleted
	eventFailed
	events
)

// statistics measure lines, and queues as a whole.
type statistics struct {
	mu     sync.Mutex    // guards what follows; nobody who holds it takes another lock
	start  time.Duration // slices are counted from here, by the clock that does not jump
	lines  map[lineName]*measure
	looked int64 // the slice in which room was last looked for

	last                struct{ queue, tenant string } // whom the last event was about: events come in rows
	lastLine, lastWhole *measure                       // nil: not known, or there was no room
}

type lineName struct {
	queue, tenant string
	whole         bool // the queue, all tenants together
}

// measure is what is known of one line. Slices are numbered from the start, and used in turn.
type measure struct {
	slice  int64 // the one that is being filled
	counts [rateSlices + 1][events]uint32
	halves [2]struct{ wait, run magnitude } // of this minute, and of the one before
}

type magnitude [magnitudes]uint32

func (s *statistics) init(now time.Duration) {
	s.start, s.lines, s.looked = now, map[lineName]*measure{}, -1
}

// count notes that something happened, and for how long it took: from due to start for a start, from start to outcome for an outcome.
// now is steady time.
func (s *statistics) count(queue, tenant string, what event, took, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slice := int64((now - s.start) / rateSlice)
	if s.lastLine == nil || s.lastWhole == nil || s.last.tenant != tenant || s.last.queue != queue {
		s.last.queue, s.last.tenant = queue, tenant
		s.lastWhole = s.measure(lineName{queue, "", true}, slice)
		s.lastLine = s.measure(lineName{queue, tenant, false}, slice)
	}
	for _, m := range [...]*measure{s.lastLine, s.lastWhole} {
		if m == nil {
			continue
		}
		m.turn(slice)
		m.counts[slice%int64(len(m.counts))][what]++
		switch what {
		case eventStarted:
			m.halves[0].wait[bucketOf(took)]++
		case eventCompleted, eventFailed:
			m.halves[0].run[bucketOf(took)]++
		}
	}
}

// measure returns what is known of a line; nil: there is no room for it.
func (s *statistics) measure(name lineName, slice int64) *measure {
	m := s.lines[name]
	if m == nil && (len(s.lines) < measuresMax || s.makeRoom(slice)) {
		m = &measure{slice: slice}
		s.lines[name] = m
	}
	if m != nil {
		m.turn(slice)
	}
	return m
}

// turn goes on to a slice.
func (m *measure) turn(slice int64) {
	if slice-m.slice > 2*rateSlices {
		*m = measure{slice: slice}
	}
	for m.slice < slice {
		m.slice++
		m.counts[m.slice%int64(len(m.counts))] = [events]uint32{}
		if m.slice%rateSlices == 0 {
			m.halves[1], m.halves[0] = m.halves[0], struct{ wait, run magnitude }{}
		}
	}
}

// makeRoom forgets who has been quiet.
func (s *statistics) makeRoom(slice int64) bool {
	if s.looked == slice { // once a slice, for it takes a while
		return false
	}
	s.looked = slice
	room := false
	for name, m := range s.lines {
		if slice-m.slice > 2*rateSlices {
			delete(s.lines, name)
			room = true
		}
	}
	return room
}

// rates returns what is known of a line, or with whole of all lines of a queue.
func (s *statistics) rates(queue, tenant string, whole bool, now time.Duration) (r QueueRates) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.lines[lineName{queue, tenant, whole}]
	if m == nil {
		return r
	}
	slice := int64((now - s.start) / rateSlice)
	m.turn(slice)
	var sum [events]float64
	for i, c := range m.counts {
		for what, n := range c {
			// The slice that is being filled, and twelve whole ones, the oldest of them as far as it belongs to the minute.
			weight := 1.0
			if int64(i) == (slice+1)%int64(len(m.counts)) {
				weight = 1 - float64((now-s.start)%rateSlice)/float64(rateSlice)
			}
			sum[what] += weight * float64(n)
		}
	}
	// Since the start, if that was less than a minute ago; but one job in the first millisecond is no thousand a second.
	seconds := min(max(now-s.start, rateSlice), rateSlice*rateSlices).Seconds()
	r.Added, r.Started = sum[eventAdded]/seconds, sum[eventStarted]/seconds
	r.Completed, r.Failed = sum[eventCompleted]/seconds, sum[eventFailed]/seconds
	var wait, run magnitude
	for i := range wait {
		wait[i] = m.halves[0].wait[i] + m.halves[1].wait[i]
		run[i] = m.halves[0].run[i] + m.halves[1].run[i]
	}
	r.WaitP50, r.WaitP99 = wait.quantile(0.50), wait.quantile(0.99)
	r.RunP50, r.RunP99 = run.quantile(0.50), run.quantile(0.99)
	return r
}

// bucketOf is the bucket of a duration: below 4 µs each microsecond has its own, then each doubling has four.
func bucketOf(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	if us < 1<<magnitudeBits {
		return int(us)
	}
	exp := bits.Len64(us) - 1 - magnitudeBits
	return min((exp+1)<<magnitudeBits+int(us>>exp)-1<<magnitudeBits, magnitudes-1)
}

// bucketFrom is the least duration of a bucket.
func bucketFrom(i int) time.Duration {
	if i < 1<<magnitudeBits {
		return time.Duration(i) * time.Microsecond
	}
	exp := i>>magnitudeBits - 1
	return time.Duration(1<<magnitudeBits+i&(1<<magnitudeBits-1)) << exp * time.Microsecond
}

// quantile returns the middle of the bucket in which the q-th part of what was counted ends.
func (m *magnitude) quantile(q float64) time.Duration {
	total := 0.0
	for _, n := range m {
		total += float64(n)
	}
	if total == 0 {
		return 0
	}
	seen := 0.0
	for i, n := range m {
		if seen += float64(n); n > 0 && seen >= q*total {
			return (bucketFrom(i) + bucketFrom(i+1)) / 2
		}
	}
	return 0
}
