package ledger

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// A journal that was put back from a copy is counted anew, not on.
func TestAnalyticsOfAnotherHistory(t *testing.T) {
	for _, longer := range []bool{false, true} {
		t.Run(fmt.Sprint("longer than counted: ", longer), func(t *testing.T) {
			random := rand.New(rand.NewPCG(3, 3))
			s, made, _ := openMany(t)
			act := func(n int) {
				for range n {
					s.act(random, made)
				}
			}
			act(30)
			copied := filepath.Join(t.TempDir(), "shards")
			s.close()
			s.stop()
			if err := os.CopyFS(copied, os.DirFS(filepath.Join(s.dir, "shards"))); err != nil {
				t.Fatal(err)
			}
			again := func() {
				t.Helper()
				b := openBox(t, s.dir, s.o)
				s.testBox = b
				s.open()
			}
			again()
			act(40)
			s.agree()
			s.close()
			s.stop()
			queue := filepath.Join(s.dir, "jobs.db") // its anchors would not let the older journals serve
			if err := errors.Join(os.RemoveAll(filepath.Join(s.dir, "shards")), os.Remove(queue), os.CopyFS(filepath.Join(s.dir, "shards"), os.DirFS(copied))); err != nil {
				t.Fatal(err)
			}
			made.pending, made.orders, made.users = nil, nil, map[tenants.ID][]string{}
			made.n += 1000
			again()
			if longer {
				act(150)
			}
			if lag := s.a.lag(t.Context(), testTenant, must(s.a.cursors(t.Context()))(t)); lag.AsOf != nil {
				t.Errorf("before the journals were looked at: %+v", lag)
			}
			s.agree()
			if alarms := s.alarms.of(""); !slices.ContainsFunc(alarms, func(a Alarm) bool { return a.Code == "analytics_replaced" }) {
				t.Errorf("alarms: %+v", alarms)
			}
		})
	}
}

// The lag speaks of the tenant's own events, from memory and from the files.
func TestAnalyticsLag(t *testing.T) {
	s, _, clock := openMany(t)
	ask := func(who tenants.ID) Lag {
		t.Helper()
		got, err := s.a.Sums(t.Context(), who, AnalyticsQuery{Nouns: []Noun{PaymentNoun}, Bucket: ByDay, From: clock.now(), To: clock.now().Add(1)})
		if err != nil {
			t.Fatal(err)
		}
		return got.Lag
	}
	if lag := ask(testTenant); lag.AsOf == nil || !lag.AsOf.Equal(clock.now()) {
		t.Errorf("an empty box: %+v", lag)
	}
	s.pay("k1", validPayment())
	first := clock.now()
	clock.add(time.Minute)
	s.pay("k2", validPayment())
	clock.add(time.Minute)
	if lag := ask(testTenant); lag.EventsBehind != 2 || lag.AsOf == nil || !lag.AsOf.Equal(first) {
		t.Errorf("two payments behind: %+v", lag)
	}
	if lag := ask("other"); lag.EventsBehind != 0 || lag.AsOf == nil || !lag.AsOf.Equal(clock.now()) {
		t.Errorf("a tenant with nothing behind: %+v", lag)
	}
	s.close()
	s.testBox = s.reopen(nil) // the tail in memory is gone
	s.open()
	for i := range s.a.checked {
		s.a.checked[i].Store(s.a.lives.Load())
	}
	if lag := ask(testTenant); lag.EventsBehind != 2 || lag.AsOf == nil || !lag.AsOf.Equal(first) {
		t.Errorf("two payments behind, from the files: %+v", lag)
	}
	s.feedAll()
	if lag := ask(testTenant); lag.EventsBehind != 0 || !lag.AsOf.Equal(clock.now()) {
		t.Errorf("caught up: %+v", lag)
	}
	s.set.All()[0].Isolate(errors.New("damaged"))
	if lag := ask(testTenant); lag.AsOf != nil {
		t.Errorf("with a shard out of service: %+v", lag)
	}
	s.feedAll() // leaves it for later
}

