package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/jobs"
	"tenderbox/store"
)

func TestRemovedIDsAreFree(t *testing.T) {
	e, s := open(t, oneQueue())
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Name: "first"})
	fatalIf(t, e.Remove(t.Context(), "t", "q", "a"))
	if err := e.Remove(t.Context(), "t", "q", "a"); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if j := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Name: "second"})[0]; j.Name != "second" {
		t.Errorf("%+v", j)
	}
	e, _ = crash(t, s, oneQueue())
	if j := get(t, e, "a"); j.Name != "second" {
		t.Errorf("after a crash: %+v", j)
	}
}

// TestActiveJobsStay: neither Remove nor Drain takes a job from its worker, be he of the box or outside.
func TestActiveJobsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		for i := range 6 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i)})
		}
		outside, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t", Max: 1, For: time.Minute})
		fatalIf(t, err)
		leave := make(chan struct{})
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 2, Handler: func(context.Context, *jobs.Job) error { <-leave; return nil }})
		synctest.Wait()
		for _, id := range []string{"0", "1", "2"} {
			err := e.Remove(t.Context(), "t", "q", id)
			if !errors.Is(err, jobs.ErrState) || !strings.Contains(err.Error(), "active") {
				t.Errorf("%s: %v", id, err)
			}
			for what, do := range map[string]func(context.Context, string, string, string) (jobs.Job, error){"retried": e.Retry, "promoted": e.Promote} {
				if _, err := do(t.Context(), "t", "q", id); !errors.Is(err, jobs.ErrState) || !strings.Contains(err.Error(), "active") {
					t.Errorf("%s %s: %v", id, what, err)
				}
			}
		}
		if n, err := e.Drain(t.Context(), "t", "q", true); err != nil || n != 3 {
			t.Errorf("%d, %v", n, err)
		}
		if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Active: 3}) {
			t.Errorf("%+v", st)
		}
		close(leave)
		_, err = e.Complete(t.Context(), jobs.LeaseRef{Tenant: "t", Queue: "q", ID: outside[0].ID, Token: outside[0].LeaseToken}, nil)
		fatalIf(t, err)
		synctest.Wait()
		if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Completed: 3}) {
			t.Errorf("%+v", st)
		}
		stop()
	})
}

// TestTheBoxsOwnWorkIsNotDropped: no money job goes before its payment is final, whoever asks.
func TestTheBoxsOwnWorkIsNotDropped(t *testing.T) {
	e, _ := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}, {Name: "money", ReadOnly: true}}})
	enqueue(t, e, jobs.NewJob{Queue: "money", Tenant: "t", ID: "pay"}, jobs.NewJob{Queue: "money", Tenant: "t", ID: "later", Delay: time.Hour})
	if err := e.Remove(t.Context(), "t", "money", "pay"); !errors.Is(err, jobs.ErrReadOnly) {
		t.Errorf("%v", err)
	}
	if n, err := e.Drain(t.Context(), "t", "money", true); n != 0 || !errors.Is(err, jobs.ErrReadOnly) {
		t.Errorf("%d, %v", n, err)
	}
	if j, err := e.Promote(t.Context(), "t", "money", "later"); err != nil || j.State != jobs.Waiting { // what loses nothing is allowed
		t.Errorf("%+v, %v", j, err)
	}
}

func TestUnknownQueuesAreNotManaged(t *testing.T) {
	e, _ := open(t, oneQueue())
	ctx := t.Context()
	_, err := e.Declare(ctx, "u", "theirs", jobs.Defaults{}, jobs.Limits{})
	fatalIf(t, err)
	for _, queue := range []string{"none", "theirs"} {
		_, retry := e.Retry(ctx, "t", queue, "a")
		_, promote := e.Promote(ctx, "t", queue, "a")
		_, failed := e.RetryFailed(ctx, "t", queue)
		_, drain := e.Drain(ctx, "t", queue, true)
		_, list := e.List("t", queue, jobs.Waiting, jobs.ListOptions{})
		_, put := e.PutSchedule(ctx, jobs.Schedule{Tenant: "t", Queue: queue, ID: "s", Every: time.Hour})
		for what, err := range map[string]error{
			"retry": retry, "promote": promote, "retry failed": failed, "drain": drain, "list": list, "schedule": put, "remove": e.Remove(ctx, "t", queue, "a"),
		} {
			if !errors.Is(err, jobs.ErrUnknownQueue) {
				t.Errorf("%s in %s: %v", what, queue, err)
			}
		}
	}
	if _, err := e.RetryFailed(ctx, "", "theirs"); err != nil { // the operator, of all tenants
		t.Errorf("%v", err)
	}
}

