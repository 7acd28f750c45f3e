package ledger

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"time"

	"tenderbox/shards/shardstest"
)

// userIn returns a user's id that lives in the shard.
func (b *testBox) userIn(shard int) string {
	for i := 0; ; i++ {
		if u := fmt.Sprint("u", i); b.userShard(testTenant, u).ID() == shard {
			return u
		}
	}
}

// keyAtHome returns a key whose records without a user live in the shard.
func (b *testBox) keyAtHome(shard int) IdempotencyKey {
	for i := 0; ; i++ {
		if k := IdempotencyKey(fmt.Sprint("k", i)); b.set.Shard(b.keys.slot(testTenant, k)).ID() == shard {
			return k
		}
	}
}

// out makes the shard's disk fail, and returns when it is out of service.
func (b *testBox) out(d *shardstest.Disk, shard int) {
	b.t.Helper()
	for _, suffix := range []string{".db-wal", ".db"} {
		d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: fmt.Sprintf("%04d%s", shard, suffix)})
	}
	p := validPayment()
	p.UserID = b.userIn(shard)
	if _, _, err := b.Pay(b.t.Context(), testTenant, "", p); code(err) != "outcome_unknown" || b.set.All()[shard].Err() == nil {
		b.t.Fatalf("the shard is not out: %v", err)
	}
}

// back waits until the shard serves again.
func (b *testBox) back(d *shardstest.Disk, shard int) {
	b.t.Helper()
	d.Heal()
	for b.set.All()[shard].Err() != nil {
		if err := newPoke().wait(b.t.Context(), 20*time.Millisecond); err != nil {
			b.t.Fatal(err)
		}
	}
}

// INV-4: while nobody knows whether a key's commit is on the disk, nothing else is stored under the key, for the next start may take that
// commit up.
func TestKeyOfUnknownCommit(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{})
	for _, suffix := range []string{".db-wal", ".db"} {
		d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0001" + suffix})
	}
	there, elsewhere := validPayment(), validPayment()
	there.UserID, elsewhere.UserID = b.userIn(1), b.userIn(2)
	if _, _, err := b.Pay(t.Context(), testTenant, "k", there); code(err) != "outcome_unknown" {
		t.Fatalf("with a disk that fails: %v", err)
	}
	if p, _, err := b.Pay(t.Context(), testTenant, "k", elsewhere); code(err) != "shard_unavailable" {
		t.Errorf("another payment under the key: %s, %v", p.ID, err)
	}
	b.back(d, 1)
	b.pay("k", there)
	if _, _, err := b.Pay(t.Context(), testTenant, "k", elsewhere); code(err) != "idempotency_mismatch" {
		t.Errorf("another payment under the key: %v", err)
	}
	b.sound()
}

// INV-4: a shard that was out of service when a key was looked up, and is back before the payment is stored, may hold the key.
func TestShardIsBackAfterLookup(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	p, key := validPayment(), b.keyAtHome(0)
	p.UserID = b.userIn(1)
	first := b.pay(string(key), p)

	clear(b.keys.index) // as after a start
	b.keys.filled[1].Store(false)
	b.keys.whole.Store(false)
	b.out(d, 1)
	_, _, err := once(t.Context(), b.Ledger, testTenant, request[Payment]{key: key, meaning: p.meaning(),
		read: func(ctx context.Context, id string) (Payment, error) { return b.Payment(ctx, testTenant, id) },
		make: func(ctx context.Context, seen lookup) (Payment, error) {
			b.back(d, 1)
			if err := b.keys.fillShard(ctx, b.set.All()[1], math.MaxInt); err != nil {
				return Payment{}, err
			}
			return b.accept(ctx, testTenant, key, seen, &p)
		}})
	if code(err) != "shard_unavailable" {
		t.Errorf("a second payment under the key: %v", err)
	}
	again, replayed, err := b.Pay(t.Context(), testTenant, key, p)
	if err != nil || !replayed || again.ID != first.ID {
		t.Errorf("%s, replayed %v, %v, want %s", again.ID, replayed, err, first.ID)
	}
	b.sound()
}

