package jobs_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
)

func TestReadyHoldsBackAndBurnsNothing(t *testing.T) {
	t.Parallel() // its time goes into commits
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		var online atomic.Bool
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"}, jobs.NewJob{Queue: "q", Tenant: "other"})
		ran := make(chan string, 9)
		r, err := e.NewRunner(jobs.RunnerOptions{
			Queue: "q", Ready: func(tenant string) bool { return tenant == "other" || online.Load() },
			Handler: func(_ context.Context, j *jobs.Job) error { ran <- j.Tenant; return nil },
		})
		fatalIf(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		if tenant := <-ran; tenant != "other" {
			t.Fatalf("%s ran", tenant)
		}
		time.Sleep(24 * time.Hour)
		if j := get(t, e, "a"); len(ran) != 0 || j.State != jobs.Waiting || j.AttemptsMade != 0 {
			t.Fatalf("%+v", j)
		}
		online.Store(true)
		start := time.Now()
		r.Poke()
		<-ran
		if d := time.Since(start); d != 0 {
			t.Errorf("ran %v after the poke", d)
		}
		online.Store(false)
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t"})
		time.Sleep(time.Minute)
		online.Store(true) // and nobody pokes
		start = time.Now()
		<-ran
		if d := time.Since(start); d > time.Second {
			t.Errorf("ran %v later", d)
		}
		cancel()
		fatalIf(t, <-done)
	})
}

// What is shared is leased no further than its room, tenants that share it in turn, and leaves the slots to others; when the room
// grows, more is leased.
func TestShareLeavesSlotsToOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		for range 40 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "slow-a"}, jobs.NewJob{Queue: "q", Tenant: "slow-b"})
		}
		var mu sync.Mutex
		active, most, ran := map[string]int{}, 0, []string{}
		room := 4
		stop := run(t, e, jobs.RunnerOptions{
			Queue: "q", Concurrency: 20,
			Share: func(tenant string) (any, int) {
				if tenant == "free" {
					return nil, 0
				}
				mu.Lock()
				defer mu.Unlock()
				return "account", room
			},
			Handler: func(ctx context.Context, j *jobs.Job) error {
				mu.Lock()
				ran = append(ran, j.Tenant)
				active[j.Tenant]++
				most = max(most, active["slow-a"]+active["slow-b"])
				mu.Unlock()
				if j.Tenant != "free" {
					time.Sleep(time.Second)
				}
				mu.Lock()
				active[j.Tenant]--
				mu.Unlock()
				return nil
			},
		})
		synctest.Wait()
		mu.Lock()
		if active["slow-a"] != 2 || active["slow-b"] != 2 {
			t.Errorf("active %v, want the room of 4 in equal parts", active)
		}
		mu.Unlock()
		from := time.Now()
		for range 100 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "free"})
		}
		synctest.Wait()
		mu.Lock()
		if d := time.Since(from); d != 0 || len(ran) != 104 {
			t.Errorf("%d ran after %v: who shares nothing waited", len(ran), d)
		}
		room = 10
		mu.Unlock()
		for end := time.Now().Add(time.Minute); e.Stats()[0].Waiting > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		stop()
		mu.Lock()
		defer mu.Unlock()
		if most != 10 || len(ran) != 180 {
			t.Errorf("at most %d at a time, want 10; %d ran", most, len(ran))
		}
		if d := time.Since(from); d > 11*time.Second {
			t.Errorf("took %v: the room was not used", d)
		}
		behind := 0
		for _, tenant := range ran {
			if tenant == "slow-a" {
				behind++
			} else if tenant == "slow-b" {
				behind--
			}
			if behind > 10 || behind < -10 {
				t.Fatalf("not in turn: %v", ran)
			}
		}
	})
}

// Where there is room for one, tenants take it in turn, too.
func TestShareOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		for range 10 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "a"}, jobs.NewJob{Queue: "q", Tenant: "b"})
		}
		ran := make(chan string, 20)
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Share: func(string) (any, int) { return 1, 1 },
			Handler: func(_ context.Context, j *jobs.Job) error { ran <- j.Tenant; time.Sleep(time.Second); return nil }})
		time.Sleep(30 * time.Second)
		stop()
		if len(ran) != 20 {
			t.Fatalf("%d ran", len(ran))
		}
		for range 10 {
			if one, other := <-ran, <-ran; one == other {
				t.Fatalf("%s ran twice in a row", one)
			}
		}
	})
}

func TestReadyPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t"})
		asked, ran := 0, make(chan struct{}, 1)
		stop := run(t, e, jobs.RunnerOptions{
			Queue: "q", Handler: func(context.Context, *jobs.Job) error { ran <- struct{}{}; return nil },
			Ready: func(string) bool {
				if asked++; asked < 3 {
					panic("ouch")
				}
				return true
			},
		})
		<-ran
		stop()
	})
}
