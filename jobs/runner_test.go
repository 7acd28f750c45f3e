package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
)

// run starts a runner; stop ends it and wants a clean drain.
func run(t testing.TB, e *jobs.Engine, o jobs.RunnerOptions) (stop func()) {
	t.Helper()
	r, err := e.NewRunner(o)
	fatalIf(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// until waits for a condition that another goroutine brings about soon. It yields instead of sleeping.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("it did not happen within a minute")
		}
	}
}

var errBad = errors.New("bad")

// TestWishes: what a handler returns, and what becomes of the job after one attempt and in the end.
func TestWishes(t *testing.T) {
	for name, tc := range map[string]struct {
		handler          func(ctx context.Context, attempt int) error
		calls            int
		state            jobs.State
		made             int
		lastError, reply string
		took             time.Duration
	}{
		"nil":          {func(context.Context, int) error { return nil }, 1, jobs.Completed, 1, "", "", 0},
		"done":         {func(context.Context, int) error { return jobs.Done([]byte("r")) }, 1, jobs.Completed, 1, "", "r", 0},
		"wrapped done": {func(context.Context, int) error { return fmt.Errorf("x: %w", jobs.Done(nil)) }, 1, jobs.Completed, 1, "", "", 0},
		"error":        {func(context.Context, int) error { return errBad }, 3, jobs.Failed, 3, "bad", "", 6 * time.Second},
		"then well":    {func(_ context.Context, n int) error { return []error{errBad, nil}[n-1] }, 2, jobs.Completed, 2, "bad", "", 2 * time.Second},
		"cancel":       {func(context.Context, int) error { return jobs.Cancel(errBad) }, 1, jobs.Failed, 1, "bad", "", 0},
		"panic":        {func(context.Context, int) error { panic("ouch") }, 3, jobs.Failed, 3, "panic: ouch", "", 6 * time.Second},
		"goexit":       {func(context.Context, int) error { runtime.Goexit(); return nil }, 3, jobs.Failed, 3, "the handler ended its goroutine", "", 6 * time.Second},
		"timeout":      {func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, 3, jobs.Failed, 3, "context deadline exceeded", "", 36 * time.Second},
		"snooze":       {func(_ context.Context, n int) error { return []error{jobs.Snooze(time.Hour), jobs.Snooze(0), nil}[n-1] }, 3, jobs.Completed, 1, "", "", time.Hour + 10*time.Millisecond},
		"snooze, error": {func(_ context.Context, n int) error {
			return []error{jobs.Snooze(time.Minute), errBad, errBad, errBad}[n-1]
		}, 4, jobs.Failed, 3, "bad", "", time.Minute + 6*time.Second},
		"retry in": {func(_ context.Context, n int) error {
			return []error{fmt.Errorf("x: %w", jobs.RetryIn(time.Hour, errBad)), jobs.RetryIn(-1, nil), jobs.RetryIn(time.Hour, errBad)}[n-1]
		}, 3, jobs.Failed, 3, "bad", "", time.Hour},
		"retry in, well": {func(_ context.Context, n int) error { return []error{jobs.RetryIn(time.Minute, errBad), nil}[n-1] }, 2, jobs.Completed, 2, "bad", "", time.Minute},
		"long error":     {func(context.Context, int) error { return jobs.Cancel(errors.New(strings.Repeat("é", 2000))) }, 1, jobs.Failed, 1, strings.Repeat("é", 512) + "…", "", 0},
		"huge result":    {func(context.Context, int) error { return jobs.Done(make([]byte, 1<<20+1)) }, 1, jobs.Failed, 1, "result of 1048577 bytes, up to 1048576 are kept", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, _ := open(t, oneQueue())
				calls := 0
				start := time.Now()
				enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Timeout: 10 * time.Second})
				stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(ctx context.Context, j *jobs.Job) error {
					calls++
					return tc.handler(ctx, calls)
				}})
				var j jobs.Job
				for range 1000 {
					time.Sleep(10 * time.Second)
					if j = get(t, e, "a"); j.State == tc.state {
						break
					}
				}
				stop()
				if j.State != tc.state || calls != tc.calls || j.AttemptsMade != tc.made || j.LastError != tc.lastError || string(j.Result) != tc.reply {
					t.Errorf("%d calls, %+v", calls, j)
				}
				if took := j.FinishedAt.Sub(start); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
			})
		})
	}
}

