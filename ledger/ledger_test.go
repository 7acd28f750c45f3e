package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

func TestPaymentIsSettledOnce(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	p := b.pay("k1", validPayment())
	if p.Status != Pending || p.Sync.State != Queued {
		t.Fatalf("accepted as %s, %s", p.Status, p.Sync.State)
	}
	got := b.settled(p.ID)
	if got.Status != Succeeded || got.UpstreamID == nil || got.SettledAt == nil || got.Sync.Attempts != 1 {
		t.Fatalf("settled as %+v", got)
	}
	if n := b.effects()[p.ID]; n != 1 {
		t.Fatalf("%d effects", n)
	}
	if x := b.Exposed(testTenant); len(x) != 0 {
		t.Fatalf("exposure after settling: %v", x)
	}
	b.sound()
}

func TestReplay(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	first := b.pay("k1", validPayment())
	spelled := validPayment()
	spelled.Currency = "USD"
	again, replayed, err := b.Pay(t.Context(), testTenant, "k1", spelled)
	if err != nil || !replayed || again.ID != first.ID {
		t.Fatalf("replay: %v, %v, %v", again.ID, replayed, err)
	}
	for name, change := range map[string]func(*NewPayment){
		"amount":   func(p *NewPayment) { p.Amount++ },
		"user":     func(p *NewPayment) { p.UserID = "u1" },
		"source":   func(p *NewPayment) { p.Source = "tok_mastercard" },
		"metadata": func(p *NewPayment) { p.Metadata = map[string]string{"a": "b"} },
	} {
		p := validPayment()
		change(&p)
		if _, _, err := b.Pay(t.Context(), testTenant, "k1", p); code(err) != "idempotency_mismatch" {
			t.Errorf("another %s under the key: %v", name, err)
		}
	}
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	theirs, replayed, err := b.Pay(t.Context(), "other", "k1", validPayment())
	if err != nil || replayed || theirs.ID == first.ID {
		t.Fatalf("another tenant's key: %v, %v", replayed, err)
	}
	if _, err := b.Payment(t.Context(), "other", string(first.ID)); code(err) != "not_found" {
		t.Fatalf("another tenant reads it: %v", err)
	}

	// The key survives a restart, before and after the index is filled.
	b = b.reopen(nil)
	if again, replayed, err := b.Pay(t.Context(), testTenant, "k1", validPayment()); err != nil || !replayed || again.ID != first.ID {
		t.Fatalf("replay with an empty index: %v, %v", replayed, err)
	}
	if err := b.keys.fill(t.Context(), b.log); err != nil {
		t.Fatal(err)
	}
	if again, replayed, err := b.Pay(t.Context(), testTenant, "k1", validPayment()); err != nil || !replayed || again.ID != first.ID {
		t.Fatalf("replay with a full index: %v, %v", replayed, err)
	}
	if b.keys.size() != 2 {
		t.Fatalf("%d keys in the index", b.keys.size())
	}
}

// A key's payment may stand in any shard: the second request names another user.
func TestKeyIsUniqueOverShards(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	for i := range 50 {
		p := validPayment()
		p.UserID = fmt.Sprint("user", i)
		b.pay(fmt.Sprint("k", i), p)
	}
	b = b.reopen(nil)
	for i := range 50 {
		p := validPayment()
		p.UserID = fmt.Sprint("user", i+1)
		if _, _, err := b.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("k", i)), p); code(err) != "idempotency_mismatch" {
			t.Fatalf("k%d for another user: %v", i, err)
		}
	}
}

func TestOneOfManyWithTheSameKey(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	var wg sync.WaitGroup
	var mu sync.Mutex
	created, ids := 0, map[PaymentID]bool{}
	for range 100 {
		wg.Go(func() {
			p, replayed, err := b.Pay(t.Context(), testTenant, "same", validPayment())
			mu.Lock()
			defer mu.Unlock()
			switch {
			case code(err) == "idempotency_key_in_use":
			case err != nil:
				t.Error(err)
			default:
				ids[p.ID] = true
				if !replayed {
					created++
				}
			}
		})
	}
	wg.Wait()
	if created != 1 || len(ids) != 1 {
		t.Fatalf("%d created, %d ids", created, len(ids))
	}
	page, err := b.Payments(t.Context(), testTenant, Filter{})
	if err != nil || len(page.Data) != 1 {
		t.Fatalf("%d payments, %v", len(page.Data), err)
	}
}

