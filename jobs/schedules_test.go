package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// clock is a machine's clock that somebody sets.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time        { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) set(by time.Duration)  { c.ahead.Add(int64(by)) }
func (c *clock) options() jobs.Options { return jobs.Options{Queues: oneQueue().Queues, Now: c.now} }
func put(t testing.TB, e *jobs.Engine, s jobs.Schedule) jobs.Schedule {
	t.Helper()
	if s.Queue == "" {
		s.Tenant, s.Queue = "t", "q"
	}
	out, err := e.PutSchedule(t.Context(), s)
	fatalIf(t, err)
	return out
}

func schedule(t testing.TB, e *jobs.Engine, id string) jobs.Schedule {
	t.Helper()
	s, err := e.GetSchedule("t", "q", id)
	fatalIf(t, err)
	return s
}

// listed returns the ids of a tenant's waiting jobs, oldest first.
func listed(t testing.TB, e *jobs.Engine) (ids []string) {
	t.Helper()
	for o := (jobs.ListOptions{Limit: 100}); ; {
		page, err := e.List("t", "q", jobs.Waiting, o)
		fatalIf(t, err)
		for _, j := range page.Jobs {
			ids = append(ids, j.ID)
		}
		if o.After = page.Next; o.After == "" {
			slices.Reverse(ids)
			return ids
		}
	}
}

// A bubble's clock begins at midnight UTC, 2000-01-01.

func TestAScheduleMakesAJobAnOccurrence(t *testing.T) {
	t.Parallel() // its time goes into commits
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		got := put(t, e, jobs.Schedule{ID: "report", Cron: "30 9 * * *", TimeZone: "Europe/Berlin", Job: jobs.NewJob{Name: "report", Data: []byte("all"), Priority: 3}})
		if want := time.Date(2000, 1, 1, 8, 30, 0, 0, time.UTC); !got.NextAt.Equal(want) || got.Missed != jobs.RunOnce || !got.CreatedAt.Equal(time.Now()) {
			t.Errorf("%+v", got)
		}
		time.Sleep(9 * time.Hour)
		j := get(t, e, "report@20000101T083000Z")
		if j.Name != "report" || string(j.Data) != "all" || j.Priority != 3 || j.Attempts != 3 || !j.CreatedAt.Equal(time.Date(2000, 1, 1, 8, 30, 0, 0, time.UTC)) {
			t.Errorf("%+v", j)
		}
		time.Sleep(24 * time.Hour)
		fatalIf(t, e.Close())
		e = openOn(t, s, oneQueue())
		time.Sleep(24 * time.Hour)
		if ids := strings.Join(listed(t, e), " "); ids != "report@20000101T083000Z report@20000102T083000Z report@20000103T083000Z" {
			t.Errorf("%v", ids)
		}
		got = schedule(t, e, "report")
		if !got.LastAt.Equal(time.Date(2000, 1, 3, 8, 30, 0, 0, time.UTC)) || got.LastJobID != "report@20000103T083000Z" || got.LastError != "" {
			t.Errorf("%+v", got)
		}
	})
}

func TestIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		time.Sleep(1500 * time.Millisecond)
		put(t, e, jobs.Schedule{ID: "tick", Every: 20 * time.Second})
		time.Sleep(time.Minute)
		if ids := strings.Join(listed(t, e), " "); ids != "tick@20000101T000021Z tick@20000101T000041Z tick@20000101T000101Z" {
			t.Errorf("%v", ids)
		}
	})
}

func TestMissedOccurrences(t *testing.T) {
	for missed, want := range map[jobs.Missed][]int{jobs.RunOnce: {1, 2}, jobs.Skip: {0, 1}} {
		t.Run(string(missed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, s := open(t, oneQueue())
				put(t, e, jobs.Schedule{ID: "hourly", Cron: "0 * * * *", Missed: missed})
				fatalIf(t, e.Close())
				time.Sleep(72*time.Hour + 30*time.Minute)
				e = openOn(t, s, oneQueue())
				time.Sleep(time.Second)
				if n := len(listed(t, e)); n != want[0] {
					t.Errorf("%d jobs for 72 missed occurrences, want %d", n, want[0])
				}
				time.Sleep(time.Hour)
				if n := len(listed(t, e)); n != want[1] {
					t.Errorf("%d jobs an hour later, want %d", n, want[1])
				}
			})
		})
	}
}

