package ledger

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tenderbox/upstream/simulator"
)

var (
	modelSeed   = flag.Uint64("model.seed", 0, "repeat the model test with this seed; 0: a new one")
	modelRounds = flag.Int("model.rounds", 4, "rounds of the model test")
)

// Random payments, replays, cuts, processor faults and restarts. After quiet, what
// the box holds, what the model expects and what took effect agree.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for round := range *modelRounds {
		t.Run(fmt.Sprint(seed+uint64(round)), func(t *testing.T) {
			modelRound(t, rand.New(rand.NewPCG(seed+uint64(round), 1)))
		})
	}
}

type modelPayment struct {
	id      PaymentID
	request NewPayment
}

func modelRound(t *testing.T, random *rand.Rand) {
	b := openBox(t, t.TempDir(), testOptions{})
	b.cut(false)
	model := map[IdempotencyKey]modelPayment{}
	pay := func() {
		key := IdempotencyKey(fmt.Sprint("k", random.IntN(80)))
		p := validPayment()
		p.Amount = 1 + random.Int64N(5000)
		p.Currency = []string{"usd", "eur", "jpy"}[random.IntN(3)]
		if random.IntN(2) == 0 {
			p.UserID = fmt.Sprint("u", random.IntN(9))
		}
		if random.IntN(6) == 0 {
			p.Source = "tok_chargeDeclined"
		}
		known, used := model[key]
		if used && random.IntN(3) > 0 {
			p = known.request
		}
		got, replayed, err := b.Pay(t.Context(), testTenant, key, p)
		same := used && fmt.Sprint(known.request) == fmt.Sprint(p)
		switch {
		case used && !same:
			if code(err) != "idempotency_mismatch" {
				t.Fatalf("%s used for another request: %v", key, err)
			}
		case err != nil:
			t.Fatalf("%s: %v", key, err)
		case replayed != used || (used && got.ID != known.id):
			t.Fatalf("%s: replayed %v as %s, the model has %+v", key, replayed, got.ID, known)
		default:
			model[key] = modelPayment{got.ID, p}
		}
	}
	for range 150 {
		switch n := random.IntN(100); {
		case n < 80:
			pay()
		case n < 86:
			if err := b.sim.Cut(random.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
		case n < 96:
			f := simulator.Faults{}
			for _, p := range []*float64{&f.Refuse, &f.CaptivePortal, &f.Error429, &f.Error503, &f.DropAfterEffect, &f.Garbage} {
				if random.IntN(3) == 0 {
					*p = random.Float64() / 3
				}
			}
			if err := b.sim.SetFaults(f); err != nil {
				t.Fatal(err)
			}
		default:
			b = b.reopen(nil)
		}
	}
	if err := b.sim.SetFaults(simulator.Faults{}); err != nil {
		t.Fatal(err)
	}
	if err := b.sim.Cut(false); err != nil {
		t.Fatal(err)
	}
	final := map[IdempotencyKey]Payment{}
	for key, m := range model {
		final[key] = b.until(m.id, func(p Payment) bool {
			b.due()
			return p.Status.Final() || p.Sync.State == Review
		})
	}
	effects := b.effects()
	for key, m := range model {
		p, want := final[key], 0
		if m.request.Source != "tok_chargeDeclined" {
			want = 1
		}
		if p.Amount != m.request.Amount || p.Currency != m.request.Currency {
			t.Errorf("%s: %d %s, the model has %d %s", key, p.Amount, p.Currency, m.request.Amount, m.request.Currency)
		}
		if !p.Status.Final() || effects[m.id] != want || (p.Status == Succeeded) != (want == 1) {
			t.Errorf("%s: %s is %s, %s with %d effects", key, m.id, p.Status, p.Sync.State, effects[m.id])
		}
		delete(effects, m.id)
	}
	if len(effects) > 0 {
		t.Errorf("%d effects without a payment", len(effects))
	}
	if x := b.Exposed(""); len(x) != 0 {
		t.Errorf("exposure after quiet: %v", x)
	}
	b.sound()
	if t.Failed() {
		t.Log("faults that fired:", b.sim.Fired())
	}
}