func TestTakenWithTheLineDown(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	b.cut(true)
	var ids []PaymentID
	for i := range 60 {
		p := validPayment()
		p.UserID = fmt.Sprint("u", i%7)
		got := b.pay(fmt.Sprint("k", i), p)
		if !got.TakenOffline {
			t.Fatalf("payment %d is not marked as taken offline", i)
		}
		ids = append(ids, got.ID)
	}
	p, err := b.Await(t.Context(), testTenant, ids[0], time.Hour)
	if err != nil || p.Status != Pending {
		t.Fatalf("waiting with the line down: %s, %v", p.Status, err)
	}
	if x := b.Exposed(testTenant)["usd"]; x != (Sum{60, 60 * 1999}) {
		t.Fatalf("exposure %+v", x)
	}
	b.cut(false)
	for _, id := range ids {
		if p := b.settled(id); p.Status != Succeeded {
			t.Fatalf("%s: %s", id, p.Status)
		}
	}
	for id, n := range b.effects() {
		if n != 1 {
			t.Errorf("%s took effect %d times", id, n)
		}
	}
	if n := len(b.effects()); n != 60 {
		t.Fatalf("%d payments took effect", n)
	}
	b.sound()
}

func TestDecline(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	p := validPayment()
	p.Source = "tok_chargeDeclined"
	got := b.settled(b.pay("k", p).ID)
	if got.Status != Failed || got.Failure == nil || got.Failure.Code != "card_declined" || got.UpstreamID != nil {
		t.Fatalf("%+v", got)
	}
	b.sound()
}

func TestEffectWithoutAnswerIsChargedOnce(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	if err := b.sim.SetFaults(simulator.Faults{DropAfterEffect: 1}); err != nil {
		t.Fatal(err)
	}
	p := b.pay("k", validPayment())
	if err := b.settle(t.Context(), settleJobOf(p.ID)); err == nil {
		t.Fatal("an unanswered send completed its job")
	}
	p = must(b.Payment(t.Context(), testTenant, string(p.ID)))(t)
	if p.Status != Pending || p.Sync.State != InDoubt || p.Sync.FirstSentAt == nil || p.Sync.LastError == nil {
		t.Fatalf("in doubt as %+v", p)
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	b = b.reopen(func(o *testOptions) { o.idle = false })
	if p = b.settled(p.ID); p.Status != Succeeded || p.Sync.Attempts < 2 {
		t.Fatalf("settled as %+v", p)
	}
	if n := b.effects()[p.ID]; n != 1 || b.sim.Fired()["drop_after_effect"] == 0 {
		t.Fatalf("%d effects, fired %v", n, b.sim.Fired())
	}
	b.sound()
}

// A crash between seal and record: the attempt stands without an outcome.
func TestCrashWithASendOnTheWire(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := b.pay("k", validPayment())
	s := must(b.sealOnly(string(p.ID)))(t)
	if a := b.accountOf(testTenant).Post(t.Context(), s.path, s.body, s.key); a.Outcome != "succeeded" {
		t.Fatalf("%+v", a)
	}
	b = b.reopen(func(o *testOptions) { o.idle = false }) // the answer was never recorded
	got := b.settled(p.ID)
	if got.Status != Succeeded || got.Sync.Attempts != 2 || b.effects()[p.ID] != 1 {
		t.Fatalf("%+v, %d effects", got, b.effects()[p.ID])
	}
	b.sound()
}

// manualClock is a wall clock that a test sets.
type manualClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *manualClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *manualClock) set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

func (c *manualClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestNothingIsResentBeyondTheKeyMemory(t *testing.T) {
	for name, step := range map[string]time.Duration{"a day later": 21 * time.Hour, "clock set ten years ahead": 87600 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			clock := &manualClock{at: time.Now()}
			b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
			p := b.pay("k", validPayment())
			must(b.sealOnly(string(p.ID)))(t)
			clock.add(step)
			b = b.reopen(nil)
			if err := b.settle(t.Context(), settleJobOf(p.ID)); err == nil {
				t.Fatal("settled, though nothing proves how")
			}
			got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t)
			if got.Status != Pending || got.Sync.Attempts != 1 || len(b.effects()) != 0 {
				t.Fatalf("%+v, effects %v", got, b.effects())
			}
		})
	}
}

