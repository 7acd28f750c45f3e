package ledger

import (
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// A payment at an edge of a span is in no difference of either side of it, whichever clock is ahead and however long its way was.
func TestReconcileEdges(t *testing.T) {
	midnight := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		theirs time.Duration // their clock is ahead
		made   time.Duration // before midnight it was made there
		took   time.Duration // to be known here
	}{
		"made before, known after":               {0, time.Second, 2 * time.Second},
		"made and known before":                  {0, time.Second, 0},
		"known before, their clock says after":   {50 * time.Second, time.Second, 0},
		"known after, their clock says before":   {-50 * time.Second, -time.Second, 0},
		"made at midnight":                       {0, 0, 0},
		"made before, known two days later":      {0, time.Hour, 48 * time.Hour},
		"made within the margin, known later on": {0, 10 * time.Minute, 3 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			f.sim = simulator.New(simulator.Options{Now: func() time.Time { return f.clock.now().Add(c.theirs) }})
			f.clock.set(midnight.Add(-c.made))
			b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, zone: time.UTC, sim: f.sim, url: f.url})
			b.hear()
			id := b.pay("", validPayment()).ID
			if c.took > 0 {
				f.losing("POST charges")
				b.mustWait(string(id))
				f.set(nil, nil)
				b.pass(f, c.took)
			}
			if p := b.settleNow(id); p.Status != Succeeded {
				t.Fatalf("%+v", p)
			}
			b.pass(f, time.Hour)
			compared := int64(0)
			for from := midnight.Add(-24 * time.Hour); from.Before(f.clock.now()); from = from.Add(24 * time.Hour) {
				r := must(b.Reconcile(t.Context(), testTenant, from, from.Add(24*time.Hour)))(t)
				if r.Status != Equal {
					t.Errorf("from %v: %+v %q", from, r, briefs(&r))
				}
				compared += r.Payments
			}
			if compared != 1 {
				t.Errorf("compared %d times", compared)
			}
			if asked := f.count("GET charges/…"); (asked == 1) != (c.made >= time.Hour) {
				t.Errorf("asked for %d times: what is near is in the list", asked)
			}
			if c.made >= time.Hour {
				return
			}
			if err := b.sim.Alter(*b.now(id).UpstreamID, simulator.Altered{Amount: 1}); err != nil {
				t.Fatal(err)
			}
			from := b.now(id).SettledAt.Truncate(24 * time.Hour)
			if r := must(b.Reconcile(t.Context(), testTenant, from, from.Add(24*time.Hour)))(t); r.Total != 1 || r.Kinds[OtherAmount] != 1 {
				t.Errorf("%+v", r)
			}
			b.sound()
		})
	}
}

// What is missing here is told by one day alone.
func TestReconcileMissingOnce(t *testing.T) {
	midnight := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	b, f := openReconciled(t)
	for _, at := range []time.Duration{-time.Second, 0} {
		f.clock.set(midnight.Add(at))
		f.byHand(t, "/charges", marked(string(newIDs().payment(noon, 7)), "5"))
	}
	b.pass(f, 24*time.Hour)
	for _, from := range []time.Time{midnight.Add(-24 * time.Hour), midnight} {
		if r := must(b.Reconcile(t.Context(), testTenant, from, from.Add(24*time.Hour)))(t); r.Total != 1 {
			t.Errorf("from %v: %q", from, briefs(&r))
		}
	}
}

