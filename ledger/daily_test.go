package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// days are those of the tenant's daily comparisons, newest first, with what they came to.
func (b *testBox) days() (all []string) {
	b.t.Helper()
	for _, r := range must(b.Reconciliations(b.t.Context(), testTenant, pageMax, ""))(b.t).Data {
		if r.Day != nil {
			all = append(all, *r.Day+" "+string(r.Status))
		}
	}
	return all
}

// alarmed reports whether the alarm of differences stands.
func (b *testBox) alarmed() bool {
	return slices.ContainsFunc(b.alarms.of(testTenant), func(a Alarm) bool { return a.Code == "reconciliation_difference" })
}

func (d *daily) mustLook(t *testing.T) {
	t.Helper()
	if err := d.look(t.Context(), testTenant)[testTenant]; err != nil {
		t.Fatal(err)
	}
}

// Each day is compared once, after midnight where the box is and when the line has been there for a while, also over restarts; days that
// an outage passed over are caught up with.
func TestDailyOnce(t *testing.T) {
	berlin := must(time.LoadLocation("Europe/Berlin"))(t)
	f := newFront(t)
	f.clock.set(time.Date(2026, 11, 23, 23, 20, 0, 0, berlin))
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, zone: berlin, sim: f.sim, url: f.url})
	b.hear()
	p := b.paid(validPayment())
	d := newDaily(b.Ledger)
	want := func(days ...string) {
		t.Helper()
		if got := b.days(); !slices.Equal(got, days) {
			t.Fatalf("%v: %v, want %v", f.clock.now().In(berlin), got, days)
		}
	}
	d.mustLook(t)
	want() // the line may be new
	b.pass(f, dailyCalm)
	d.mustLook(t)
	want("2026-11-22 equal")
	b.pass(f, 45*time.Minute) // 0:20
	d.mustLook(t)
	want("2026-11-22 equal")
	b.pass(f, 15*time.Minute) // 0:35
	d.mustLook(t)
	want("2026-11-23 equal", "2026-11-22 equal")
	r := must(b.Reconciliations(t.Context(), testTenant, 1, ""))(t).Data[0]
	if r.Payments != 1 || !r.From.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, berlin)) || r.To.Sub(r.From) != 24*time.Hour {
		t.Errorf("%+v", r)
	}
	pages := f.count("pages")
	again := func() {
		t.Helper()
		d.mustLook(t)
		if got := f.count("pages"); got != pages {
			t.Fatalf("%d pages read again", got-pages)
		}
	}
	again()
	b = b.reopen(nil)
	b.hear()
	d = newDaily(b.Ledger)
	d.mustLook(t)
	b.pass(f, dailyCalm)
	again()

	// The line is lost for three days.
	_ = b.ForceLink(testTenant, "offline")
	f.clock.add(72 * time.Hour)
	again()
	_ = b.ForceLink(testTenant, "auto")
	b.hear()
	again() // what is in doubt is found out first
	f.clock.add(dailyCalm)
	b.hear()
	d.mustLook(t)
	want("2026-11-26 equal", "2026-11-25 equal", "2026-11-24 equal", "2026-11-23 equal", "2026-11-22 equal")

	// The clocks must agree about what yesterday is.
	f.clock.add(24 * time.Hour)
	pages = f.count("pages")
	again()
	b.hear()
	d.mustLook(t)
	if got := b.days()[0]; got != "2026-11-27 equal" || b.now(p.ID).Status != Succeeded {
		t.Errorf("%s", got)
	}
	// A year is not caught up with.
	b.pass(f, 365*24*time.Hour)
	d.mustLook(t)
	if got := b.days(); len(got) != dailyBackMax+6 || b.alarmed() {
		t.Errorf("%d days", len(got))
	}
	b.sound()
}

