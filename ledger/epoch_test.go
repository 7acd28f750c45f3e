package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

// A copy whose clock stands at 1970 does not call its epoch old when the clock is put right.
func TestEpochIsDatedByTheProcessor(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	for i := range 8 {
		a.pay(fmt.Sprint(i), validPayment())
	}
	dir := copyOf(t, a)
	o := a.o
	box := &manualClock{at: time.Unix(0, 0)}
	o.now = box.now
	b := openBox(t, dir, o)
	b.ageEpochs(t.Context())
	for _, p := range b.parts {
		if e := p.epoch(); !e.began.IsZero() || !e.looksUpKeys(f.clock.now().Add(365*24*time.Hour)) {
			t.Fatalf("dated before anybody told the time: %+v", e)
		}
	}
	b.hear()
	box.set(f.clock.now())
	b.ageEpochs(t.Context())
	for _, p := range b.parts {
		if e := p.epoch(); e.began.Before(f.clock.now().Add(-time.Hour)) || !e.looksUpKeys(box.now()) {
			t.Errorf("began %v", e.began)
		}
	}
	b = b.reopen(nil)
	for _, p := range b.parts {
		if e := p.epoch(); e.began.IsZero() {
			t.Error("the date is not kept")
		}
	}
}

// The journal's positions go on in the new epoch: no event is published or turned into jobs anew, and a reader goes on where it was.
func TestCopyGoesOnWithTheJournal(t *testing.T) {
	log := newMemoryLog()
	a := openBox(t, t.TempDir(), testOptions{events: log})
	for i := range 12 {
		a.settled(a.pay(fmt.Sprint(i), validPayment()).ID)
	}
	log.await(t, 24)
	page := must(a.Events(t.Context(), testTenant, EventFilter{Limit: 24}))(t)
	if len(page.Events) != 24 {
		t.Fatalf("%d events", len(page.Events))
	}
	middle, end := page.Behind[9], page.Next

	b := a.on(copyOf(t, a))
	if b.raised("queue_lost") {
		t.Errorf("the queue counts as lost: %v", b.alarms.of(""))
	}
	next := b.settled(b.pay("", validPayment()).ID)
	seen := map[EventID]int{}
	for _, r := range log.await(t, 26) {
		if seen[r.id]++; seen[r.id] > 1 {
			t.Errorf("event %s of %s was published twice", r.id, r.origin)
		}
	}
	if n := len(must(b.Events(t.Context(), testTenant, EventFilter{After: middle, Limit: 100}))(t).Events); n != 16 {
		t.Errorf("%d events after the tenth, want 16", n)
	}
	rest := must(b.Events(t.Context(), testTenant, EventFilter{After: end, Limit: 100}))(t)
	if len(rest.Events) != 2 || rest.Events[0].Subject != string(next.ID) {
		t.Errorf("after the copy: %+v", rest.Events)
	}
	// The original goes on too: what it tells from now on is not what the copy tells.
	b.stop()
	a = a.on(a.dir)
	a.settled(a.pay("of the original", validPayment()).ID)
	beyond := must(a.Events(t.Context(), testTenant, EventFilter{After: end, Limit: 100}))(t).Next
	a.stop()
	b = b.on(b.dir)
	var refusal *Error
	if _, err := b.Events(t.Context(), testTenant, EventFilter{After: beyond}); !errors.As(err, &refusal) || refusal.Code != "events_gone" {
		t.Errorf("a position that the copy never had: %v", err)
	}
	// A copy of the copy.
	c := b.on(copyOf(t, b))
	if n := len(must(c.Events(t.Context(), testTenant, EventFilter{After: rest.Next, Limit: 100}))(t).Events); n != 0 {
		t.Errorf("%d events after the last", n)
	}
	c.sound()
}

// A crash between the epoch and its marks changes nothing: the shard is marked at the next start, before anything is sent.
func TestEpochIsBegunInEveryShard(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	var ids []string
	for i := range 16 {
		ids = append(ids, string(a.pay(fmt.Sprint(i), validPayment()).ID))
	}
	a.stop()
	if _, err := shards.NewEpoch(filepath.Join(a.dir, "shards")); err != nil {
		t.Fatal(err)
	}
	b := a.on(a.dir)
	for _, id := range ids {
		if _, err := b.sealOnly(id); err == nil {
			t.Fatalf("%s is sealed before it was looked up", id)
		}
	}
	for _, p := range b.parts {
		if e := p.epoch(); e.n != b.set.Manifest().Epoch || e.n == firstEpoch {
			t.Errorf("shard %d is in epoch %d", p.shard.ID(), e.n)
		}
	}
	b = b.reopen(nil)
	b.hear()
	b.mustWait(ids[0])
	b.pass(f, formerMargin+time.Second)
	if p := b.settleNow(PaymentID(ids[0])); p.Status != Succeeded {
		t.Errorf("%+v", p)
	}
	again := b.reopen(nil)
	if _, err := again.sealOnly(ids[1]); err == nil {
		t.Error("the second is sealed though nobody looked")
	}
}