// What another tenant has left at the account, before tenants were named there, is not told to the one that has it to itself now, also when
// the other is gone.
func TestReconcileFormerTenant(t *testing.T) {
	const former = tenants.ID("former")
	for name, leaves := range map[string]func(b *testBox, f *front){
		"has another account": func(b *testBox, f *front) {
			b.setUpstream(former, &tenants.Upstream{URL: f.url, Account: "his", Key: "sk_his"})
		},
		"removed": func(b *testBox, f *front) {
			must(b.tenants.Disable(t.Context(), former))(t)
			if err := b.tenants.Remove(t.Context(), former); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, f := openReconciled(t)
			if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: former}); err != nil {
				t.Fatal(err)
			}
			his, _, err := b.Pay(t.Context(), former, "", validPayment())
			if err != nil {
				t.Fatal(err)
			}
			slot, _ := his.ID.slot()
			charge := f.byHandID(t, "/charges", marked(string(his.ID), "1999"))
			refund := b.ids.refund(f.clock.now(), slot)
			if err := b.shardOf(his.ID).Update(t.Context(), func(tx *shards.Tx) error {
				_, err := tx.Exec(`INSERT INTO refunds (tenant, id, payment_id, amount, currency, status, sync, created_at) VALUES (?,?,?,9,'usd','pending','queued',?)`,
					string(former), string(refund), string(his.ID), f.clock.now().UnixMilli())
				return err
			}); err != nil {
				t.Fatal(err)
			}
			f.byHand(t, "/refunds", url.Values{"charge": {charge}, "amount": {"9"}, "metadata[" + markPayment + "]": {string(his.ID)}, "metadata[" + markRefund + "]": {string(refund)}})
			leaves(b, f)
			b.pass(f, time.Hour)
			if r := b.compared(f, testTenant); r.Status != Equal || r.Foreign != 0 || r.Objects != 0 {
				t.Errorf("%+v %q", r, briefs(&r))
			}
		})
	}
}

