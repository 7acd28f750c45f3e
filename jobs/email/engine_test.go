package email

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// open opens a queue `email` on a fresh store.
func open(t testing.TB) *jobs.Engine {
	t.Helper()
	e, err := jobs.Open(storetest.Open(t, store.Options{}), jobs.Options{Queues: []jobs.QueueConfig{{Name: Queue}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// work runs a runner with the Mailer's handlers until stop, which waits for its end. each hears of every attempt. The runner
// does without Ready, so that the handlers have to hold back by themselves.
func work(t testing.TB, e *jobs.Engine, m *Mailer, each func(err error)) (stop func()) {
	t.Helper()
	return workIf(t, e, m, nil, each)
}

func workIf(t testing.TB, e *jobs.Engine, m *Mailer, ready func(string) bool, each func(err error)) (stop func()) {
	t.Helper()
	handlers := m.Handlers()
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: Queue, Ready: ready, Handler: func(ctx context.Context, j *jobs.Job) error {
		err := handlers[j.Name](ctx, j)
		if each != nil {
			each(err)
		}
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func enqueue(t testing.TB, e *jobs.Engine, all ...jobs.NewJob) {
	t.Helper()
	if _, err := e.Enqueue(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
}

// engineDo has an engine do one job, and returns what became of it after its first attempt.
func engineDo(t testing.TB, m *Mailer, n jobs.NewJob) jobs.Job {
	t.Helper()
	e := open(t)
	did := make(chan struct{}, 1)
	stop := work(t, e, m, func(error) { did <- struct{}{} })
	enqueue(t, e, n)
	<-did
	stop()
	j, err := e.Get(n.Tenant, n.Queue, n.ID)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func newJob(id, name string, data any) jobs.NewJob {
	j := job("shop", id, name, data)
	return jobs.NewJob{Queue: Queue, Tenant: "shop", ID: id, Name: name, Data: j.Data,
		RemoveOnComplete: jobs.Retention{Count: -1}, RemoveOnFail: jobs.Retention{Count: -1}}
}

// TestDaysOffline: the line is down for two days, comes and goes, the box ends in between; every mail arrives once,
// no attempt is burnt, and the server is not called more often than an outage needs.
func TestDaysOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const single, many = 3, 60
		o := openPipes(t, nil)
		o.cut(errRefused)
		e := open(t)
		dir := t.TempDir()
		m := mailer(t, o, Options{Folder: dir})
		stop := work(t, e, m, nil)
		for n := range single {
			enqueue(t, e, newJob(fmt.Sprint("s", n), SendJob, welcome(fmt.Sprintf("s%d@example.com", n))))
		}
		enqueue(t, e, newJob("b", BulkJob, bulk(addresses(many)...)))

		time.Sleep(24 * time.Hour)
		o.mu.Lock()
		dials := o.dials
		o.mu.Unlock()
		if dials < 100 || dials > 144*(single+1)+100 { // every ten minutes, at most by all at once
			t.Errorf("the server was called %d times in a day", dials)
		}
		if s := m.Status(); time.Since(s.DownSince) < 23*time.Hour || !strings.Contains(s.LastError, "connection refused") {
			t.Errorf("status %+v", s)
		}
		stop()
		m = mailer(t, o, Options{Folder: dir})
		stop = work(t, e, m, nil)
		time.Sleep(24 * time.Hour)

		o.hangs(30) // the line is up for thirty mails, and down again
		time.Sleep(time.Hour)
		o.cut(errRefused)
		time.Sleep(3 * time.Hour)
		if got := len(o.deliveries()); got != 30 {
			t.Errorf("%d mails arrived while the line was up for 30", got)
		}
		o.hangs(0)
		time.Sleep(time.Hour)
		stop()

		for to, n := range o.tally() {
			if n != 1 {
				t.Errorf("%s got %d mails", to, n)
			}
		}
		if got := len(o.deliveries()); got != single+many {
			t.Errorf("%d mails arrived, want %d", got, single+many)
		}
		for n := range single + 1 {
			id := fmt.Sprint("s", n)
			if n == single {
				id = "b"
			}
			j, err := e.Get("shop", Queue, id)
			if err != nil || j.State != jobs.Completed || j.AttemptsMade != 1 {
				t.Errorf("%s: %s after %d attempts (%s), %v", id, j.State, j.AttemptsMade, j.LastError, err)
			}
		}
		if s := m.Status(); !s.DownSince.IsZero() {
			t.Errorf("status %+v", s)
		}
	})
}

// hangs puts the line up; after so many mails it takes it down again by itself, between two mails. 0: never.
func (o *office) hangs(after int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = nil
	o.onMail = func(string) error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.down != nil {
			return answer(421, "the line is down")
		}
		if after > 0 && o.under+len(o.got) >= after {
			o.down = errRefused
			return answer(421, "the line is down")
		}
		o.under++
		return nil
	}
	o.hangUp = func(delivery) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.under--
		return false
	}
}

// TestReady: a runner that asks Ready leaves mail where it is while the server is down.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openPipes(t, nil)
		o.cut(errRefused)
		e := open(t)
		m := mailer(t, o, Options{})
		var attempts atomic.Int64
		stop := workIf(t, e, m, m.Ready, func(error) { attempts.Add(1) })
		enqueue(t, e, newJob("first", SendJob, welcome("first@example.com")))
		time.Sleep(time.Second)
		for n := range 20 {
			enqueue(t, e, newJob(fmt.Sprint("s", n), SendJob, welcome(address(n))))
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s, err := e.Get("shop", Queue, "s0"); err != nil || s.State != jobs.Waiting || attempts.Load() != 1 {
			t.Errorf("%s, %v, after %d attempts", s.State, err, attempts.Load())
		}
		o.cut(nil)
		time.Sleep(3 * time.Minute)
		stop()
		if got := len(o.deliveries()); got != 21 || attempts.Load() != 22 {
			t.Errorf("%d mails arrived after %d attempts", got, attempts.Load())
		}
	})
}

// TestTemporary: 4xx is tried again after the job's backoff, and its attempts end.
func TestTemporary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openPipes(t, nil)
		tries := map[string]int{}
		o.onRcpt = func(to string) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			tries[to]++
			if to == "never@example.com" || tries[to] < 3 {
				return answer(451, "not now")
			}
			return nil
		}
		e := open(t)
		stop := work(t, e, mailer(t, o, Options{}), nil)
		enqueue(t, e, newJob("third", SendJob, welcome("third@example.com")), newJob("never", SendJob, welcome("never@example.com")))
		time.Sleep(2*time.Second + 4*time.Second + time.Second)
		stop()
		for id, want := range map[string]jobs.State{"third": jobs.Completed, "never": jobs.Failed} {
			j, err := e.Get("shop", Queue, id)
			if err != nil || j.State != want || j.AttemptsMade != 3 || !strings.Contains(j.LastError, "RCPT: 451") {
				t.Errorf("%s: %s after %d attempts (%s), %v", id, j.State, j.AttemptsMade, j.LastError, err)
			}
		}
	})
}

