package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

func shipped() jobs.Options {
	return jobs.Options{Queues: []jobs.QueueConfig{{Name: "email"}, {Name: "payments", ReadOnly: true}, {Name: "record-event", Internal: true}}}
}

func names(qs []jobs.QueueInfo) string {
	var out []string
	for _, q := range qs {
		out = append(out, strings.TrimPrefix(q.Tenant+"/"+q.Name, "/"))
	}
	return strings.Join(out, " ")
}

func TestATenantsOwnQueues(t *testing.T) {
	e, s := open(t, shipped())
	d := jobs.Defaults{Attempts: 7, Timeout: time.Hour, Backoff: jobs.Backoff{Type: jobs.Fixed, Delay: time.Minute, Jitter: 0.5}, RemoveOnFail: jobs.Retention{Remove: true}}
	l := jobs.Limits{Active: 3, Rate: jobs.RateLimit{Count: 5, Per: time.Minute}}
	for i, want := range []bool{true, false} {
		created, err := e.Declare(t.Context(), "a", "resize", jobs.Defaults{Attempts: i}, jobs.Limits{})
		if err != nil || created != want {
			t.Errorf("%v, %v", created, err)
		}
	}
	if _, err := e.Declare(t.Context(), "a", "resize", d, l); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Declare(t.Context(), "b", "sync", jobs.Defaults{}, jobs.Limits{}); err != nil {
		t.Fatal(err)
	}
	enqueue(t, e, jobs.NewJob{Queue: "resize", Tenant: "a", ID: "1"}, jobs.NewJob{Queue: "resize", Tenant: "a", ID: "later", Delay: time.Hour})
	enqueue(t, e, jobs.NewJob{Queue: "record-event", Tenant: "a"}, jobs.NewJob{Queue: "payments", Tenant: "a"}) // the box's own code may
	for range 2 {                                                                                               // now, and after a restart
		for tenant, want := range map[string]string{
			"a": "email payments a/resize", "b": "email payments b/sync", "c": "email payments", "": "email payments record-event a/resize b/sync",
		} {
			if got := names(e.Queues(tenant)); got != want {
				t.Errorf("%q sees %s", tenant, got)
			}
		}
		q, err := e.Queue("a", "resize")
		want := jobs.QueueInfo{Name: "resize", Tenant: "a", Defaults: d, Limits: l, Counts: jobs.QueueStats{Queue: "resize", Waiting: 1, Delayed: 1}}
		q.Counts.OldestWaiting, q.Rates = time.Time{}, jobs.QueueRates{}
		if diff := cmp.Diff(want, q); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
		if q, err := e.Queue("a", "payments"); err != nil || !q.ReadOnly {
			t.Errorf("%v, %+v", err, q)
		}
		for _, tenant := range []string{"b", "c"} {
			if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "resize", Tenant: tenant}); !errors.Is(err, jobs.ErrUnknownQueue) {
				t.Errorf("%v", err)
			}
			if _, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "resize", Tenant: tenant}); !errors.Is(err, jobs.ErrUnknownQueue) {
				t.Errorf("%v", err)
			}
			if _, err := e.Queue(tenant, "resize"); !errors.Is(err, jobs.ErrUnknownQueue) || strings.Contains(err.Error(), "record-event") || strings.Contains(err.Error(), ", resize") ||
				!strings.Contains(err.Error(), "email, payments") {
				t.Errorf("%v", err)
			}
		}
		if _, err := e.Queue("a", "record-event"); !errors.Is(err, jobs.ErrUnknownQueue) {
			t.Errorf("an internal queue: %v", err)
		}
		if j := mustGet(t, e, "a", "resize", "1"); j.Attempts != 7 || j.Backoff.Delay != time.Minute || j.Timeout != time.Hour || !j.RemoveOnFail.Remove {
			t.Errorf("%+v", j)
		}
		fatalIf(t, e.Close())
		e = openOn(t, s, shipped())
	}
	// Another tenant's queue of the same name is another queue; who speaks for nobody leases from both in turn.
	if _, err := e.Declare(t.Context(), "b", "resize", jobs.Defaults{}, jobs.Limits{}); err != nil {
		t.Fatal(err)
	}
	enqueue(t, e, jobs.NewJob{Queue: "resize", Tenant: "b", ID: "2"})
	if js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "resize", Tenant: "b", Max: 9}); err != nil || len(js) != 1 || js[0].ID != "2" {
		t.Errorf("%v, %+v", err, js)
	}
	if js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "resize", Max: 9}); err != nil || len(js) != 1 || js[0].Tenant != "a" {
		t.Errorf("%v, %+v", err, js)
	}
}

