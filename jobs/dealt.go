package jobs

import (
	"slices"
	"time"
)

// An occurrence is an instant at which a schedule is due. It becomes at most one job, whatever clocks do: the schedule
// remembers in its record which ones did.

const (
	// dealtMax spans are remembered. A new one begins with each outage, and with each jump of the clock; beyond
	// it the two closest become one, which only ever leaves out occurrences that a clock set back would bring again.
	dealtMax = 8

	// missedAfter is how late an occurrence may be noticed and still be on time: a slow disk or a
	// restart is no outage.
	missedAfter = time.Minute
)

// span is the occurrences from From to To, in Unix seconds, both included.
type span struct{ From, To int64 }

// dealt is the occurrences that became jobs, in order. Those of an ordinary life follow each other and are one span.
type dealt []span

// at returns the span that t is in.
func (d dealt) at(t time.Time) (span, bool) {
	for _, s := range d {
		if s.From <= t.Unix() && t.Unix() <= s.To {
			return s, true
		}
	}
	return span{}, false
}

// add returns d with t in it.
func (d dealt) add(t time.Time, w *timing) dealt {
	if _, in := d.at(t); in {
		return d
	}
	d = append(slices.Clone(d), span{t.Unix(), t.Unix()})
	slices.SortFunc(d, func(a, b span) int { return int(min(max(a.From-b.From, -1), 1)) })
	out := d[:1]
	for _, s := range d[1:] {
		last := &out[len(out)-1]
		if next := w.next(time.Unix(last.To, 0)); s.From <= last.To || !next.IsZero() && next.Unix() == s.From {
			last.To = max(last.To, s.To)
			continue
		}
		out = append(out, s)
	}
	for len(out) > dealtMax {
		closest := 0
		for i := range len(out) - 1 {
			if out[i+1].From-out[i].To < out[closest+1].From-out[closest].To {
				closest = i
			}
		}
		out[closest].To = out[closest+1].To
		out = slices.Delete(out, closest+1, closest+2)
	}
	return out
}

// next returns the first occurrence after t that is not dealt with; zero: none.
func (d dealt) next(t time.Time, w *timing) time.Time {
	n := w.next(t)
	for {
		s, in := d.at(n)
		if n.IsZero() || !in {
			return n
		}
		n = w.next(time.Unix(s.To, 0))
	}
}

// last returns the last occurrence from first to now that is not dealt with; zero: none.
func (d dealt) last(first, now time.Time, w *timing) time.Time {
	from := first.Add(-time.Nanosecond)
	n := w.last(from, now)
	for {
		s, in := d.at(n)
		if n.IsZero() || !in {
			return n
		}
		n = w.last(from, time.Unix(s.From, 0).Add(-time.Nanosecond))
	}
}