// TestRetryFailedOverManyBatches retries each once, though they fail again at once.
func TestRetryFailedOverManyBatches(t *testing.T) {
	e, _ := open(t, oneQueue())
	var js []jobs.NewJob
	for i := range 2500 {
		js = append(js, jobs.NewJob{Queue: "q", Tenant: []string{"t", "u"}[i%2], Attempts: 1, RemoveOnFail: jobs.Retention{Count: -1}})
	}
	enqueue(t, e, js...)
	var mu sync.Mutex
	runs := map[string]int{}
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 256, Handler: func(_ context.Context, j *jobs.Job) error {
		mu.Lock()
		defer mu.Unlock()
		runs[j.ID]++
		return errors.New("bad")
	}})
	until(t, func() bool { return stats(t, e).Failed == 2500 })
	if n, err := e.RetryFailed(t.Context(), "u", "q"); err != nil || n != 1250 {
		t.Errorf("%d, %v", n, err)
	}
	until(t, func() bool { return stats(t, e).Failed == 2500 })
	if n, err := e.RetryFailed(t.Context(), "", "q"); err != nil || n != 2500 {
		t.Errorf("%d, %v", n, err)
	}
	until(t, func() bool { return stats(t, e).Failed == 2500 })
	stop()
	total := 0
	for _, n := range runs {
		total += n
	}
	if total != 2500+1250+2500 {
		t.Errorf("%d runs", total)
	}
}

// TestDrainAgainstWorkers: while workers take jobs and others are added, each job is run or removed, never both, and Drain comes to an end.
func TestDrainAgainstWorkers(t *testing.T) {
	e, _ := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q", RemoveOnComplete: jobs.Retention{Remove: true}, Limits: jobs.Limits{TenantActive: 5}}}})
	var js []jobs.NewJob
	for i := range 6000 {
		js = append(js, jobs.NewJob{Queue: "q", Tenant: "t", Priority: i % 3, Delay: time.Duration(i%2) * time.Hour})
	}
	enqueue(t, e, js...)
	var mu sync.Mutex
	runs := 0
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 16, Handler: func(context.Context, *jobs.Job) error {
		mu.Lock()
		defer mu.Unlock()
		runs++
		return nil
	}})
	added := make(chan int)
	drained := make(chan struct{})
	go func() { // somebody who never stops adding
		for n := 0; ; n++ {
			select {
			case <-drained:
				added <- n
				return
			default:
				if _, err := e.Enqueue(context.Background(), jobs.NewJob{Queue: "q", Tenant: "t", Priority: 9}); err != nil {
					panic(err)
				}
			}
		}
	}()
	n, err := e.Drain(t.Context(), "t", "q", true)
	fatalIf(t, err)
	close(drained)
	total := 6000 + <-added
	until(t, func() bool { return stats(t, e) == jobs.QueueStats{Queue: "q"} }) // those who were held back by the limit go on
	stop()
	if n < 3000 || n+runs != total {
		t.Errorf("%d removed and %d run, of %d", n, runs, total)
	}
}

