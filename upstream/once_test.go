package upstream_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/simulator"
	"tenderbox/upstream/upstreamtest"
)

// settleAll is the simplest settler that keeps the rules: same key and bytes until a final answer, nothing while the
// account is not ready. blunder breaks them: an unknown outcome counts as a failure, and a new key is taken.
func settleAll(t *testing.T, a *upstream.Account, payments int, blunder bool) (outcomes map[upstream.Outcome]int) {
	outcomes = map[upstream.Outcome]int{}
	var mu sync.Mutex
	var workers sync.WaitGroup
	next := make(chan int)
	for range 8 {
		workers.Go(func() {
			for i := range next {
				id := fmt.Sprintf("pay_%d", i)
				source := "tok_visa"
				if i%10 == 0 {
					source = "tok_chargeDeclined"
				}
				path, body := upstream.ChargeRequest{Amount: int64(1000 + i), Currency: "usd", Source: source,
					Metadata: map[string]string{"tenderbox_payment": id}}.Encode()
				key := id
				for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
					for !a.Ready() {
						time.Sleep(200 * time.Millisecond)
					}
					answer := a.Post(t.Context(), path, body, key)
					mu.Lock()
					outcomes[answer.Outcome]++
					mu.Unlock()
					if answer.Outcome == upstream.Succeeded || answer.Outcome == upstream.Declined {
						if want := int64(1000 + i); answer.Outcome == upstream.Succeeded && answer.Object.Amount != want {
							t.Errorf("%s: %+v", id, answer)
						}
						if declined := i%10 == 0; declined != (answer.Outcome == upstream.Declined) {
							t.Errorf("%s: %+v", id, answer)
						}
						break
					}
					if blunder && answer.Outcome == upstream.Unknown {
						key += "x"
					}
					time.Sleep(wait)
				}
			}
		})
	}
	for i := range payments {
		next <- i
	}
	close(next)
	workers.Wait()
	return outcomes
}

// doubled counts payments with more than one effect, and missing those with none.
func doubled(l simulator.Ledger, payments int) (double, missing int) {
	effects := map[string]int{}
	for _, c := range l.Charges {
		effects[c.Metadata["tenderbox_payment"]]++
	}
	for i := range payments {
		switch n := effects[fmt.Sprintf("pay_%d", i)]; {
		case i%10 == 0:
			if n > 0 {
				double++
			}
		case n == 0:
			missing++
		case n > 1:
			double++
		}
	}
	return double, missing
}

// Over everything that a processor and a line can do, in every mixture that a seed makes, each payment ends, and
// takes effect once (INV-6, INV-7, as far as this package goes).
func TestEveryPaymentOnce(t *testing.T) {
	const payments = 120
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, outcomes := hostileWorld(t, seed, payments, false)
				if double, missing := doubled(s.Ledger(), payments); double != 0 || missing != 0 {
					t.Errorf("seed %d: %d doubled, %d missing of %d; %v", seed, double, missing, payments, outcomes)
				}
				if outcomes[upstream.Unknown] == 0 || outcomes[upstream.Retryable] == 0 {
					t.Errorf("seed %d: the world was not hostile: %v, %v", seed, outcomes, s.Fired())
				}
			})
		})
	}
	t.Run("the judge sees a blunder", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _ := hostileWorld(t, 1, payments, true)
			if double, _ := doubled(s.Ledger(), payments); double == 0 {
				t.Error("a settler that takes a new key after an unknown outcome doubled nothing")
			}
		})
	})
}

func hostileWorld(t *testing.T, seed uint64, payments int, blunder bool) (*simulator.Simulator, map[upstream.Outcome]int) {
	s := simulator.New(simulator.Options{Key: "sk", Rate: 40, Seed: int64(seed), Latency: 50 * time.Millisecond})
	t.Cleanup(func() { s.Close() })
	line := upstreamtest.NewLine(t, s)
	as, a := account(t, upstream.Config{URL: upstreamtest.URL, Key: "sk", Dial: line.Dial})
	ctx, stop := context.WithCancel(t.Context())
	var world sync.WaitGroup
	world.Go(func() { as.Run(ctx) })
	world.Go(func() {
		draw := rand.New(rand.NewPCG(seed, 1))
		some := func() float64 { return draw.Float64() * draw.Float64() * 0.4 }
		for ctx.Err() == nil {
			s.SetFaults(simulator.Faults{Refuse: some(), CaptivePortal: some(), Hang: some(), Error429: some(), Error503: some(),
				DropAfterEffect: some(), HangAfterEffect: some(), SlowBody: some(), Garbage: some()})
			line.Set(upstreamtest.Mode(max(draw.IntN(8)-5, 0)))
			sleep(ctx, time.Duration(draw.Int64N(int64(20*time.Second))))
		}
	})
	outcomes := settleAll(t, a, payments, blunder)
	stop()
	world.Wait()
	return s, outcomes
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Over real sockets: a wholesale cut means provably unsent payments and offline; its end means ready, within one
// probe interval, without any payment being sent to find out.
func TestSimulatorCut(t *testing.T) {
	s := simulator.New(simulator.Options{Key: "sk"})
	base, err := s.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	as, a := account(t, upstream.Config{URL: base, Key: "sk", ProbeInterval: 20 * time.Millisecond})
	states := make(chan upstream.LinkState, 100)
	as.OnChange(func(_ *upstream.Account, l upstream.Link) { states <- l.State })
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { as.Run(ctx) })
	defer func() { stop(); running.Wait() }()
	until := func(want upstream.LinkState) {
		t.Helper()
		for state := range states { // the test's own deadline ends a wait in vain
			if state == want {
				return
			}
		}
	}
	until(upstream.Online)
	if answer := pay(t.Context(), a, "before"); answer.Outcome != upstream.Succeeded {
		t.Errorf("before: %+v", answer)
	}
	for range 3 {
		if err := s.Cut(true); err != nil {
			t.Fatal(err)
		}
		until(upstream.Offline)
		if answer := pay(t.Context(), a, "cut"); answer.Outcome != upstream.Retryable || answer.MaybeSent || answer.Reason != "connection refused" {
			t.Errorf("cut: %+v", answer)
		}
		if err := s.Cut(false); err != nil {
			t.Fatal(err)
		}
		until(upstream.Online)
	}
	if answer := pay(t.Context(), a, "after"); answer.Outcome != upstream.Succeeded {
		t.Errorf("after: %+v", answer)
	}
	if n := len(s.Ledger().Charges); n != 2 {
		t.Errorf("%d effects, want 2", n)
	}
}
