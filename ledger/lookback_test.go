package ledger

import (
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"tenderbox/shards"
)

// crowded is an account that holds more than a look-up reads.
func (b *testBox) crowded(f *front) {
	b.t.Helper()
	b.lookups.objectsMax = 40
	for range 48 {
		f.byHand(b.t, "/charges", url.Values{"amount": {"1"}, "currency": {"usd"}, "source": {"tok_visa"}})
	}
}

// tries settles the record as the queue does, over days.
func (b *testBox) tries(f *front, id string) {
	b.t.Helper()
	for range looksMin + 5 {
		if b.step(id) == nil {
			return
		}
		b.lookups.forgetAll()
		b.pass(f, 2*time.Hour)
	}
}

// INV-6: in an account that holds too much to be read from its beginning, a former box's charge is looked for from the last send that these data
// date, and not from the record's creation, which a clock that ran ahead has dated.
func TestLookBackDoesNotTrustTheBoxsClock(t *testing.T) {
	f := newFront(t)
	f.byHand(t, "/charges", url.Values{"amount": {"1"}, "currency": {"usd"}, "source": {"tok_visa"}})
	ahead := func() time.Time { return f.clock.now().Add(60 * 24 * time.Hour) }
	a := openBox(t, t.TempDir(), testOptions{idle: true, now: ahead, sim: f.sim, url: f.url})
	a.hear()
	var id PaymentID
	for range 30 { // until a payment's file has sent something
		if id = a.pay("", validPayment()).ID; a.shardOf(id) == a.shardOf(a.paid(validPayment()).ID) {
			break
		}
	}
	dir := copyOf(t, a)
	f.clock.add(time.Hour)
	first := a.on(a.dir)
	if p := first.settleNow(id); p.Status != Succeeded {
		t.Fatalf("%+v", p)
	}
	first.stop()
	f.clock.add(100 * 24 * time.Hour)
	o := a.o
	o.now = f.clock.now
	b := openBox(t, dir, o)
	b.hear()
	b.lookups.objectsMax = 2 // so that the account's beginning is out of reach
	b.lookups.shelf(place{b.accountOf(testTenant), "/charges"}).large = true
	b.tries(f, string(id))
	if n := b.effects()[id]; n != 1 {
		t.Fatalf("charged %d times", n)
	}
	if p := b.now(id); p.Status != Succeeded {
		t.Errorf("%+v", p)
	}
	b.sound()
}

// What a former box has not sent is proved absent there too, from the last dated send on.
func TestLookBackInACrowdedAccount(t *testing.T) {
	f := newFront(t)
	a := openFronted(t, f)
	a.crowded(f)
	f.clock.add(365 * 24 * time.Hour)
	a.hear()
	var id PaymentID
	for range 30 {
		if id = a.pay("", validPayment()).ID; a.shardOf(id) == a.shardOf(a.paid(validPayment()).ID) {
			break
		}
	}
	b := a.on(copyOf(t, a))
	b.lookups.objectsMax = 40
	b.lookups.shelf(place{b.accountOf(testTenant), "/charges"}).large = true
	b.tries(f, string(id))
	if p := b.now(id); p.Status != Succeeded || b.effects()[id] != 1 {
		t.Fatalf("%+v, %d effects", p, b.effects()[id])
	}
	b.sound()
}

// Where nothing dates a former box's sends, or what does is younger than the parting, nothing is sent and a person is asked.
func TestLookBackThatCannotBeWhole(t *testing.T) {
	for name, older := range map[string]bool{"no send is dated": false, "parted in an epoch before": true} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			epoch := func() {
				b.stop()
				must(shards.NewEpoch(filepath.Join(b.dir, "shards")))(t)
				b = b.on(b.dir)
			}
			effects := 0
			var id PaymentID
			if older {
				id = b.pay("", validPayment()).ID
				epoch()
				f.byHand(t, "/charges", marked(string(id), "1999")) // by the box before, which goes on
				effects = 1
				f.clock.add(24 * time.Hour)
				b.crowded(f)
				f.clock.add(24 * time.Hour)
				b.hear()
				for range 30 {
					if b.shardOf(b.paid(validPayment()).ID) == b.shardOf(id) {
						break
					}
				}
			} else {
				b.crowded(f)
				f.clock.add(365 * 24 * time.Hour)
				id = b.pay("", validPayment()).ID
			}
			epoch()
			b.lookups.objectsMax = 40
			b.lookups.shelf(place{b.accountOf(testTenant), "/charges"}).large = true
			b.tries(f, string(id))
			if p := b.now(id); p.Sync.State != Review || b.effects()[id] != effects {
				t.Fatalf("%+v, %d effects", p, b.effects()[id])
			}
			b.sound()
		})
	}
}