func TestLowerPriorityFirstThenOlder(t *testing.T) {
	e, _ := open(t, oneQueue())
	var want []string
	for i, p := range []int{5, -1 << 31, 0, 5, 1<<31 - 1, -1, 0} {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i), Priority: p})
	}
	want = []string{"1", "5", "2", "6", "0", "3", "4"}
	got := make(chan string, 9)
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 1, Handler: func(_ context.Context, j *jobs.Job) error { got <- j.ID; return nil }})
	for i, w := range want {
		if id := <-got; id != w {
			t.Errorf("turn %d: job %s, want %s", i, id, w)
		}
	}
	stop()
}

// TestTenantsTakeTurns: whoever has a thousand jobs waiting does not keep others from theirs. Turns are told by the leases' tokens, which count up: in which
// order goroutines that have their jobs get to run is not the queue's to say.
func TestTenantsTakeTurns(t *testing.T) {
	for _, concurrency := range []int{1, 7, 64} {
		t.Run(fmt.Sprint(concurrency), func(t *testing.T) {
			e, _ := open(t, oneQueue())
			var flood []jobs.NewJob
			for range 1000 {
				flood = append(flood, jobs.NewJob{Queue: "q", Tenant: "big", Priority: -1})
			}
			enqueue(t, e, flood...)
			for _, small := range []string{"a", "b", "c"} {
				for range 10 {
					enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: small})
				}
			}
			var mu sync.Mutex
			n, last := 0, int64(0)
			stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: concurrency, Handler: func(_ context.Context, j *jobs.Job) error {
				turn, err := strconv.ParseInt(j.LeaseToken, 36, 64)
				mu.Lock()
				defer mu.Unlock()
				if n++; j.Tenant != "big" {
					last = max(last, turn)
				}
				return err
			}})
			until(t, func() bool { mu.Lock(); defer mu.Unlock(); return n == 1030 })
			stop()
			if most := 4*10 + 2*concurrency; last > int64(most) {
				t.Errorf("a small tenant's last job ran as number %d, want at most %d", last, most)
			}
		})
	}
}

func TestTenantMax(t *testing.T) {
	e, _ := open(t, oneQueue())
	for range 20 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "slow"}, jobs.NewJob{Queue: "q", Tenant: "fast"})
	}
	var slow, most, total atomic.Int32
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 8, TenantMax: 2, Handler: func(_ context.Context, j *jobs.Job) error {
		defer total.Add(1)
		if j.Tenant == "slow" {
			most.Store(max(most.Load(), slow.Add(1)))
			defer slow.Add(-1)
			runtime.Gosched()
		}
		return nil
	}})
	until(t, func() bool { return total.Load() == 40 })
	stop()
	if most.Load() > 2 {
		t.Errorf("%d at a time", most.Load())
	}
}

func TestRetention(t *testing.T) {
	for name, tc := range map[string]struct {
		keep jobs.Retention
		want string // ids kept of 0…19, one a minute
	}{
		"default":   {jobs.Retention{}, "10 11 12 13 14 15 16 17 18 19"},
		"three":     {jobs.Retention{Count: 3}, "17 18 19"},
		"none":      {jobs.Retention{Remove: true}, ""},
		"all":       {jobs.Retention{Count: -1}, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19"},
		"by age":    {jobs.Retention{Count: -1, Age: 150 * time.Second}, "17 18 19"},
		"by either": {jobs.Retention{Count: 2, Age: time.Hour}, "18 19"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, s := open(t, oneQueue())
				stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error { return nil }})
				for i := range 20 {
					enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i), RemoveOnComplete: tc.keep})
					time.Sleep(time.Minute)
				}
				var kept []string
				for i := range 20 {
					if _, err := e.Get("t", "q", fmt.Sprint(i)); err == nil {
						kept = append(kept, fmt.Sprint(i))
					}
				}
				if got := strings.Join(kept, " "); got != tc.want {
					t.Errorf("kept %s", got)
				}
				if n := stats(t, e).Completed; n != len(kept) {
					t.Errorf("counted %d", n)
				}
				stop()
				fatalIf(t, e.Close())
				if n := stats(t, openOn(t, s, oneQueue())).Completed; n != len(kept) {
					t.Errorf("counted %d after a restart", n)
				}
			})
		})
	}
}

