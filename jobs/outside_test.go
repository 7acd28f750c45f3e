package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// lease leases as worker w and wants the ids, in this order.
func lease(t testing.TB, e *jobs.Engine, r jobs.LeaseRequest, want ...string) []jobs.Job {
	t.Helper()
	r.Queue = "q"
	js, err := e.Lease(t.Context(), r)
	fatalIf(t, err)
	var ids []string
	for _, j := range js {
		ids = append(ids, j.ID)
	}
	if !slices.Equal(ids, want) {
		t.Fatalf("leased %q, want %q", ids, want)
	}
	return js
}

func ref(j jobs.Job) jobs.LeaseRef {
	return jobs.LeaseRef{Tenant: j.Tenant, Queue: j.Queue, ID: j.ID, Token: j.LeaseToken}
}

func job(id string) jobs.NewJob { return jobs.NewJob{Queue: "q", Tenant: "t", ID: id} }

func TestLeaseCompleteAndWhatTheJobShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		start := time.Now().UTC()
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Name: "mail", Data: []byte("data"), Attempts: 2, Backoff: jobs.Backoff{Type: jobs.Fixed, Delay: time.Minute}})
		j := lease(t, e, jobs.LeaseRequest{For: time.Minute, Worker: "w1"}, "a")[0]
		if j.LeaseToken == "" || !j.LeasedUntil.Equal(start.Add(time.Minute)) || j.Worker != "w1" || j.AttemptsMade != 1 || string(j.Data) != "data" || j.State != jobs.Active {
			t.Errorf("%+v", j)
		}
		lease(t, e, jobs.LeaseRequest{}) // nobody else gets it
		got := get(t, e, "a")
		if got.State != jobs.Active || got.Worker != "w1" || !got.LeasedUntil.Equal(j.LeasedUntil) || got.AttemptsMade != 1 || got.LeaseToken != "" {
			t.Errorf("%+v", got)
		}
		time.Sleep(time.Second)
		got, err := e.Progress(t.Context(), ref(j), json.RawMessage(`{"percent":50}`))
		if err != nil || string(got.Progress) != `{"percent":50}` || string(get(t, e, "a").Progress) != `{"percent":50}` {
			t.Errorf("%v, %+v", err, got)
		}
		failed, err := e.Fail(t.Context(), ref(j), "no line", true, nil)
		if err != nil || failed.State != jobs.Delayed || !failed.RunAt.Equal(start.Add(61*time.Second)) || failed.LastError != "no line" || failed.LeasedUntil != (time.Time{}) {
			t.Errorf("%v, %+v", err, failed)
		}
		time.Sleep(2 * time.Minute)
		j = lease(t, e, jobs.LeaseRequest{Worker: "w2"}, "a")[0]
		time.Sleep(time.Second)
		done, err := e.Complete(t.Context(), ref(j), json.RawMessage(`[1]`))
		if err != nil || done.State != jobs.Completed {
			t.Errorf("%v, %+v", err, done)
		}
		got = get(t, e, "a")
		history := []jobs.Attempt{
			{N: 1, StartedAt: start, EndedAt: start.Add(time.Second), Worker: "w1", Error: "no line"},
			{N: 2, StartedAt: start.Add(121 * time.Second), EndedAt: start.Add(122 * time.Second), Worker: "w2"},
		}
		if string(got.Result) != "[1]" || !slices.Equal(got.History, history) || string(got.Data) != "data" || got.AttemptsMade != 2 {
			t.Errorf("%+v", got)
		}
		if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Completed: 1}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestFail(t *testing.T) {
	none, hour := time.Duration(0), time.Hour
	for name, tc := range map[string]struct {
		attempts int
		retry    bool
		delay    *time.Duration
		state    jobs.State
		in       time.Duration
	}{
		"backoff":      {3, true, nil, jobs.Delayed, 2 * time.Second},
		"at once":      {3, true, &none, jobs.Waiting, 0},
		"later":        {3, true, &hour, jobs.Delayed, time.Hour},
		"no retry":     {3, false, &hour, jobs.Failed, 0},
		"last attempt": {1, true, &hour, jobs.Failed, 0},
		"no limit":     {-1, true, nil, jobs.Delayed, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told []string
				e, s := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}}, Failed: func(j jobs.Job) []jobs.NewJob {
					told = append(told, j.ID)
					return nil
				}})
				enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Attempts: tc.attempts})
				j := lease(t, e, jobs.LeaseRequest{}, "a")[0]
				_, err := e.Fail(t.Context(), ref(j), "bad", tc.retry, tc.delay)
				fatalIf(t, err)
				for range 2 { // as it is, and as the file has it
					got := get(t, e, "a")
					if got.State != tc.state || got.LastError != "bad" || tc.state == jobs.Delayed && !got.RunAt.Equal(time.Now().Add(tc.in)) || len(got.History) != 1 {
						t.Errorf("%+v", got)
					}
					fatalIf(t, e.Close())
					e = openOn(t, s, oneQueue())
				}
				if (len(told) == 1) != (tc.state == jobs.Failed) {
					t.Errorf("Options.Failed: %v", told)
				}
			})
		})
	}
}