// A day that could not be read whole is tried again, and takes the place of what was found before.
func TestDailyIncomplete(t *testing.T) {
	b, f := openReconciled(t)
	d := newDaily(b.Ledger)
	d.mustLook(t)
	b.pass(f, dailyCalm)
	f.answering("GET refunds", 404, `{"error":{"type":"invalid_request_error"}}`)
	d.mustLook(t)
	asked := f.count("GET refunds")
	b.pass(f, dailyRetry-time.Second)
	d.mustLook(t)
	if got := b.days(); !slices.Equal(got, []string{"2026-11-22 incomplete"}) || f.count("GET refunds") != asked || asked == 0 {
		t.Fatalf("%v, asked %d and %d times", got, asked, f.count("GET refunds"))
	}
	f.set(nil, nil)
	b.pass(f, time.Second)
	d.mustLook(t)
	if got := b.days(); !slices.Equal(got, []string{"2026-11-22 equal"}) {
		t.Fatalf("%v", got)
	}
}

// A day that cannot be compared, because a part of the books is out of service, is tried again after an hour: each try reads the processor's lists.
func TestDailyFailing(t *testing.T) {
	b, f := openReconciled(t)
	p := b.paid(validPayment())
	for b.shardOf(p.ID) == b.set.Shard(reconciliationSlot(testTenant)) {
		p = b.paid(validPayment())
	}
	b.shardOf(p.ID).Isolate(errors.New("found damaged"))
	d := newDaily(b.Ledger)
	d.mustLook(t)
	b.pass(f, 24*time.Hour)
	failing := func(want int) {
		t.Helper()
		pages := f.count("pages")
		err := d.look(t.Context(), testTenant)[testTenant]
		if got := f.count("pages") - pages; got != want || (err == nil) != (want == 0) {
			t.Fatalf("%d pages were read, want %d: %v", got, want, err)
		}
	}
	failing(3)
	b.pass(f, dailyLook)
	failing(0)
	b.pass(f, dailyRetry-dailyLook-time.Second)
	failing(0)
	b.pass(f, time.Second)
	failing(3)
}

// An outage that begins and ends on a day that is done already is noticed: the next day waits until what it left in doubt is found out.
func TestDailyCalm(t *testing.T) {
	b, f := openReconciled(t)
	d := newDaily(b.Ledger)
	d.mustLook(t)
	b.pass(f, dailyCalm)
	d.mustLook(t)
	b.pass(f, 12*time.Hour) // 0:15
	_ = b.ForceLink(testTenant, "offline")
	d.mustLook(t)
	_ = b.ForceLink(testTenant, "auto")
	b.pass(f, 15*time.Minute)
	d.mustLook(t)
	if got := b.days(); !slices.Equal(got, []string{"2026-11-22 equal"}) {
		t.Errorf("at once: %v", got)
	}
	b.pass(f, dailyCalm)
	d.mustLook(t)
	if got := b.days(); !slices.Equal(got, []string{"2026-11-23 equal", "2026-11-22 equal"}) {
		t.Errorf("%v", got)
	}
}

