package jobs_test

import (
	"testing"

	"tenderbox/jobs"
)

// A queue is clear for a tenant if a job of his would be leased at once.
func TestClear(t *testing.T) {
	e, _ := open(t, oneQueue())
	want := func(clear bool, why string) {
		t.Helper()
		if got := e.Clear("t", "q"); got != clear {
			t.Errorf("%s: clear is %v", why, got)
		}
	}
	want(true, "empty")
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "other"})
	want(true, "another tenant's job waits")
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "later", Delay: 1 << 40})
	want(true, "one is put off")
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "1"})
	want(false, "one waits")
	fatalIf(t, e.Remove(t.Context(), "t", "q", "1"))
	want(true, "it was removed")
	for _, tenant := range []string{"", "t"} {
		fatalIf(t, e.Pause(t.Context(), tenant, "q"))
		want(false, "paused")
		fatalIf(t, e.Resume(t.Context(), tenant, "q"))
		want(true, "resumed")
	}
	for _, l := range []jobs.Limits{{Active: 1}, {TenantActive: 1}, {Rate: jobs.RateLimit{Count: 1, Per: 1 << 30}}, {TenantRate: jobs.RateLimit{Count: 1, Per: 1 << 30}}} {
		fatalIf(t, e.Limit(t.Context(), "q", l))
		want(false, "limited")
	}
	fatalIf(t, e.Limit(t.Context(), "q", jobs.Limits{}))
	want(true, "limited no more")
	if e.Clear("t", "unknown") {
		t.Error("a queue that is not there is clear")
	}
}
