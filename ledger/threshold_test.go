package ledger

import (
	"encoding/json"
	"testing"

	"tenderbox/tenants"
)

// hearsExposure waits until n events of high exposure were written, and returns them.
func (b *testBox) hearsExposure(n int) (told []exposureHighData) {
	b.t.Helper()
	news, leave := b.Hear(testTenant)
	defer leave()
	for {
		told = nil
		for _, e := range b.rows(ExposureHigh) {
			var d exposureHighData
			if err := json.Unmarshal(e.Data, &d); err != nil || e.Tenant != testTenant || e.Subject != d.Currency {
				b.t.Fatalf("%+v %s: %v", e, e.Data, err)
			}
			told = append(told, d)
		}
		if len(told) >= n {
			return told
		}
		select {
		case <-news:
		case <-b.t.Context().Done():
			b.t.Fatalf("told %+v, want %d", told, n)
		}
	}
}

// A limit that comes near is told once; not again while the exposure hovers, nor after a restart; again when it had become calm between.
func TestHighExposureIsTold(t *testing.T) {
	limits := map[string]tenants.OfflineLimit{"usd": {MaxTotal: 10_000, MaxCount: 100}, "eur": {MaxCount: 1000}}
	b := openBox(t, t.TempDir(), testOptions{offline: limits})
	stop := b.recording()
	b.cut(true)
	pay := func(amount int64) Payment {
		return b.pay("", NewPayment{Amount: amount, Currency: "usd", Source: "tok_visa"})
	}
	told := map[threshold]bool{}
	look := func(b *testBox) { b.tellExposure(t.Context(), told) }
	first := pay(7_999)
	look(b)
	if len(told) != 0 {
		t.Errorf("below the threshold: %v", told)
	}
	pay(1)
	look(b)
	got := b.hearsExposure(1)[0]
	want := exposureHighData{"usd", 2, 8_000, first.CreatedAt, "max_total", 10_000}
	if !got.OldestAt.Equal(want.OldestAt) {
		t.Errorf("oldest at %v, want %v", got.OldestAt, want.OldestAt)
	}
	if got.OldestAt = want.OldestAt; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	pay(500)
	look(b)
	look(b)
	stop()

	b = b.reopen(nil)
	stop = b.recording()
	clear(told) // as a new process knows nothing
	look(b)
	b.cut(false)
	b.settledAll(testTenant)
	look(b)
	if len(told) != 0 {
		t.Errorf("nothing is outstanding: %v", told)
	}
	b.cut(true)
	pay(9_000)
	look(b)
	if got := b.hearsExposure(2); len(got) != 2 || got[0].Amount+got[1].Amount != 8_000+9_000 {
		t.Errorf("%+v", got)
	}
	stop()
	b.cut(false)
}

// Between calm and high nothing changes.
func TestHighExposureHovers(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true, offline: map[string]tenants.OfflineLimit{"usd": {MaxCount: 10}}})
	told := map[threshold]bool{}
	at := threshold{testTenant, "usd", "max_count"}
	var open []Payment
	step := func(pay bool, want bool) {
		t.Helper()
		if pay {
			open = append(open, b.pay("", NewPayment{Amount: 100, Currency: "usd", Source: "tok_visa"}))
		} else {
			if _, _, err := b.Cancel(t.Context(), testTenant, "", string(open[len(open)-1].ID)); err != nil {
				t.Fatal(err)
			}
			open = open[:len(open)-1]
		}
		if b.tellExposure(t.Context(), told); told[at] != want {
			t.Errorf("at %v: told %v, want %v", b.Exposed(testTenant), told[at], want)
		}
	}
	for range 7 {
		step(true, false)
	}
	step(true, true)
	for range 7 { // at eight
		step(true, true)
		step(false, true)
	}
	step(false, false) // seven are calm
	step(true, true)
}