// TestClocksThatJump: INV-29.
func TestClocksThatJump(t *testing.T) {
	t.Parallel() // its time goes into commits
	synctest.Test(t, func(t *testing.T) {
		var c clock
		e, s := open(t, c.options())
		put(t, e, jobs.Schedule{ID: "daily", Cron: "0 6 * * *"})
		put(t, e, jobs.Schedule{ID: "minutely", Cron: "* * * * *", Missed: jobs.Skip})
		time.Sleep(7*time.Hour + time.Second)
		made := func() (daily, minutely int) {
			for _, id := range listed(t, e) {
				if strings.HasPrefix(id, "daily") {
					daily++
				} else {
					minutely++
				}
			}
			return daily, minutely
		}
		if d, m := made(); d != 1 || m != 420 {
			t.Fatalf("%d, %d", d, m)
		}
		drain := func() {
			_, err := e.Drain(t.Context(), "t", "q", true)
			fatalIf(t, err)
		}
		drain() // so that a second job of the same occurrence would be a new one

		c.set(-24 * time.Hour)
		time.Sleep(24 * time.Hour)
		if d, m := made(); d != 0 || m != 17*60 { // what is seen again comes again only if it did not come before
			t.Errorf("a day back: %d, %d", d, m)
		}
		drain()
		fatalIf(t, e.Close()) // and over a restart
		c.set(-time.Hour)
		e = openOn(t, s, c.options())
		time.Sleep(time.Hour)
		if d, m := made(); d != 0 || m != 0 {
			t.Errorf("an hour back while it was off: %d, %d", d, m)
		}
		c.set(10 * 365 * 24 * time.Hour)
		time.Sleep(31 * time.Second)          // by then the scheduler looks, jump or not
		if d, m := made(); d != 1 || m != 1 { // the minute that is on time
			t.Errorf("ten years ahead: %d, %d", d, m)
		}
		drain()
		c.set(-10 * 365 * 24 * time.Hour) // it was an error: life goes on where it was
		time.Sleep(24 * time.Hour)
		if d, m := made(); d != 1 || m < 24*60-2 || m > 24*60 {
			t.Errorf("back from there: %d, %d", d, m)
		}
	})
}

func TestEditingKeepsTheSchedule(t *testing.T) {
	t.Parallel() // its time goes into commits
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		first := put(t, e, jobs.Schedule{ID: "s", Every: time.Hour})
		time.Sleep(90 * time.Minute)
		is := put(t, e, jobs.Schedule{ID: "s", Every: time.Hour, Job: jobs.NewJob{Name: "new"}})
		if !is.CreatedAt.Equal(first.CreatedAt) || is.LastJobID != "s@20000101T010000Z" || !is.NextAt.Equal(first.NextAt.Add(time.Hour)) {
			t.Errorf("another job: %+v", is)
		}
		if is = put(t, e, jobs.Schedule{ID: "s", Every: time.Hour, Paused: true}); !is.NextAt.IsZero() || !is.Paused {
			t.Errorf("paused: %+v", is)
		}
		time.Sleep(5 * time.Hour)
		is = put(t, e, jobs.Schedule{ID: "s", Every: time.Hour, Job: jobs.NewJob{Name: "new"}})
		if !is.NextAt.Equal(first.CreatedAt.Add(7*time.Hour)) || len(listed(t, e)) != 1 {
			t.Errorf("a pause makes up for nothing, and keeps the beat: %+v, %v", is, listed(t, e))
		}
		time.Sleep(time.Hour)
		if j := get(t, e, "s@20000101T070000Z"); j.Name != "new" {
			t.Errorf("%+v", j)
		}
		is = put(t, e, jobs.Schedule{ID: "s", Cron: "@daily"})
		if !is.NextAt.Equal(time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)) || is.LastJobID != "s@20000101T070000Z" || !is.CreatedAt.Equal(first.CreatedAt) {
			t.Errorf("another timing: %+v", is)
		}
		fatalIf(t, e.DeleteSchedule(t.Context(), "t", "q", "s"))
		if err := e.DeleteSchedule(t.Context(), "t", "q", "s"); !errors.Is(err, jobs.ErrNotFound) {
			t.Errorf("%v", err)
		}
		if _, err := e.GetSchedule("t", "q", "s"); !errors.Is(err, jobs.ErrNotFound) {
			t.Errorf("%v", err)
		}
		time.Sleep(48 * time.Hour)
		if n := len(listed(t, e)); n != 2 {
			t.Errorf("%d jobs; what was made stays, and no more comes", n)
		}
	})
}