// A wall clock set back makes a send no younger: the box remembers what it wrote.
func TestClockSetBackExtendsNoKeyMemory(t *testing.T) {
	clock := &manualClock{at: time.Now()}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	p := b.pay("k", validPayment())
	must(b.sealOnly(string(p.ID)))(t)
	clock.add(21 * time.Hour)
	b.pay("later", validPayment())
	clock.add(-48 * time.Hour)
	b = b.reopen(nil)
	if _, err := b.sealOnly(string(p.ID)); !errors.Is(err, errTooOld) {
		t.Fatalf("seal: %v", err)
	}
}

func TestLostQueueIsMadeAnew(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	var ids []PaymentID
	for i := range 20 {
		ids = append(ids, b.pay(fmt.Sprint("k", i), validPayment()).ID)
	}
	b.stop()
	if err := os.Remove(filepath.Join(b.dir, "jobs.db")); err != nil {
		t.Fatal(err)
	}
	b = b.reopen(func(o *testOptions) { o.idle = false })
	for _, id := range ids {
		b.settled(id)
	}
	if len(b.effects()) != 20 {
		t.Fatalf("%d payments took effect", len(b.effects()))
	}
	if a := b.alarms.of(""); len(a) == 0 || a[0].Code != "queue_lost" {
		t.Fatalf("alarms: %+v", a)
	}
	b.sound()
}

func TestOfflinePolicy(t *testing.T) {
	limits := map[string]tenants.OfflineLimit{"usd": {MaxAmount: 5000, MaxTotal: 10000, MaxCount: 3}}
	b := openBox(t, t.TempDir(), testOptions{idle: true, offline: limits}) // not run: never online
	try := func(amount int64, currency string) BrokenRule {
		p := validPayment()
		p.Amount, p.Currency = amount, currency
		_, _, err := b.Pay(t.Context(), testTenant, "", p)
		var refusal *Error
		if err == nil {
			return BrokenRule{}
		}
		if !errors.As(err, &refusal) || refusal.Kind != Conflict || refusal.Code != "offline_limit" || refusal.Rule == nil {
			t.Fatalf("%d %s: %v", amount, currency, err)
		}
		return *refusal.Rule
	}
	for i, c := range []struct {
		amount   int64
		currency string
		want     BrokenRule // none: it is taken
	}{
		{100, "eur", BrokenRule{"currency", 100, 0}},
		{5001, "usd", BrokenRule{"max_amount", 5001, 5000}},
		{5000, "usd", BrokenRule{}},
		{4999, "usd", BrokenRule{}},
		{2, "usd", BrokenRule{"max_total", 9999, 10000}},
		{1, "usd", BrokenRule{}},
		{1, "usd", BrokenRule{"max_total", 10000, 10000}},
	} {
		if got := try(c.amount, c.currency); got != c.want {
			t.Errorf("step %d: %+v, want %+v", i, got, c.want)
		}
	}
	b = b.reopen(func(o *testOptions) {
		o.offline = map[string]tenants.OfflineLimit{"usd": {MaxCount: 3, MaxAgeH: 24}}
	})
	if got, want := try(1, "usd"), (BrokenRule{"max_count", 3, 3}); got != want {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
	if x := b.Exposed(testTenant)["usd"]; x != (Sum{3, 10000}) {
		t.Errorf("exposure after a restart: %+v", x)
	}
	b = b.reopen(func(o *testOptions) {
		o.offline = map[string]tenants.OfflineLimit{"usd": {MaxAgeH: 24}}
		o.now = func() time.Time { return time.Now().Add(26 * time.Hour) }
	})
	if got, want := try(1, "usd"), (BrokenRule{"max_age_h", 26, 24}); got != want {
		t.Errorf("a day later: %+v, want %+v", got, want)
	}
}

// While the line is up no limit is asked, and what is on its way counts when it goes down.
func TestOfflinePolicyIsNotForOnlinePayments(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{offline: map[string]tenants.OfflineLimit{"usd": {MaxAmount: 1, MaxCount: 1}}})
	b.cut(false)
	for range 5 {
		if p := b.pay("", validPayment()); p.TakenOffline {
			t.Fatalf("%+v", p)
		}
	}
	b.settledAll(testTenant)
}