// What was paid there, while it is not confirmed here, is a difference: nobody comes to move it. A box that was put back has lost that
// it was confirmed, and looks for it, which may stay undecided.
func TestReconcileUnconfirmed(t *testing.T) {
	for name, first := range map[string]int{"by another": 0, "before the box was put back": 1} {
		t.Run(name, func(t *testing.T) {
			b, f := openReconciled(t)
			id := b.pay("", unconfirmed("pm_card_visa")).ID
			if err := b.shardOf(id).Update(t.Context(), func(tx *shards.Tx) error {
				_, err := tx.Exec(`UPDATE payments SET resolve_first = ? WHERE tenant = ? AND id = ?`, first, string(testTenant), string(id))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			form := marked(string(id), "1999")
			form.Set("payment_method", "pm_card_visa")
			form.Set("confirm", "true")
			form.Del("source")
			f.byHand(t, "/payment_intents", form)
			b.pass(f, time.Hour)
			r := b.compared(f, testTenant)
			want := []string{"status " + string(id) + " - " + b.sim.Ledger().Charges[0].PaymentIntent + " 1999 usd requires_confirmation 1999 usd succeeded"}
			if got := briefs(&r); r.Open != 0 || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v\n%q, want %q", r, got, want)
			}
		})
	}
}

// More than a page is gone through, more than the list holds is counted, and what is asked for one by one is bounded.
func TestReconcileMany(t *testing.T) {
	b, f := openReconciled(t)
	const n = reconcileBatch + 20 // of one user, in one shard
	now := noon.UnixMilli()
	slot := shards.SlotOf(string(testTenant), "ana")
	err := b.set.Shard(slot).Update(t.Context(), func(tx *shards.Tx) error {
		for i := range n { // many in one millisecond
			if _, err := tx.Exec(`INSERT INTO payments (tenant, id, amount, currency, status, sync, upstream_id, source_kind, taken_offline, created_at, settled_at)
				VALUES (?,?,?,'usd','succeeded','settled',?,'source',0,?,?)`, string(testTenant), string(b.ids.payment(noon, slot)), i+1, "ch_"+strconv.Itoa(i), now, now+int64(i/7)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.pass(f, time.Hour)
	r := b.compared(f, testTenant)
	if r.Payments != n || r.Total != n || r.Kinds[MissingThere] != n || len(r.Differences) != differencesMax || r.Status != Different {
		t.Errorf("%d compared, %d of %d listed, %s", r.Payments, len(r.Differences), r.Total, r.Status)
	}
	seen := map[PaymentID]bool{}
	for _, d := range r.Differences {
		seen[*d.PaymentID] = true
	}
	if len(seen) != differencesMax {
		t.Errorf("%d different ones", len(seen))
	}
	c := &comparison{Ledger: b.Ledger, t: testTenant, lists: &lists{acc: b.accountOf(testTenant)}, looks: reconcileLooksMax}
	if _, _, err := c.look(t.Context(), "/charges", "ch_1"); err == nil {
		t.Error("one more was asked for")
	}
	c.kept = reconcileObjectsMax
	c.records = map[string]*theirs{}
	if c.lists.note("pay_", &theirs{}) {
		t.Error("one more was kept")
	}
}

// What cannot be asked is refused, with the reason.
func TestReconcileRefused(t *testing.T) {
	b, f := openReconciled(t)
	day := func(from, to time.Duration) string {
		_, err := b.Reconcile(t.Context(), testTenant, noon.Add(from), noon.Add(to))
		return code(err)
	}
	for want, spans := range map[string][][2]time.Duration{
		"time_range_invalid": {{0, 0}, {time.Hour, -time.Hour}, {time.Hour, 2 * time.Hour}, {-32 * 24 * time.Hour, 0}, {-31*24*time.Hour - time.Second, 0}},
		"<nil>":              {{-31 * 24 * time.Hour, 0}, {-time.Hour, 5 * time.Hour}},
	} {
		for _, span := range spans {
			if got := day(span[0], span[1]); got != want {
				t.Errorf("%v: %s, want %s", span, got, want)
			}
		}
	}
	october := time.Date(2026, 10, 1, 0, 0, 0, 0, must(time.LoadLocation("Europe/Berlin"))(t)) // an hour longer than 31 days of 24
	must(b.Reconcile(t.Context(), testTenant, october, october.AddDate(0, 1, 0)))(t)
	end, err := b.reconciling.begin(testTenant)
	if err != nil {
		t.Fatal(err)
	}
	if got := day(-time.Hour, 0); got != "reconciliation_under_way" {
		t.Errorf("twice at a time: %s", got)
	}
	end()
	for range reconciliationsMax {
		must(b.reconciling.enter())(t)
	}
	if got := day(-time.Hour, 0); got != "reconciliation_under_way" {
		t.Errorf("many at a time: %s", got)
	}
	b.reconciling.places = 0
	for word, set := range map[string]func(){
		"offline": func() { _ = b.ForceLink(testTenant, "offline") },
		"breaker": func() { _ = b.ForceLink(testTenant, "auto"); _ = b.ForceBreaker(testTenant, "open") },
		"alarms": func() {
			_ = b.ForceLink(testTenant, "auto")
			_ = b.ForceBreaker(testTenant, "close")
			f.answering("GET charges", 401, `{"error":{"type":"invalid_request_error"}}`)
			b.accountOf(testTenant).Get(t.Context(), "/charges")
		},
	} {
		t.Run(word, func(t *testing.T) {
			b, f = openReconciled(t)
			set()
			_, err := b.Reconcile(t.Context(), testTenant, time.Time{}, time.Time{})
			if code(err) != "upstream_unreachable" || !strings.Contains(err.Error(), word) {
				t.Errorf("%v", err)
			}
			f.set(nil, nil)
		})
	}
	none := openBox(t, t.TempDir(), testOptions{idle: true, sim: f.sim})
	if _, err := none.Reconcile(t.Context(), testTenant, time.Time{}, time.Time{}); code(err) != "upstream_unconfigured" {
		t.Errorf("%v", err)
	}
}

// Of each sort the last are kept; yesterday is what is compared unless another time is named.
func TestReconciliationsAreKept(t *testing.T) {
	b, f := openReconciled(t)
	const n = reconciliationsKept + 3
	var last Reconciliation
	for range n {
		f.clock.add(time.Second)
		last = must(b.Reconcile(t.Context(), testTenant, time.Time{}, time.Time{}))(t)
	}
	if y := noon.Add(-12 * time.Hour); !last.From.Equal(y.Add(-24*time.Hour)) || !last.To.Equal(y) {
		t.Errorf("yesterday is %v to %v", last.From, last.To)
	}
	page, got := must(b.Reconciliations(t.Context(), testTenant, 30, ""))(t), []Reconciliation(nil)
	got = append(got, page.Data...)
	if len(page.Data) != 30 || !page.HasMore {
		t.Fatalf("%d, %v", len(page.Data), page.HasMore)
	}
	page = must(b.Reconciliations(t.Context(), testTenant, 30, page.NextCursor))(t)
	got = append(got, page.Data...)
	if len(got) != reconciliationsKept || page.HasMore || got[0].ID != last.ID || got[0].Differences != nil {
		t.Errorf("%d kept, first %+v", len(got), got[0])
	}
	for _, id := range []string{"", "rec_x", "rec_00000000000000000000000000", string(last.ID) + "x"} {
		if _, err := b.Reconciliation(t.Context(), testTenant, id); code(err) != "not_found" {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := b.Reconciliations(t.Context(), testTenant, 30, "nonsense"); code(err) != "cursor_invalid" {
		t.Error(err)
	}
	b.sound()
}