func TestSchedulesBelongToATenant(t *testing.T) {
	e, _ := open(t, oneQueue())
	for _, tenant := range []string{"t", "u", ""} {
		put(t, e, jobs.Schedule{Tenant: tenant, Queue: "q", ID: "a", Every: time.Hour, Job: jobs.NewJob{Name: tenant}})
		put(t, e, jobs.Schedule{Tenant: tenant, Queue: "q", ID: "b", Every: time.Hour})
	}
	for _, tenant := range []string{"t", "u", ""} {
		list, err := e.Schedules(tenant, "q")
		if err != nil || len(list) != 2 || list[0].ID != "a" || list[0].Job.Name != tenant || list[0].Job.Tenant != tenant || list[0].Job.Queue != "q" {
			t.Errorf("%q: %+v, %v", tenant, list, err)
		}
	}
	if _, err := e.GetSchedule("v", "q", "a"); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestInvalidSchedules(t *testing.T) {
	e, _ := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}, {Name: "money", ReadOnly: true}}})
	good := jobs.Schedule{Tenant: "t", Queue: "q", ID: "s", Cron: "* * * * *"}
	for name, tc := range map[string]struct {
		spoil func(s *jobs.Schedule)
		field string
		want  error
	}{
		"no id":         {func(s *jobs.Schedule) { s.ID = "" }, "id", jobs.ErrInvalid},
		"id":            {func(s *jobs.Schedule) { s.ID = "a\x00b" }, "id", jobs.ErrInvalid},
		"long id":       {func(s *jobs.Schedule) { s.ID = strings.Repeat("x", 129) }, "id", jobs.ErrInvalid},
		"tenant":        {func(s *jobs.Schedule) { s.Tenant = "A\x00" }, "tenant", jobs.ErrInvalid},
		"neither":       {func(s *jobs.Schedule) { s.Cron = "" }, "cron", jobs.ErrInvalid},
		"both":          {func(s *jobs.Schedule) { s.Every = time.Hour }, "cron", jobs.ErrInvalid},
		"never":         {func(s *jobs.Schedule) { s.Cron = "0 0 31 2 *" }, "cron", jobs.ErrInvalid},
		"zone":          {func(s *jobs.Schedule) { s.TimeZone = "Europe/Atlantis" }, "time_zone", jobs.ErrInvalid},
		"every zone":    {func(s *jobs.Schedule) { s.Cron, s.Every, s.TimeZone = "", time.Hour, "UTC" }, "time_zone", jobs.ErrInvalid},
		"negative":      {func(s *jobs.Schedule) { s.Cron, s.Every = "", -time.Hour }, "every", jobs.ErrInvalid},
		"short":         {func(s *jobs.Schedule) { s.Cron, s.Every = "", time.Millisecond }, "every", jobs.ErrInvalid},
		"broken second": {func(s *jobs.Schedule) { s.Cron, s.Every = "", 1500*time.Millisecond }, "every", jobs.ErrInvalid},
		"huge":          {func(s *jobs.Schedule) { s.Cron, s.Every = "", 1<<63-1 }, "every", jobs.ErrInvalid},
		"missed":        {func(s *jobs.Schedule) { s.Missed = "often" }, "missed", jobs.ErrInvalid},
		"job's id":      {func(s *jobs.Schedule) { s.Job.ID = "x" }, "job", jobs.ErrInvalid},
		"job's tenant":  {func(s *jobs.Schedule) { s.Job.Tenant = "u" }, "job", jobs.ErrInvalid},
		"job's data":    {func(s *jobs.Schedule) { s.Job.Data = make([]byte, 64<<10+1) }, "job.data", jobs.ErrInvalid},
		"job's jitter":  {func(s *jobs.Schedule) { s.Job.Backoff.Jitter = 2 }, "job.opts.backoff.jitter", jobs.ErrInvalid},
		"no such queue": {func(s *jobs.Schedule) { s.Queue = "none" }, "", jobs.ErrUnknownQueue},
		"money":         {func(s *jobs.Schedule) { s.Queue = "money" }, "", jobs.ErrReadOnly},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			tc.spoil(&s)
			_, err := e.PutSchedule(t.Context(), s)
			var invalid *jobs.InvalidError
			if !errors.Is(err, tc.want) || errors.As(err, &invalid) && invalid.Field != tc.field {
				t.Errorf("%v", err)
			}
		})
	}
	if list, err := e.Schedules("t", "q"); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestATenantHasABoundedNumberOfSchedules(t *testing.T) {
	e, _ := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "p"}, {Name: "q"}}})
	done := make(chan error, 1000)
	for i := range 1000 {
		go func() {
			_, err := e.PutSchedule(context.Background(), jobs.Schedule{Tenant: "t", Queue: []string{"p", "q"}[i%2], ID: fmt.Sprint(i), Every: time.Hour})
			done <- err
		}()
	}
	for range 1000 {
		fatalIf(t, <-done)
	}
	if _, err := e.PutSchedule(t.Context(), jobs.Schedule{Tenant: "t", Queue: "q", ID: "more", Every: time.Hour}); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("%v", err)
	}
	put(t, e, jobs.Schedule{Tenant: "t", Queue: "p", ID: "0", Every: time.Minute}) // editing goes on
	put(t, e, jobs.Schedule{Tenant: "u", Queue: "q", ID: "another", Every: time.Hour})
}