// TestFailedDerivesJobs: the job that tells of a failure is enqueued in the transaction of the failure.
func TestFailedDerivesJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}, {Name: "events"}}, Failed: func(j jobs.Job) []jobs.NewJob {
			return []jobs.NewJob{{Queue: "none"}, {Queue: "events", Tenant: j.Tenant, ID: "failed-" + j.ID, Data: []byte(j.LastError)}}
		}}
		e, _ := open(t, o)
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Attempts: 2})
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error { return errBad }})
		time.Sleep(time.Minute)
		stop()
		j, err := e.Get("t", "events", "failed-a")
		if err != nil || string(j.Data) != "bad" || get(t, e, "a").State != jobs.Failed {
			t.Errorf("%+v, %v", j, err)
		}
	})
}

func TestDrainWaitsForRunningJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"})
		began := make(chan struct{})
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 1, Handler: func(ctx context.Context, _ *jobs.Job) error {
			close(began)
			time.Sleep(9 * time.Second)
			return ctx.Err()
		}})
		<-began
		if j := get(t, e, "a"); j.State != jobs.Active || j.AttemptsMade != 1 {
			t.Errorf("%+v", j)
		}
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "b"})
		stop()
		if a, b := get(t, e, "a"), get(t, e, "b"); a.State != jobs.Completed || b.State != jobs.Waiting || b.AttemptsMade != 0 {
			t.Errorf("%+v\n%+v", a, b)
		}
	})
}

func TestDrainReleasesWhatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Attempts: 1})
		began := make(chan struct{})
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", DrainTimeout: time.Second, Handler: func(ctx context.Context, _ *jobs.Job) error {
			close(began)
			<-ctx.Done()
			return ctx.Err()
		}})
		<-began
		start := time.Now()
		stop()
		if d := time.Since(start); d != time.Second {
			t.Errorf("took %v", d)
		}
		if j := get(t, e, "a"); j.State != jobs.Waiting || j.AttemptsMade != 0 {
			t.Errorf("%+v", j)
		}
		ran := make(chan struct{}, 1)
		run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error { ran <- struct{}{}; return nil }})
		<-ran
	})
}

func TestDrainDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"})
		began, leave := make(chan struct{}), make(chan struct{})
		r, err := e.NewRunner(jobs.RunnerOptions{Queue: "q", DrainTimeout: -1, Handler: func(context.Context, *jobs.Job) error {
			close(began)
			<-leave
			return nil
		}})
		fatalIf(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		<-began
		cancel()
		if err := <-done; !errors.Is(err, jobs.ErrDrain) {
			t.Errorf("got %v", err)
		}
		fatalIf(t, e.Close())
		e = openOn(t, s, oneQueue())
		close(leave) // the old engine's worker comes too late: the old engine's lease is not this one's
		if j := get(t, e, "a"); j.State != jobs.Waiting {
			t.Errorf("%+v", j)
		}
		synctest.Wait()
	})
}

func Example() {
	dir, _ := os.MkdirTemp("", "jobs")
	defer os.RemoveAll(dir)
	s, _ := store.Open(filepath.Join(dir, "jobs.db"), store.Options{})
	defer s.Close()
	e, _ := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: "email"}}})
	defer e.Close()

	ctx, cancel := context.WithCancel(context.Background())
	r, _ := e.NewRunner(jobs.RunnerOptions{Queue: "email", Handler: func(_ context.Context, j *jobs.Job) error {
		fmt.Printf("%s for %s\n", j.Name, j.Data)
		cancel()
		return nil // done; an error would mean: again after the backoff
	}})
	_, _ = e.Enqueue(ctx, jobs.NewJob{Queue: "email", Tenant: "fish-stall", Name: "welcome", Data: []byte("ada@example.com")})
	fmt.Println(r.Run(ctx))
	// Output:
	// welcome for ada@example.com
	// <nil>
}

// TestFailuresDoNotFloodTheLog: an endpoint that is down fails thousands of jobs; the log has the first of them, and later how many more there were.
func TestFailuresDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		o := oneQueue()
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		e, _ := open(t, o)
		fail := func(n int) {
			var js []jobs.NewJob
			for range n {
				js = append(js, jobs.NewJob{Queue: "q", Tenant: "t"})
			}
			enqueue(t, e, js...)
			synctest.Wait()
			time.Sleep(time.Minute)
		}
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error { return jobs.Cancel(errBad) }})
		fail(1000)
		fail(1)
		stop()
		lines := strings.Count(log.String(), "an attempt failed")
		if lines != 21 || strings.Count(log.String(), "withheld=980") != 1 {
			t.Errorf("%d lines of 1001 failures, the last must tell of those withheld:\n%.300s", lines, log.String())
		}
	})
}
