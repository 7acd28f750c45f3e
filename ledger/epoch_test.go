package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tenderbox/shards"
)

// copyOf copies the folder of a stopped box, all of it.
func copyOf(t testing.TB, b *testBox) string {
	t.Helper()
	b.stop()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "box.key"), 0o600); err != nil { // which CopyFS does not copy
		t.Fatal(err)
	}
	return dir
}

// on opens a box on another folder, with the same processor.
func (b *testBox) on(dir string) *testBox {
	b.t.Helper()
	other := openBox(b.t, dir, b.o)
	if b.o.idle {
		other.hear()
	}
	return other
}

// raised reports whether an alarm stands.
func (b *testBox) raised(code string) bool {
	return slices.ContainsFunc(b.alarms.of(""), func(a Alarm) bool { return a.Code == code })
}

// INV-6: a folder that was copied sends nothing that the other one may have sent, not even under a key that is forgotten.
func TestCopySendsNothingTwice(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	done := a.paid(validPayment())
	records := map[string]string{ // by what was done with it before the copy was made
		"never sent":  string(a.pay("", validPayment()).ID),
		"cut short":   must(a.sealOnly(string(a.pay("", validPayment()).ID)))(t).id,
		"answer lost": string(lostCharge(a, f)),
		"intent":      string(a.pay("", byMethod()).ID),
		"refund":      string(a.giveBack(done, 500)),
	}
	half := must(a.sealOnly(string(a.pay("", byMethod()).ID)))(t)
	a.accountOf(testTenant).Post(t.Context(), half.path, half.body, half.key) // made; its answer is not kept
	records["half an intent"] = half.id

	dir := copyOf(t, a)
	first := a.on(a.dir)
	if first.raised("box_copied") {
		t.Error("the original takes itself for a copy")
	}
	for name, id := range records {
		if err := first.step(id); err != nil {
			t.Errorf("original, %s: %v", name, err)
		}
	}
	first.stop()
	f.clock.add(25 * time.Hour) // the processor has forgotten all keys
	before := len(f.sim.Ledger().Charges) + len(f.sim.Ledger().Refunds)

	second := a.on(dir)
	if !second.raised("box_copied") {
		t.Error("the copy does not say that it is one")
	}
	for name, id := range records {
		if _, err := second.sealOnly(id); err == nil {
			t.Errorf("copy, %s: sealed before it was looked up", name)
		}
		for range 3 { // an intent that was made by the other box is looked up by what was confirmed
			if err := second.step(id); err == nil {
				break
			}
			second.pass(f, sentMargin+time.Minute)
		}
	}
	if after := len(f.sim.Ledger().Charges) + len(f.sim.Ledger().Refunds); after != before {
		t.Errorf("%d effects became %d", before, after)
	}
	for id, n := range second.effects() {
		if n != 1 {
			t.Errorf("%s was charged %d times", id, n)
		}
	}
	if n := f.refunds()[records["refund"]]; n != 1 {
		t.Errorf("refunded %d times", n)
	}
	for name, id := range records {
		if name == "refund" {
			if r := second.refundNow(RefundID(id)); r.Status != RefundDone {
				t.Errorf("%s: %+v", name, r)
			}
		} else if p := second.now(PaymentID(id)); p.Status != Succeeded {
			t.Errorf("%s: %+v", name, p)
		}
	}
	second.sound()
}

