package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// waitingBox takes n payments with the line cut, half of which have their bytes sealed, and stops.
func waitingBox(t *testing.T, n int) (b *testBox, ids []PaymentID) {
	t.Helper()
	b = openBox(t, t.TempDir(), testOptions{idle: true})
	for i := range n {
		p := b.pay(fmt.Sprint("k", i), validPayment())
		ids = append(ids, p.ID)
		if i%2 == 0 {
			must(b.sealOnly(string(p.ID)))(t)
		}
	}
	b.stop()
	return b, ids
}

func (b *testBox) keyFile() string  { return filepath.Join(b.dir, "box.key") }
func (b *testBox) shardDir() string { return filepath.Join(b.dir, "shards") }
func resealed(t *testing.T, dir string, kr *tenants.Keyring) int {
	t.Helper()
	n, findings, err := Reseal(t.Context(), ResealOptions{Dir: dir, Keyring: kr})
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	return n
}

// sealedIn returns every sealed value of the shards.
func sealedIn(t *testing.T, dir string) (all [][]byte) {
	t.Helper()
	set := must(shards.Audit(t.Context(), dir, shards.Options{Migrations: migrations}))(t)
	defer set.Close()
	for _, sh := range set.All() {
		err := sh.View(t.Context(), func(tx *shards.Tx) error {
			rows, err := tx.Query(`SELECT /* box */ source FROM payments WHERE source IS NOT NULL UNION ALL SELECT body FROM sends WHERE body IS NOT NULL`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var v []byte
				if err := rows.Scan(&v); err != nil {
					return err
				}
				all = append(all, bytes.Clone(v))
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// Killed after whichever transaction, the box is sound, opens everything, and the next run does the rest.
func TestResealKilledAnywhere(t *testing.T) {
	b, ids := waitingBox(t, 24)
	old := sealedIn(t, b.shardDir())
	if len(old) != 36 {
		t.Fatalf("%d sealed values", len(old))
	}
	kr := must(b.keyring.AddKey())(t)
	var copies []string
	leave := t.TempDir()
	total, done := 0, 0
	total, findings, err := Reseal(t.Context(), ResealOptions{Dir: b.shardDir(), Keyring: kr, BatchMax: 2, Progress: func(n int) {
		done += n
		copies = append(copies, filepath.Join(leave, fmt.Sprint(done)))
		// What a killed process leaves: the files as the kernel has them.
		to := copies[len(copies)-1]
		if err := errors.Join(os.CopyFS(to, os.DirFS(b.dir)), os.Chmod(filepath.Join(to, "box.key"), 0o600)); err != nil {
			t.Error(err)
		}
	}})
	if err != nil || len(findings) > 0 || total != len(old) || done != total {
		t.Fatalf("%d of %d values, %v, %v", total, len(old), findings, err)
	}
	if len(copies) < 18 {
		t.Fatalf("interrupted in %d places only", len(copies))
	}
	for i, dir := range append(copies, b.dir) {
		killed := *b
		killed.dir = dir
		killed.keyring = must(tenants.LoadKeyring(killed.keyFile()))(t)
		killed.stop = func() {}
		killed.sound()
		if n := resealed(t, killed.shardDir(), killed.keyring); n > len(old) || i == len(copies) && n > 0 {
			t.Errorf("copy %d: %d values were left", i, n)
		}
		if n := resealed(t, killed.shardDir(), killed.keyring.WithoutOld()); n > 0 {
			t.Errorf("copy %d: %d values are still under an older key", i, n)
		}
		if i < len(copies) {
			killed.keyring = must(killed.keyring.ForgetOld())(t)
			killed.sound()
		}
	}
	// Nothing of what the old key sealed is left in the files, unused pages included.
	for _, file := range must(filepath.Glob(filepath.Join(b.shardDir(), "*")))(t) {
		content := must(os.ReadFile(file))(t)
		for _, v := range old {
			if bytes.Contains(content, v[1:]) {
				t.Errorf("%s still holds a value that the old key sealed", file)
			}
		}
	}
	// The payments go out as they were: same bytes, same keys; replays are recognised by the fingerprints' first key.
	again := b.reopen(func(o *testOptions) { o.idle = false })
	for i, id := range ids {
		got, replayed, err := again.Pay(t.Context(), testTenant, IdempotencyKey(fmt.Sprint("k", i)), validPayment())
		if err != nil || !replayed || got.ID != id {
			t.Errorf("replay of %s: %s, %v, %v", id, got.ID, replayed, err)
		}
		if got := again.settled(id); got.Status != Succeeded {
			t.Errorf("%s: %s", id, got.Status)
		}
	}
	if charges := len(again.sim.Ledger().Charges); charges != len(ids) {
		t.Errorf("%d charges for %d payments", charges, len(ids))
	}
	again.sound()
}

func TestResealStopsWhenTold(t *testing.T) {
	b, _ := waitingBox(t, 8)
	kr := must(b.keyring.AddKey())(t)
	ctx, cancel := context.WithCancel(t.Context())
	n, findings, err := Reseal(ctx, ResealOptions{Dir: b.shardDir(), Keyring: kr, BatchMax: 1, Progress: func(int) { cancel() }})
	if !errors.Is(err, context.Canceled) || n != 1 || len(findings) > 0 {
		t.Errorf("%d values, %v, %v", n, findings, err)
	}
	if rest := resealed(t, b.shardDir(), kr); rest != 11 {
		t.Errorf("%d values were left", rest)
	}
}

// A wrong key opens nothing, and nothing is changed.
func TestResealWithAWrongKey(t *testing.T) {
	b, _ := waitingBox(t, 4)
	before := sealedIn(t, b.shardDir())
	other := must(tenants.CreateKeyring(filepath.Join(t.TempDir(), "other.key")))(t)
	other = must(other.AddKey())(t)
	n, findings, err := Reseal(t.Context(), ResealOptions{Dir: b.shardDir(), Keyring: other})
	if err != nil || n != 0 || len(findings) != len(before) {
		t.Errorf("%d values, %d findings of %d, %v", n, len(findings), len(before), err)
	}
	for _, f := range findings {
		if !strings.Contains(f.What, "does not open") {
			t.Error(f)
		}
	}
	for i, v := range sealedIn(t, b.shardDir()) {
		if !bytes.Equal(v, before[i]) {
			t.Error("a value was changed")
		}
	}
	b.sound()
}

// A damaged value is told by its record, and the others are done.
func TestResealReportsDamage(t *testing.T) {
	b, ids := waitingBox(t, 4)
	slot, ok := ids[1].slot()
	if !ok {
		t.Fatal(ids[1])
	}
	set := must(shards.Open(t.Context(), b.shardDir(), shards.Options{Migrations: migrations}))(t)
	err := set.Shard(slot).Update(t.Context(), func(tx *shards.Tx) error {
		_, err := tx.Exec(`UPDATE payments SET source = x'0100' WHERE tenant = ? AND id = ?`, string(testTenant), string(ids[1]))
		return err
	})
	if err := errors.Join(err, set.Close()); err != nil {
		t.Fatal(err)
	}
	kr := must(b.keyring.AddKey())(t)
	n, findings, err := Reseal(t.Context(), ResealOptions{Dir: b.shardDir(), Keyring: kr})
	if err != nil || n != 5 || len(findings) != 1 || !strings.Contains(findings[0].String(), string(ids[1])) {
		t.Errorf("%d values, %v, %v", n, findings, err)
	}
}