// Where a day has no midnight, or two, each day is compared once, and its span ends where the next begins.
func TestDailyWithoutMidnight(t *testing.T) {
	for name, first := range map[string]time.Time{
		"America/Santiago": time.Date(2026, 9, 5, 16, 0, 0, 0, time.UTC), // clocks go forward at midnight to 2026-09-06
		"America/Havana":   time.Date(2026, 10, 31, 16, 0, 0, 0, time.UTC),
		"Asia/Amman":       time.Date(2021, 10, 28, 9, 0, 0, 0, time.UTC),
		"Pacific/Apia":     time.Date(2011, 12, 29, 22, 0, 0, 0, time.UTC), // the 30th is left out
	} {
		t.Run(name, func(t *testing.T) {
			zone := must(time.LoadLocation(name))(t)
			f := newFront(t)
			f.clock.set(first)
			b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, zone: zone, sim: f.sim, url: f.url})
			b.hear()
			d := newDaily(b.Ledger)
			d.mustLook(t)
			b.pass(f, dailyCalm)
			d.mustLook(t)
			day := DayOf(first.In(zone))
			var want []string
			for range 4 { // caught up with, two at a time
				if from, to := day.Span(zone); from.Before(to) {
					want = append(want, day.String()+" equal")
				}
				day = day.Add(1)
			}
			for range 2 {
				b.pass(f, 48*time.Hour)
				d.mustLook(t)
			}
			got := b.days()
			slices.Reverse(got)
			if !slices.Equal(got[1:min(len(got), len(want)+1)], want) {
				t.Fatalf("%v, want %v", got, want)
			}
			all := must(b.Reconciliations(t.Context(), testTenant, pageMax, ""))(t).Data
			for i := range all[1:] {
				if !all[i].From.Equal(all[i+1].To) || !all[i].From.Before(all[i].To) {
					t.Errorf("%s begins at %v, and %s ends at %v", *all[i].Day, all[i].From, *all[i+1].Day, all[i+1].To)
				}
			}
			// Yesterday, for who names none, is the day by the calendar, also within the first hour after it.
			day = DayOf(first.In(zone)).Add(1)
			if from, to := day.Span(zone); from.Before(to) {
				f.clock.set(to.Add(30 * time.Minute))
				b.hear()
				if r := must(b.Reconcile(t.Context(), testTenant, time.Time{}, time.Time{}))(t); !r.From.Equal(from) || !r.To.Equal(to) {
					t.Errorf("yesterday is %v to %v", r.From.In(zone), r.To.In(zone))
				}
			}
			b.sound()
		})
	}
}

// A day's differences raise the alarm, over restarts, and are told once. It is gone when they are, or after a week.
func TestDailyDifference(t *testing.T) {
	b, f := openReconciled(t)
	p := b.paid(validPayment())
	if err := b.sim.Alter(*p.UpstreamID, simulator.Altered{Amount: 1}); err != nil {
		t.Fatal(err)
	}
	if r := b.compared(f, testTenant); r.Status == Different || b.alarmed() { // nothing before noon
		t.Fatalf("%+v", r)
	}
	b.pass(f, time.Hour)
	if r := b.compared(f, testTenant); r.Status != Different || b.alarmed() {
		t.Errorf("who asks has the answer, and no alarm: %+v", r)
	}
	d := newDaily(b.Ledger)
	d.mustLook(t)
	b.pass(f, 24*time.Hour)
	d.mustLook(t)
	if !b.alarmed() || !slices.Equal(b.days(), []string{"2026-11-23 different"}) {
		t.Fatalf("%v, alarms %+v", b.days(), b.alarms.of(""))
	}
	if got := must(b.Status(t.Context(), testTenant))(t).Alarms; len(got) != 1 || !strings.Contains(got[0].Detail, "2026-11-23") {
		t.Errorf("%+v", got)
	}
	told := b.differenceTold("2026-11-23")
	if told.Day != "2026-11-23" || told.Total != 1 || told.Kinds[OtherAmount] != 1 || told.Status != Different {
		t.Errorf("%+v", told)
	}
	r := must(b.Reconciliation(t.Context(), testTenant, string(told.ID)))(t)
	if len(r.Differences) != 1 {
		t.Errorf("%+v", r)
	}
	// A crash before it was kept makes it anew, under the same name, and tells nothing again.
	for range 2 {
		if err := b.tellDifferences(t.Context(), testTenant, &r); err != nil {
			t.Fatal(err)
		}
	}
	b.differenceTold("2026-11-23")
	b = b.reopen(nil)
	b.hear()
	d = newDaily(b.Ledger)
	d.mustLook(t)
	if !b.alarmed() {
		t.Error("a start has forgotten the alarm")
	}
	// The next day is equal: what stands of yesterday stands.
	b.pass(f, 24*time.Hour)
	d.mustLook(t)
	b.pass(f, dailyCalm)
	d.mustLook(t)
	if !b.alarmed() || len(b.days()) != 2 {
		t.Errorf("%v", b.days())
	}
	b.pass(f, differenceAlarmFor)
	d.mustLook(t)
	if b.alarmed() {
		t.Error("the alarm stands for ever")
	}
}

