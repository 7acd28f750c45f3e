package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
	"tenderbox/tenants"
)

// addTenant adds a tenant with an upstream account of its own.
func (b *testBox) addTenant(id tenants.ID, u *tenants.Upstream) {
	b.t.Helper()
	if _, _, err := b.tenants.Add(b.t.Context(), tenants.New{ID: id, Upstream: u}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *testBox) setUpstream(id tenants.ID, u *tenants.Upstream) {
	b.t.Helper()
	must(b.tenants.Update(b.t.Context(), id, func(t *tenants.Tenant) error { t.Upstream = u; return nil }))(b.t)
}

// processor answers every POST by fn, and every GET by an empty list.
func processor(t *testing.T, fn func(w http.ResponseWriter, r *http.Request, form url.Values)) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"object":"list","data":[],"has_more":false}`)
			return
		}
		_ = r.ParseForm()
		fn(w, r, r.PostForm)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func settleNow(t *testing.T, b *testBox, id PaymentID) {
	t.Helper()
	if err := b.settle(t.Context(), settleJobOf(id)); err != nil {
		t.Fatal(err)
	}
}

// INV-23: processors quote the token in their errors ("No such token: 'tok_…'").
func TestTokenQuotedByTheProcessor(t *testing.T) {
	const token = "tok_canary_Zq81LmPw"
	base := processor(t, func(w http.ResponseWriter, r *http.Request, f url.Values) {
		w.Header().Set("Request-Id", "req_"+f.Get("source"))
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":{"type":"invalid_request_error","code":"resource_missing","param":"source","message":"No such token: '%s'"}}`, f.Get("source"))
	})
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	b.setUpstream(testTenant, &tenants.Upstream{URL: base, Account: "a", Key: "sk"})
	p := validPayment()
	p.Source = token
	id := b.pay("k", p).ID
	settleNow(t, b, id)
	got := must(b.Payment(t.Context(), testTenant, string(id)))(t)
	if got.Failure == nil || strings.Contains(got.Failure.Message, token) {
		t.Errorf("payment tells the token: %+v", got.Failure)
	}
	for _, part := range b.parts {
		err := readJournal(t.Context(), part.shard, 0, 100, func(e *Event) error {
			if strings.Contains(string(e.Data), token) {
				t.Errorf("event %s tells the token: %s", e.Type, e.Data)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = part.shard.View(t.Context(), func(tx *shards.Tx) error {
			var n int
			err := tx.QueryRow(`SELECT /* box */ count(*) FROM attempts WHERE instr(coalesce(request_id,'') || coalesce(reason,''), ?) > 0`, token).Scan(&n)
			if n > 0 {
				t.Errorf("attempts hold the token in clear")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What is accepted offline must be acceptable to the processor: 50 metadata keys in all.
func TestMetadataWithTheBoxsOwn(t *testing.T) {
	p := validPayment()
	p.Metadata = map[string]string{}
	for i := range metadataKeysMax {
		p.Metadata[fmt.Sprint("k", i)] = "v"
	}
	if err := p.validate(); err != nil {
		t.Fatal(err)
	}
	_, body := (&send{step: charge, payment: Payment{ID: "pay_x", Amount: 1, Currency: "usd", Metadata: p.Metadata}, token: "tok", keyHash: "hash"}).encode()
	n := 0
	for k := range must(url.ParseQuery(string(body)))(t) {
		if strings.HasPrefix(k, "metadata[") {
			n++
		}
	}
	if n != 50 {
		t.Fatalf("sent with %d metadata keys; the processor takes 50", n)
	}
}

// panickyLog panics, as an embedded server may.
type panickyLog struct{ *memoryLog }

func (panickyLog) Tail(context.Context, uint64) (map[string]uint64, uint64, error) {
	panic("event log")
}

// INV-17: an event log that panics does not stop payments.
func TestPanickingEventLog(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{events: panickyLog{newMemoryLog()}})
	b.settled(b.pay("k", validPayment()).ID)
}

// damage flips a byte in the first value of a bucket of the stopped box's queue file.
func (b *testBox) damage(bucket string, prefix string) {
	b.t.Helper()
	b.stop()
	db, err := bbolt.Open(filepath.Join(b.dir, "jobs.db"), 0o600, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte(bucket)).Cursor()
		k, v := c.Seek([]byte(prefix))
		v = append([]byte(nil), v...)
		v[len(v)-1] ^= 1
		return tx.Bucket([]byte(bucket)).Put(append([]byte(nil), k...), v)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// A damaged job record (parked by the queue) must not keep its payment, nor the other
// payments of its shard, from being settled.
func TestDamagedJobIsMadeAnew(t *testing.T) {
	b := filledBox(t)
	b.damage("waiting", "payments\x00")
	b = b.reopen(func(o *testOptions) { o.idle = true })
	for _, sh := range b.set.All() {
		if err := b.requeueOpen(t.Context(), sh); err != nil {
			t.Errorf("sweep of shard %d: %v", sh.ID(), err)
		}
	}
	page := must(b.Payments(t.Context(), testTenant, Filter{Limit: 100}))(t)
	for _, p := range page.Data {
		if _, err := b.jobs.Get(string(testTenant), PaymentsQueue, string(p.ID)); err != nil {
			t.Errorf("%s has no job that can run: %v", p.ID, err)
		}
	}
}

// A damaged cursor in the queue's file, which is derived, must not stop the box.
func TestDamagedCursorStopsTheBox(t *testing.T) {
	b := filledBox(t)
	b.damage("cursors", "journal/")
	b = b.reopen(nil)
	b.cut(false)
	page := must(b.Payments(t.Context(), testTenant, Filter{Limit: 100}))(t)
	for _, p := range page.Data {
		b.settled(p.ID)
	}
	b.sound()
}

// Fault 3 and INV-13: reservations of an unknown commit are given back, whoever is first.
func TestUnknownCommitLeavesNoExposure(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	fired := 0
	for round := range 40 {
		before := d.Fired()
		d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "-wal", Skip: round % 5, Times: 1})
		var wg sync.WaitGroup
		for i := range 150 {
			wg.Go(func() {
				p := validPayment()
				p.UserID = "same"
				_, _, _ = b.Pay(context.Background(), testTenant, IdempotencyKey(fmt.Sprint("k", round, "-", i)), p)
			})
		}
		wg.Wait()
		d.Heal()
		fired += d.Fired() - before
		for _, p := range b.parts {
			if err := b.refresh(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		var want Sum
		err := each(t.Context(), b.set.All(), func(_ context.Context, tx *shards.Tx) error {
			var n, a int64
			err := tx.QueryRow(`SELECT /* box */ count(*), coalesce(sum(amount), 0) FROM payments WHERE sync <> 'settled'`).Scan(&n, &a)
			if n > 0 {
				want = Sum{n, a}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Exposed(testTenant)["usd"]; got != want {
			t.Fatalf("round %d: exposure %+v, stored %+v, %d faults, %d in doubt", round, got, want, fired, len(b.exposure.unproven))
		}
	}
	if fired == 0 {
		t.Fatal("no fault fired")
	}
}

// The same interleaving by hand: the caller that heard ErrUnknown is scheduled after
// the next group's commit.
func TestLateDoubt(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	tenant := must(b.tenants.Get(testTenant))(t)
	id := b.ids.payment(b.clock.now(), 7)
	held := must(b.reserve(t.Context(), &tenant, &Payment{ID: id, Amount: 1999, Currency: "usd"}))(t)
	d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "-wal", Times: 1})
	sh := b.shardOf(id)
	generation := sh.Generation()
	err := sh.Update(t.Context(), func(tx *shards.Tx) error {
		_, err := tx.Exec(`INSERT INTO idempotency_keys (tenant, key, fingerprint, record) VALUES ('x','y',x'00',?)`, string(id))
		return err
	})
	if d.Fired() != 1 || err == nil {
		t.Fatal("the fault did not fire", err)
	}
	if err := b.refresh(t.Context(), b.parts[sh.ID()]); err != nil { // another request's group
		t.Fatal(err)
	}
	held.doubt(id, sh.ID(), generation) // and only now the caller runs
	if err := b.refresh(t.Context(), b.parts[sh.ID()]); err != nil {
		t.Fatal(err)
	}
	if x := b.Exposed(testTenant); len(x) != 0 {
		t.Fatalf("nothing is stored, exposure is %v for good", x)
	}
}

// INTERFACE: 409 only between receipt and commit of the first.
func TestReplaysDoNotCollide(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	b.pay("k", validPayment())
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for range 100 {
		wg.Go(func() {
			if _, _, err := b.Pay(t.Context(), testTenant, "k", validPayment()); err != nil {
				mu.Lock()
				refused++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if refused > 0 {
		t.Fatalf("%d of 100 replays of a committed payment were refused", refused)
	}
}

// A shard that was out at the start by a passing fault is verified before it serves.
func TestRestoredShardIsVerified(t *testing.T) {
	b := filledBox(t)
	b.tamper(1, `UPDATE journal SET type = 'payment.failed' WHERE seq = 1`)
	d := shardstest.NewDisk(t, filepath.Join(b.dir, "shards"))
	d.Fail(shardstest.Fault{Op: shardstest.OpOpen, Suffix: "0001.db"})
	d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0001.db"})
	b = b.reopen(nil)
	sh := b.set.All()[1]
	if sh.Err() == nil || d.Fired() == 0 {
		t.Fatal("the shard is not out")
	}
	d.Heal()
	never := newPoke()
	for damaged := new(shards.CorruptError); !errors.As(sh.Err(), &damaged); {
		if err := never.wait(t.Context(), 20*time.Millisecond); err != nil {
			t.Fatal("a damaged journal serves: it was never held against its anchor")
		}
	}
}

// INV-7: sealed bytes that cannot be opened go to a person, or at least raise an alarm.
func TestDamagedBytesAreReported(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := b.pay("k", validPayment())
	must(b.sealOnly(string(p.ID)))(t)
	b.stop()
	shard := b.shardOf(p.ID).ID()
	b.tamper(shard, `UPDATE sends SET body = zeroblob(60)`)
	b = b.reopen(nil)
	_ = b.settle(t.Context(), settleJobOf(p.ID))
	got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t)
	if got.Sync.State != Review && len(b.alarms.of(testTenant)) == 0 {
		t.Fatalf("%s, %s, last error %v, no alarm: it snoozes every 2 s for ever", got.Status, got.Sync.State, got.Sync.LastError)
	}
}

// Alarms stay until their cause is gone, not for ever.
func TestUpstreamInvalidAlarmClears(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	// The name of the box's own account with another key: upstream.ErrKeyOfBox.
	b.setUpstream(testTenant, &tenants.Upstream{URL: b.o.url, Account: "default", Key: "sk_another"})
	b.pay("k", validPayment())
	if len(b.alarms.of(testTenant)) != 1 {
		t.Fatal("no alarm")
	}
	b.setUpstream(testTenant, nil)
	b.pay("k2", validPayment())
	if a := b.alarms.of(testTenant); len(a) != 0 {
		t.Fatalf("cause is gone, alarm stays: %+v", a)
	}
}

// INV-19, INV-13: one failed read while opening one shard must neither stop the box nor
// let the shard serve with its exposure uncounted.
func TestReadErrorAtStart(t *testing.T) {
	b := filledBox(t)
	d := shardstest.NewDisk(t, filepath.Join(b.dir, "shards"))
	want := b.Exposed(testTenant)["usd"]
	fired, skip := 0, 0
	for done := false; !done && skip < 60; skip++ {
		b.stop()
		before := d.Fired()
		d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0001.db", Skip: skip, Times: 1})
		t.Run(fmt.Sprint(skip), func(t *testing.T) {
			bb := *b
			bb.t = t
			defer func() {
				done = d.Fired() == before
				fired += d.Fired() - before
				d.Heal()
			}()
			again := bb.reopen(func(o *testOptions) { o.idle = true }) // fatal if the box does not start
			if part := again.parts[1]; again.set.All()[1].Err() == nil {
				if (!part.verified.Load() || again.exposure.isDue(1)) && !again.uncounted() {
					t.Error("limits are held against sums that were not counted")
				}
				// What Run does a moment later.
				if !part.verified.Load() {
					again.openPart(t.Context(), part)
				}
				if err := again.refresh(t.Context(), part); err != nil {
					t.Error(err)
				}
			}
			if again.set.All()[1].Err() == nil {
				if got := again.Exposed(testTenant)["usd"]; got != want {
					t.Errorf("all shards serve, exposure is %+v, want %+v", got, want)
				}
			}
		})
	}
	if fired == 0 {
		t.Fatal("no fault fired")
	}
}

// DESIGN, sharp edges: each send carries metadata[tenderbox_key].
func TestSendCarriesTheKey(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p := b.pay("k", validPayment())
	s := must(b.loadSend(t.Context(), testTenant, string(p.ID)))(t)
	if form := must(url.ParseQuery(string(s.body)))(t); form.Get("metadata[tenderbox_key]") == "" {
		t.Fatalf("sealed bytes: %v", form)
	}
}

// An upstream URL that lacks "/v1" (Stripe answers 404, "Unrecognized request URL", in its own
// error format) must not decline the backlog for good.
func TestWrongBaseURLDeclinesNothing(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"error":{"type":"invalid_request_error","message":"Unrecognized request URL (%s: %s). Please see https://stripe.com/docs"}}`, r.Method, r.URL.Path)
	}))
	t.Cleanup(s.Close)
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	b.setUpstream(testTenant, &tenants.Upstream{URL: s.URL, Account: "a", Key: "sk"})
	acc := b.accountOf(testTenant)
	probe := acc.Get(t.Context(), "/charges?limit=1")
	id := b.pay("k", validPayment()).ID
	_ = b.settle(t.Context(), settleJobOf(id))
	if p := must(b.Payment(t.Context(), testTenant, string(id)))(t); p.Status == Failed {
		t.Fatalf("an acknowledged payment failed for good: %+v (probe %v, link %s)", *p.Failure, probe.Status, acc.Link().State)
	}
}