// TestStaleLease, INV-18: whoever does not hold the present token changes nothing.
func TestStaleLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		enqueue(t, e, job("a"), job("b"))
		old := lease(t, e, jobs.LeaseRequest{For: time.Second}, "a")[0]
		b := lease(t, e, jobs.LeaseRequest{For: time.Hour}, "b")[0]
		time.Sleep(time.Second + time.Millisecond)
		now := lease(t, e, jobs.LeaseRequest{For: time.Hour, Worker: "second"}, "a")[0]
		if now.AttemptsMade != 2 || now.LeaseToken == old.LeaseToken || len(now.History) != 1 || now.History[0].Error == "" {
			t.Errorf("%+v", now)
		}
		foreign, other, guessed := ref(now), ref(now), ref(now)
		foreign.Tenant, other.ID, guessed.Token = "u", "b", "guessed"
		for name, tc := range map[string]struct {
			r    jobs.LeaseRef
			want error
		}{
			"old token": {ref(old), jobs.ErrStaleLease}, "of another job": {other, jobs.ErrStaleLease}, "guessed": {guessed, jobs.ErrStaleLease},
			"another tenant's": {foreign, jobs.ErrNotFound},
			"unknown job":      {jobs.LeaseRef{Tenant: "t", Queue: "q", ID: "none", Token: now.LeaseToken}, jobs.ErrNotFound},
			"unknown queue":    {jobs.LeaseRef{Tenant: "t", Queue: "none", ID: "a", Token: now.LeaseToken}, jobs.ErrUnknownQueue},
		} {
			_, complete := e.Complete(t.Context(), tc.r, nil)
			_, fail := e.Fail(t.Context(), tc.r, "bad", false, nil)
			_, extend := e.Extend(t.Context(), tc.r, time.Minute)
			_, progress := e.Progress(t.Context(), tc.r, json.RawMessage("1"))
			for what, err := range map[string]error{"complete": complete, "fail": fail, "extend": extend, "progress": progress} {
				if !errors.Is(err, tc.want) {
					t.Errorf("%s, %s: %v, want %v", name, what, err, tc.want)
				}
			}
		}
		if j := get(t, e, "a"); j.State != jobs.Active || j.Worker != "second" || j.Progress != nil {
			t.Errorf("%+v", j)
		}
		// Of many, the stale ones fail alone.
		_, errs := e.CompleteMany(t.Context(), []jobs.Completion{{LeaseRef: ref(old)}, {LeaseRef: ref(b)}, {LeaseRef: ref(now), Result: json.RawMessage("{")}, {LeaseRef: ref(now)}, {LeaseRef: ref(now)}})
		if !errors.Is(errs[0], jobs.ErrStaleLease) || errs[1] != nil || !errors.Is(errs[2], jobs.ErrInvalid) || errs[3] != nil || !errors.Is(errs[4], jobs.ErrStaleLease) {
			t.Errorf("%v", errs)
		}
		if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Completed: 2}) {
			t.Errorf("%+v", st)
		}
	})
}

