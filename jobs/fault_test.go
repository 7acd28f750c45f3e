package jobs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// child is a box of nothing but jobs: a relay that enqueues numbered jobs from its log, a runner, and a worker that leases as those outside do.
// It prints each batch that was answered (E offset), each job that ran (R id) and each end of a lease that was answered (C id), until it is killed.
func child(path string) {
	die := func(err error) {
		if err != nil {
			fmt.Println("!", err)
			os.Exit(1)
		}
	}
	s, err := store.Open(path, store.Options{LockTimeout: 10 * time.Second})
	die(err)
	e, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q", RemoveOnComplete: jobs.Retention{Remove: true}}}})
	die(err)
	var out sync.Mutex
	say := func(args ...any) { out.Lock(); defer out.Unlock(); fmt.Println(args...) }
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: "q", Handler: func(_ context.Context, j *jobs.Job) error {
		say("R", string(j.Data))
		if rand.IntN(4) == 0 {
			return jobs.Snooze(time.Millisecond)
		}
		return nil
	}})
	die(err)
	go func() { die(r.Run(context.Background())) }()
	go func() {
		for {
			js, err := e.Lease(context.Background(), jobs.LeaseRequest{Queue: "q", Max: 10, For: 300 * time.Millisecond, Wait: time.Second})
			die(err)
			var ends []jobs.Completion
			for _, j := range js {
				say("R", string(j.Data))
				ends = append(ends, jobs.Completion{LeaseRef: ref(j)})
			}
			_, errs := e.CompleteMany(context.Background(), ends)
			for i, err := range errs {
				if err == nil {
					say("C", string(js[i].Data))
				}
			}
		}
	}()
	for {
		c, _, err := e.Cursor("log")
		die(err)
		var js []jobs.NewJob
		for i := range uint64(1 + rand.IntN(5)) {
			js = append(js, jobs.NewJob{Queue: "q", Tenant: fmt.Sprint("t", i%3), Attempts: -1, Data: fmt.Append(nil, c.Offset+i+1)})
		}
		to := c.Offset + uint64(len(js))
		die(e.EnqueueFrom(context.Background(), "log", c.Offset, jobs.Cursor{Offset: to}, js))
		say("E", to)
	}
}

// TestKilled kills the child again and again. In the end every number up to the cursor has run, none above it, none after its completion was answered,
// and nothing is left.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	ran, complete, answered := map[int]int{}, map[int]bool{}, 0
	for range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "JOBS_TEST_CHILD="+path)
		out, err := cmd.StdoutPipe()
		fatalIf(t, err)
		fatalIf(t, cmd.Start())
		lines, enough := bufio.NewScanner(out), 1+rand.IntN(600)
		for n := 0; lines.Scan(); n++ {
			if n == enough {
				fatalIf(t, cmd.Process.Kill())
			}
			what, number, _ := strings.Cut(lines.Text(), " ")
			i, err := strconv.Atoi(number)
			if err != nil {
				continue // a line that the kill cut short
			}
			switch what {
			case "R":
				ran[i]++
				if complete[i] {
					t.Errorf("job %d ran again after its completion was answered", i)
				}
			case "C":
				complete[i] = true
			case "E":
				answered = max(answered, i)
			default:
				t.Fatal(lines.Text())
			}
		}
		_ = cmd.Wait()
		findings, err := jobs.Audit(path)
		if err != nil || len(findings) > 0 {
			t.Fatalf("%v, %v", findings, err)
		}
	}
	s := storetest.Reopen(t, path, store.Options{})
	e := openOn(t, s, oneQueue())
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 1, Handler: func(_ context.Context, j *jobs.Job) error {
		i, err := strconv.Atoi(string(j.Data))
		ran[i]++
		if complete[i] {
			t.Errorf("job %d ran again after its completion was answered", i)
		}
		return err
	}})
	until(t, func() bool { return stats(t, e) == jobs.QueueStats{Queue: "q"} })
	stop()
	c, _, err := e.Cursor("log")
	fatalIf(t, err)
	if int(c.Offset) < answered {
		t.Errorf("the cursor is at %d, %d was answered", c.Offset, answered)
	}
	for i := 1; i <= int(c.Offset); i++ {
		if ran[i] == 0 {
			t.Errorf("job %d was enqueued and never ran", i)
		}
	}
	if len(complete) == 0 {
		t.Error("nobody outside completed anything")
	}
	if len(ran) > int(c.Offset) {
		t.Errorf("%d different jobs ran, %d were enqueued", len(ran), c.Offset)
	}
}

// TestDiskFullDelaysOutcomes: work that was done is not done again because its outcome could not be written at first.
func TestDiskFullDelaysOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		spare(t, e)
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"})
		calls := 0
		var restore func()
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(context.Context, *jobs.Job) error {
			if calls++; calls == 1 {
				restore = storetest.FailDisk(t, s, storetest.Full)
			}
			return nil
		}})
		time.Sleep(30 * time.Second)
		if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "q"}); !errors.Is(err, store.ErrFull) {
			t.Errorf("enqueue on a full disk: %v", err)
		}
		if j := get(t, e, "a"); j.State != jobs.Active {
			t.Errorf("%+v", j)
		}
		restore()
		time.Sleep(10 * time.Second)
		if j := get(t, e, "a"); j.State != jobs.Completed || calls != 1 {
			t.Errorf("%d calls, %+v", calls, j)
		}
		stop()
	})
}

// TestUnknownOutcome: the store cannot say whether it holds what was asked. When it is back, memory and file agree again, and every
// job has run.
func TestUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q", RemoveOnComplete: jobs.Retention{Count: -1}}}})
		for i := range 20 {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i)}, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint("later", i), Delay: time.Minute})
		}
		fatalIf(t, os.MkdirAll(filepath.Join(s.Path()+".rescue", "obstacle"), 0o700)) // the rescue fails, too
		var calls atomic.Int32
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Concurrency: 4, Handler: func(context.Context, *jobs.Job) error {
			if calls.Add(1) == 5 {
				storetest.FailDisk(t, s, storetest.Dying)
			}
			return nil
		}})
		time.Sleep(1500 * time.Millisecond) // between two tries of the rescue
		if err := s.Err(); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("the fault did not fire: %v", err)
		}
		if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "q"}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("enqueue: %v", err)
		}
		fatalIf(t, os.RemoveAll(s.Path()+".rescue"))
		time.Sleep(5 * time.Minute)
		if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Completed: 40}) {
			t.Errorf("%+v", st)
		}
		if n := calls.Load(); n < 40 || n > 40+4*9 {
			t.Errorf("%d calls for 40 jobs, 4 at a time and 8 outcomes on their way for each", n)
		}
		stop()
	})
}
