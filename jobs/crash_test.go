package jobs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// crash copies the file as it is on disk and opens an engine on the copy, as after a kill.
func crash(t *testing.T, s *store.Store, o jobs.Options) (*jobs.Engine, *store.Store) {
	t.Helper()
	var buf bytes.Buffer
	_, err := s.Backup(&buf)
	fatalIf(t, err)
	path := filepath.Join(t.TempDir(), "jobs.db")
	fatalIf(t, os.WriteFile(path, buf.Bytes(), 0o600))
	s = storetest.Reopen(t, path, store.Options{})
	return openOn(t, s, o), s
}

// TestPoison: a job that kills the process each time it runs is failed when its attempts are used up. Without a limit it
// backs off, so that the rest of the box can live.
func TestPoison(t *testing.T) {
	for _, attempts := range []int{3, -1} {
		t.Run(fmt.Sprint(attempts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, s := open(t, oneQueue())
				enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "poison", Attempts: attempts},
					jobs.NewJob{Queue: "q", Tenant: "t", ID: "innocent", Delay: time.Millisecond})
				kills := 0
				start := time.Now()
				for life := range 6 {
					began := make(chan struct{}, 1)
					leave := make(chan struct{})
					var once sync.Once
					t.Cleanup(func() { once.Do(func() { close(leave) }) })
					run(t, e, jobs.RunnerOptions{Queue: "q", DrainTimeout: -1, Handler: func(_ context.Context, j *jobs.Job) error {
						if j.ID == "poison" {
							began <- struct{}{}
							<-leave // dead, as far as the next life knows
						}
						return nil
					}})
					select {
					case <-began:
						kills++
						time.Sleep(time.Second) // the start is on disk
					case <-time.After(time.Hour):
						if j := get(t, e, "poison"); attempts > 0 && (j.State != jobs.Failed || j.LastError != "the process ended during attempt 3") {
							t.Errorf("%+v", j)
						}
					}
					if life > 0 && get(t, e, "innocent").State != jobs.Completed {
						t.Error("the poison stopped the queue")
					}
					old := e
					e, s = crash(t, s, oneQueue())
					once.Do(func() { close(leave) })
					_ = old
				}
				if attempts > 0 && kills != 3 {
					t.Errorf("%d kills", kills)
				}
				// Kills 1 and 2 at once, then 4, 8, 16 and 32 s of rest before the others.
				if d := time.Since(start); attempts < 0 && (kills != 6 || d < 60*time.Second) {
					t.Errorf("%d kills within %v", kills, d)
				}
			})
		})
	}
}

// TestACrashForgetsLeasesOnly: what was active is waiting again, at its old place, with its attempt counted.
func TestACrashForgetsLeasesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		for i := range 4 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i)})
		}
		began, leave := make(chan struct{}, 9), make(chan struct{})
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 2, Handler: func(context.Context, *jobs.Job) error {
			began <- struct{}{}
			<-leave
			return nil
		}})
		<-began
		<-began
		time.Sleep(time.Second) // the starts are written in passing
		e2, _ := crash(t, s, oneQueue())
		var order []string
		stop2 := run(t, e2, jobs.RunnerOptions{Queue: "q", Concurrency: 1, Handler: func(_ context.Context, j *jobs.Job) error {
			order = append(order, fmt.Sprint(j.ID, "/", j.AttemptsMade))
			return nil
		}})
		time.Sleep(time.Second)
		stop2()
		if got := strings.Join(order, " "); got != "0/2 1/2 2/1 3/1" {
			t.Errorf("ran %s", got)
		}
		close(leave)
		stop()
	})
}

// TestStartsAreWaitedForAfterAnUncleanEnd: the attempt is on disk before the handler is called.
func TestStartsAreWaitedForAfterAnUncleanEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := open(t, oneQueue())
		e, s := crash(t, s, oneQueue())
		onDisk := func() (made int) {
			e, _ := crash(t, s, oneQueue())
			return get(t, e, "a").AttemptsMade
		}
		var seen []int
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(_ context.Context, j *jobs.Job) error {
			seen = append(seen, onDisk())
			return nil
		}})
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", RemoveOnComplete: jobs.Retention{Remove: true}})
		time.Sleep(10 * time.Minute)
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"})
		time.Sleep(time.Minute)
		stop()
		if fmt.Sprint(seen) != "[1 0]" {
			t.Errorf("attempts on disk when the handler ran: %v, want 1 at first and 0 after ten clean minutes", seen)
		}
	})
}

func TestAnOrderlyEndIsClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		fatalIf(t, e.Close())
		e = openOn(t, s, oneQueue())
		before := s.Stats().Commits
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t"})
		done := make(chan struct{})
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error { close(done); return nil }})
		<-done
		stop()
		if n := s.Stats().Commits - before; n > 2 {
			t.Errorf("%d commits for enqueue and outcome", n)
		}
	})
}