// What the copy's original never sent is sent by the copy, once it is proved that it was not.
func TestCopySendsWhatIsAbsent(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	paid := a.paid(validPayment())
	id := a.pay("", validPayment()).ID
	refund := a.giveBack(paid, 500)
	b := a.on(copyOf(t, a))
	b.mustWait(string(id)) // the original's sends may still be under way
	b.pass(f, formerMargin+time.Second)
	if p := b.settleNow(id); p.Status != Succeeded || b.effects()[id] != 1 {
		t.Errorf("%+v", p)
	}
	if err := b.step(string(refund)); err != nil {
		b.pass(f, formerMargin+time.Second)
		if err := b.step(string(refund)); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.refundNow(refund); r.Status != RefundDone || f.refunds()[string(refund)] != 1 {
		t.Errorf("%+v", r)
	}
	b.sound()
}

// INV-32: after an old copy has taken the place of a newer folder, a client's repeat of a request that the copy does not know finds the
// charge, and the refund, that it made.
func TestRepeatAfterRestoreFindsItsCharge(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	early := a.paid(validPayment())
	old := copyOf(t, a)
	a = a.on(a.dir)
	lost := a.settleNow(a.pay("k", validPayment()).ID)
	gone := a.refund("r", NewRefund{PaymentID: string(early.ID), Amount: 700})
	if err := a.step(string(gone.ID)); err != nil {
		t.Fatal(err)
	}
	a.stop()

	f.clock.add(26 * time.Hour)
	b := a.on(old)
	b.pass(f, formerMargin+time.Second)
	again := b.pay("k", validPayment())
	if again.ID == lost.ID {
		t.Fatal("the copy knows the payment that it is to have lost")
	}
	refund := b.refund("r", NewRefund{PaymentID: string(early.ID), Amount: 700})
	other := b.pay("another", validPayment())
	b.mustWait(string(other.ID)) // the first look
	b.pass(f, formerMargin+time.Second)
	if p := b.settleNow(again.ID); p.Status != Succeeded || *p.UpstreamID != *lost.UpstreamID || p.Sync.Attempts != 0 {
		t.Errorf("repeated: %+v, want what %s became", p, *lost.UpstreamID)
	}
	if p := b.settleNow(other.ID); p.Status != Succeeded || b.effects()[other.ID] != 1 {
		t.Errorf("another: %+v", p)
	}
	for range 2 {
		if err := b.step(string(refund.ID)); err == nil {
			break
		}
		b.pass(f, formerMargin+time.Second)
	}
	if r := b.refundNow(refund.ID); r.Status != RefundDone || r.Sync.Attempts != 0 || len(f.sim.Ledger().Refunds) != 1 {
		t.Errorf("repeated refund: %+v, %d upstream", r, len(f.sim.Ledger().Refunds))
	}
	if n := len(f.sim.Ledger().Charges); n != 3 {
		t.Errorf("%d charges, want 3", n)
	}

	// After a week no answer can be repeated that the box has forgotten, and nothing is looked up any more.
	b.ageEpochs(t.Context())
	b.pass(f, keyLookup+time.Hour)
	b.ageEpochs(t.Context())
	if b.raised("box_copied") {
		t.Error("the alarm stays")
	}
	pages := f.count("pages")
	if p := b.settleNow(b.pay("late", validPayment()).ID); p.Status != Succeeded || f.count("pages") != pages {
		t.Errorf("a week later: %+v after %d more look-ups", p, f.count("pages")-pages)
	}
	b.sound()
}

// A copy whose clock stands at 1970 does not call its epoch old when the clock is put right.
func TestEpochIsDatedByTheProcessor(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	for i := range 8 {
		a.pay(fmt.Sprint(i), validPayment())
	}
	dir := copyOf(t, a)
	o := a.o
	box := &manualClock{at: time.Unix(0, 0)}
	o.now = box.now
	b := openBox(t, dir, o)
	b.ageEpochs(t.Context())
	for _, p := range b.parts {
		if e := p.epoch(); !e.began.IsZero() || !e.looksUpKeys(f.clock.now().Add(365*24*time.Hour)) {
			t.Fatalf("dated before anybody told the time: %+v", e)
		}
	}
	b.hear()
	box.set(f.clock.now())
	b.ageEpochs(t.Context())
	for _, p := range b.parts {
		if e := p.epoch(); e.began.Before(f.clock.now().Add(-time.Hour)) || !e.looksUpKeys(box.now()) {
			t.Errorf("began %v", e.began)
		}
	}
	b = b.reopen(nil)
	for _, p := range b.parts {
		if e := p.epoch(); e.began.IsZero() {
			t.Error("the date is not kept")
		}
	}
}

// The journal's positions go on in the new epoch: no event is published or turned into jobs anew, and a reader goes on where it was.
func TestCopyGoesOnWithTheJournal(t *testing.T) {
	log := newMemoryLog()
	a := openBox(t, t.TempDir(), testOptions{events: log})
	for i := range 12 {
		a.settled(a.pay(fmt.Sprint(i), validPayment()).ID)
	}
	log.await(t, 24)
	page := must(a.Events(t.Context(), testTenant, EventFilter{Limit: 24}))(t)
	if len(page.Events) != 24 {
		t.Fatalf("%d events", len(page.Events))
	}
	middle, end := page.Behind[9], page.Next

	b := a.on(copyOf(t, a))
	if b.raised("queue_lost") {
		t.Errorf("the queue counts as lost: %v", b.alarms.of(""))
	}
	next := b.settled(b.pay("", validPayment()).ID)
	seen := map[EventID]int{}
	for _, r := range log.await(t, 26) {
		if seen[r.id]++; seen[r.id] > 1 {
			t.Errorf("event %s of %s was published twice", r.id, r.origin)
		}
	}
	if n := len(must(b.Events(t.Context(), testTenant, EventFilter{After: middle, Limit: 100}))(t).Events); n != 16 {
		t.Errorf("%d events after the tenth, want 16", n)
	}
	rest := must(b.Events(t.Context(), testTenant, EventFilter{After: end, Limit: 100}))(t)
	if len(rest.Events) != 2 || rest.Events[0].Subject != string(next.ID) {
		t.Errorf("after the copy: %+v", rest.Events)
	}
	// The original goes on too: what it tells from now on is not what the copy tells.
	b.stop()
	a = a.on(a.dir)
	a.settled(a.pay("of the original", validPayment()).ID)
	beyond := must(a.Events(t.Context(), testTenant, EventFilter{After: end, Limit: 100}))(t).Next
	a.stop()
	b = b.on(b.dir)
	var refusal *Error
	if _, err := b.Events(t.Context(), testTenant, EventFilter{After: beyond}); !errors.As(err, &refusal) || refusal.Code != "events_gone" {
		t.Errorf("a position that the copy never had: %v", err)
	}
	// A copy of the copy.
	c := b.on(copyOf(t, b))
	if n := len(must(c.Events(t.Context(), testTenant, EventFilter{After: rest.Next, Limit: 100}))(t).Events); n != 0 {
		t.Errorf("%d events after the last", n)
	}
	c.sound()
}

// A crash between the epoch and its marks changes nothing: the shard is marked at the next start, before anything is sent.
func TestEpochIsBegunInEveryShard(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	var ids []string
	for i := range 16 {
		ids = append(ids, string(a.pay(fmt.Sprint(i), validPayment()).ID))
	}
	a.stop()
	if _, err := shards.NewEpoch(filepath.Join(a.dir, "shards")); err != nil {
		t.Fatal(err)
	}
	b := a.on(a.dir)
	for _, id := range ids {
		if _, err := b.sealOnly(id); err == nil {
			t.Fatalf("%s is sealed before it was looked up", id)
		}
	}
	for _, p := range b.parts {
		if e := p.epoch(); e.n != b.set.Manifest().Epoch || e.n == firstEpoch {
			t.Errorf("shard %d is in epoch %d", p.shard.ID(), e.n)
		}
	}
	b = b.reopen(nil)
	b.hear()
	b.mustWait(ids[0])
	b.pass(f, formerMargin+time.Second)
	if p := b.settleNow(PaymentID(ids[0])); p.Status != Succeeded {
		t.Errorf("%+v", p)
	}
	again := b.reopen(nil)
	if _, err := again.sealOnly(ids[1]); err == nil {
		t.Error("the second is sealed though nobody looked")
	}
}

// An intent that waited here for its confirmation was confirmed and charged by the original: the copy finds out. One that was not can be given
// up, once that is proved.
func TestCopyFindsIntentsThatWereConfirmed(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	charged, naked, waiting := a.pay("", unconfirmed("pm_card_visa")), a.pay("", unconfirmed("")), a.pay("", unconfirmed("pm_card_visa"))
	dir := copyOf(t, a)
	a = a.on(a.dir)
	for _, p := range []Payment{charged, naked} {
		must3(a.Confirm(t.Context(), testTenant, "", string(p.ID), "pm_card_visa"))(t)
		a.settleNow(p.ID)
	}
	a.stop()
	f.clock.add(time.Hour)
	b := a.on(dir)
	for _, sh := range b.set.All() {
		if err := b.requeueOpen(t.Context(), sh); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []Payment{charged, naked, waiting} {
		if _, err := b.jobs.Get(string(testTenant), PaymentsQueue, string(p.ID)); err != nil {
			t.Errorf("%s has no job: %v", p.ID, err)
		}
		if _, _, err := b.Cancel(t.Context(), testTenant, "", string(p.ID)); code(err) != "payment_sent" {
			t.Errorf("given up before it was looked up: %v", err)
		}
	}
	b.mustWait(string(waiting.ID)) // the original may still be at it
	for _, p := range []Payment{charged, naked} {
		if got := b.settleNow(p.ID); got.Status != Succeeded || b.effects()[p.ID] != 1 {
			t.Errorf("%+v", got)
		}
	}
	b.pass(f, formerMargin+time.Second)
	if got := b.settleNow(waiting.ID); got.Status != RequiresConfirmation {
		t.Errorf("%+v", got)
	}
	b.cancel("", waiting.ID)
	fresh := b.pay("new", unconfirmed("pm_card_visa"))
	b.cancel("", fresh.ID) // nothing can have been done to it
	if err := b.ChangeAccount(t.Context(), testTenant, func() error { return nil }); err != nil {
		t.Errorf("something still belongs to the account: %v", err)
	}
	b.sound()
}

// The request that makes an intent is repeated under its key after a restore that lost it; the intent that the copy makes is found confirmed.
func TestRepeatedIntentFindsItsCharge(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	dir := copyOf(t, a)
	a = a.on(a.dir)
	lost := a.pay("k", unconfirmed("pm_card_visa"))
	must3(a.Confirm(t.Context(), testTenant, "", string(lost.ID), ""))(t)
	a.settleNow(lost.ID)
	a.stop()
	b := a.on(dir)
	again := b.pay("k", unconfirmed("pm_card_visa"))
	must3(b.Confirm(t.Context(), testTenant, "", string(again.ID), ""))(t)
	if p := b.settleNow(again.ID); p.Status != Succeeded || p.Sync.Attempts != 0 || len(f.sim.Ledger().Charges) != 1 {
		t.Errorf("%+v, %d charges", p, len(f.sim.Ledger().Charges))
	}
	b.sound()
}

// What a copy holds as unsent belongs to the account that its original had: it is not looked for, and then sent, elsewhere.
func TestCopyKeepsItsAccount(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	p, q := a.pay("", validPayment()), a.pay("", validPayment())
	dir := copyOf(t, a)
	a = a.on(a.dir)
	a.settleNow(p.ID)
	a.settleNow(q.ID)
	a.stop()
	b := a.on(dir)
	if err := b.ChangeAccount(t.Context(), testTenant, func() error { return nil }); code(err) != "upstream_account_in_use" {
		t.Errorf("changed before it was looked up: %v", err)
	}
	if got := b.settleNow(q.ID); got.Status != Succeeded {
		t.Fatalf("%+v", got)
	}
	refund := b.giveBack(b.now(q.ID), 500)
	b.stop()
	g := newFront(t) // another processor
	o := b.o
	o.sim, o.url = g.sim, g.url
	c := openBox(t, dir, o)
	c.hear()
	for range 3 {
		_ = c.step(string(p.ID))
		_ = c.step(string(refund))
		g.clock.add(time.Hour)
		c.pass(f, time.Hour)
	}
	if n := len(g.sim.Ledger().Charges) + len(g.sim.Ledger().Refunds); n != 0 || c.now(p.ID).Status != Pending || c.refundNow(refund).Status != RefundPending {
		t.Errorf("%d effects elsewhere; %+v, %+v", n, c.now(p.ID), c.refundNow(refund))
	}
}

// The box's clock was days ahead when the payment was made, and is right when its copy looks for the charge.
func TestCopyOfABoxWhoseClockWasAhead(t *testing.T) {
	f := newFront(t)
	box := &manualClock{at: f.clock.now().Add(5 * 24 * time.Hour)}
	a := openBox(t, t.TempDir(), testOptions{idle: true, now: box.now, sim: f.sim, url: f.url})
	a.hear()
	p := a.pay("", validPayment())
	dir := copyOf(t, a)
	a = a.on(a.dir)
	a.settleNow(p.ID)
	a.stop()
	f.clock.add(8 * 24 * time.Hour)
	box.set(f.clock.now())
	b := a.on(dir)
	for range 6 {
		_ = b.step(string(p.ID))
		f.clock.add(20 * time.Minute)
		box.set(f.clock.now())
		b.hear()
	}
	if got := b.now(p.ID); got.Status != Succeeded || b.effects()[p.ID] != 1 {
		t.Errorf("%+v, %d effects", got, b.effects()[p.ID])
	}
}

// A wall clock that jumps ahead does not end an epoch's first days.
func TestClockJumpEndsNoEpoch(t *testing.T) {
	f := newFront(t)
	box := &manualClock{at: f.clock.now()}
	a := openBox(t, t.TempDir(), testOptions{idle: true, now: box.now, sim: f.sim, url: f.url})
	a.hear()
	a.pay("x", validPayment())
	old := copyOf(t, a)
	a = a.on(a.dir)
	lost := a.settleNow(a.pay("k", validPayment()).ID)
	a.stop()
	b := a.on(old)
	b.ageEpochs(t.Context())
	f.clock.add(time.Hour)
	box.set(f.clock.now().Add(8 * 24 * time.Hour))
	b.hear()
	again := b.pay("k", validPayment())
	for range 4 {
		_ = b.step(string(again.ID))
		f.clock.add(time.Minute)
		box.set(f.clock.now().Add(8 * 24 * time.Hour))
		b.hear()
	}
	if n := b.effects()[lost.ID] + b.effects()[again.ID]; n != 1 {
		t.Errorf("%d charges under one key", n)
	}
}

// A shard that is out holds back its own events, not those of others.
func TestEventsGoOutWithoutAShard(t *testing.T) {
	log := newMemoryLog()
	a := openBox(t, t.TempDir(), testOptions{events: log})
	for range 8 {
		a.settled(a.pay("", validPayment()).ID)
	}
	log.await(t, 16)
	a.stop()
	if err := os.WriteFile(filepath.Join(a.dir, "shards", "0002.db"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	b := a.on(a.dir)
	taken := 0
	for taken < 8 {
		if p, _, err := b.Pay(t.Context(), testTenant, "", validPayment()); err == nil {
			b.settled(p.ID)
			taken++
		}
	}
	log.await(t, 16+2*taken)
}

// Until a shard is verified and in the folder's epoch, nothing is written to it but that.
func TestNothingPassesBeforeTheEpoch(t *testing.T) {
	b := openFronted(t, newFront(t))
	id := string(b.pay("", validPayment()).ID)
	p := b.parts[b.shardOf(PaymentID(id)).ID()]
	p.verified.Store(false)
	if _, err := b.sealOnly(id); !errors.Is(err, shards.ErrUnavailable) {
		t.Errorf("sealed: %v", err)
	}
	b.openPart(t.Context(), p)
	if _, err := b.sealOnly(id); err != nil || !p.verified.Load() {
		t.Errorf("after that: %v", err)
	}
}

// A start that dies between two steps of a new epoch, and another epoch after that, leave the journal's cursor to be found.
func TestCursorIsFoundThroughEpochs(t *testing.T) {
	a := openBox(t, t.TempDir(), testOptions{})
	for range 12 {
		a.settled(a.pay("", validPayment()).ID)
	}
	a.stop()
	dir := filepath.Join(a.dir, "shards")
	middle := must(shards.NewEpoch(dir))(t)
	o := a.o
	o.idle = true
	b := openBox(t, a.dir, o)
	for _, p := range b.parts { // as if the start had died before this
		if err := b.jobs.TakeCursor(t.Context(), jobsSource(p.shard.ID(), middle), jobsSource(p.shard.ID(), firstEpoch)); err != nil {
			t.Fatal(err)
		}
	}
	b.stop()
	must(shards.NewEpoch(dir))(t)
	c := openBox(t, a.dir, o)
	for _, p := range c.parts {
		cursor, found, err := c.jobs.Cursor(p.jobsSource())
		if err != nil || !found || cursor.Offset == 0 {
			t.Errorf("shard %d: %+v, %v, %v", p.shard.ID(), cursor, found, err)
		}
	}
	if c.raised("queue_lost") {
		t.Error("the queue counts as lost")
	}
}