// TestBulkTakesTurns: a large bulk gives its slot back now and then, burns no attempt by it, and tells about everybody.
func TestBulkTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openPipes(t, func(o *office, _ *smtp.Server) {
			o.onRcpt = func(to string) error {
				if to == address(7) {
					return answer(550, "gone")
				}
				return nil
			}
		})
		var turns atomic.Int64
		e := open(t)
		stop := work(t, e, mailer(t, o, Options{}), func(error) { turns.Add(1) })
		enqueue(t, e, newJob("b", BulkJob, bulk(addresses(3*turnMails)...)))
		time.Sleep(time.Minute)
		stop()
		j, err := e.Get("shop", Queue, "b")
		if err != nil || j.State != jobs.Completed || j.AttemptsMade != 1 || turns.Load() != 3 {
			t.Fatalf("%s after %d attempts and %d turns (%s), %v", j.State, j.AttemptsMade, turns.Load(), j.LastError, err)
		}
		var r BulkResult
		if err := json.Unmarshal(j.Result, &r); err != nil {
			t.Fatal(err)
		}
		if r.Sent != 3*turnMails-1 || r.Failed != 1 || r.Unknown != 0 || len(r.Recipients) != 3*turnMails || r.Recipients[7].State != RecipientFailed {
			t.Errorf("result %d %d %d %+v", r.Sent, r.Failed, r.Unknown, r.Recipients[7])
		}
	})
}

// TestPauses: as long as the outage has lasted, from 1 to 10 minutes.
func TestPauses(t *testing.T) {
	var o outage
	begin := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct{ after, want time.Duration }{
		{0, time.Minute}, {30 * time.Second, time.Minute}, {2 * time.Minute, 2 * time.Minute}, {4 * time.Minute, 4 * time.Minute},
		{9 * time.Minute, 9 * time.Minute}, {20 * time.Minute, 10 * time.Minute}, {72 * time.Hour, 10 * time.Minute},
	} {
		now := begin.Add(tc.after)
		o.begin(now, "down")
		if got := o.left(now); got != tc.want {
			t.Errorf("after %v it waits %v, want %v", tc.after, got, tc.want)
		}
		if j := jittered(tc.want); j < tc.want || j > tc.want+tc.want/5 {
			t.Errorf("jittered %v to %v", tc.want, j)
		}
	}
	if lasted, was := o.end(begin.Add(73 * time.Hour)); !was || lasted != 73*time.Hour {
		t.Errorf("it lasted %v, %v", lasted, was)
	}
	if _, was := o.end(begin); was || o.left(begin) != 0 {
		t.Error("it is not over")
	}
}
