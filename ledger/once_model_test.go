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

	"tenderbox/shards/shardstest"
)

// INV-3, INV-4, INV-5, INV-16: keys are used again and again, at once and for requests of every kind, while commits fail and the box is
// opened anew. What a key was answered with once it stays, whatever else it is used for makes nothing; and who follows the events
// meanwhile, from place to place, is told each one that was stored once.
func TestKeysOfAllKindsWithDiskFaults(t *testing.T) {
	for round := range 3 {
		seed := uint64(time.Now().UnixNano()) + uint64(round)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			dir := t.TempDir()
			d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
			b := openBox(t, dir, testOptions{idle: true})
			for i := range 6 {
				if _, _, err := b.CreateUser(t.Context(), testTenant, "", NewUser{ID: fmt.Sprint("u", i), Email: fmt.Sprintf("u%d@example.org", i)}); err != nil {
					t.Fatal(err)
				}
			}
			made := map[IdempotencyKey]string{} // what the key was first answered with
			var mu sync.Mutex                   // guards made
			var heard []EventID
			var place Position
			follow := func() {
				for {
					page, err := b.Events(t.Context(), testTenant, EventFilter{After: place, Limit: 1 + random.IntN(9)})
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range page.Events {
						heard = append(heard, e.ID)
					}
					if place = page.Next; !page.More {
						return
					}
				}
			}
			for range 40 {
				if random.IntN(2) == 0 {
					d.Fail(shardstest.Fault{Op: []shardstest.Op{shardstest.OpSync, shardstest.OpWrite}[random.IntN(2)],
						Suffix: []string{"-wal", ".db", "0001.db-wal"}[random.IntN(3)], Skip: random.IntN(8), Times: 1 + random.IntN(4)})
				}
				if random.IntN(8) == 0 {
					d.Heal()
					b = b.reopen(nil)
				}
				var wg sync.WaitGroup
				for range 12 {
					key, kind, who := IdempotencyKey(fmt.Sprint("k", random.IntN(150))), random.IntN(6), fmt.Sprint("u", random.IntN(6))
					wg.Go(func() {
						id, err := b.ask(t.Context(), key, kind, who)
						mu.Lock()
						defer mu.Unlock()
						switch c := code(err); {
						case err == nil && made[key] == "":
							made[key] = id
						case err == nil && made[key] != id:
							t.Errorf("%s: %s, and before %s", key, id, made[key])
						case err == nil, slices.Contains([]string{"idempotency_mismatch", "idempotency_key_in_use", "outcome_unknown", "shard_unavailable", "unavailable", "email_taken"}, c):
						default:
							t.Errorf("%s: %v", key, err)
						}
					})
				}
				follow()
				wg.Wait()
			}
			d.Heal()
			for i := range b.set.All() {
				b.back(d, i)
			}
			b = b.reopen(nil)
			follow()
			all, _ := b.readAll(testTenant, EventFilter{})
			if len(all) != len(heard) {
				t.Errorf("%d events, %d were heard", len(all), len(heard))
			}
			slices.Sort(heard)
			if n := len(slices.Compact(heard)); n != len(all) {
				t.Errorf("%d different events were heard of %d", n, len(all))
			}
			t.Log(len(made), "keys,", len(all), "events,", d.Fired(), "disk faults")
			b.sound()
		})
	}
}

// ask makes one request under the key, and names what it was answered with.
func (b *testBox) ask(ctx context.Context, key IdempotencyKey, kind int, user string) (string, error) {
	switch kind {
	case 0:
		p, _, err := b.Pay(ctx, testTenant, key, validPayment())
		return string(p.ID), err
	case 1:
		p := validPayment()
		p.UserID = user
		got, _, err := b.Pay(ctx, testTenant, key, p)
		return string(got.ID), err
	case 2:
		o, _, err := b.CreateOrder(ctx, testTenant, key, NewOrder{UserID: user, Currency: "usd", Items: []Item{{SKU: "tea", Name: "Tea", Quantity: 1, UnitAmount: 250}}})
		return string(o.ID), err
	case 3:
		u, _, err := b.CreateUser(ctx, testTenant, key, NewUser{Email: string(key) + "@example.org"})
		return string(u.ID), err
	case 4:
		e, _, err := b.Emit(ctx, testTenant, key, NewEvent{Type: "till.opened"})
		return string(e.ID), err
	}
	n, _, err := b.Notify(ctx, testTenant, key, NewNotification{UserID: user, Message: "Hello."})
	return string(n.ID), err
}
