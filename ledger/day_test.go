package ledger

import (
	"testing"
	"time"
)

// The days of every zone follow each other without a gap, also where clocks change at midnight, or a day is left out.
func TestDays(t *testing.T) {
	for _, name := range []string{"UTC", "Europe/Berlin", "America/Santiago", "America/Havana", "America/Asuncion", "America/Sao_Paulo", "America/St_Johns", "America/Nuuk",
		"America/Scoresbysund", "Atlantic/Azores", "Asia/Beirut", "Asia/Amman", "Asia/Gaza", "Asia/Tehran", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kwajalein", "Asia/Kathmandu"} {
		zone := must(time.LoadLocation(name))(t)
		d, _ := ParseDay("1990-01-01")
		last, _ := ParseDay("2040-01-01")
		for ; d.Before(last); d = d.Add(1) {
			from, to := d.Span(zone)
			if DayOf(from).Before(d) || !DayOf(from.Add(-1)).Before(d) {
				t.Fatalf("%s: %v begins at %v", name, d, from)
			}
			if next := d.Add(1).Start(zone); !next.Equal(to) || next.Before(from) {
				t.Fatalf("%s: %v ends at %v, and the next begins at %v", name, d, to, next)
			}
			if long := to.Sub(from); long != 0 && (long < 22*time.Hour || long > 26*time.Hour) {
				t.Fatalf("%s: %v has %v", name, d, long)
			}
		}
	}
}

// The longest span is counted in days, not in hours: of 366 days that hold two changes of clocks in autumn and one in spring.
func TestDaysExceeded(t *testing.T) {
	for _, c := range []struct {
		zone, from, to string
		days           int
		exceeded       bool
	}{
		{"Europe/Berlin", "2025-10-26T00:00:00+02:00", "2026-10-27T00:00:00+01:00", 366, false},
		{"Europe/Berlin", "2025-10-26T00:00:00+02:00", "2026-10-27T00:00:01+01:00", 366, true},
		{"Europe/Berlin", "2025-10-26T00:00:00+02:00", "2026-10-28T00:00:00+01:00", 366, true},
		{"Europe/Berlin", "2026-10-01T18:30:00+02:00", "2026-11-01T18:30:00+01:00", 31, false},
		{"Europe/Berlin", "2026-03-15T00:00:00+01:00", "2026-04-15T00:00:00+02:00", 31, false},
		{"Europe/Berlin", "2026-03-15T00:00:00+01:00", "2026-04-15T00:30:00+02:00", 31, true}, // in hours it would do
		{"America/Santiago", "2026-09-06T01:00:00-03:00", "2026-10-07T00:00:00-03:00", 31, false},
		{"America/Santiago", "2026-08-06T00:00:00-04:00", "2026-09-06T01:00:00-03:00", 31, false},
		{"UTC", "2025-10-26T00:00:00Z", "2026-10-27T00:00:00Z", 366, false},
		{"UTC", "2025-10-26T00:00:00Z", "2026-10-27T01:00:00Z", 366, true},
		{"UTC", "1970-01-01T00:00:00Z", "9998-12-31T00:00:00Z", 366, true},
	} {
		from, to := must(time.Parse(time.RFC3339, c.from))(t), must(time.Parse(time.RFC3339, c.to))(t)
		if got := exceedDays(from.In(must(time.LoadLocation(c.zone))(t)), to, c.days); got != c.exceeded {
			t.Errorf("%s to %s in %s: exceeds %d days is %v", c.from, c.to, c.zone, c.days, got)
		}
	}
}

// A report is of a year and a leap day, here with an hour more than those have elsewhere.
func TestLongestReport(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	berlin := must(time.LoadLocation("Europe/Berlin"))(t)
	year := time.Date(2025, 10, 26, 0, 0, 0, 0, berlin)
	must(b.Report(t.Context(), testTenant, year, year.AddDate(0, 0, 366)))(t)
	for _, to := range []time.Time{year.AddDate(0, 0, 367), year.AddDate(0, 0, 366).Add(1)} {
		if _, err := b.Report(t.Context(), testTenant, year, to); code(err) != "time_range_invalid" {
			t.Errorf("up to %v: %v", to, err)
		}
	}
}

// A day without a midnight begins when its clock does; one with two begins at the first, and both hours are its own.
func TestDaySpans(t *testing.T) {
	for _, c := range []struct{ zone, day, from, to string }{
		{"America/Santiago", "2026-09-05", "2026-09-05T04:00:00Z", "2026-09-06T04:00:00Z"},
		{"America/Santiago", "2026-09-06", "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"}, // begins at 01:00
		{"America/Santiago", "2026-04-04", "2026-04-04T03:00:00Z", "2026-04-05T04:00:00Z"}, // 23:00 comes twice
		{"America/Havana", "2026-03-08", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"},   // begins at 01:00
		{"America/Havana", "2026-11-01", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"},   // two midnights
		{"Asia/Amman", "2021-10-28", "2021-10-27T21:00:00Z", "2021-10-28T21:00:00Z"},
		{"Asia/Amman", "2021-10-29", "2021-10-28T21:00:00Z", "2021-10-29T22:00:00Z"},   // two midnights
		{"Pacific/Apia", "2011-12-29", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"}, //
		{"Pacific/Apia", "2011-12-30", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z"}, // left out
		{"Pacific/Apia", "2011-12-31", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"},
	} {
		d, ok := ParseDay(c.day)
		from, to := d.Span(must(time.LoadLocation(c.zone))(t))
		if got := [2]string{from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339)}; !ok || got != [2]string{c.from, c.to} || d.String() != c.day {
			t.Errorf("%s, %s: %v, want %s to %s", c.zone, c.day, got, c.from, c.to)
		}
	}
	for _, s := range []string{"", "2026-02-30", "2026-11-23T00:00:00Z", "yesterday"} {
		if d, ok := ParseDay(s); ok {
			t.Errorf("%q is %v", s, d)
		}
	}
}
