package jobs

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func occurrences(t *testing.T, expr, zone, from string, n int) string {
	t.Helper()
	w, err := parseTiming(expr, zone)
	if err != nil {
		t.Fatal(err)
	}
	loc, err := loadZone(zone)
	if err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339, from)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for range n {
		if at = w.next(at); at.IsZero() {
			out = append(out, "never")
			break
		}
		out = append(out, at.In(loc).Format("02T15:04-0700"))
	}
	return strings.Join(out, " ")
}

func TestChangesOfTheClocks(t *testing.T) {
	for name, tc := range map[string]struct{ expr, zone, from, want string }{
		"spring, a time of day":         {"30 2 * * *", "America/New_York", "2025-03-08T00:00:00Z", "08T02:30-0500 09T03:00-0400 10T02:30-0400"},
		"spring, two in the gap":        {"0,30 2 * * *", "America/New_York", "2025-03-09T00:00:00Z", "09T03:00-0400 10T02:00-0400 10T02:30-0400"},
		"spring, gap and its end":       {"0 2,3 * * *", "America/New_York", "2025-03-09T00:00:00Z", "09T03:00-0400 10T02:00-0400 10T03:00-0400"},
		"spring, each half hour":        {"*/30 * * * *", "America/New_York", "2025-03-09T06:15:00Z", "09T01:30-0500 09T03:00-0400 09T03:30-0400"},
		"spring, each minute at two":    {"* 2 * * *", "America/New_York", "2025-03-09T05:00:00Z", "10T02:00-0400 10T02:01-0400"},
		"autumn, a time of day":         {"30 1 * * *", "America/New_York", "2025-11-01T12:00:00Z", "02T01:30-0400 03T01:30-0500"},
		"autumn, from the second one":   {"30 1 * * *", "America/New_York", "2025-11-02T06:10:00Z", "03T01:30-0500"},
		"autumn, each half hour":        {"*/30 * * * *", "America/New_York", "2025-11-02T05:15:00Z", "02T01:30-0400 02T01:00-0500 02T01:30-0500 02T02:00-0500"},
		"autumn, hourly":                {"@hourly", "Europe/Berlin", "2025-10-26T00:00:00Z", "26T02:00+0100 26T03:00+0100"},
		"autumn, daily":                 {"@daily", "Europe/Berlin", "2025-10-25T12:00:00Z", "26T00:00+0200 27T00:00+0100"},
		"half an hour":                  {"15 2 * * *", "Australia/Lord_Howe", "2025-10-04T00:00:00Z", "05T02:30+1100 06T02:15+1100"},
		"midnight does not exist":       {"0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00Z", "04T01:00-0200 05T00:00-0200"},
		"one o'clock behind that":       {"0 1 4 11 *", "America/Sao_Paulo", "2018-11-03T12:00:00Z", "04T01:00-0200"},
		"a day does not exist":          {"0 9 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", "29T09:00-1000 31T00:00+1400 31T09:00+1400"},
		"leap day":                      {"0 0 29 2 *", "", "2025-01-01T00:00:00Z", "29T00:00+0000"},
		"never":                         {"0 0 30 2 *", "Europe/Berlin", "2025-01-01T00:00:00Z", "never"},
		"names, steps, ranges":          {"5-15/5 8 * mar mon-fri", "UTC", "2025-03-01T00:00:00Z", "03T08:05+0000 03T08:10+0000 03T08:15+0000 04T08:05+0000"},
		"day of month or of week":       {"0 0 13 * fri", "UTC", "2025-06-07T00:00:00Z", "13T00:00+0000 20T00:00+0000"},
		"within the repeated half":      {"45 1 * * *", "Australia/Lord_Howe", "2025-04-05T00:00:00Z", "06T01:45+1100 07T01:45+1030"},
		"a zone without changes":        {"0 12 * * *", "Asia/Kolkata", "2025-04-05T00:00:00Z", "05T12:00+0530 06T12:00+0530"},
		"weekly over the spring change": {"30 2 * * sun", "Europe/Berlin", "2025-03-24T00:00:00Z", "30T03:00+0200 06T02:30+0200"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := occurrences(t, tc.expr, tc.zone, tc.from, 1+strings.Count(tc.want, " ")); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestHostileExpressions(t *testing.T) {
	long := strings.Repeat("1,", 200) + "1 * * * *"
	for _, expr := range []string{
		"", " ", "*", "* * * *", "* * * * * *", "60 * * * *", "-1 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8",
		"1,,2 * * * *", ", * * * *", "*-5 * * * *", "*/0 * * * *", "*/-1 * * * *", "5-1 * * * *", "1-2-3 * * * *", "1/2/3 * * * *", "*/ * * * *",
		"99999999999999999999 * * * *", "1.5 * * * *", "0x1 * * * *", "１ * * * *", "* * * * *\n", "\x00 * * * *", "TZ=", "TZ=UTC * * * * *", "CRON_TZ=0",
		"@every 1s", "@every", "@every -1s", "@reboot", "@", "@@daily", "@daily @daily", "@DAILY", "jan * * * *", "* * * foo *", "a-b * * * *", long,
	} {
		if _, err := parseTiming(expr, ""); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "cron") {
			t.Errorf("%.40q: %v", expr, err)
		}
	}
	for _, zone := range []string{"Local", "Mars/Base", "../../etc/passwd", "/etc/localtime", "Europe/berlin\x00", strings.Repeat("a", 1000), "UTC+1", "\xff"} {
		if _, err := parseTiming("* * * * *", zone); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "time_zone") {
			t.Errorf("%.40q: %v", zone, err)
		}
	}
}

func FuzzCron(f *testing.F) {
	for _, expr := range []string{"* * * * *", "*/5 1-3,7 29 2 mon", "@yearly", "0-59/7 ? * jan-mar *", "TZ=", "*-1 * * * *"} {
		f.Add(expr, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, expr string, from int64) {
		w, err := parseTiming(expr, "Europe/Berlin")
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		at := time.Unix(from%(1<<32), 0)
		if n := w.next(at); !n.IsZero() && !n.After(at) {
			t.Fatalf("%q: %v after %v", expr, n, at)
		}
	})
}

var zoneNames = []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "Pacific/Apia", "Asia/Kolkata"}

