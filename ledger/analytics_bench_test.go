package ledger

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"tenderbox/shards"
)

// BenchmarkAnalyticsRefill counts journals from their first rows, as after the file was deleted.
func BenchmarkAnalyticsRefill(b *testing.B) {
	const payments = 20_000
	box := openBox(b, b.TempDir(), testOptions{idle: true})
	done := make(chan error)
	for c := range 64 {
		go func() {
			var err error
			for i := c; i < payments && err == nil; i += 64 {
				p := validPayment()
				p.UserID = fmt.Sprint("u", i)
				_, _, err = box.Pay(b.Context(), testTenant, "", p)
			}
			done <- err
		}()
	}
	for range 64 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	box = box.reopen(nil) // from the files, not from memory
	for b.Loop() {
		b.StopTimer()
		s := &sums{testBox: box, path: filepath.Join(b.TempDir(), "analytics.db")}
		s.open()
		s.a.rows = feedRows
		b.StartTimer()
		s.feedAll()
		b.StopTimer()
		s.close()
		b.StartTimer()
	}
	b.ReportMetric(float64(payments)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkAnalyticsYear asks for a year by the day, of a shop that trades in two currencies in every quarter of an hour.
func BenchmarkAnalyticsYear(b *testing.B) {
	s := openSums(openBox(b, b.TempDir(), testOptions{idle: true}))
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	file := must(s.a.current())(b)
	seq := uint64(0)
	for day := range 365 {
		batch := &feedBatch{tallies: map[tallyKey]Tally{}, last: head{seq + 1, []byte("mac")}}
		for q := range 96 {
			for _, what := range []string{"created", "succeeded"} {
				for _, currency := range []string{"eur", "usd"} {
					batch.tallies[tallyKey{testTenant, PaymentNoun, sliceOf(from) + slice(day*96+q), currency, what}] = Tally{1, 100}
				}
			}
		}
		if err := file.Update(b.Context(), func(tx *shards.Tx) error { return batch.store(tx, 0, head{seq: seq}) }); err != nil {
			b.Fatal(err)
		}
		seq++
	}
	zone := must(time.LoadLocation("Europe/Berlin"))(b)
	q := AnalyticsQuery{Nouns: []Noun{PaymentNoun, RefundNoun}, Bucket: ByDay, From: from, To: from.AddDate(1, 0, 0), Zone: zone}
	for b.Loop() {
		got, err := s.a.Sums(b.Context(), testTenant, q)
		if err != nil || len(got.Rows) < 700 {
			b.Fatal(len(got.Rows), err)
		}
	}
}