func mustGet(t testing.TB, e *jobs.Engine, tenant, queue, id string) jobs.Job {
	t.Helper()
	j, err := e.Get(tenant, queue, id)
	fatalIf(t, err)
	return j
}

func TestDeclareRefuses(t *testing.T) {
	e, _ := open(t, shipped())
	declare := func(tenant, queue string, d jobs.Defaults, l jobs.Limits) error {
		_, err := e.Declare(t.Context(), tenant, queue, d, l)
		return err
	}
	if err := declare("a", "payments", jobs.Defaults{}, jobs.Limits{}); !errors.Is(err, jobs.ErrReadOnly) {
		t.Errorf("%v", err)
	}
	for field, err := range map[string]error{
		"tenant":                    declare("", "x", jobs.Defaults{}, jobs.Limits{}),
		"queue":                     declare("a", "A_b", jobs.Defaults{}, jobs.Limits{}),
		"defaults.backoff.jitter":   declare("a", "x", jobs.Defaults{Backoff: jobs.Backoff{Jitter: 2}}, jobs.Limits{}),
		"defaults.attempts":         declare("a", "x", jobs.Defaults{Attempts: 1 << 40}, jobs.Limits{}),
		"limits.active":             declare("a", "x", jobs.Defaults{}, jobs.Limits{Active: -1}),
		"limits.tenant_rate.count":  declare("a", "x", jobs.Defaults{}, jobs.Limits{TenantRate: jobs.RateLimit{Count: -1}}),
		"limits.rate.per_ms":        declare("a", "x", jobs.Defaults{}, jobs.Limits{Rate: jobs.RateLimit{Count: 1, Per: -1}}),
		"limits.tenant_rate.per_ms": declare("a", "x", jobs.Defaults{}, jobs.Limits{TenantRate: jobs.RateLimit{Count: 1, Per: 1000 * time.Hour}}),
	} {
		var invalid *jobs.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for i := range 100 {
		fatalIf(t, declare("a", fmt.Sprint("q", i), jobs.Defaults{}, jobs.Limits{}))
	}
	if err := declare("a", "one-more", jobs.Defaults{}, jobs.Limits{}); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("%v", err)
	}
	fatalIf(t, declare("a", "q7", jobs.Defaults{}, jobs.Limits{}))
	fatalIf(t, declare("b", "one-more", jobs.Defaults{}, jobs.Limits{}))
}

