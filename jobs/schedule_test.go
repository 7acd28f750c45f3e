package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
)

func TestDelayedJobsRunWhenDue(t *testing.T) {
	t.Parallel() // its time goes into commits
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		start := time.Now()
		ran := make(chan string, 9)
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(_ context.Context, j *jobs.Job) error {
			ran <- fmt.Sprint(j.ID, " after ", time.Since(start))
			return nil
		}})
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "late", Delay: 48 * time.Hour}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "soon", Delay: time.Second})
		if j := get(t, e, "late"); j.State != jobs.Delayed || !j.RunAt.Equal(start.Add(48*time.Hour)) {
			t.Errorf("%+v", j)
		}
		for _, want := range []string{"soon after 1s", "late after 48h0m0s"} {
			if got := <-ran; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		stop()
	})
}

func TestDelayedJobsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Delay: time.Hour})
		fatalIf(t, e.Close())
		time.Sleep(2 * time.Hour)
		e = openOn(t, s, oneQueue())
		until(t, func() bool { return get(t, e, "a").State == jobs.Waiting })
	})
}

// All that is put off of one tenant, or of all, becomes due, however often it has failed.
func TestPromoteAll(t *testing.T) {
	e, _ := open(t, oneQueue())
	for i := range 5 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "a", Delay: time.Hour, ID: fmt.Sprint(i)}, jobs.NewJob{Queue: "q", Tenant: "b", Delay: time.Hour})
	}
	if _, err := e.PromoteAll(t.Context(), "a", "nothing"); !errors.Is(err, jobs.ErrUnknownQueue) {
		t.Errorf("an unknown queue: %v", err)
	}
	for _, c := range []struct {
		tenant string
		want   int
	}{{"c", 0}, {"a", 5}, {"a", 0}, {"", 5}, {"", 0}} {
		if n, err := e.PromoteAll(t.Context(), c.tenant, "q"); n != c.want || err != nil {
			t.Errorf("of %q: %d, %v, want %d", c.tenant, n, err, c.want)
		}
	}
	if s := e.Stats()[0]; s.Waiting != 10 || s.Delayed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestPromoteDelayed(t *testing.T) {
	e, _ := open(t, oneQueue())
	var js []jobs.NewJob
	for i := range 2500 { // more than two batches
		js = append(js, jobs.NewJob{Queue: "q", Tenant: []string{"a", "b"}[i%2], Delay: time.Hour + time.Duration(i)})
	}
	enqueue(t, e, js...)
	n, err := e.PromoteDelayed(t.Context(), "q", func(tenant string) bool { return tenant == "a" }, 0)
	if err != nil || n != 1250 {
		t.Errorf("%d, %v", n, err)
	}
	if st := stats(t, e); st.Waiting != 1250 || st.Delayed != 1250 {
		t.Errorf("%+v", st)
	}
	if n, err := e.PromoteDelayed(t.Context(), "q", nil, 0); err != nil || n != 1250 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := e.PromoteDelayed(t.Context(), "q", nil, 0); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := e.PromoteDelayed(t.Context(), "none", nil, 0); !errors.Is(err, jobs.ErrUnknownQueue) {
		t.Errorf("%v", err)
	}
}

// Jobs that fail time and again wait out their backoff.
func TestPromoteDelayedLeavesThoseThatFail(t *testing.T) {
	e, _ := open(t, oneQueue())
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "a", ID: "fails", Attempts: -1}, jobs.NewJob{Queue: "q", Tenant: "a", ID: "once", Attempts: -1, Priority: 1})
	hour := time.Hour
	fail := func(id string) {
		t.Helper()
		js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "a"})
		if err != nil || len(js) != 1 || js[0].ID != id {
			t.Fatalf("leased %+v, %v", js, err)
		}
		if _, err := e.Fail(t.Context(), jobs.LeaseRef{Tenant: "a", Queue: "q", ID: id, Token: js[0].LeaseToken}, "no", true, &hour); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		fail("fails")
		if n, err := e.PromoteDelayed(t.Context(), "q", nil, 3); err != nil || n != 1 {
			t.Fatalf("%d promoted, %v", n, err)
		}
	}
	fail("fails")
	fail("once")
	if n, err := e.PromoteDelayed(t.Context(), "q", nil, 3); err != nil || n != 1 {
		t.Fatalf("%d promoted, %v", n, err)
	}
	for id, want := range map[string]jobs.State{"fails": jobs.Delayed, "once": jobs.Waiting} {
		if j, err := e.Get("a", "q", id); err != nil || j.State != want {
			t.Errorf("%s is %s, %v", id, j.State, err)
		}
	}
}