// TestDamagedJobsCanBeRemoved, parked or not.
func TestDamagedJobsCanBeRemoved(t *testing.T) {
	e, s := open(t, oneQueue())
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "parked"}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "other", Delay: time.Hour})
	for _, bucket := range []string{"waiting", "delayed"} {
		fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(bucket))
			k, v := b.Cursor().First()
			v = append([]byte(nil), v...)
			v[len(v)-1] ^= 1
			return b.Put(k, v)
		}))
	}
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error { return nil }})
	until(t, func() bool { return stats(t, e).Damaged == 1 })
	stop()
	if _, err := e.Retry(t.Context(), "t", "q", "parked"); !errors.Is(err, jobs.ErrDamaged) {
		t.Errorf("%v", err)
	}
	for _, id := range []string{"parked", "other"} {
		fatalIf(t, e.Remove(t.Context(), "t", "q", id))
		if _, err := e.Get("t", "q", id); !errors.Is(err, jobs.ErrNotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if st := stats(t, e); st != (jobs.QueueStats{Queue: "q"}) {
		t.Errorf("%+v", st)
	}
	audited(t, e, s)
}

// audited closes both and audits the file.
func audited(t testing.TB, e *jobs.Engine, s *store.Store) {
	t.Helper()
	fatalIf(t, errors.Join(e.Close(), s.Close()))
	if findings, err := jobs.Audit(s.Path()); err != nil || len(findings) > 0 {
		t.Errorf("audit: %q, %v", findings, err)
	}
}

// TestBatchesAreAllOrNothing: whatever moment a crash picks, counts agree with what can be read.
func TestBatchesAreAllOrNothing(t *testing.T) {
	e, s := open(t, oneQueue())
	var js []jobs.NewJob
	for i := range 5000 {
		js = append(js, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i)})
	}
	enqueue(t, e, js...)
	done := make(chan error)
	go func() { _, err := e.Drain(context.Background(), "t", "q", false); done <- err }()
	for range 5 {
		copied, file := crash(t, s, oneQueue())
		if n := len(listed(t, copied)); n%1000 != 0 || n != stats(t, copied).Waiting {
			t.Errorf("%d jobs, counted are %d", n, stats(t, copied).Waiting)
		}
		audited(t, copied, file)
	}
	fatalIf(t, <-done)
}

func TestLogs(t *testing.T) {
	e, s := open(t, oneQueue())
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Attempts: 3, Backoff: jobs.Backoff{Delay: time.Nanosecond}}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "b"})
	ctx := t.Context()
	lease := func() jobs.LeaseRef {
		t.Helper()
		js, err := e.Lease(ctx, jobs.LeaseRequest{Queue: "q", Tenant: "t", Max: 1, For: time.Minute, Wait: time.Minute, Names: []string{""}})
		fatalIf(t, err)
		return jobs.LeaseRef{Tenant: "t", Queue: "q", ID: js[0].ID, Token: js[0].LeaseToken}
	}
	ref := lease()
	for i := range 60 {
		fatalIf(t, e.Log(ctx, ref, fmt.Sprint("first ", i)))
	}
	for name, text := range map[string]string{"long": strings.Repeat("x", 2049), "not UTF-8": "\xff"} {
		if err := e.Log(ctx, ref, text); !errors.Is(err, jobs.ErrInvalid) || !strings.Contains(err.Error(), "text") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := e.Log(ctx, jobs.LeaseRef{Tenant: "t", Queue: "q", ID: "b", Token: ref.Token}, "another's"); !errors.Is(err, jobs.ErrStaleLease) {
		t.Errorf("%v", err)
	}
	if err := e.Log(ctx, jobs.LeaseRef{Tenant: "u", Queue: "q", ID: "a", Token: ref.Token}, "another's"); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("%v", err)
	}
	_, err := e.Fail(ctx, ref, "bad", true, nil)
	fatalIf(t, err)
	if err := e.Log(ctx, ref, "late"); !errors.Is(err, jobs.ErrStaleLease) {
		t.Errorf("%v", err)
	}
	ref = lease()
	if ref.ID != "a" { // b came first
		ref = lease()
	}
	for i := range 60 {
		fatalIf(t, e.Log(ctx, ref, fmt.Sprint("second ", i)))
	}
	lines, err := e.Logs("t", "q", "a")
	if err != nil || len(lines) != 100 || lines[0].Text != "first 20" || lines[99].Text != "second 59" || lines[0].At.IsZero() || lines[0].At.After(lines[99].At) {
		t.Errorf("%d lines: %+v, %v", len(lines), lines, err)
	}
	if lines, err := e.Logs("t", "q", "b"); err != nil || len(lines) != 0 {
		t.Errorf("%v, %v", lines, err)
	}
	if _, err := e.Logs("u", "q", "a"); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("%v", err)
	}
	_, err = e.Complete(ctx, ref, nil)
	fatalIf(t, err)
	if lines, err := e.Logs("t", "q", "a"); err != nil || len(lines) != 100 {
		t.Errorf("of a finished job: %d lines, %v", len(lines), err)
	}
	fatalIf(t, e.Remove(ctx, "t", "q", "a"))
	noLogs(t, s)
}

