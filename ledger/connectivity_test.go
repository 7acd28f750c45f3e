package ledger

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// recording runs the queue of events from elsewhere until the test ends or stop is called.
func (b *testBox) recording() (stop func()) {
	runner := must(b.jobs.NewRunner(jobs.RunnerOptions{Queue: EventsQueue, Concurrency: 2, Handler: b.Record}))(b.t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	var done sync.WaitGroup
	done.Go(func() { _ = runner.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	b.t.Cleanup(stop)
	return stop
}

// hearsLine waits until the tenant was told n times that its line is in the state, and returns all it was told.
func (b *testBox) hearsLine(state upstream.LinkState, n int) (told []connectivityData) {
	b.t.Helper()
	news, leave := b.Hear(testTenant)
	defer leave()
	for {
		told = nil
		found := 0
		for _, e := range b.rows(ConnectivityChanged) {
			var d connectivityData
			if err := json.Unmarshal(e.Data, &d); err != nil || e.Tenant != testTenant || e.Subject != connectivitySubject ||
				!e.OccurredAt.Equal(instant(d.Since.UnixMilli())) || !e.RecordedAt().IsZero() || d.Evidence == "" {
				b.t.Fatalf("%+v %s: %v", e, e.Data, err)
			}
			told = append(told, d)
			if d.State == state {
				found++
			}
		}
		if found >= n {
			return told
		}
		select {
		case <-news:
		case <-b.t.Context().Done():
			b.t.Fatalf("told %+v, want %d times %s", told, n, state)
		}
	}
}

// Each tenant of an account hears that its line is lost and back, once for each time; who has another account does not.
// What a box finds at its start is no change.
func TestTenantsHearOfTheirLine(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	own := &tenants.Upstream{URL: "http://127.0.0.1:1", Account: "own", Key: "sk_other"} // nothing listens there
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other", Upstream: own}); err != nil {
		t.Fatal(err)
	}
	b.accountOf("other")
	stop := b.recording()
	b.cut(false) // it has reached the processor: what it finds at its start is no change
	b.cut(true)
	b.hearsLine(upstream.Offline, 1)
	b.cut(false)
	b.hearsLine(upstream.Online, 1)
	stop()

	b = b.reopen(nil)
	b.recording()
	b.cut(false) // it reaches the processor again
	b.cut(true)
	told := b.hearsLine(upstream.Offline, 2)
	seen := map[connectivityData]bool{}
	for _, d := range told {
		if seen[d] || d.Was == "" || d.Was == d.State {
			t.Errorf("told %+v", d)
		}
		seen[d] = true
	}
	b.cut(false) // a box that stops in an outage has nothing left to hear
}

// Telling a change again, as after an enqueue of unknown outcome, tells nobody twice.
func TestAChangeOfTheLineIsToldOnce(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	acc := b.accountOf(testTenant)
	link := upstream.Link{State: upstream.Offline, Was: upstream.Online, Since: instant(1795420800123), Evidence: "probe: refused"}
	for range 3 {
		if err := b.tellLink(t.Context(), acc, link); err != nil {
			t.Fatal(err)
		}
	}
	b.recording()
	b.hearsLine(upstream.Offline, 1)
	link.State, link.Was = upstream.Online, upstream.Offline
	if err := b.tellLink(t.Context(), acc, link); err != nil {
		t.Fatal(err)
	}
	if told := b.hearsLine(upstream.Online, 1); len(told) != 2 {
		t.Errorf("told %+v", told)
	}
}