// differenceTold does what the queue would, twice, and returns what the one event tells.
func (b *testBox) differenceTold(day string) (told differenceData) {
	b.t.Helper()
	job := must(b.jobs.Get(string(testTenant), EventsQueue, "reconciliation_"+day+"_different"))(b.t)
	for range 2 {
		if err := b.Record(b.t.Context(), &job); err != nil {
			b.t.Fatal(err)
		}
	}
	rows := b.rows(ReconciliationDifference)
	if len(rows) != 1 {
		b.t.Fatalf("told %d times", len(rows))
	}
	if err := json.Unmarshal(rows[0].Data, &told); err != nil || rows[0].Tenant != testTenant || rows[0].Subject != string(told.ID) {
		b.t.Fatalf("%+v %s: %v", rows[0], rows[0].Data, err)
	}
	return told
}

// A comparison over the same time, and no less, that finds nothing any more ends the alarm.
func TestDailyDifferenceMended(t *testing.T) {
	b, f := openReconciled(t)
	p := b.paid(validPayment())
	amount := func(n int64) {
		t.Helper()
		if err := b.sim.Alter(*p.UpstreamID, simulator.Altered{Amount: n}); err != nil {
			t.Fatal(err)
		}
	}
	d := newDaily(b.Ledger)
	d.mustLook(t)
	b.pass(f, 24*time.Hour)
	day := noon.Add(-12 * time.Hour)
	if r := must(b.Reconcile(t.Context(), testTenant, day, day.Add(24*time.Hour)))(t); r.Status != Equal {
		t.Fatalf("%+v", r)
	}
	f.clock.add(time.Second)
	amount(1)
	d.mustLook(t)
	amount(1999)
	f.clock.add(time.Second)
	for _, short := range []time.Duration{time.Second, 0} {
		if !b.alarmed() {
			t.Fatal("no alarm")
		}
		if r := must(b.Reconcile(t.Context(), testTenant, day, day.Add(24*time.Hour-short)))(t); r.Status != Equal {
			t.Fatalf("%+v", r)
		}
	}
	if b.alarmed() {
		t.Errorf("alarms %+v", b.alarms.of(""))
	}
}

// What goes wrong with one tenant keeps nobody else's day from being compared.
func TestDailyRound(t *testing.T) {
	b, f := openReconciled(t)
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "aaa"}); err != nil {
		t.Fatal(err)
	}
	end := must(b.reconciling.begin("aaa"))(t)
	d := newDaily(b.Ledger)
	d.round(t.Context())
	b.pass(f, dailyCalm)
	d.round(t.Context())
	if got := b.days(); len(got) != 1 {
		t.Errorf("%v", got)
	}
	end()
	b.pass(f, dailyRetry)
	d.round(t.Context())
	if got := must(b.Reconciliations(t.Context(), "aaa", 10, ""))(t).Data; len(got) != 1 || len(b.days()) != 1 {
		t.Errorf("%+v", got)
	}
}