// noLogs says that nobody's lines are left.
func noLogs(t testing.TB, s *store.Store) {
	t.Helper()
	fatalIf(t, s.View(func(tx *bbolt.Tx) error {
		if k, _ := tx.Bucket([]byte("logs")).Cursor().First(); k != nil {
			t.Errorf("%q stays", k)
		}
		return nil
	}))
}

// TestLogsGoWithTheirJobs, whichever way those go.
func TestLogsGoWithTheirJobs(t *testing.T) {
	e, s := open(t, oneQueue())
	logged := func(id string, n jobs.NewJob) jobs.LeaseRef {
		t.Helper()
		n.Queue, n.Tenant, n.ID = "q", "t", id
		enqueue(t, e, n)
		js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t", For: time.Minute})
		fatalIf(t, err)
		r := jobs.LeaseRef{Tenant: "t", Queue: "q", ID: id, Token: js[0].LeaseToken}
		fatalIf(t, e.Log(t.Context(), r, "line"))
		return r
	}
	_, err := e.Complete(t.Context(), logged("once", jobs.NewJob{RemoveOnComplete: jobs.Retention{Remove: true}}), nil)
	fatalIf(t, err)
	noLogs(t, s)

	for range 2 { // the second pushes out the first
		_, err = e.Complete(t.Context(), logged(fmt.Sprint(time.Now().UnixNano()), jobs.NewJob{RemoveOnComplete: jobs.Retention{Count: 1}}), nil)
		fatalIf(t, err)
	}
	page, err := e.List("t", "q", jobs.Completed, jobs.ListOptions{})
	if err != nil || len(page.Jobs) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	fatalIf(t, e.Remove(t.Context(), "t", "q", page.Jobs[0].ID))
	noLogs(t, s)

	for id, delay := range map[string]time.Duration{"waits": 0, "delayed": time.Hour} {
		_, err = e.Fail(t.Context(), logged(id, jobs.NewJob{}), "bad", true, &delay)
		fatalIf(t, err)
		if _, err := e.Drain(t.Context(), "t", "q", true); err != nil {
			t.Fatal(err)
		}
		noLogs(t, s)
	}

	none := time.Duration(0)
	_, err = e.Fail(t.Context(), logged("damaged", jobs.NewJob{}), "bad", true, &none)
	fatalIf(t, err)
	fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("waiting"))
		k, v := b.Cursor().First()
		v = append([]byte(nil), v...)
		v[len(v)-1] ^= 1
		return b.Put(k, v)
	}))
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "damaged"}) // takes its place
	noLogs(t, s)
}

// spare leaves pages to reuse, so that no commit of the test grows the file: growth fails in other ways than writes do.
func spare(t testing.TB, e *jobs.Engine) {
	t.Helper()
	js := make([]jobs.NewJob, 50)
	for i := range js {
		js[i] = jobs.NewJob{Queue: "q", Tenant: "spare", Data: make([]byte, 2000), Delay: time.Hour}
	}
	enqueue(t, e, js...)
	if n, err := e.Drain(t.Context(), "spare", "q", true); err != nil || n != len(js) {
		t.Fatalf("%d, %v", n, err)
	}
}