func TestInvalidJobsNameTheMember(t *testing.T) {
	e, _ := open(t, oneQueue())
	good := jobs.NewJob{Queue: "q"}
	_, err := e.Enqueue(t.Context(), good, good, good, jobs.NewJob{Queue: "q", Delay: 1 << 62}, jobs.NewJob{Queue: "q", Backoff: jobs.Backoff{Jitter: -1}})
	var of *jobs.JobError
	var invalid *jobs.InvalidError
	if !errors.As(err, &of) || of.Index != 3 || !errors.As(of.Err, &invalid) || invalid.Field != "opts.delay_ms" || !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if !strings.Contains(err.Error(), "job 4: not valid: opts.backoff.jitter") {
		t.Errorf("%v", err)
	}
	many := make([]jobs.NewJob, 10_000)
	if _, err := e.Enqueue(t.Context(), many...); len(err.Error()) > 2000 {
		t.Errorf("%d bytes of errors", len(err.Error()))
	}
	if st := stats(t, e); st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		enqueue(t, e, job("a"), jobs.NewJob{Queue: "q", Tenant: "u", ID: "b"})
		fatalIf(t, e.Pause(t.Context(), "t", "q"))
		fatalIf(t, e.Pause(t.Context(), "t", "q")) // twice is once
		lease(t, e, jobs.LeaseRequest{Max: 9}, "b")
		fatalIf(t, e.Pause(t.Context(), "", "q"))
		fatalIf(t, e.Resume(t.Context(), "t", "q"))
		e, s = crash(t, s, oneQueue())
		if q, err := e.Queue("", "q"); err != nil || !q.Paused {
			t.Errorf("%v, %+v", err, q)
		}
		ran := make(chan string, 9)
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(_ context.Context, j *jobs.Job) error { ran <- j.ID; return nil }})
		enqueue(t, e, job("c"))
		time.Sleep(time.Hour)
		lease(t, e, jobs.LeaseRequest{Max: 9})
		fatalIf(t, e.Pause(t.Context(), "t", "q"))
		fatalIf(t, e.Resume(t.Context(), "", "q"))
		if id := <-ran; id != "b" { // whose lease ran out meanwhile
			t.Errorf("ran %s", id)
		}
		stop()
		e, _ = crash(t, s, oneQueue())
		if q, err := e.Queue("t", "q"); err != nil || !q.Paused || q.Counts.Waiting != 2 {
			t.Errorf("%v, %+v", err, q)
		}
		if q, err := e.Queue("u", "q"); err != nil || q.Paused {
			t.Errorf("%v, %+v", err, q)
		}
		polled := make(chan int)
		go func() {
			js, _ := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: 9, Wait: time.Minute})
			polled <- len(js)
		}()
		synctest.Wait()
		fatalIf(t, e.Resume(t.Context(), "t", "q"))
		if n := <-polled; n != 2 {
			t.Errorf("the one who waited got %d", n)
		}
		for _, err := range []error{e.Pause(t.Context(), "t", "none"), e.Resume(t.Context(), "", "none")} {
			if !errors.Is(err, jobs.ErrUnknownQueue) {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestBrokenSettings: a declaration that cannot be read is named and can be declared anew; a pause of which that is true holds.
func TestBrokenSettings(t *testing.T) {
	e, s := open(t, oneQueue())
	if _, err := e.Declare(t.Context(), "t", "own", jobs.Defaults{}, jobs.Limits{}); err != nil {
		t.Fatal(err)
	}
	enqueue(t, e, jobs.NewJob{Queue: "own", Tenant: "t", ID: "a"}, job("b"))
	fatalIf(t, e.Pause(t.Context(), "t", "q"))
	fatalIf(t, e.Close())
	fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
		for _, name := range []string{"queues", "paused"} {
			b := tx.Bucket([]byte(name))
			if err := b.ForEach(func(k, v []byte) error { return b.Put(k, append([]byte{v[0] ^ 1}, v[1:]...)) }); err != nil {
				return err
			}
		}
		return nil
	}))
	e = openOn(t, s, oneQueue())
	if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "own", Tenant: "t"}); !errors.Is(err, jobs.ErrUnknownQueue) {
		t.Errorf("%v", err)
	}
	lease(t, e, jobs.LeaseRequest{Max: 9})
	if created, err := e.Declare(t.Context(), "t", "own", jobs.Defaults{}, jobs.Limits{}); err != nil || created {
		t.Errorf("%v, %v", created, err)
	}
	if q, err := e.Queue("t", "own"); err != nil || q.Counts.Waiting != 1 {
		t.Errorf("%v, %+v", err, q)
	}
}

