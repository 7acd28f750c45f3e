package ledger

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// INV-20, INV-22: an event is found by its id by the tenant whose it is, whatever it tells of, and by nobody else.
func TestEventIsFoundByItsID(t *testing.T) {
	var ms atomic.Int64 // since 1970; loops of the box ask for it too
	ms.Store(1795420800000)
	now := func() time.Time { return time.UnixMilli(ms.Load()).UTC() }
	dir := t.TempDir()
	b := openBox(t, dir, testOptions{idle: true, now: now})
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 3))
	for i := range 60 {
		ms.Add(int64(random.IntN(3)) * time.Minute.Milliseconds()) // several of one time, too
		who := []tenants.ID{testTenant, "other"}[random.IntN(2)]
		var err error
		if i%4 == 0 {
			_, _, err = b.Emit(t.Context(), who, "", NewEvent{Type: "till.opened"})
		} else {
			_, _, err = b.CreateUser(t.Context(), who, "", NewUser{Email: fmt.Sprintf("u%d@example.org", i)})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func() {
		t.Helper()
		n := 0
		for who, stranger := range map[tenants.ID]tenants.ID{testTenant: "other", "other": testTenant} {
			all, _ := b.readAll(who, EventFilter{})
			for _, e := range all {
				n++
				found, err := b.Event(t.Context(), who, string(e.ID))
				if err != nil || found.ID != e.ID || found.Type != e.Type || found.Subject != e.Subject || found.Sequence() != e.Sequence() || string(found.Data) != string(e.Data) {
					t.Fatalf("%s %s: %+v, %v", e.Type, e.ID, found, err)
				}
				if _, err := b.Event(t.Context(), stranger, string(e.ID)); code(err) != "not_found" {
					t.Fatalf("%s finds an event of %s: %v", stranger, who, err)
				}
				for s := range int64(e.Seq) + 1 { // the place is where the first row of its time is
					before(t, b, e.Shard, s+1, e.OccurredAt, e.Seq)
				}
			}
		}
		if n != 60 {
			t.Fatalf("%d events", n)
		}
	}
	look()
	b.stop()
	b = openBox(t, dir, testOptions{idle: true, now: now})
	look()
	for _, id := range []string{"", "evt_", "evt_x", "pay_01KB0000000000000000000000", "evt_01kb0000000000000000000000", "evt_7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "evt_00000000000000000000000000",
		strings.Repeat("evt_", 10_000), "evt_\x00"} {
		if _, err := b.Event(t.Context(), testTenant, id); code(err) != "not_found" {
			t.Errorf("%.40q: %v", id, err)
		}
	}
}

// before checks that the search in the first head rows ends at the first row of the time, or behind them all.
func before(t *testing.T, b *testBox, shard int, head int64, at time.Time, seq uint64) {
	t.Helper()
	err := b.parts[shard].shard.View(t.Context(), func(tx *shards.Tx) error {
		from, err := firstFrom(tx, head, at)
		if err != nil {
			return err
		}
		var earlier, least int64
		if err := tx.QueryRow(`SELECT count(*) FROM journal WHERE seq < ? AND occurred_at >= ?`, from, at.UnixMilli()).Scan(&earlier); err != nil {
			return err
		}
		if err := tx.QueryRow(`SELECT count(*) FROM journal WHERE seq >= ? AND seq <= ? AND occurred_at < ?`, from, head, at.UnixMilli()).Scan(&least); err != nil {
			return err
		}
		if earlier != 0 || least != 0 || from > head+1 || head >= int64(seq) && from > int64(seq) {
			t.Errorf("of %d rows, %d is the first from %v, for row %d; %d before it are as late, %d behind are earlier", head, from, at, seq, earlier, least)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