// TestATokenSurvivesAKill: what Lease answered is on disk, so after a kill nobody else gets the job before its deadline, and its worker can end it.
func TestATokenSurvivesAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		enqueue(t, e, job("a"), job("b"), job("c"))
		js := lease(t, e, jobs.LeaseRequest{Max: 2, For: time.Minute, Worker: "w"}, "a", "b")
		_, err := e.Progress(t.Context(), ref(js[0]), json.RawMessage(`"half"`))
		fatalIf(t, err)
		_, s = crash(t, s, oneQueue())
		time.Sleep(30 * time.Second)
		e, _ = crash(t, s, oneQueue())
		if j := get(t, e, "a"); j.State != jobs.Active || j.Worker != "w" || string(j.Progress) != `"half"` || j.AttemptsMade != 1 {
			t.Errorf("%+v", j)
		}
		if st := stats(t, e); st.Active != 2 || st.Waiting != 1 {
			t.Errorf("%+v", st)
		}
		lease(t, e, jobs.LeaseRequest{Max: 9, For: time.Hour}, "c")
		time.Sleep(29 * time.Second)
		done, err := e.Complete(t.Context(), ref(js[0]), nil)
		if err != nil || string(done.Progress) != `"half"` || len(done.History) != 1 || done.History[0].Worker != "w" {
			t.Errorf("%v, %+v", err, done)
		}
		time.Sleep(2 * time.Second) // its deadline is the old one
		lease(t, e, jobs.LeaseRequest{Max: 9}, "b")
		if _, err := e.Complete(t.Context(), ref(js[1]), nil); !errors.Is(err, jobs.ErrStaleLease) {
			t.Errorf("%v", err)
		}
	})
}

func TestExpiryUsesUpAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Attempts: 3})
		for n := range 3 {
			if j := lease(t, e, jobs.LeaseRequest{For: time.Second, Wait: time.Minute}, "a")[0]; j.AttemptsMade != n+1 {
				t.Errorf("%+v", j)
			}
		}
		time.Sleep(2 * time.Second)
		if j := get(t, e, "a"); j.State != jobs.Failed || j.AttemptsMade != 3 || j.LastError != "the lease ran out" || len(j.History) != 3 {
			t.Errorf("%+v", j)
		}
	})
}

func TestExtend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		enqueue(t, e, job("a"))
		j := lease(t, e, jobs.LeaseRequest{For: 10 * time.Second}, "a")[0]
		for range 5 {
			time.Sleep(8 * time.Second)
			got, err := e.Extend(t.Context(), ref(j), 10*time.Second)
			if err != nil || !got.LeasedUntil.Equal(time.Now().Add(10*time.Second)) {
				t.Fatalf("%v, %+v", err, got)
			}
			e, s = crash(t, s, oneQueue())
			lease(t, e, jobs.LeaseRequest{})
		}
		_, err := e.Extend(t.Context(), ref(j), time.Second) // shorter is a wish, too
		fatalIf(t, err)
		time.Sleep(time.Second + time.Millisecond)
		lease(t, e, jobs.LeaseRequest{}, "a")
	})
}

// TestLongPoll: who waits is woken by an enqueue, by a job that becomes due and by a lease that runs out, and reads nothing meanwhile.
func TestLongPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		start := time.Now()
		wait := func(tenant string, names ...string) chan string {
			out := make(chan string, 1)
			go func() {
				js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: tenant, Names: names, For: 10 * time.Second, Wait: time.Minute})
				if err != nil || len(js) == 0 {
					out <- fmt.Sprint("nothing, ", err)
					return
				}
				out <- fmt.Sprint(js[0].ID, " after ", time.Since(start))
			}()
			synctest.Wait()
			return out
		}
		want := func(out chan string, want string) {
			t.Helper()
			if got := <-out; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		any, mine, named, foreign := wait(""), wait("t"), wait("t", "mail"), wait("u")
		time.Sleep(time.Second)
		enqueue(t, e, job("a"))
		synctest.Wait()
		enqueue(t, e, job("b"))
		if first, other := <-any, <-mine; first+other != "a after 1sb after 1s" && first+other != "b after 1sa after 1s" {
			t.Errorf("%s, and %s", first, other)
		}
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "c", Name: "mail", Delay: time.Second})
		want(named, "c after 2s")
		want(wait("t"), "a after 11s") // ran out
		want(foreign, "nothing, <nil>")
		if d := time.Since(start); d != time.Minute {
			t.Errorf("waited %v", d)
		}
	})
}

func TestEachJobWakesOneOfThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		const n = 50
		got := make(chan string, n)
		for range n {
			go func() {
				js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Wait: time.Minute})
				if err != nil || len(js) != 1 {
					t.Errorf("%v, %d jobs", err, len(js))
					return
				}
				got <- js[0].ID
			}()
		}
		synctest.Wait()
		gone, cancel := context.WithCancel(t.Context())
		go func() { _, _ = e.Lease(gone, jobs.LeaseRequest{Queue: "q", Wait: time.Minute}) }()
		synctest.Wait()
		var batch []jobs.NewJob
		for i := range n {
			batch = append(batch, job(fmt.Sprint(i)))
		}
		enqueue(t, e, batch[:n/2]...)
		cancel() // whoever leaves takes no news with him
		enqueue(t, e, batch[n/2:]...)
		seen := map[string]bool{}
		for range n {
			seen[<-got] = true
		}
		if len(seen) != n {
			t.Errorf("%d different jobs of %d", len(seen), n)
		}
	})
}

func TestALeaseIsReleasedIfItCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		for i := range 50 { // pages to reuse, so that no commit grows the file
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "other", ID: fmt.Sprint(i), Data: make([]byte, 2000), Delay: time.Hour})
		}
		enqueue(t, e, job("a"), job("b"))
		b := lease(t, e, jobs.LeaseRequest{For: time.Second, Tenant: "t"}, "a")[0]
		restore := storetest.FailDisk(t, s, storetest.Full)
		if _, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t"}); !errors.Is(err, store.ErrFull) {
			t.Errorf("%v", err)
		}
		if _, err := e.Complete(t.Context(), ref(b), nil); !errors.Is(err, store.ErrFull) {
			t.Errorf("%v", err)
		}
		time.Sleep(9500 * time.Millisecond) // the first lease runs out, and that cannot be written either; it is tried each second
		restore()
		if j := get(t, e, "b"); j.State != jobs.Waiting || j.AttemptsMade != 0 {
			t.Errorf("%+v", j)
		}
		if _, err := e.Complete(t.Context(), ref(b), nil); err != nil {
			t.Errorf("the lease holds as long as its end is not on disk: %v", err)
		}
		lease(t, e, jobs.LeaseRequest{Tenant: "t"}, "b")
	})
}

func TestLeaseRequestsNameTheirMistakes(t *testing.T) {
	e, _ := open(t, oneQueue())
	for field, r := range map[string]jobs.LeaseRequest{
		"max": {Max: -1}, "max ": {Max: 1001}, "lease_ms": {For: -1}, "lease_ms ": {For: 25 * time.Hour}, "wait_ms": {Wait: -1}, "wait_ms ": {Wait: time.Hour},
		"worker": {Worker: "a\nb"}, "worker ": {Worker: strings.Repeat("x", 256)}, "names[1]": {Names: []string{"a", "\xff"}}, "names": {Names: make([]string, 101)},
	} {
		r.Queue = "q"
		_, err := e.Lease(t.Context(), r)
		var invalid *jobs.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != strings.TrimSpace(field) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	enqueue(t, e, job("a"))
	j := lease(t, e, jobs.LeaseRequest{}, "a")[0]
	long := -time.Second
	for field, err := range map[string]error{
		"result":   second(e.Complete(t.Context(), ref(j), json.RawMessage("nope"))),
		"progress": second(e.Progress(t.Context(), ref(j), json.RawMessage(`"`+strings.Repeat("x", 5000)+`"`))),
		"delay_ms": second(e.Fail(t.Context(), ref(j), "", true, &long)),
		"lease_ms": second(e.Extend(t.Context(), ref(j), 0)),
	} {
		var invalid *jobs.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestALeaseIsBoundedInBytes: an answer of a thousand megabytes would end the box.
func TestALeaseIsBoundedInBytes(t *testing.T) {
	e, _ := open(t, oneQueue())
	for i := range 10 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i), Data: make([]byte, 1<<20)})
	}
	lease(t, e, jobs.LeaseRequest{Max: 1000}, "0", "1", "2", "3")
	lease(t, e, jobs.LeaseRequest{Max: 1000}, "4", "5", "6", "7")
}

func TestProgressOfTheBoxsOwnWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		enqueue(t, e, job("a"))
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(ctx context.Context, j *jobs.Job) error {
			if _, err := e.Progress(ctx, ref(*j), json.RawMessage("7")); err != nil {
				t.Error(err)
			}
			if got := get(t, e, "a"); string(got.Progress) != "7" || got.State != jobs.Active {
				t.Errorf("%+v", got)
			}
			if _, err := e.Complete(ctx, ref(*j), nil); !errors.Is(err, jobs.ErrStaleLease) {
				t.Errorf("a handler's job is ended by what it returns: %v", err)
			}
			return nil
		}})
		time.Sleep(time.Second)
		stop()
		if got := get(t, e, "a"); string(got.Progress) != "7" || got.State != jobs.Completed {
			t.Errorf("%+v", got)
		}
	})
}

// TestManyCompletionsKeepWhatRetentionSays: those that are not written at all are those that would have been removed at once.
func TestManyCompletionsKeepWhatRetentionSays(t *testing.T) {
	e, s := open(t, oneQueue())
	for round := range 2 {
		for i := range 25 {
			keep := jobs.Retention{}
			if i%5 == 0 {
				keep.Count = 100 // wants more kept; those behind it decide
			}
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(round*25 + i), RemoveOnComplete: keep})
		}
		js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: 25})
		fatalIf(t, err)
		ends := make([]jobs.Completion, len(js))
		for i, j := range js {
			ends[i].LeaseRef = ref(j)
		}
		_, errs := e.CompleteMany(t.Context(), ends)
		fatalIf(t, errors.Join(errs...))
	}
	var kept []string
	for i := range 50 {
		if _, err := e.Get("t", "q", fmt.Sprint(i)); err == nil {
			kept = append(kept, fmt.Sprint(i))
		}
	}
	if got := strings.Join(kept, " "); got != "40 41 42 43 44 45 46 47 48 49" || stats(t, e).Completed != 10 {
		t.Errorf("kept %s, counted %d", got, stats(t, e).Completed)
	}
	fatalIf(t, e.Close())
	if st := stats(t, openOn(t, s, oneQueue())); st.Completed != 10 {
		t.Errorf("%+v", st)
	}
}

// The box's own work is done by the box: a worker outside that leases from all tenants in turn does not get it, nor does he keep
// a runner from hearing of it.
func TestTheBoxsOwnWorkIsNotLeasedOut(t *testing.T) {
	e, _ := open(t, oneQueue())
	enqueue(t, e, jobs.NewJob{Queue: "q", ID: "own", Name: "n"}, job("a"))
	lease(t, e, jobs.LeaseRequest{Max: 9}, "a")
	lease(t, e, jobs.LeaseRequest{Max: 9, Names: []string{"n"}})
	ran := make(chan string)
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: "q", Handlers: map[string]jobs.Handler{"n": func(_ context.Context, j *jobs.Job) error { ran <- j.ID; return nil }}})
	fatalIf(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- r.Run(ctx) }()
	go func() {
		_, err := e.Lease(ctx, jobs.LeaseRequest{Queue: "q", Names: []string{"n"}, Wait: time.Minute})
		ended <- err
	}()
	got := []string{<-ran}
	for i := range 3 {
		enqueue(t, e, jobs.NewJob{Queue: "q", ID: fmt.Sprint("own", i), Name: "n"})
		got = append(got, <-ran)
	}
	if !slices.Equal(got, []string{"own", "own0", "own1", "own2"}) {
		t.Errorf("ran %q", got)
	}
	stop()
	for range 2 {
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