// A crash between a shard's first row and the relay's first batch loses no job of that row, and is not taken for a lost queue.
func TestFirstRowIsRelayedAfterACrash(t *testing.T) {
	a := openBox(t, t.TempDir(), testOptions{idle: true}) // nothing is relayed
	u := must3(a.CreateUser(t.Context(), testTenant, "", NewUser{Email: "ada@example.com", Name: "Ada"}))(t)
	p := a.parts[a.set.Shard(shards.SlotOf(string(testTenant), string(u.ID))).ID()]
	if n := p.journal.currentHead().seq; n != 1 {
		t.Fatalf("%d rows", n)
	}
	o := a.o
	o.idle = false
	a.stop()
	b := openBox(t, a.dir, o)
	for {
		c, _, err := b.jobs.Cursor(p.jobsSource())
		if err != nil || t.Context().Err() != nil {
			t.Fatal(err)
		}
		if c.Offset == 1 {
			break
		}
		_ = newPoke().wait(t.Context(), 20*time.Millisecond)
	}
	if b.raised("queue_lost") {
		t.Errorf("%+v", b.alarms.of(""))
	}
	if page := must(b.jobs.List(string(testTenant), EmailQueue, jobs.Waiting, jobs.ListOptions{Limit: 10}))(t); len(page.Jobs) != 1 {
		t.Errorf("%d welcomes", len(page.Jobs))
	}
}

// A shard that is out holds back its own events, not those of others.
func TestEventsGoOutWithoutAShard(t *testing.T) {
	log := newMemoryLog()
	a := openBox(t, t.TempDir(), testOptions{events: log})
	for range 8 {
		a.settled(a.pay("", validPayment()).ID)
	}
	log.await(t, 16)
	a.stop()
	if err := os.WriteFile(filepath.Join(a.dir, "shards", "0002.db"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	b := a.on(a.dir)
	taken := 0
	for taken < 8 {
		if p, _, err := b.Pay(t.Context(), testTenant, "", validPayment()); err == nil {
			b.settled(p.ID)
			taken++
		}
	}
	log.await(t, 16+2*taken)
}

// Until a shard is verified and in the folder's epoch, nothing is written to it but that.
func TestNothingPassesBeforeTheEpoch(t *testing.T) {
	b := openFronted(t, newFront(t))
	id := string(b.pay("", validPayment()).ID)
	p := b.parts[b.shardOf(PaymentID(id)).ID()]
	p.verified.Store(false)
	if _, err := b.sealOnly(id); !errors.Is(err, shards.ErrUnavailable) {
		t.Errorf("sealed: %v", err)
	}
	b.openPart(t.Context(), p)
	if _, err := b.sealOnly(id); err != nil || !p.verified.Load() {
		t.Errorf("after that: %v", err)
	}
}

// Nor does it pass in the company of that.
func TestNothingPassesWithTheOpening(t *testing.T) {
	b := openFronted(t, newFront(t))
	id := string(b.pay("", validPayment()).ID)
	p := b.parts[b.shardOf(PaymentID(id)).ID()]
	p.verified.Store(false)
	entered, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(entered) })
	var writes errgroup.Group
	writes.Go(func() error {
		_ = p.shard.Update(t.Context(), func(*shards.Tx) error { once(); <-release; return nil }) // refused like all others, once it is through
		return nil
	})
	<-entered
	var sealed error
	writes.Go(func() error { _, sealed = b.sealOnly(id); return nil })
	writes.Go(func() error { return b.beginEpoch(t.Context(), p) })
	for p.shard.Stats().Queued < 2 {
		runtime.Gosched()
	}
	close(release)
	if err := writes.Wait(); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(sealed, shards.ErrUnavailable) {
		t.Errorf("sealed: %v", sealed)
	}
}

