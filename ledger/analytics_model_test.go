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
		for behind := true; behind; { // what the relay has counted may end before the journal does
			more, err := s.a.Feed(s.t.Context(), i)
			if err != nil {
				s.t.Fatal(err)
			}
			behind = more || must(s.a.cursors(s.t.Context()))(s.t)[i].seq < s.parts[i].journal.currentHead().seq
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
		`SELECT tenant, currency, amount, created_at, 'created' FROM refunds WHERE NOT voids
		 UNION ALL SELECT tenant, currency, amount, settled_at, status FROM refunds WHERE settled_at IS NOT NULL AND NOT voids`: RefundNoun,
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
		whose := tenants.ID(p[0])
		switch random.IntN(8) {
		case 0:
			_, _, err := s.Cancel(t.Context(), whose, "", p[1])
			check(err)
			return
		case 1: // cancels it, and is no refund to count
			_, _, err := s.CreateRefund(t.Context(), whose, "", NewRefund{PaymentID: p[1]})
			check(err)
			return
		}
		check(s.settle(t.Context(), &jobs.Job{NewJob: jobs.NewJob{Tenant: p[0], ID: p[1]}}))
		if now, err := s.Payment(t.Context(), whose, p[1]); err == nil && now.Status == Succeeded && random.IntN(2) == 0 {
			_, _, err := s.CreateRefund(t.Context(), whose, "", NewRefund{PaymentID: p[1], Amount: 1 + random.Int64N(now.Amount)})
			check(err)
		}
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
					p := s.parts[random.IntN(len(s.parts))]
					if random.IntN(2) == 0 { // what the relay has counted of it is taken over, and need not reach its end
						if _, err := s.relayOnce(t.Context(), p, false); err != nil {
							t.Fatal(err)
						}
					}
					if _, _, err := s.a.feed(t.Context(), p); err != nil {
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
	s.crash(func(size int64) int64 { return size / 2 })
	if len(s.differences()) == 0 {
		t.Error("half of the WAL held all commits")
	}
	s.agree()
	s.crash(nil)
	if len(s.differences()) > 0 {
		t.Error("a killed process has lost commits")
	}
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

// What the relay has counted is handed over if it is all that follows, and else analytics are told how far to read by themselves.
func TestCounts(t *testing.T) {
	k := tallyKey{tenant: testTenant, noun: PaymentNoun, what: "created"}
	rows := func(from, to uint64) *feedBatch {
		b := &feedBatch{}
		for seq := from + 1; seq <= to; seq++ {
			b.rows, b.last = b.rows+1, head{seq: seq}
			b.tally(k, Tally{1, int64(seq)})
		}
		return b
	}
	for name, c := range map[string]struct {
		added [][2]uint64 // rows after the first, up to the second
		from  uint64
		rows  int
		sum   int64
		upTo  uint64
		left  int // rows
	}{
		"nothing":                       {nil, 3, 0, 0, 0, 0},
		"all that follows":              {[][2]uint64{{3, 5}, {5, 7}}, 3, 4, 4 + 5 + 6 + 7, 0, 0},
		"rows before them are missing":  {[][2]uint64{{3, 5}, {5, 7}}, 1, 0, 0, 3, 4},
		"some are stored already":       {[][2]uint64{{3, 5}, {5, 7}}, 4, 0, 0, 7, 0},
		"all are stored already":        {[][2]uint64{{3, 5}, {5, 7}}, 7, 0, 0, 0, 0},
		"more than those are":           {[][2]uint64{{3, 5}, {5, 7}}, 9, 0, 0, 0, 0},
		"a gap, and what is before it":  {[][2]uint64{{3, 5}, {6, 8}}, 3, 0, 0, 6, 2},
		"a gap, and what is behind it":  {[][2]uint64{{3, 5}, {6, 8}}, 6, 2, 7 + 8, 0, 0},
		"rows that are told once again": {[][2]uint64{{3, 5}, {3, 5}}, 3, 2, 4 + 5, 0, 0},
	} {
		var all counts
		for _, a := range c.added {
			all.add(a[0], rows(a[0], a[1]))
		}
		b, upTo := all.take(c.from)
		if b.rows != c.rows || b.tallies[k] != (Tally{int64(c.rows), c.sum}) || upTo != c.upTo || all.batch.rows != c.left {
			t.Errorf("%s: %d rows, %+v, up to %d, %d left; want %+v", name, b.rows, b.tallies[k], upTo, all.batch.rows, c)
		}
	}
	// A tenant's sums or a day's that nobody comes for do not gather for ever.
	var all counts
	for seq := range uint64(talliesMax + 2) {
		b := &feedBatch{rows: 1, last: head{seq: seq + 1}}
		b.tally(tallyKey{slice: slice(seq)}, Tally{1, 1})
		all.add(seq, b)
	}
	if all.from != talliesMax+1 || len(all.batch.tallies) != 1 {
		t.Errorf("%d sums are held, from row %d", len(all.batch.tallies), all.from)
	}
}