// One tenant's question at a time: the second one waits for the first, and another tenant's does not.
func TestAnalyticsTurns(t *testing.T) {
	s, _, clock := openMany(t)
	leave := must(s.a.enter(t.Context(), testTenant))(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	q := AnalyticsQuery{Nouns: []Noun{UserNoun}, Bucket: ByDay, From: clock.now(), To: clock.now().Add(1)}
	if _, err := s.a.Sums(gone, testTenant, q); !errors.Is(err, context.Canceled) {
		t.Errorf("asked beside the first: %v", err)
	}
	if _, err := s.a.Sums(t.Context(), "other", q); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	leave()
	if _, err := s.a.Sums(t.Context(), testTenant, q); err != nil {
		t.Errorf("asked after the first: %v", err)
	}
}

func TestAnalyticsQueriesAreBounded(t *testing.T) {
	s, _, clock := openMany(t)
	day := 24 * time.Hour
	berlin := must(time.LoadLocation("Europe/Berlin"))(t)
	october := time.Date(2025, 10, 1, 0, 0, 0, 0, berlin)
	for name, c := range map[string]struct {
		q    AnalyticsQuery
		code string
	}{
		"no bucket":          {AnalyticsQuery{From: clock.now(), To: clock.now().Add(1)}, "bucket_invalid"},
		"a week":             {AnalyticsQuery{Bucket: "week", From: clock.now(), To: clock.now().Add(1)}, "bucket_invalid"},
		"empty":              {AnalyticsQuery{Bucket: ByDay, From: clock.now(), To: clock.now()}, "time_range_invalid"},
		"reversed":           {AnalyticsQuery{Bucket: ByDay, From: clock.now(), To: clock.now().Add(-1)}, "time_range_invalid"},
		"32 days by hour":    {AnalyticsQuery{Bucket: ByHour, From: clock.now(), To: clock.now().Add(32 * day)}, "time_range_invalid"},
		"367 days":           {AnalyticsQuery{Bucket: ByDay, From: clock.now(), To: clock.now().Add(367 * day)}, "time_range_invalid"},
		"eight thousand yrs": {AnalyticsQuery{Bucket: ByDay, From: time.Unix(0, 0), To: time.Date(9998, 12, 31, 0, 0, 0, 0, time.UTC)}, "time_range_invalid"},
		"31 days by hour":    {AnalyticsQuery{Bucket: ByHour, From: clock.now(), To: clock.now().Add(31 * day)}, "<nil>"},
		"an hour more":       {AnalyticsQuery{Bucket: ByHour, From: clock.now(), To: clock.now().Add(31*day + time.Hour)}, "time_range_invalid"},
		"366 days":           {AnalyticsQuery{Bucket: ByDay, From: clock.now(), To: clock.now().Add(366 * day)}, "<nil>"},
		"October by hour":    {AnalyticsQuery{Bucket: ByHour, From: october.UTC(), To: october.AddDate(0, 1, 0), Zone: berlin}, "<nil>"},
		"two autumns":        {AnalyticsQuery{Bucket: ByDay, From: october.AddDate(0, 0, 25).UTC(), To: october.AddDate(0, 0, 25+366), Zone: berlin}, "<nil>"},
		"of its hours":       {AnalyticsQuery{Bucket: ByHour, From: october.UTC(), To: october.AddDate(0, 1, 0)}, "time_range_invalid"},
		"1970":               {AnalyticsQuery{Bucket: ByDay, From: time.Unix(0, 0), To: time.Unix(1, 0), Zone: time.FixedZone("", 45*60)}, "<nil>"},
	} {
		if _, err := s.a.Sums(t.Context(), testTenant, c.q); code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

// Sums that leave 64 bits are refused, not rounded, and stop nothing.
func TestAnalyticsSumsDoNotWrap(t *testing.T) {
	s, _, clock := openMany(t)
	file := must(s.a.current())(t)
	k := tallyKey{testTenant, PaymentNoun, sliceOf(clock.now()), "eur", "created"}
	for i := range 3 {
		b := &feedBatch{tallies: map[tallyKey]Tally{k: {1, math.MaxInt64 / 2}}, last: head{uint64(i + 1), []byte("mac")}}
		if err := file.Update(t.Context(), func(tx *shards.Tx) error { return b.store(tx, 0, head{seq: uint64(i)}) }); err != nil {
			t.Fatal(err)
		}
		_, err := s.a.Sums(t.Context(), testTenant, AnalyticsQuery{Nouns: []Noun{PaymentNoun}, Bucket: ByDay, From: clock.now(), To: clock.now().Add(1)})
		if want := []string{"<nil>", "<nil>", "sum_too_large"}[i]; code(err) != want {
			t.Errorf("after %d: %v, want %s", i+1, err, want)
		}
		if _, err := s.a.Sums(t.Context(), "other", AnalyticsQuery{Nouns: []Noun{PaymentNoun}, Bucket: ByDay, From: clock.now(), To: clock.now().Add(1)}); err != nil {
			t.Errorf("another tenant: %v", err)
		}
	}
	// Two that read the same rows add them once.
	b := &feedBatch{tallies: map[tallyKey]Tally{k: {1, 1}}, last: head{4, []byte("mac")}}
	if err := file.Update(t.Context(), func(tx *shards.Tx) error { return b.store(tx, 0, head{seq: 2}) }); !errors.Is(err, errCursorMoved) {
		t.Errorf("stored where the cursor does not stand: %v", err)
	}
	// What cannot be read counts without its amount.
	odd := &feedBatch{}
	for _, data := range [][]byte{nil, []byte(`{"amount":"7"}`), []byte(`{"amount":-7,"currency":"eur"}`), []byte(`{"amount":7,"currency":"eur"}`)} {
		odd.add(&Event{Type: PaymentCreated, Tenant: testTenant, OccurredAt: clock.now(), Data: data})
	}
	k.currency = ""
	if len(odd.odd) != 2 || odd.tallies[k] != (Tally{Count: 3}) || odd.rows != 4 {
		t.Errorf("%+v", odd)
	}
}

// A file that is damaged while the box runs is replaced and filled again by Run and the queue's jobs.
func TestAnalyticsAreMendedWhileRunning(t *testing.T) {
	s, made, _ := openMany(t)
	random := rand.New(rand.NewPCG(5, 5))
	for range 20 {
		s.act(random, made)
	}
	s.agree()
	must(s.a.current())(t).Isolate(errors.New("found damaged"))
	if _, err := s.a.Feed(t.Context(), 0); err == nil {
		t.Error("fed into a damaged file")
	}
	if _, err := s.a.Sums(t.Context(), testTenant, AnalyticsQuery{Bucket: ByDay, From: time.Unix(0, 0), To: time.Unix(1, 0)}); code(err) != "analytics_unavailable" {
		t.Errorf("asked a damaged file: %v", err)
	}
	s.a.mend(t.Context())
	if err := s.a.lookAfter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.a.lookAfter(t.Context()); err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, p := range s.parts {
		if p.journal.currentHead().seq > 0 {
			written++
		}
	}
	if st := s.jobs.Stats(); st[slices.IndexFunc(st, func(q jobs.QueueStats) bool { return q.Queue == ProcessingQueue })].Delayed != written {
		t.Errorf("queued: %+v, want one job for each of %d journals", st, written)
	}
	s.agree()
}

func TestDaysBeginWhereTheyBegin(t *testing.T) {
	for _, c := range []struct{ zone, at, start, end string }{
		{"UTC", "2026-11-25T23:59:59Z", "2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z"},
		{"Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},     // 25 hours
		{"Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"},     // 23 hours
		{"America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"}, // no midnight
		{"America/Sao_Paulo", "2018-11-03T12:00:00Z", "2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z"},
		{"Asia/Beirut", "2022-03-27T12:00:00Z", "2022-03-26T22:00:00Z", "2022-03-27T21:00:00Z"},
		{"Asia/Amman", "2021-10-28T21:30:00Z", "2021-10-28T21:00:00Z", "2021-10-29T22:00:00Z"}, // before the second midnight
		{"Asia/Kathmandu", "2026-11-25T18:14:00Z", "2026-11-24T18:15:00Z", "2026-11-25T18:15:00Z"},
	} {
		at := must(time.Parse(time.RFC3339, c.at))(t).In(must(time.LoadLocation(c.zone))(t))
		start, end := ByDay.span(at)
		if got := start.UTC().Format(time.RFC3339) + " " + end.UTC().Format(time.RFC3339); got != c.start+" "+c.end {
			t.Errorf("the day of %s in %s: %s, want %s %s", c.at, c.zone, got, c.start, c.end)
		}
	}
	for ms, want := range map[int64]slice{0: 0, 899_999: 0, 900_000: 1, -1: -1, -900_000: -1, -900_001: -2} {
		if got := sliceOf(time.UnixMilli(ms)); got != want {
			t.Errorf("slice of %d: %d, want %d", ms, got, want)
		}
	}
}
