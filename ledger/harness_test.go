package ledger

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
	"tenderbox/tenants"
	"tenderbox/upstream"
	"tenderbox/upstream/simulator"
)

const testTenant = tenants.ID("shop")

var testQueues = []jobs.QueueConfig{{Name: PaymentsQueue}, {Name: EmailQueue}, {Name: NotificationsQueue}, {Name: ProcessingQueue}, {Name: EventsQueue}}

// testBox is a ledger with everything real around it, on a temporary folder,
// and a processor that can be cut off.
type testBox struct {
	*Ledger
	t    testing.TB
	dir  string
	sim  *simulator.Simulator
	o    testOptions
	stop func()
}

type testOptions struct {
	sim       *simulator.Simulator // nil: a new one
	url       string               // of sim, or of nothing
	now       func() time.Time
	zone      *time.Location
	keyMemory time.Duration
	events    Publisher
	derive    func(*Event) []jobs.NewJob
	pace      int  // requests at a time; 0: the default
	idle      bool // do not run: no relay, no settler
	offline   map[string]tenants.OfflineLimit
}

// openBox opens a box on dir; it is closed, and audited, when the test ends.
func openBox(t testing.TB, dir string, o testOptions) *testBox {
	t.Helper()
	if o.sim == nil {
		o.sim = simulator.New(simulator.Options{Now: o.now})
		o.url = must(o.sim.Start("127.0.0.1:0"))(t)
		t.Cleanup(func() { _ = o.sim.Close() })
	}
	b := &testBox{t: t, dir: dir, sim: o.sim, o: o}
	box, queue := storetest.Reopen(t, filepath.Join(dir, "box.db"), store.Options{}), storetest.Reopen(t, filepath.Join(dir, "jobs.db"), store.Options{})
	ctx := t.Context()
	kr := must(tenants.LoadOrCreateKeyring(filepath.Join(dir, "box.key")))(t)
	registry := must(tenants.Open(box, kr, tenants.Options{}))(t)
	if _, err := registry.Get(testTenant); err != nil {
		if _, _, err := registry.Add(ctx, tenants.New{ID: testTenant}); err != nil {
			t.Fatal(err)
		}
	}
	if o.offline != nil {
		must(registry.Update(ctx, testTenant, func(t *tenants.Tenant) error { t.Offline = o.offline; return nil }))(t)
	}
	engine := must(jobs.Open(queue, jobs.Options{Queues: testQueues, Now: o.now}))(t)
	accounts := upstream.NewAccounts(upstream.Config{URL: o.url, Key: "sk_test", Timeout: 5 * time.Second, ProbeInterval: 20 * time.Millisecond, BreakerOpen: 20 * time.Millisecond, Concurrency: o.pace, Now: o.now})
	b.Ledger = must(Open(ctx, Options{Dir: filepath.Join(dir, "shards"), Keyring: kr, Tenants: registry, Jobs: engine, Accounts: accounts,
		KeyMemory: o.keyMemory, Now: o.now, Zone: o.zone, Events: o.events, Derive: o.derive}))(t)

	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	if !o.idle {
		// The account exists from its first use on; probes begin with it.
		b.accountOf(testTenant)
		wg.Go(func() { _ = accounts.Run(run) })
		wg.Go(func() {
			if err := b.Run(run); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		})
	}
	b.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		for _, c := range []interface{ Close() error }{b.Ledger, engine, queue, box} {
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	t.Cleanup(b.stop)
	return b
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// pay takes a payment that must be accepted.
func (b *testBox) pay(key string, p NewPayment) Payment {
	b.t.Helper()
	got, _, err := b.Pay(b.t.Context(), testTenant, IdempotencyKey(key), p)
	if err != nil {
		b.t.Fatalf("pay %s: %v", key, err)
	}
	return got
}

// settled waits until the payment is final, however long: the test's deadline bounds it.
func (b *testBox) settled(id PaymentID) Payment {
	b.t.Helper()
	return b.until(id, func(p Payment) bool { return p.Status.Final() })
}

// until waits until cond holds for the payment, woken by what happens to it.
func (b *testBox) until(id PaymentID, cond func(Payment) bool) Payment {
	b.t.Helper()
	news, leave := b.waiters.join(id)
	defer leave()
	for {
		p, err := b.Payment(b.t.Context(), testTenant, string(id))
		if err != nil {
			b.t.Fatal(err)
		}
		if cond(p) {
			return p
		}
		if err := news.wait(b.t.Context(), time.Second); err != nil {
			b.t.Fatalf("%s is %s, %s", id, p.Status, p.Sync.State)
		}
	}
}

// audit stops the box and fails the test for each finding.
func (b *testBox) audit() []Finding {
	b.t.Helper()
	b.stop()
	queue := storetest.Reopen(b.t, filepath.Join(b.dir, "jobs.db"), store.Options{})
	defer queue.Close()
	engine := must(jobs.Open(queue, jobs.Options{Queues: testQueues}))(b.t)
	defer engine.Close()
	findings, err := Check(b.t.Context(), CheckOptions{Dir: filepath.Join(b.dir, "shards"), Keyring: b.keyring, Tenants: []tenants.Tenant{{ID: testTenant}}, Jobs: engine})
	if err != nil {
		b.t.Fatal(err)
	}
	return findings
}

// sound stops the box and requires that its audit finds nothing.
func (b *testBox) sound() {
	b.t.Helper()
	for _, f := range b.audit() {
		b.t.Errorf("check: %v", f)
	}
}

// due makes what waits for its backoff due, however often it has failed.
func (b *testBox) due() {
	b.t.Helper()
	if _, err := b.jobs.PromoteDelayed(b.t.Context(), PaymentsQueue, nil, 0); err != nil {
		b.t.Error(err)
	}
	b.runner.Poke()
}

// effects counts the charges that took effect, by payment.
func (b *testBox) effects() map[PaymentID]int {
	m := map[PaymentID]int{}
	for _, c := range b.sim.Ledger().Charges {
		m[PaymentID(c.Metadata["tenderbox_payment"])]++
	}
	return m
}

func code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

// reopen closes the box and opens it again on the same folder with the same processor.
func (b *testBox) reopen(change func(*testOptions)) *testBox {
	b.t.Helper()
	b.stop()
	o := b.o
	if change != nil {
		change(&o)
	}
	return openBox(b.t, b.dir, o)
}

// probing probes the processor of an idle box until the test ends.
func (b *testBox) probing() {
	b.accountOf(testTenant)
	ctx, cancel := context.WithCancel(context.Background())
	var probes sync.WaitGroup
	probes.Go(func() { _ = b.accounts.Run(ctx) })
	b.t.Cleanup(func() { cancel(); probes.Wait() })
}

// cut takes the line away, and waits until the judge knows; or gives it back.
func (b *testBox) cut(cut bool) {
	b.t.Helper()
	changed := newPoke()
	b.accounts.OnChange(func(*upstream.Account, upstream.Link) { changed.wake() })
	if err := b.sim.Cut(cut); err != nil {
		b.t.Fatal(err)
	}
	for b.ready(string(testTenant)) == cut {
		if err := changed.wait(b.t.Context(), time.Second); err != nil {
			b.t.Fatalf("link does not follow the cut: %v", err)
		}
	}
}

// settleJobOf is the job by which the queue asks for a payment's settling.
func settleJobOf(id PaymentID) *jobs.Job {
	return &jobs.Job{NewJob: jobs.NewJob{Tenant: string(testTenant), ID: string(id)}}
}

// sealOnly seals what is to be sent for the record and leaves it at that, as a crash before the send does.
func (b *testBox) sealOnly(id string) (*send, error) {
	s, err := b.loadSend(b.t.Context(), testTenant, id)
	if err != nil {
		return nil, err
	}
	acc, err := b.accountFor(s)
	if err != nil {
		return nil, err
	}
	return s, b.seal(b.t.Context(), acc, s)
}
