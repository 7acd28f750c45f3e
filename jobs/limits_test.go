package jobs_test

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
)

func limited(l jobs.Limits) jobs.Options {
	return jobs.Options{Queues: []jobs.QueueConfig{{Name: "q", Limits: l}}}
}

// TestActiveLimits: a runner and workers outside together never have more than the caps, and go on as soon as one is given back.
func TestActiveLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, limited(jobs.Limits{Active: 3, TenantActive: 2}))
		for i := range 4 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "a", ID: fmt.Sprint("a", i)}, jobs.NewJob{Queue: "q", Tenant: "b", ID: fmt.Sprint("b", i)})
		}
		js := lease(t, e, jobs.LeaseRequest{Max: 9, For: time.Minute, Tenant: "a"}, "a0", "a1")
		js = append(js, lease(t, e, jobs.LeaseRequest{Max: 9, For: time.Minute}, "b0")...)
		lease(t, e, jobs.LeaseRequest{Max: 9})
		woken := make(chan string, 9)
		for range 2 {
			go func() {
				js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: 9, Wait: 30 * time.Second})
				if err != nil || len(js) != 1 {
					t.Errorf("%v, %+v", err, js)
					return
				}
				woken <- js[0].ID
			}()
		}
		synctest.Wait()
		complete := func(j jobs.Job) {
			_, err := e.Complete(t.Context(), ref(j), nil)
			fatalIf(t, err)
			synctest.Wait()
		}
		complete(js[2])
		if id := <-woken; id != "b1" { // a is still at its own cap
			t.Errorf("leased %s", id)
		}
		complete(js[0])
		if id := <-woken; id != "a2" && id != "b2" {
			t.Errorf("leased %s", id)
		}
		complete(js[1])
		var most, now, total atomic.Int32
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 8, Handler: func(context.Context, *jobs.Job) error {
			most.Store(max(most.Load(), now.Add(1)))
			runtime.Gosched()
			time.Sleep(time.Second)
			now.Add(-1)
			total.Add(1)
			return nil
		}})
		time.Sleep(time.Hour)
		stop()
		if most.Load() > 3 || stats(t, e).Completed != 8 {
			t.Errorf("%d at a time, %+v", most.Load(), stats(t, e))
		}
	})
}

// TestRateLimits counts starts over time in a bubble: exact, whoever leases.
func TestRateLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		l    jobs.Limits
		want map[time.Duration]int // starts so far
	}{
		"queue":  {jobs.Limits{Rate: jobs.RateLimit{Count: 10}}, map[time.Duration]int{0: 10, 99 * time.Millisecond: 10, 101 * time.Millisecond: 11, 10001 * time.Millisecond: 110}},
		"tenant": {jobs.Limits{TenantRate: jobs.RateLimit{Count: 5, Per: time.Minute}}, map[time.Duration]int{0: 10, 11 * time.Second: 10, 13 * time.Second: 12, 61 * time.Second: 20}},
		"both": {jobs.Limits{Rate: jobs.RateLimit{Count: 3, Per: time.Second}, TenantRate: jobs.RateLimit{Count: 1, Per: 10 * time.Second}},
			map[time.Duration]int{0: 2, 9 * time.Second: 2, 10001 * time.Millisecond: 4, 20001 * time.Millisecond: 6}},
	} {
		for _, outside := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " outside=", outside), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					e, _ := open(t, limited(tc.l))
					var js []jobs.NewJob
					for i := range 400 {
						js = append(js, jobs.NewJob{Queue: "q", Tenant: []string{"a", "b"}[i%2]})
					}
					enqueue(t, e, js...)
					var started atomic.Int32
					if outside {
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						for range 4 {
							go func() {
								for ctx.Err() == nil {
									js, _ := e.Lease(ctx, jobs.LeaseRequest{Queue: "q", Max: 7, For: time.Hour, Wait: time.Minute})
									started.Add(int32(len(js)))
								}
							}()
						}
					} else {
						run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 7, Handler: func(context.Context, *jobs.Job) error { started.Add(1); return nil }})
					}
					for at := range 70_001 { // every millisecond
						synctest.Wait()
						if want, ok := tc.want[time.Duration(at)*time.Millisecond]; ok && int(started.Load()) != want {
							t.Errorf("after %d ms: %d started, want %d", at, started.Load(), want)
						}
						time.Sleep(time.Millisecond)
					}
				})
			})
		}
	}
}

// TestLimitsOfAnOwnQueue take effect when they are declared, loosened, and after a restart.
func TestLimitsOfAnOwnQueue(t *testing.T) {
	e, s := open(t, oneQueue())
	declare := func(l jobs.Limits) {
		_, err := e.Declare(t.Context(), "t", "own", jobs.Defaults{}, l)
		fatalIf(t, err)
	}
	leased := func() int {
		js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "own", Tenant: "t", Max: 100, For: time.Hour})
		fatalIf(t, err)
		return len(js)
	}
	declare(jobs.Limits{Active: 5, TenantActive: 3})
	for range 50 {
		enqueue(t, e, jobs.NewJob{Queue: "own", Tenant: "t"})
	}
	got := []int{leased(), leased()}
	declare(jobs.Limits{Active: 4})
	got = append(got, leased())
	fatalIf(t, e.Close())
	e = openOn(t, s, oneQueue())
	got = append(got, leased())
	declare(jobs.Limits{Rate: jobs.RateLimit{Count: 6, Per: time.Hour}, TenantRate: jobs.RateLimit{Count: 7, Per: time.Hour}})
	got = append(got, leased(), leased())
	declare(jobs.Limits{})
	got = append(got, leased())
	if fmt.Sprint(got) != "[3 0 1 0 6 0 40]" {
		t.Errorf("leased %v", got)
	}
}