func drawTiming(t *rapid.T) timing {
	if rapid.Bool().Draw(t, "interval") {
		every := time.Duration(rapid.IntRange(1, 100_000).Draw(t, "every")) * time.Second
		return everyTiming(every, time.Duration(rapid.IntRange(0, 1<<31).Draw(t, "phase"))*time.Second%every)
	}
	field := func(name string, lo, hi int) string {
		n := rapid.IntRange(lo, hi).Draw(t, name)
		switch rapid.IntRange(0, 3).Draw(t, name+"'s form") {
		case 0:
			return "*"
		case 1:
			return fmt.Sprint("*/", max(n, 1))
		case 2:
			return fmt.Sprint(n, "-", hi)
		default:
			return fmt.Sprint(n)
		}
	}
	expr := strings.Join([]string{field("minute", 0, 59), field("hour", 0, 23), "*", "*", field("weekday", 0, 6)}, " ")
	w, err := parseTiming(expr, rapid.SampledFrom(zoneNames).Draw(t, "zone"))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestTimingAgainstTheWatch compares with somebody who looks at the clock on the wall each minute.
func TestTimingAgainstTheWatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawTiming(t)
		if w.spec == nil {
			t.Skip("an interval")
		}
		from := time.Unix(rapid.Int64Range(1_262_304_000, 1_800_000_000).Draw(t, "from"), 0)
		// Begin near a change of the clocks, where there is one.
		if start, end := from.In(w.zone).ZoneBounds(); rapid.Bool().Draw(t, "at a change") && !start.IsZero() && !end.IsZero() {
			from = end.Add(-time.Duration(rapid.IntRange(-180, 180).Draw(t, "minutes")) * time.Minute)
		}
		from = from.Truncate(time.Minute)
		got := w.next(from)
		for at := from.Add(time.Minute); at.Before(from.Add(60 * time.Hour)); at = at.Add(time.Minute) {
			reading := shift(at, offset(at.In(w.zone)))
			matches := func(r time.Time) bool { return w.spec.Next(r.Add(-time.Second)).Equal(r) }
			want := matches(reading)
			if !w.wild {
				before := at.Add(-time.Minute)
				jumped := shift(before, offset(before.In(w.zone))).Add(time.Minute)
				for ; jumped.Before(reading); jumped = jumped.Add(time.Minute) {
					want = want || matches(jumped) // the clock left it out just now
				}
				for back := time.Hour; want && back > 0; back -= 30 * time.Minute { // was it shown before?
					earlier := at.Add(-back)
					want = !shift(earlier, offset(earlier.In(w.zone))).Equal(reading)
				}
			}
			if want {
				if !got.Equal(at) {
					t.Fatalf("after %v: got %v, want %v", from.In(w.zone), got.In(w.zone), at.In(w.zone))
				}
				return
			}
			if got.Equal(at) {
				t.Fatalf("after %v: got %v, which the watch does not see", from.In(w.zone), got.In(w.zone))
			}
		}
	})
}