func TestOfflineLimitHoldsUnderConcurrency(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true, offline: map[string]tenants.OfflineLimit{"usd": {MaxCount: 10}}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	for i := range 100 {
		wg.Go(func() {
			_, _, err := b.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("k", i)), validPayment())
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				taken++
			} else if code(err) != "offline_limit" {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if taken != 10 {
		t.Fatalf("%d taken, 10 allowed", taken)
	}
}

func TestSourcesAreNotOnTheDiskInClear(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	b.cut(true)
	p := validPayment()
	p.Source = "tok_canary_Zq81LmPw"
	id := b.pay("k", p).ID
	find := func() {
		t.Helper()
		err := filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if err == nil && strings.Contains(string(data), "canary_Zq81") {
				t.Errorf("source stands in clear in %s", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.stop()
	find()
	b = b.reopen(nil)
	b.cut(false)
	b.settled(id)
	b.sound()
	find()
}

func TestAccountIsPinned(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := b.pay("k", validPayment())
	changed := false
	change := func() error { changed = true; return nil }
	if err := b.ChangeAccount(t.Context(), testTenant, change); err != nil || !changed {
		t.Fatalf("unsent payment holds the account: %v", err)
	}
	// The account was another when the send was begun.
	s := must(b.loadSend(t.Context(), testTenant, string(p.ID)))(t)
	other := must(b.accounts.Get("http://127.0.0.1:1", "elsewhere", "sk_test_elsewhere"))(t)
	if err := b.seal(t.Context(), other, s); !errors.Is(err, errMoved) {
		t.Fatalf("sealed for an account that is not the tenant's: %v", err)
	}
	must(b.sealOnly(string(p.ID)))(t)
	changed = false
	if err := b.ChangeAccount(t.Context(), testTenant, change); code(err) != "upstream_account_in_use" || changed {
		t.Fatalf("account changed under a payment that may have left: %v", err)
	}
	b = b.reopen(func(o *testOptions) { o.url = "http://127.0.0.1:1" })
	if _, err := b.sealOnly(string(p.ID)); !errors.Is(err, errPinned) {
		t.Fatalf("sealed for another account: %v", err)
	}
}

func TestListAndReport(t *testing.T) {
	clock := &manualClock{at: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	var want []PaymentID // newest first
	for i := range 45 {
		p := validPayment()
		p.Amount = int64(i + 1)
		p.UserID = fmt.Sprint("u", i%2)
		if i%3 == 0 {
			p.Currency, p.Description, p.Metadata = "eur", "coffee", map[string]string{"till": "2"}
		}
		want = append([]PaymentID{b.pay("", p).ID}, want...)
		clock.add(time.Second)
	}
	var got []PaymentID
	f := Filter{Limit: 7}
	for {
		page := must(b.Payments(t.Context(), testTenant, f))(t)
		for _, p := range page.Data {
			got = append(got, p.ID)
			if p.Currency == "eur" && (p.Description == nil || p.Metadata["till"] != "2") {
				t.Fatalf("%s lost its extras", p.ID)
			}
		}
		if !page.HasMore {
			break
		}
		f.Cursor = page.NextCursor
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("listed %v\nwant %v", got, want)
	}
	if page := must(b.Payments(t.Context(), testTenant, Filter{UserID: "u1", Limit: 100}))(t); len(page.Data) != 22 {
		t.Fatalf("%d payments of u1", len(page.Data))
	}
	for _, f := range []Filter{{Limit: -1}, {Limit: 101}, {Cursor: "x"}, {Status: "odd"}, {Sync: "odd"}} {
		if _, err := b.Payments(t.Context(), testTenant, f); err == nil {
			t.Errorf("%+v accepted", f)
		}
	}
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	rows := must(b.Report(t.Context(), testTenant, start, start.Add(10*time.Second)))(t).Payments
	if len(rows) != 2 || rows[0] != (ReportRow{"eur", Pending, 4, 1 + 4 + 7 + 10, 0}) || rows[1] != (ReportRow{"usd", Pending, 6, 2 + 3 + 5 + 6 + 8 + 9, 0}) {
		t.Fatalf("%+v", rows)
	}
	if _, err := b.Report(t.Context(), testTenant, start, start); code(err) != "time_range_invalid" {
		t.Fatalf("empty range: %v", err)
	}
}