// Tenants who share an account share the reading of its lists, and nothing of what it shows: each finds what it would find alone.
func TestDailySharedLists(t *testing.T) {
	b, f := openReconciled(t)
	all := []tenants.ID{testTenant, "aaa", "bbb", "ccc"}
	words := map[tenants.ID][]string{} // that are its own
	for _, tenant := range all {
		if tenant != testTenant {
			if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: tenant}); err != nil {
				t.Fatal(err)
			}
		}
		if tenant == "ccc" {
			continue // has done nothing
		}
		p, _, err := b.Pay(t.Context(), tenant, "", validPayment())
		if err != nil {
			t.Fatal(err)
		}
		job := settleJobOf(p.ID)
		job.Tenant = string(tenant)
		if err := b.settle(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		p = must(b.Payment(t.Context(), tenant, string(p.ID)))(t)
		lost := string(newIDs().payment(noon, 7))
		form := marked(lost, "500")
		form.Set("metadata["+markOwner+"]", b.keys.ownerMark(tenant))
		words[tenant] = []string{string(p.ID), *p.UpstreamID, lost, f.byHandID(t, "/charges", form), f.byHandID(t, "/refunds", url.Values{"charge": {*p.UpstreamID}, "amount": {"5"}}),
			f.byHandID(t, "/charges", marked(string(p.ID), "1999"))}
	}
	foreign := f.byHandID(t, "/charges", url.Values{"amount": {"77"}, "currency": {"usd"}, "source": {"tok_visa"}})
	d := newDaily(b.Ledger)
	d.round(t.Context())
	b.pass(f, 24*time.Hour)
	pages := f.count("pages")
	d.round(t.Context())
	if got := f.count("pages") - pages; got != 3 {
		t.Errorf("%d pages were read, want one of each list", got)
	}
	for _, tenant := range all {
		kept := must(b.Reconciliations(t.Context(), tenant, pageMax, ""))(t).Data
		if len(kept) != 1 || *kept[0].Day != "2026-11-23" {
			t.Fatalf("%s: %+v", tenant, kept)
		}
		daily := must(b.Reconciliation(t.Context(), tenant, string(kept[0].ID)))(t)
		want := 3 // missing here, duplicate, refunded
		if tenant == "ccc" {
			want = 0
		}
		if int(daily.Total) != want || daily.Foreign != 1 {
			t.Errorf("%s: %+v", tenant, daily)
		}
		alone := must(b.Reconcile(t.Context(), tenant, noon.Add(-12*time.Hour), noon.Add(12*time.Hour)))(t)
		alone.ID, alone.Day, alone.CreatedAt, alone.EndedAt = daily.ID, daily.Day, daily.CreatedAt, daily.EndedAt
		if !reflect.DeepEqual(daily, alone) {
			t.Errorf("%s: with others %+v\nalone %+v", tenant, daily, alone)
		}
		text := string(must(json.Marshal(daily))(t))
		for of, words := range words {
			for _, word := range words {
				if of != tenant && strings.Contains(text, word) {
					t.Errorf("%s is told of %s's %s", tenant, of, word)
				}
			}
		}
	}

	// What was given back of charges from before is asked for once. A day that one of them lacks is read for that one, and lists that end in
	// the middle are nobody's whole day.
	for _, charge := range []string{words["aaa"][1], words["bbb"][1], foreign} {
		f.byHandID(t, "/refunds", url.Values{"charge": {charge}, "amount": {"6"}})
	}
	b.pass(f, 24*time.Hour)
	end := must(b.reconciling.begin("aaa"))(t)
	pages = f.count("pages")
	d.round(t.Context())
	end()
	b.pass(f, dailyRetry)
	d.round(t.Context())
	if got := f.count("pages") - pages; got != 6 {
		t.Errorf("%d pages were read, want twice one of each list", got)
	}
	if got := f.count("GET charges/…"); got != 2*3 {
		t.Errorf("%d charges were asked for, want three each time", got)
	}
	b.pass(f, 24*time.Hour)
	f.answering("GET charges", 404, `{"error":{"type":"invalid_request_error"}}`)
	d.round(t.Context())
	f.set(nil, nil)
	for _, tenant := range all {
		var days []string
		for _, r := range must(b.Reconciliations(t.Context(), tenant, pageMax, ""))(t).Data {
			if r.Day != nil {
				days = append(days, fmt.Sprintf("%s %s %d %d", *r.Day, r.Status, r.Kinds[RefundedThere], r.Foreign))
			}
		}
		want := "2026-11-24 equal 0 1"
		if tenant == "aaa" || tenant == "bbb" {
			want = "2026-11-24 different 1 1"
		}
		if len(days) != 3 || days[0] != "2026-11-25 incomplete 0 0" || days[1] != want {
			t.Errorf("%s: %q", tenant, days)
		}
	}
	if n := b.reconciling.places; n != 0 {
		t.Errorf("%d places are taken for ever", n)
	}
}