// TestLastAndNextAgree: last finds what going from one to the next finds.
func TestLastAndNextAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawTiming(t)
		from := time.Unix(rapid.Int64Range(0, 1_800_000_000).Draw(t, "from"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
		to := from.Add(time.Duration(rapid.Int64Range(-10, 500_000).Draw(t, "for")) * time.Second / 3)
		var want time.Time
		for at, n := w.next(from), 0; !at.IsZero() && !at.After(to) && n < 200_000; at, n = w.next(at), n+1 {
			want = at
		}
		if got := w.last(from, to); !got.Equal(want) {
			t.Fatalf("in (%v, %v]: %v, want %v", from, to, got, want)
		}
	})
}

func TestLastIsQuickOverTenYears(t *testing.T) {
	w, err := parseTiming("* * * * *", "Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	to := from.AddDate(10, 0, 0).Add(30 * time.Second)
	if got := w.last(from, to); !got.Equal(from.AddDate(10, 0, 0)) {
		t.Errorf("%v", got)
	}
	if n := testing.AllocsPerRun(1, func() { w.last(from, to) }); n > 1000 { // five million steps would allocate, too
		t.Errorf("%v allocations", n)
	}
}

// TestDealtIsNeverForgotten: whatever comes is remembered, and nothing comes twice.
func TestDealtIsNeverForgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := everyTiming(time.Hour, 0)
		now := time.Unix(1_700_000_000, 0)
		p := plan{Every: time.Hour, NextAt: w.next(now)}
		came := map[time.Time]bool{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 1, 1, 1, 2, 30, -1, -2, -50, 1000, -1000, 87600, -87600}).Draw(t, "hours")) * time.Hour)
			if n := p.Dealt.next(now, &w); n.Before(p.NextAt) {
				p.NextAt = n // as after a clock that was set back
			}
			if p.NextAt.After(now) {
				continue
			}
			if at := p.come(now); !at.IsZero() {
				if came[at] {
					t.Fatalf("%v came twice; dealt with are %v", at, p.Dealt)
				}
				came[at] = true
			}
			for at := range came {
				if _, in := p.Dealt.at(at); !in {
					t.Fatalf("%v was forgotten: %v", at, p.Dealt)
				}
			}
			if len(p.Dealt) > dealtMax {
				t.Fatalf("%d spans", len(p.Dealt))
			}
		}
	})
}
