package ledger

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// The Date that one tenant's processor (or a captive portal) answers with must not
// age another tenant's payments.
func TestDateOfAnotherTenantsProcessor(t *testing.T) {
	base := processor(t, func(w http.ResponseWriter, r *http.Request, f url.Values) {
		w.Header().Set("Date", time.Now().Add(10*365*24*time.Hour).UTC().Format(http.TimeFormat))
		fmt.Fprintf(w, `{"object":"charge","id":"ch_1","status":"succeeded","amount":%s,"currency":"usd"}`, f.Get("amount"))
	})
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	b.addTenant("other", &tenants.Upstream{URL: base, Account: "theirs", Key: "sk_theirs"})
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1") // which tells the time
	p := b.pay("k", validPayment())
	must(b.sealOnly(string(p.ID)))(t) // sent, and cut short

	theirs, _, err := b.Pay(t.Context(), "other", "k", validPayment())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.settle(t.Context(), &jobs.Job{NewJob: jobs.NewJob{Tenant: "other", ID: string(theirs.ID)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.sealOnly(string(p.ID)); err != nil {
		t.Fatalf("shop's payment, seconds old: %v", err)
	}
}

// INV-29: a box that starts in 1970 knows no age until its processor has told the time. Its errors do not tell it, and must not be
// taken for a line over which an old payment may be sent again under a key that is forgotten.
func TestNothingIsYoungBeforeTheTimeIsKnown(t *testing.T) {
	clock := &manualClock{at: time.Now()}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1")
	p := b.pay("k", validPayment())
	must(b.sealOnly(string(p.ID)))(t) // sent, and cut short

	clock.set(time.Unix(0, 0))
	b.pay("later", validPayment()) // so that 1970 is also what the box wrote last
	b = b.reopen(nil)
	if err := b.sim.SetFaults(simulator.Faults{Error500: 1}); err != nil {
		t.Fatal(err)
	}
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1")
	if _, err := b.sealOnly(string(p.ID)); !errors.Is(err, errTooOld) {
		t.Errorf("sealed again before the time was known: %v", err)
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	clock.set(time.Now())
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1")
	if _, err := b.sealOnly(string(p.ID)); err != nil {
		t.Errorf("seconds old, as the processor says: %v", err)
	}
}

// A send that both clocks put into the future was dated by a clock that ran ahead: its key may be as old as anything.
func TestSendFromTheFuture(t *testing.T) {
	clock := &manualClock{at: time.Now().Add(10 * 365 * 24 * time.Hour)}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now})
	p := b.pay("k", validPayment())
	must(b.sealOnly(string(p.ID)))(t) // no answer yet since the start: the box's clock alone dates it

	clock.set(time.Now())
	for i := range len(b.set.All()) * 4 { // the latest that each shard has written
		b.pay(fmt.Sprint("later", i), validPayment())
	}
	b = b.reopen(nil)
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1")
	if _, err := b.sealOnly(string(p.ID)); !errors.Is(err, errTooOld) {
		t.Errorf("sealed again under a key of unknown age: %v", err)
	}
}

// The box's clock is a day ahead when the payment is first sent; then it is put right.
// The processor's clock was right all the time, and known.
func TestClockAheadAtFirstSend(t *testing.T) {
	start := time.Now()
	proc := &manualClock{at: start}
	sim := simulator.New(simulator.Options{Now: proc.now})
	url := must(sim.Start("127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = sim.Close() })
	clock := &manualClock{at: start.Add(24 * time.Hour)}
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now, sim: sim, url: url})
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1") // a probe: the processor's time is known
	p := b.pay("k", validPayment())
	s := must(b.sealOnly(string(p.ID)))(t)
	b.accountOf(testTenant).Post(t.Context(), s.path, s.body, s.key) // takes effect; the answer is lost

	// 26 hours later, the clock corrected meanwhile, the box restarted.
	clock.add(-24*time.Hour + 26*time.Hour)
	proc.add(26 * time.Hour)
	b = b.reopen(nil)
	b.accountOf(testTenant).Get(t.Context(), "/charges?limit=1")
	if _, err := b.sealOnly(string(p.ID)); !errors.Is(err, errTooOld) {
		t.Fatalf("26 hours after the first send it is sealed to be sent again: %v", err)
	}
}

// INV-29, INV-4: a jump of the wall clock must not make the box forget keys.
func TestClockJumpForgetsKeys(t *testing.T) {
	for name, c := range map[string]struct{ begin, jump, back time.Duration }{
		"ten years ahead and back": {0, 87600 * time.Hour, -87600 * time.Hour},
		"boots in 1970, then set":  {-56 * 365 * 24 * time.Hour, 56 * 365 * 24 * time.Hour, 0},
		"a month behind, then set": {-30 * 24 * time.Hour, 30 * 24 * time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			clock := &manualClock{at: time.Now().Add(c.begin)}
			sim := simulator.New(simulator.Options{})
			url := must(sim.Start("127.0.0.1:0"))(t)
			t.Cleanup(func() { _ = sim.Close() })
			b := openBox(t, t.TempDir(), testOptions{idle: true, now: clock.now, sim: sim, url: url})
			first := b.pay("k", validPayment())
			settleNow(t, b, first.ID)
			clock.add(c.jump)
			for _, sh := range b.healthy() { // what sweep does within five minutes
				if before, ok := b.keysBefore(); ok {
					if err := b.keys.prune(t.Context(), sh, before); err != nil {
						t.Fatal(err)
					}
				}
			}
			clock.add(c.back)
			again, replayed, err := b.Pay(t.Context(), testTenant, "k", validPayment()) // the client repeats minutes later
			if err != nil || !replayed || again.ID != first.ID {
				settleNow(t, b, again.ID)
				t.Fatalf("a second payment under the same key (%v), %d charges", err, len(b.sim.Ledger().Charges))
			}
		})
	}
}
