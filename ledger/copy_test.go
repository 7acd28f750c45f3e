package ledger

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
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

// A repeat of what the copy has lost is looked for by its key where the copy's account is, so that one does not change meanwhile.
func TestCopyKeepsItsAccountForRepeats(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	b := a.on(copyOf(t, a))
	change := func() error { return b.ChangeAccount(t.Context(), testTenant, func() error { return nil }) }
	b.pay("", validPayment())
	if err := change(); err != nil {
		t.Errorf("new, without a key: %v", err)
	}
	again := b.pay("k", validPayment())
	if err := change(); code(err) != "upstream_account_in_use" {
		t.Errorf("changed before it was looked up: %v", err)
	}
	b.mustWait(string(again.ID))
	b.pass(f, formerMargin+time.Second)
	if p := b.settleNow(again.ID); p.Status != Succeeded {
		t.Errorf("%+v", p)
	}
	if err := change(); err != nil {
		t.Errorf("nothing belongs to it any more: %v", err)
	}
}

// A copy that is started for another account gives money back where it was paid, and nowhere else.
func TestCopyElsewhereKeepsRefunds(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	paid := a.paid(validPayment())
	refund := a.giveBack(paid, 500)
	dir := copyOf(t, a)
	there := identity(a.accountOf(testTenant))
	g := newFront(t)
	o := a.o
	o.sim, o.url = g.sim, g.url
	b := openBox(t, dir, o)
	b.hear()
	if s := must(b.loadSend(t.Context(), testTenant, string(refund)))(t); s.account != there {
		t.Errorf("it belongs to %q, paid to %q", s.account, there)
	}
	for range 3 {
		_ = b.step(string(refund))
		b.pass(g, formerMargin+time.Second)
	}
	if r := b.refundNow(refund); r.Status != RefundPending || g.posts() != 0 {
		t.Errorf("%+v, %d requests elsewhere", r, g.posts())
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