// TestAScheduleWhoseQueueIsGone says so and goes on; when the queue is back, so are its jobs.
func TestAScheduleWhoseQueueIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		put(t, e, jobs.Schedule{ID: "s", Every: time.Hour})
		fatalIf(t, e.Close())
		e = openOn(t, s, jobs.Options{Queues: []jobs.QueueConfig{{Name: "another"}}})
		time.Sleep(90 * time.Minute)
		if got := schedule(t, e, "s"); !strings.HasPrefix(got.LastError, "2000-01-01T01:00:00Z made no job: unknown queue") || !got.NextAt.Equal(time.Date(2000, 1, 1, 2, 0, 0, 0, time.UTC)) {
			t.Errorf("%+v", got)
		}
		fatalIf(t, e.Close())
		e = openOn(t, s, oneQueue())
		time.Sleep(time.Hour)
		if got := schedule(t, e, "s"); got.LastError != "" || got.LastJobID != "s@20000101T020000Z" {
			t.Errorf("%+v", got)
		}
	})
}

// TestManyAtTheFullHour: they come in batches, each once.
func TestManyAtTheFullHour(t *testing.T) {
	t.Parallel() // its time goes into commits
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		for i := range 1200 {
			put(t, e, jobs.Schedule{Tenant: fmt.Sprint("t", i%3), Queue: "q", ID: fmt.Sprint(i), Cron: "0 * * * *"})
		}
		time.Sleep(time.Hour + time.Second)
		if st := stats(t, e); st.Waiting != 1200 {
			t.Errorf("%+v", st)
		}
	})
}

