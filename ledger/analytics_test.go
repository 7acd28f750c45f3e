package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// sums is a box with analytics, whose file a test breaks.
type sums struct {
	*testBox
	a    *Analytics
	path string
	n    int // of the files so far
}

func openSums(b *testBox) *sums {
	s := &sums{testBox: b, path: filepath.Join(b.dir, "analytics.db")}
	s.open()
	b.t.Cleanup(func() { s.close() })
	return s
}

func (s *sums) open() {
	s.a = s.OpenAnalytics(s.t.Context(), s.path)
	s.a.rows = 7 // many transactions
}

func (s *sums) close() {
	if err := s.a.Close(); err != nil {
		s.t.Errorf("close: %v", err)
	}
}

// crash leaves the file as kill -9 does, and goes on with what is left. cut: the last bytes of its WAL are
// gone too, as after a power cut.
func (s *sums) crash(cut func(size int64) int64) {
	s.t.Helper()
	s.n++
	to := filepath.Join(s.dir, fmt.Sprintf("analytics-%d.db", s.n))
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(s.path + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if suffix == "-wal" && cut != nil {
			content = content[:cut(int64(len(content)))]
		}
		if err := errors.Join(err, os.WriteFile(to+suffix, content, 0o600)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.close()
	s.path = to
	s.open()
}

// feedAll counts every journal to its end.
func (s *sums) feedAll() {
	s.t.Helper()
	for i := range s.a.Journals() {
		for more := true; more; {
			var err error
			if more, err = s.a.Feed(s.t.Context(), i); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// held is what the file holds.
func (s *sums) held() map[tallyKey]Tally {
	s.t.Helper()
	m := map[tallyKey]Tally{}
	err := must(s.a.current())(s.t).View(s.t.Context(), func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT tenant, noun, slice, currency, what, count, amount FROM tallies`)
		if err != nil {
			return err
		}
		for rows.Next() {
			var k tallyKey
			var t Tally
			if err := rows.Scan(&k.tenant, &k.noun, &k.slice, &k.currency, &k.what, &t.Count, &t.Amount); err != nil {
				return err
			}
			m[k] = t
		}
		return rows.Err()
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// booked is what the books hold, counted from the records themselves.
func (s *sums) booked() map[tallyKey]Tally {
	s.t.Helper()
	m := map[tallyKey]Tally{}
	for query, noun := range map[string]Noun{
		`SELECT tenant, currency, amount, created_at, 'created' FROM payments
		 UNION ALL SELECT tenant, currency, amount, settled_at, status FROM payments WHERE settled_at IS NOT NULL`: PaymentNoun,
		`SELECT tenant, currency, amount, created_at, 'created' FROM orders
		 UNION ALL SELECT tenant, currency, amount, paid_at, 'paid' FROM orders WHERE paid_at IS NOT NULL
		 UNION ALL SELECT tenant, currency, amount, completed_at, 'completed' FROM orders WHERE completed_at IS NOT NULL
		 UNION ALL SELECT tenant, currency, amount, canceled_at, 'canceled' FROM orders WHERE canceled_at IS NOT NULL`: OrderNoun,
		`SELECT tenant, '', 0, created_at, 'created' FROM users
		 UNION ALL SELECT tenant, '', 0, verified_at, 'verified' FROM users WHERE verified_at IS NOT NULL`: UserNoun,
	} {
		for _, sh := range s.set.All() {
			err := sh.View(s.t.Context(), func(tx *shards.Tx) error {
				rows, err := tx.Query(query)
				if err != nil {
					return err
				}
				for rows.Next() {
					k, one, ms := tallyKey{noun: noun}, Tally{Count: 1}, int64(0)
					if err := rows.Scan(&k.tenant, &k.currency, &one.Amount, &ms, &k.what); err != nil {
						return err
					}
					k.slice = slice(ms / 900_000)
					sum := m[k]
					m[k] = Tally{sum.Count + 1, sum.Amount + one.Amount}
				}
				return rows.Err()
			})
			if err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return m
}

// differences lists where the file and the books disagree.
func (s *sums) differences() (found []string) {
	s.t.Helper()
	held, booked := s.held(), s.booked()
	for k, want := range booked {
		if held[k] != want {
			found = append(found, fmt.Sprintf("%+v: %+v, the books have %+v", k, held[k], want))
		}
	}
	for k, got := range held {
		if _, ok := booked[k]; !ok {
			found = append(found, fmt.Sprintf("%+v: %+v, the books have none", k, got))
		}
	}
	return found
}

// agree feeds to the end and compares with the books.
func (s *sums) agree() {
	s.t.Helper()
	s.feedAll()
	for _, d := range s.differences() {
		s.t.Error(d)
	}
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// act does something at random that is counted.
func (s *sums) act(random *rand.Rand, made *madeThings) {
	s.t.Helper()
	t := s.t
	who := made.tenants[random.IntN(len(made.tenants))]
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pick := func(ids []string) string { return ids[random.IntN(len(ids))] }
	currency := []string{"eur", "usd", "jpy"}[random.IntN(3)]
	switch n := random.IntN(10); {
	case n < 2 || len(made.users[who]) == 0:
		made.n++
		u, _, err := s.CreateUser(t.Context(), who, "", NewUser{Email: fmt.Sprintf("u%d@example.org", made.n)})
		check(err)
		made.users[who] = append(made.users[who], string(u.ID))
	case n < 3:
		_, err := s.VerifyUser(t.Context(), who, pick(made.users[who]))
		check(err)
	case n < 5:
		o, _, err := s.CreateOrder(t.Context(), who, "", NewOrder{UserID: pick(made.users[who]), Currency: currency, Items: []Item{{"a", "A", 1 + random.Int64N(3), 1 + random.Int64N(900)}}})
		check(err)
		if random.IntN(4) == 0 {
			_, err = s.CancelOrder(t.Context(), who, string(o.ID))
			check(err)
			return
		}
		p, _, err := s.Pay(t.Context(), who, "", payFor(&o))
		check(err)
		made.pending = append(made.pending, [2]string{string(who), string(p.ID)})
		made.orders = append(made.orders, [2]string{string(who), string(o.ID)})
	case n < 7:
		p := NewPayment{Amount: 1 + random.Int64N(100_000), Currency: currency, Source: []string{"tok_visa", "tok_visa", "tok_chargeDeclined"}[random.IntN(3)]}
		got, _, err := s.Pay(t.Context(), who, "", p)
		check(err)
		made.pending = append(made.pending, [2]string{string(who), string(got.ID)})
	case n < 9 && len(made.pending) > 0:
		i := random.IntN(len(made.pending))
		p := made.pending[i]
		made.pending = slices.Delete(made.pending, i, i+1)
		check(s.settle(t.Context(), &jobs.Job{NewJob: jobs.NewJob{Tenant: p[0], ID: p[1]}}))
	case len(made.orders) > 0:
		o := made.orders[random.IntN(len(made.orders))]
		if now, err := s.Order(t.Context(), tenants.ID(o[0]), o[1]); err == nil && now.Status == StatusPaid {
			_, err = s.CompleteOrder(t.Context(), tenants.ID(o[0]), o[1])
			check(err)
		}
		// An app's own event counts for nothing.
		_, _, err := s.Emit(t.Context(), who, "", NewEvent{Type: "till.opened", Data: []byte(`{"amount":7,"currency":"eur"}`)})
		check(err)
	}
}

// madeThings is what act has made.
type madeThings struct {
	n       int
	tenants []tenants.ID
	users   map[tenants.ID][]string
	pending [][2]string // tenant and payment
	orders  [][2]string
}

// openMany opens a box with three tenants and a clock that a test moves.
func openMany(t *testing.T) (*sums, *madeThings, *manualClock) {
	clock := &manualClock{at: time.Date(2026, 10, 24, 20, 0, 0, 0, time.UTC)} // clocks go back in Europe the next night
	s := openSums(openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now}))
	made := &madeThings{tenants: []tenants.ID{testTenant, "other", "third"}, users: map[tenants.ID][]string{}}
	for _, id := range made.tenants[1:] {
		must2(s.tenants.Add(t.Context(), tenants.New{ID: id}))(t)
	}
	return s, made, clock
}

func must2[T, U any](v T, u U, err error) func(testing.TB) (T, U) {
	return func(t testing.TB) (T, U) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v, u
	}
}

// Whatever breaks in between, the sums are those of the books: nothing is counted twice and nothing is missed.
func TestAnalyticsAgreeWithTheBooks(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for round := range *modelRounds {
		t.Run(fmt.Sprint(seed+uint64(round)), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed+uint64(round), 2))
			s, made, clock := openMany(t)
			for range 250 {
				clock.add(time.Duration(random.IntN(20)) * time.Minute)
				switch n := random.IntN(100); {
				case n < 75:
					s.act(random, made)
				case n < 90: // one batch of one journal, whatever comes of the rest
					if _, err := s.a.feed(t.Context(), s.parts[random.IntN(len(s.parts))]); err != nil {
						t.Fatal(err)
					}
				case n < 93:
					s.crash(nil)
				case n < 96:
					s.crash(func(size int64) int64 { return random.Int64N(size + 1) })
				case n < 97:
					s.close()
					if err := os.Remove(s.path); err != nil {
						t.Fatal(err)
					}
					s.open()
				case n < 98:
					s.close()
					if err := os.WriteFile(s.path, []byte("no database"), 0o600); err != nil {
						t.Fatal(err)
					}
					s.open()
					if alarms := s.alarms.of(""); len(alarms) != 1 || alarms[0].Code != "analytics_replaced" {
						t.Errorf("alarms: %+v", alarms)
					}
					s.alarms.clear(analyticsReplaced)
				case n < 99:
					if err := s.a.Rebuild(t.Context()); err != nil {
						t.Fatal(err)
					}
				default:
					s.agree()
				}
			}
			s.agree()
			s.crash(nil)
			s.agree()
			s.asAsked(random, made)
		})
	}
}

// The faults of the test above fire, and what it looks for is seen.
func TestAnalyticsCheckBites(t *testing.T) {
	s, made, _ := openMany(t)
	random := rand.New(rand.NewPCG(9, 9))
	for range 60 {
		s.act(random, made)
	}
	s.agree()
	if len(s.held()) == 0 {
		t.Fatal("nothing was counted")
	}
	s.crash(nil)
	if len(s.differences()) > 0 {
		t.Error("a killed process has lost commits")
	}
	s.crash(func(size int64) int64 { return size / 2 })
	if len(s.differences()) == 0 {
		t.Error("half of the WAL held all commits")
	}
	s.agree()
	for what, statement := range map[string]string{
		"counted twice": `UPDATE tallies SET count = count + 1 WHERE what = 'created'`,
		"wrong amount":  `UPDATE tallies SET amount = amount + 1 WHERE what = 'paid' OR what = 'succeeded'`,
		"missed":        `DELETE FROM tallies WHERE noun = 'user'`,
		"other slice":   `UPDATE tallies SET slice = slice + 100`,
		"other tenant":  `UPDATE tallies SET tenant = 'shop2' WHERE tenant = 'shop'`,
	} {
		err := must(s.a.current())(t).Update(t.Context(), func(tx *shards.Tx) error {
			n, err := tx.Exec(statement)
			if err == nil && n == 0 {
				err = errors.New("planted nothing")
			}
			return err
		})
		if err != nil || len(s.differences()) == 0 {
			t.Errorf("%s is not seen: %v", what, err)
		}
		if err := s.a.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.agree()
	}
}

// asAsked compares answers with sums over the books by the calendar of the zone.
func (s *sums) asAsked(random *rand.Rand, made *madeThings) {
	s.t.Helper()
	booked := s.booked()
	var first, last slice = math.MaxInt64, 0
	for k := range booked {
		first, last = min(first, k.slice), max(last, k.slice)
	}
	for range 100 {
		who := made.tenants[random.IntN(len(made.tenants))]
		zone := must(time.LoadLocation([]string{"UTC", "Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo", "Asia/Kathmandu"}[random.IntN(5)]))(s.t)
		bucket, label := ByDay, "2006-01-02"
		if random.IntN(2) == 0 {
			bucket, label = ByHour, "2006-01-02T15 -0700"
		}
		nouns := [][]Noun{{PaymentNoun, RefundNoun}, {OrderNoun}, {UserNoun}}[random.IntN(3)]
		from := first.start().Add(time.Duration(random.Int64N(int64(last-first)+20)-10) * sliceLength)
		to := from.Add(time.Duration(1+random.IntN(60*60)) * time.Second)
		if random.IntN(2) == 0 {
			to = from.AddDate(0, 0, 1+random.IntN(20))
		}
		got, err := s.a.Sums(s.t.Context(), who, AnalyticsQuery{Nouns: nouns, Bucket: bucket, From: from, To: to, Zone: zone})
		if err != nil {
			s.t.Fatal(err)
		}
		if got.From.After(from) || got.To.Before(to) || got.Lag.EventsBehind != 0 || got.Lag.AsOf == nil {
			s.t.Fatalf("from %v to %v, asked %v to %v, lag %+v", got.From, got.To, from, to, got.Lag)
		}
		want, have := map[string]Tally{}, map[string]Tally{}
		for k, sum := range booked {
			at := k.slice.start()
			if k.tenant != who || !slices.Contains(nouns, k.noun) || at.Before(got.From) || !at.Before(got.To) {
				continue
			}
			name := fmt.Sprint(at.In(zone).Format(label), k.currency, " ", k.noun, ".", k.what)
			was := want[name]
			want[name] = Tally{was.Count + sum.Count, was.Amount + sum.Amount}
		}
		for i, r := range got.Rows {
			for typ, sum := range r.Tallies {
				have[fmt.Sprint(r.Start.In(zone).Format(label), r.Currency, " ", typ)] = sum
			}
			if start, _ := bucket.span(r.Start.In(zone)); !start.Equal(r.Start) || i > 0 && r.Start.Before(got.Rows[i-1].Start) {
				s.t.Errorf("%s of %v: row %d begins at %v", bucket, zone, i, r.Start)
			}
		}
		if !maps.Equal(have, want) {
			s.t.Fatalf("%s, %s of %v, %v to %v:\n%v\nthe books have\n%v", who, bucket, zone, got.From, got.To, have, want)
		}
	}
}

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
	if lag := ask(testTenant); lag.AsOf != nil {
		t.Errorf("before the journals were looked at: %+v", lag)
	}
	s.feedAll()
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

func TestAnalyticsQueriesAreBounded(t *testing.T) {
	s, _, clock := openMany(t)
	day := 24 * time.Hour
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
		"31 days by hour":    {AnalyticsQuery{Bucket: ByHour, From: clock.now(), To: clock.now().Add(31*day + time.Hour)}, "<nil>"},
		"366 days":           {AnalyticsQuery{Bucket: ByDay, From: clock.now(), To: clock.now().Add(366 * day)}, "<nil>"},
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
	if err := s.a.enqueue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.a.enqueue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.jobs.Stats(); st[slices.IndexFunc(st, func(q jobs.QueueStats) bool { return q.Queue == ProcessingQueue })].Delayed != len(s.parts) {
		t.Errorf("queued: %+v, want one job for each journal", st)
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
