package ledger

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tenderbox/shards/shardstest"
	"tenderbox/upstream/simulator"
)

// Random payments with disk faults and processor faults and restarts.
func TestModelWithDiskFaults(t *testing.T) {
	for round := range 3 {
		seed := uint64(time.Now().UnixNano()) + uint64(round)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			dir := t.TempDir()
			d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
			b := openBox(t, dir, testOptions{})
			b.cut(false)
			type entry struct {
				req NewPayment
				id  PaymentID
			}
			acked, maybe := map[IdempotencyKey]entry{}, map[IdempotencyKey]NewPayment{}
			for range 25 {
				switch random.IntN(4) {
				case 0:
					_ = b.sim.SetFaults(simulator.Faults{DropAfterEffect: random.Float64() / 2, Error503: random.Float64() / 3, Garbage: random.Float64() / 3})
				case 1:
					op := []shardstest.Op{shardstest.OpSync, shardstest.OpWrite}[random.IntN(2)]
					d.Fail(shardstest.Fault{Op: op, Suffix: "-wal", Skip: random.IntN(6), Times: 1 + random.IntN(2)})
				case 2:
					if random.IntN(4) == 0 {
						d.Heal() // a close into a failing disk is another test's
						b = b.reopen(nil)
					}
				}
				var wg sync.WaitGroup
				var mu sync.Mutex
				for i := range 12 {
					key := IdempotencyKey(fmt.Sprint("k", random.IntN(120)))
					p := validPayment()
					if random.IntN(2) == 0 {
						p.UserID = fmt.Sprint("u", random.IntN(5))
					}
					mu.Lock()
					if e, ok := acked[key]; ok {
						p = e.req
					} else if r, ok := maybe[key]; ok {
						p = r
					} else {
						maybe[key] = p
					}
					mu.Unlock()
					_ = i
					wg.Go(func() {
						got, _, err := b.Pay(t.Context(), testTenant, key, p)
						mu.Lock()
						defer mu.Unlock()
						if err == nil {
							if e, ok := acked[key]; ok && e.id != got.ID {
								t.Errorf("%s: %s and %s", key, e.id, got.ID)
							}
							acked[key] = entry{p, got.ID}
						} else if c := code(err); c != "idempotency_key_in_use" && c != "outcome_unknown" && c != "shard_unavailable" && c != "unavailable" {
							t.Errorf("%s: %v", key, err)
						}
					})
				}
				wg.Wait()
			}
			d.Heal()
			_ = b.sim.SetFaults(simulator.Faults{})
			for _, sh := range b.set.All() {
				for sh.Err() != nil {
					_ = newPoke().wait(t.Context(), 20*time.Millisecond)
				}
			}
			for key, e := range acked {
				b.until(e.id, func(p Payment) bool { b.due(); return p.Status.Final() })
				if n := b.effects()[e.id]; n != 1 {
					t.Errorf("%s: %d effects", key, n)
				}
			}
			for id, n := range b.effects() {
				if _, err := b.Payment(t.Context(), testTenant, string(id)); err != nil || n != 1 {
					t.Errorf("effect of %s: %d, %v", id, n, err)
				}
			}
			// what was never acknowledged but stored settles too; wait for it, then exposure is zero
			for len(b.Exposed("")) > 0 && t.Context().Err() == nil {
				b.due()
				_ = newPoke().wait(t.Context(), 20*time.Millisecond)
			}
			if x := b.Exposed(""); len(x) != 0 {
				t.Errorf("exposure %v, unproven %d", x, len(b.exposure.unproven))
			}
			t.Log(len(acked), "acked,", d.Fired(), "disk faults,", b.sim.Fired())
			b.sound()
		})
	}
}

func TestNoGoroutineLeak(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	func() {
		b := openBox(t, t.TempDir(), testOptions{events: newMemoryLog()})
		b.cut(false)
		var wg sync.WaitGroup
		for i := range 30 {
			id := b.pay(fmt.Sprint(i), validPayment()).ID
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() { _, _ = b.Await(ctx, testTenant, id, time.Hour) })
			if i%2 == 0 {
				cancel()
			}
			defer cancel()
		}
		wg.Wait()
		if n := len(b.waiters.by); n != 0 {
			t.Errorf("%d waiters left", n)
		}
		b.stop()
		_ = b.sim.Close()
	}()
}

// A shard whose reads fail must not hold up the events of the others.
func TestUnreadableShardHoldsUpEvents(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	log := newMemoryLog()
	b := openBox(t, dir, testOptions{events: log, idle: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 40 {
		p := validPayment()
		p.UserID = fmt.Sprint("u", i)
		b.pay(fmt.Sprint("k", i), p)
	}
	d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0001.db-wal"})
	d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0001.db"})
	go func() { _ = b.relayEvents(ctx) }()
	want := 0
	for i, p := range b.parts {
		if i != 1 {
			want += int(p.journal.currentHead().seq)
		}
	}
	log.await(t, want)
	d.Heal()
}

// Who asks whether payments can be taken is told no while they get 507, and yes again when there is room.
func TestFullDiskIsNotReady(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	if ok, _ := b.Ready(); !ok {
		t.Fatal("a sound box is not ready")
	}
	d.Limit(t, 64<<10)
	pay := func(i int) error {
		_, _, err := b.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("full ", i)), validPayment())
		return err
	}
	i := 0
	for ; pay(i) == nil; i++ {
	}
	if err := pay(i); code(err) != "disk_full" {
		t.Fatalf("the disk is full: %v", err)
	}
	if ok, degraded := b.Ready(); ok || !slices.Contains(degraded, "disk_full") {
		t.Errorf("ready %v, degraded %v", ok, degraded)
	}
	d.Heal()
	for err := pay(i); err != nil; err = pay(i) {
		if code(err) != "disk_full" {
			t.Fatal(err)
		}
		_ = newPoke().wait(t.Context(), 20*time.Millisecond)
	}
	if ok, degraded := b.Ready(); !ok || slices.Contains(degraded, "disk_full") {
		t.Errorf("with room again: ready %v, degraded %v", ok, degraded)
	}
}