// A start that dies between two steps of a new epoch, and another epoch after that, leave the journal's cursor to be found.
func TestCursorIsFoundThroughEpochs(t *testing.T) {
	a := openBox(t, t.TempDir(), testOptions{})
	for range 12 {
		a.settled(a.pay("", validPayment()).ID)
	}
	a.stop()
	dir := filepath.Join(a.dir, "shards")
	middle := must(shards.NewEpoch(dir))(t)
	o := a.o
	o.idle = true
	b := openBox(t, a.dir, o)
	for _, p := range b.parts { // as if the start had died before this
		if err := b.jobs.TakeCursor(t.Context(), jobsSource(p.shard.ID(), middle), jobsSource(p.shard.ID(), firstEpoch)); err != nil {
			t.Fatal(err)
		}
	}
	b.stop()
	must(shards.NewEpoch(dir))(t)
	c := openBox(t, a.dir, o)
	for _, p := range c.parts {
		cursor, found, err := c.jobs.Cursor(p.jobsSource())
		if some := p.journal.currentHead().seq > 0; err != nil || !found || some != (cursor.Offset > 0) {
			t.Errorf("shard %d: %+v, %v, %v", p.shard.ID(), cursor, found, err)
		}
	}
	if c.raised("queue_lost") {
		t.Error("the queue counts as lost")
	}
}

// An epoch that cannot be written down because the disk is full is not begun: the copy can be read, takes nothing and sends nothing, says why, and
// goes on as a copy does when there is room. With the room that the reserve gives back, some shards may be in it and others not.
func TestEpochOnAFullDisk(t *testing.T) {
	for name, fill := range map[string]func(*shardstest.Disk){
		"no room at all": func(d *shardstest.Disk) {
			d.Fail(shardstest.Fault{Op: shardstest.OpWrite, Outcome: shardstest.NoSpace})
		},
		"the reserve's": func(d *shardstest.Disk) { d.Limit(t, 1) },
		"room for the first frames": func(d *shardstest.Disk) {
			d.Fail(shardstest.Fault{Op: shardstest.OpWrite, Skip: 6, Outcome: shardstest.NoSpace})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			a := openFronted(t, f)
			var ids []string
			for i := range 16 {
				ids = append(ids, string(a.pay(fmt.Sprint(i), validPayment()).ID))
			}
			dir := copyOf(t, a)
			d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
			fill(d)
			posts := f.posts()
			b := a.on(dir)
			waiting := 0
			for _, p := range b.parts {
				if !p.verified.Load() {
					waiting++
				}
			}
			if waiting == 0 || !b.raised("shard_unverified") {
				t.Errorf("%d shards wait for room: %+v", waiting, b.alarms.of(""))
			}
			if ok, degraded := b.Ready(); ok || !slices.Contains(degraded, "disk_full") {
				t.Errorf("ready %v, degraded %v", ok, degraded)
			}
			for _, id := range ids {
				if _, err := b.sealOnly(id); err == nil {
					t.Errorf("%s is sealed", id)
				}
				if err := b.step(id); err == nil {
					t.Errorf("%s is settled", id)
				}
				if p, err := b.Payment(t.Context(), testTenant, id); err != nil || p.Status != Pending {
					t.Errorf("%+v: %v", p, err)
				}
			}
			for i := range 16 {
				if _, _, err := b.Pay(t.Context(), testTenant, "", validPayment()); code(err) != "disk_full" && code(err) != "shard_unavailable" {
					t.Errorf("%d was taken: %v", i, err)
				}
			}
			if n := f.posts(); n != posts || d.Fired() == 0 && name != "the reserve's" {
				t.Errorf("%d requests were sent, %d faults", n-posts, d.Fired())
			}

			d.Heal()
			ctx, cancel := context.WithCancel(t.Context())
			var relays sync.WaitGroup
			defer relays.Wait()
			defer cancel()
			for _, p := range b.parts {
				relays.Go(func() { _ = b.serve(ctx, p) })
			}
			for !b.Intact() && ctx.Err() == nil {
				_ = newPoke().wait(ctx, 20*time.Millisecond)
			}
			for _, id := range ids {
				if _, err := b.sealOnly(id); err == nil {
					t.Errorf("%s is sealed before it was looked up", id)
				}
			}
			b.mustWait(ids[0])
			b.pass(f, formerMargin+time.Second)
			for _, id := range ids {
				for p := b.now(PaymentID(id)); p.Status != Succeeded && ctx.Err() == nil; p = b.now(PaymentID(id)) {
					if b.step(id) != nil { // the reserve is not whole yet, or what was looked up must wait
						b.pass(f, formerMargin+time.Second)
					}
				}
			}
			for id, n := range b.effects() {
				if n != 1 {
					t.Errorf("%s was charged %d times", id, n)
				}
			}
			if b.raised("shard_unverified") {
				t.Errorf("%+v", b.alarms.of(""))
			}
			b.sound()
		})
	}
}