// TestAuditOfLeasesAndSettings: whatever is changed in these buckets behind the engine's back is named, and nothing else.
func TestAuditOfLeasesAndSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	fill := func(s *store.Store) {
		e := openOn(t, s, oneQueue())
		_, err := e.Declare(t.Context(), "t", "own", jobs.Defaults{}, jobs.Limits{})
		fatalIf(t, err)
		enqueue(t, e, job("a"), job("b"))
		lease(t, e, jobs.LeaseRequest{For: time.Hour, Worker: "w"}, "a")
		fatalIf(t, e.Pause(t.Context(), "t", "q"))
		fatalIf(t, e.Close())
	}
	s := storetest.Reopen(t, path, store.Options{})
	fill(s)
	fatalIf(t, s.Close())
	whole, err := os.ReadFile(path)
	fatalIf(t, err)
	if findings, err := jobs.Audit(path); err != nil || len(findings) > 0 {
		t.Fatalf("%v, %v", findings, err)
	}
	for _, bucket := range []string{"leased", "queues", "paused"} {
		for name, change := range map[string]func(b *bbolt.Bucket, k, v []byte) error{
			"value": func(b *bbolt.Bucket, k, v []byte) error {
				v = bytes.Clone(v)
				v[len(v)-1] ^= 1
				return b.Put(k, v)
			},
			"version": func(b *bbolt.Bucket, k, v []byte) error { return b.Put(k, append([]byte{v[0] + 1}, v[1:]...)) },
			"short":   func(b *bbolt.Bucket, k, v []byte) error { return b.Put(k, v[:3]) },
			"key": func(b *bbolt.Bucket, k, v []byte) error {
				k = bytes.Clone(k)
				if err := b.Delete(k); err != nil {
					return err
				}
				k[len(k)-2] ^= 1
				return b.Put(k, bytes.Clone(v))
			},
		} {
			path := filepath.Join(t.TempDir(), "jobs.db")
			fatalIf(t, os.WriteFile(path, whole, 0o600))
			s := storetest.Reopen(t, path, store.Options{})
			fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte(bucket))
				k, v := b.Cursor().First()
				return change(b, bytes.Clone(k), bytes.Clone(v))
			}))
			e := openOn(t, s, oneQueue()) // it opens, and nothing panics
			if q, err := e.Queue("t", "q"); err != nil || q.Counts.Waiting+q.Counts.Active != 2 {
				t.Errorf("%s, %s: %v, %+v", bucket, name, err, q)
			}
			fatalIf(t, e.Close())
			fatalIf(t, s.Close())
			if findings, err := jobs.Audit(path); err != nil || len(findings) != 1 {
				t.Errorf("%s, %s: %v, %v", bucket, name, findings, err)
			}
		}
	}
}

// The operator limits a shipped queue: at once, for all tenants, and after a restart.
func TestLimitOfAShippedQueue(t *testing.T) {
	e, s := open(t, oneQueue())
	for i := range 6 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: []string{"a", "b"}[i%2], ID: fmt.Sprint(i)})
	}
	fatalIf(t, e.Limit(t.Context(), "q", jobs.Limits{Active: 3, TenantActive: 2}))
	leased := func(e *jobs.Engine, want int) (js []jobs.Job) {
		t.Helper()
		js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: 6, For: time.Hour})
		if err != nil || len(js) != want {
			t.Fatalf("%d jobs leased, want %d: %v", len(js), want, err)
		}
		return js
	}
	leased(e, 3)
	leased(e, 0)
	fatalIf(t, e.Limit(t.Context(), "q", jobs.Limits{Active: 4}))
	one := leased(e, 1)[0] // what the old limit kept back goes on
	fatalIf(t, e.Close())
	e = openOn(t, s, oneQueue())
	leased(e, 0)
	if q, err := e.Queue("", "q"); err != nil || q.Limits != (jobs.Limits{Active: 4}) {
		t.Errorf("%+v, %v", q.Limits, err)
	}
	if _, err := e.Complete(t.Context(), jobs.LeaseRef{Tenant: one.Tenant, Queue: "q", ID: one.ID, Token: one.LeaseToken}, nil); err != nil {
		t.Fatal(err)
	}
	leased(e, 1)
	fatalIf(t, e.Limit(t.Context(), "q", jobs.Limits{}))
	leased(e, 1)
	if err := e.Limit(t.Context(), "none", jobs.Limits{}); !errors.Is(err, jobs.ErrUnknownQueue) {
		t.Errorf("a queue that there is not: %v", err)
	}
	if err := e.Limit(t.Context(), "q", jobs.Limits{Active: -1}); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("a limit below zero: %v", err)
	}
}
