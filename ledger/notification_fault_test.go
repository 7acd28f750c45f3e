package ledger

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tenderbox/shards/shardstest"
)

// Jobs run at least once: over failed writes and syncs, whose outcome is unknown, and over restarts, each job is one entry in the
// inbox and one event, a read mark that was acknowledged stays, and the counts are exact.
func TestDeliveryWithDiskFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	dir := t.TempDir()
	d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
	b := openBox(t, dir, testOptions{idle: true})
	users := []string{string(b.user(NewUser{Email: "a@example.org"}).ID), string(b.user(NewUser{Email: "b@example.org"}).ID)}
	healed := func() {
		d.Heal()
		for _, sh := range b.set.All() {
			for sh.Err() != nil {
				_ = newPoke().wait(t.Context(), 20*time.Millisecond)
			}
		}
	}
	const jobs, rounds = 60, 30
	var mu sync.Mutex // guards what follows
	known, read := map[Push]NotificationID{}, map[NotificationID]bool{}
	deliver := func(p Push) error {
		id, err := b.Deliver(t.Context(), testTenant, p)
		mu.Lock()
		defer mu.Unlock()
		if was, ok := known[p]; err == nil && ok && was != id {
			t.Errorf("%s was %s, is %s", p.JobID, was, id)
		}
		if err == nil {
			known[p] = id
		}
		return err
	}
	pushOf := func(i int) Push { return push(fmt.Sprint("j", i), i, users[i%len(users)], fmt.Sprint(i)) }
	for round := range rounds {
		if round == 0 { // whatever the seed: at least one fires
			d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "-wal", Times: 1})
		}
		switch random.IntN(4) {
		case 0, 1:
			op := []shardstest.Op{shardstest.OpSync, shardstest.OpWrite}[random.IntN(2)]
			d.Fail(shardstest.Fault{Op: op, Suffix: "-wal", Skip: random.IntN(4), Times: 1 + random.IntN(2)})
		case 2:
			if random.IntN(3) == 0 {
				healed()
				b = b.reopen(nil)
			}
		}
		var wg sync.WaitGroup
		for range 10 {
			i, mark := random.IntN(jobs), random.IntN(3) == 0
			wg.Go(func() {
				if err := deliver(pushOf(i)); err != nil || !mark {
					return
				}
				mu.Lock()
				id := known[pushOf(i)]
				mu.Unlock()
				if _, err := b.ReadNotification(t.Context(), testTenant, string(id)); err == nil {
					mu.Lock()
					read[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	healed()
	b = b.reopen(nil)
	for i := range jobs { // what failed runs again, and what did not does too
		if err := deliver(pushOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	there := map[NotificationID]bool{}
	for _, u := range users {
		in := b.inbox(InboxFilter{UserID: u, Limit: pageMax})
		for _, n := range in.Data {
			if there[n.ID] = true; read[n.ID] && n.ReadAt == nil {
				t.Errorf("%s lost its mark", n.ID)
			}
		}
		if len(in.Data) != jobs/len(users) {
			t.Errorf("%d entries of %s", len(in.Data), u)
		}
	}
	for p, id := range known {
		if !there[id] {
			t.Errorf("%s is not there as %s", p.JobID, id)
		}
	}
	if n := len(b.rows(NotificationCreated)); n != jobs {
		t.Errorf("%d events of %d jobs", n, jobs)
	}
	if d.Fired() == 0 {
		t.Error("no fault fired")
	}
	t.Log(d.Fired(), "disk faults,", len(read), "marks")
	b.sound()
}
