package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
)

// heard takes what is in a channel, without waiting. over: it is closed.
func heard(ch <-chan jobs.Transition) (said string, over bool) {
	var all []string
	for {
		select {
		case t, ok := <-ch:
			if !ok {
				return strings.Join(all, " "), true
			}
			what := fmt.Sprint(t.Tenant, "/", t.Queue, "/", t.ID, ":", t.State)
			if t.Progress != nil {
				what += "=" + string(t.Progress)
			}
			all = append(all, what)
		default:
			return strings.Join(all, " "), false
		}
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "p"}, {Name: "q", Backoff: jobs.Backoff{Type: jobs.Fixed, Delay: time.Second}}}})
		ctx, cancel := context.WithCancel(t.Context())
		line, tenant, all := e.Watch(ctx, "t", "q"), e.Watch(ctx, "t", ""), e.Watch(ctx, "", "")
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 1, Handler: func(ctx context.Context, j *jobs.Job) error {
			if _, err := e.Progress(ctx, jobs.LeaseRef{Tenant: j.Tenant, Queue: j.Queue, ID: j.ID, Token: j.LeaseToken}, []byte(`{"n":1}`)); err != nil {
				t.Error(err)
			}
			if j.AttemptsMade == 1 {
				return errors.New("bad")
			}
			return nil
		}})
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"})
		time.Sleep(2 * time.Second)
		enqueue(t, e, jobs.NewJob{Queue: "p", Tenant: "t", ID: "b"}, jobs.NewJob{Queue: "p", Tenant: "u", ID: "c", Delay: time.Hour})
		stop()
		_, err := e.Retry(t.Context(), "t", "q", "a")
		fatalIf(t, err)
		_, err = e.Promote(t.Context(), "u", "p", "c")
		fatalIf(t, err)
		const a = `t/q/a:waiting t/q/a:active t/q/a:active={"n":1} t/q/a:delayed t/q/a:waiting t/q/a:active t/q/a:active={"n":1} t/q/a:completed`
		for what, tc := range map[string]struct {
			ch   <-chan jobs.Transition
			want string
		}{
			"line": {line, a + " t/q/a:waiting"}, "tenant": {tenant, a + " t/p/b:waiting t/q/a:waiting"},
			"all": {all, a + " t/p/b:waiting u/p/c:delayed t/q/a:waiting u/p/c:waiting"},
		} {
			if got, over := heard(tc.ch); got != tc.want || over {
				t.Errorf("%s: over %v\ngot  %s\nwant %s", what, over, got, tc.want)
			}
		}
		cancel()
		synctest.Wait()
		for _, ch := range []<-chan jobs.Transition{line, tenant, all, e.Watch(ctx, "", "")} {
			if got, over := heard(ch); got != "" || !over {
				t.Errorf("after the end: %q, over %v", got, over)
			}
		}
		enqueue(t, e, jobs.NewJob{Queue: "p", Tenant: "t"}) // tells nobody
	})
}

// TestSlowReadersAreLeft: he hears nothing wrong, and that he missed something; others go on.
func TestSlowReadersAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		slow, quick := e.Watch(t.Context(), "t", "q"), e.Watch(t.Context(), "t", "q")
		n := 0
		for range 3 {
			enqueue(t, e, make100(t)...)
			for len(quick) > 0 {
				<-quick
				n++
			}
		}
		if n != 300 {
			t.Errorf("the quick one heard %d", n)
		}
		n = 0
		for range slow { // ends, for it is closed
			n++
		}
		if n != 256 {
			t.Errorf("the slow one heard %d", n)
		}
		fatalIf(t, e.Close())
		if _, over := heard(quick); !over {
			t.Error("the engine is closed and the channel is not")
		}
		if _, over := heard(e.Watch(t.Context(), "t", "q")); !over {
			t.Error("a closed engine tells something")
		}
	})
}

func make100(testing.TB) (js []jobs.NewJob) {
	for range 100 {
		js = append(js, jobs.NewJob{Queue: "q", Tenant: "t"})
	}
	return js
}

func TestWatchersAreBounded(t *testing.T) {
	e, _ := open(t, oneQueue())
	ctx, cancel := context.WithCancel(t.Context())
	for range 1024 {
		if _, over := heard(e.Watch(ctx, "t", "q")); over {
			t.Fatal("refused too early")
		}
	}
	if _, over := heard(e.Watch(ctx, "t", "q")); !over {
		t.Error("one too many")
	}
	cancel()
	until(t, func() bool { _, over := heard(e.Watch(t.Context(), "t", "q")); return !over })
}

// TestRates: what QueueInfo says comes from what happened.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		for range 60 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", Delay: time.Minute}, jobs.NewJob{Queue: "q", Tenant: "u", Attempts: 1})
			time.Sleep(time.Second)
		}
		run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 200, Handler: func(_ context.Context, j *jobs.Job) error {
			time.Sleep(2 * time.Second)
			if j.Tenant == "u" {
				return errors.New("bad")
			}
			return nil
		}})
		time.Sleep(57 * time.Second)
		near := func(got, want float64) bool { return got > 0.85*want && got < 1.15*want }
		for tenant, want := range map[string]jobs.QueueRates{
			"t": {Added: 0.05, Started: 0.95, Completed: 0.92, RunP50: 2 * time.Second, RunP99: 2 * time.Second},
			"u": {Added: 0.05, Started: 1, Failed: 1, WaitP50: 30 * time.Second, WaitP99: 60 * time.Second, RunP50: 2 * time.Second, RunP99: 2 * time.Second},
			"":  {Added: 0.1, Started: 1.95, Completed: 0.92, Failed: 1, WaitP50: 0, WaitP99: 60 * time.Second, RunP50: 2 * time.Second, RunP99: 2 * time.Second},
		} {
			q, err := e.Queue(tenant, "q")
			fatalIf(t, err)
			got := q.Rates
			for what, pair := range map[string][2]float64{
				"started": {got.Started, want.Started}, "completed": {got.Completed, want.Completed}, "failed": {got.Failed, want.Failed},
				"wait p99": {got.WaitP99.Seconds(), want.WaitP99.Seconds()}, "run p50": {got.RunP50.Seconds(), want.RunP50.Seconds()},
				"run p99": {got.RunP99.Seconds(), want.RunP99.Seconds()},
			} {
				if !near(pair[0], pair[1]) && max(pair[0], pair[1]) > 0.001 {
					t.Errorf("tenant %q, %s: %v, want %v", tenant, what, pair[0], pair[1])
				}
			}
			if got.Added > 0.2 {
				t.Errorf("tenant %q: %+v; what was added, was added more than a minute ago", tenant, got)
			}
		}
	})
}