// An address whose user's commit failed, in a file that is still out of service, is nobody else's: the next start may take it up.
func TestAddressOfUnknownCommit(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	other, _, err := b.CreateUser(t.Context(), testTenant, "", NewUser{ID: b.userIn(2), Email: "eve@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{".db-wal", ".db"} {
		d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0001" + suffix})
	}
	const address = "ana@example.org"
	if _, _, err := b.CreateUser(t.Context(), testTenant, "", NewUser{ID: b.userIn(1), Email: address}); code(err) != "outcome_unknown" {
		t.Fatalf("with a disk that fails: %v", err)
	}
	if u, _, err := b.CreateUser(t.Context(), testTenant, "", NewUser{ID: b.userIn(0), Email: address}); code(err) != "shard_unavailable" {
		t.Errorf("a second user of the address: %s, %v", u.ID, err)
	}
	to := address
	if _, err := b.ChangeUser(t.Context(), testTenant, string(other.ID), UserChange{Email: &to}); code(err) != "shard_unavailable" {
		t.Errorf("a user who takes the address: %v", err)
	}
	b.back(d, 1)
	if _, err := b.ChangeUser(t.Context(), testTenant, string(other.ID), UserChange{Email: &to}); err != nil {
		t.Errorf("once the file serves: %v", err)
	}
	b.sound()
}

// INV-19: a file whose keys cannot be read holds up no request of the others, and takes none that might be in it.
func TestUnreadableKeysHoldUpNobody(t *testing.T) {
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	p, q := validPayment(), validPayment()
	p.UserID, q.UserID = b.userIn(1), b.userIn(2)
	key, home := b.keyAtHome(0), b.keyAtHome(1)
	first := b.pay(string(key), p)
	clear(b.keys.index) // as after a start
	b.keys.filled[1].Store(false)
	b.keys.whole.Store(false)
	for _, suffix := range []string{".db-wal", ".db"} {
		d.Fail(shardstest.Fault{Op: shardstest.OpRead, Suffix: "0001" + suffix})
	}
	if err := b.keys.fillShard(t.Context(), b.set.All()[1], math.MaxInt); err == nil || b.set.All()[1].Err() != nil {
		t.Fatalf("reads do not fail: %v, out: %v", err, b.set.All()[1].Err())
	}
	b.pay(string(b.keyAtHome(2)), q)
	if _, _, err := b.Pay(t.Context(), testTenant, home, q); code(err) != "shard_unavailable" {
		t.Errorf("a key of the file: %v", err)
	}
	d.Heal()
	if again, _, err := b.Pay(t.Context(), testTenant, key, p); code(err) != "shard_unavailable" {
		t.Errorf("a second payment under a key that was not read: %s, %v", again.ID, err)
	}
	if err := b.keys.fillShard(t.Context(), b.set.All()[1], math.MaxInt); err != nil {
		t.Fatal(err)
	}
	if again, replayed, err := b.Pay(t.Context(), testTenant, key, p); err != nil || !replayed || again.ID != first.ID {
		t.Errorf("%s, replayed %v, %v, want %s", again.ID, replayed, err, first.ID)
	}
	b.sound()
}

// A key that was forgotten and made another record meanwhile is not forgotten with the first one.
func TestForgettingKeepsWhatTheKeyMadeSince(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	p, q := validPayment(), validPayment()
	p.UserID, q.UserID = b.userIn(1), b.userIn(2)
	first := b.pay("k", p)
	clear(b.keys.index) // as when the first one's file was passed over
	second := b.pay("k", q)
	old := []oldKey{{claim{testTenant, "k"}, string(first.ID)}}
	if err := b.keys.forget(t.Context(), b.set.All()[1], old); err != nil {
		t.Fatal(err)
	}
	if again := b.pay("k", q); again.ID != second.ID {
		t.Errorf("a second payment %s, beside %s", again.ID, second.ID)
	}
	b.sound()
}
