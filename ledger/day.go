package ledger

import (
	"sort"
	"time"
)

// Day is a calendar date. Dates are counted as dates, and become instants only at the end: where clocks change at midnight a day may begin
// at one o'clock, or have two midnights, and counting by instants stands still there.
type Day struct {
	utc time.Time // its midnight in UTC, where each day has one
}

// dayOffsetMax is more than any clock of the time zone database is, or ever was, ahead of UTC or behind it.
const dayOffsetMax = 26 * time.Hour

// DayOf is the date of an instant where its zone is.
func DayOf(at time.Time) Day {
	y, m, d := at.Date()
	return Day{time.Date(y, m, d, 0, 0, 0, 0, time.UTC)}
}

// ParseDay reads a date such as 2026-11-23.
func ParseDay(s string) (Day, bool) {
	at, err := time.Parse(time.DateOnly, s)
	return Day{at}, err == nil
}

func (d Day) String() string { return d.utc.Format(time.DateOnly) }

// Add is the date n days later.
func (d Day) Add(n int) Day { return Day{d.utc.AddDate(0, 0, n)} }

// Before reports whether d is the earlier.
func (d Day) Before(other Day) bool { return d.utc.Before(other.utc) }

// Start is the first instant at which the zone's calendar shows the day, or a later one: a few islands have left out a day. So the days
// of a zone, each up to the start of the next, neither overlap nor leave a gap.
func (d Day) Start(zone *time.Location) time.Time {
	begun := func(at time.Time) bool { return !DayOf(at.In(zone)).Before(d) }
	y, m, n := d.utc.Date()
	at := time.Date(y, m, n, 0, 0, 0, 0, zone)
	if begun(at) && !begun(at.Add(-1)) {
		return at
	}
	// There is no midnight, or time.Date has answered the second of two. Clocks change at whole seconds.
	first := d.utc.Add(-dayOffsetMax)
	seconds := sort.Search(int(2*dayOffsetMax/time.Second), func(i int) bool { return begun(first.Add(time.Duration(i) * time.Second)) })
	return first.Add(time.Duration(seconds) * time.Second).In(zone)
}

// exceedDays reports whether the span is longer than n days of its beginning's zone, of which one in a year has an hour more.
func exceedDays(from, to time.Time, n int) bool {
	day, zone := DayOf(from), from.Location()
	return to.After(day.Add(n).Start(zone).Add(from.Sub(day.Start(zone))))
}

// Span is the day's first instant and the next day's. They are the same of a day that the zone has left out.
func (d Day) Span(zone *time.Location) (from, to time.Time) {
	return d.Start(zone), d.Add(1).Start(zone)
}