func TestDamagedSchedules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		put(t, e, jobs.Schedule{ID: "bad", Every: time.Hour})
		put(t, e, jobs.Schedule{ID: "good", Every: time.Hour})
		fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
			b, key := tx.Bucket([]byte("schedules")), []byte("t\x00q\x00bad")
			v := append([]byte(nil), b.Get(key)...)
			v[20] ^= 1
			return b.Put(key, v)
		}))
		time.Sleep(3*time.Hour + time.Second)
		if st := stats(t, e); st.Waiting != 3 {
			t.Errorf("%+v", st)
		}
		if _, err := e.GetSchedule("t", "q", "bad"); !errors.Is(err, jobs.ErrDamaged) {
			t.Errorf("%v", err)
		}
		if list, err := e.Schedules("t", "q"); err != nil || len(list) != 2 || list[0].ID != "bad" || !strings.Contains(list[0].LastError, "damaged") {
			t.Errorf("%+v, %v", list, err)
		}
		put(t, e, jobs.Schedule{ID: "bad", Every: time.Hour})
		time.Sleep(time.Hour + time.Second)
		if got := schedule(t, e, "bad"); got.LastError != "" || got.LastJobID == "" {
			t.Errorf("%+v", got)
		}
	})
}

// TestSchedulesOnAFullDisk: an occurrence waits for the disk, and comes once.
func TestSchedulesOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		spare(t, e)
		put(t, e, jobs.Schedule{ID: "s", Cron: "0 1 * * *"})
		time.Sleep(59*time.Minute + 59*time.Second)
		restore := storetest.FailDisk(t, s, storetest.Full)
		time.Sleep(30 * time.Second)
		if ids := listed(t, e); len(ids) > 0 {
			t.Fatalf("the fault did not fire: %v", ids)
		}
		restore()
		time.Sleep(time.Minute)
		if ids := strings.Join(listed(t, e), " "); ids != "s@20000101T010000Z" {
			t.Errorf("%v", ids)
		}
	})
}

// TestSchedulesAfterAnUnknownOutcome: the disk dies under one that is due. What it holds when it is back is what counts.
func TestSchedulesAfterAnUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		put(t, e, jobs.Schedule{ID: "s", Cron: "0 * * * *"})
		time.Sleep(59 * time.Minute)
		fatalIf(t, os.MkdirAll(s.Path()+".rescue/obstacle", 0o700))
		storetest.FailDisk(t, s, storetest.Dying)
		time.Sleep(2 * time.Minute)
		if err := s.Err(); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("the fault did not fire: %v", err)
		}
		fatalIf(t, os.RemoveAll(s.Path()+".rescue"))
		time.Sleep(2 * time.Hour)
		if ids := strings.Join(listed(t, e), " "); ids != "s@20000101T010000Z s@20000101T020000Z s@20000101T030000Z" {
			t.Errorf("%v", ids)
		}
	})
}

// TestSchedulesOverCrashes: at any moment, a copy of the file has the job exactly if its schedule has moved on.
func TestSchedulesOverCrashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		put(t, e, jobs.Schedule{ID: "s", Every: time.Second})
		seen := map[string]bool{}
		for range 20 {
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
			copied, _ := crash(t, s, oneQueue())
			last := schedule(t, copied, "s").LastJobID
			ids := listed(t, copied)
			if last == "" && len(ids) == 0 {
				continue
			}
			if len(ids) == 0 || ids[len(ids)-1] != last || !slices.IsSorted(ids) {
				t.Fatalf("jobs %v, the schedule says %q", ids, last)
			}
			for _, id := range ids {
				seen[id] = true
			}
		}
		if d := cmp.Diff(len(listed(t, e)) > 0, len(seen) > 0); d != "" {
			t.Errorf("nothing came: %s", d)
		}
	})
}
