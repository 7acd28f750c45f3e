package notify_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
	"tenderbox/jobs/notify"
	"tenderbox/store"
)

// inbox is one in memory. It takes a job once, as the real one does.
type inbox struct {
	taken   map[string]notify.Push
	users   []string // whose profile was made
	answers []error  // given first, one a call
	muted   bool
}

func (in *inbox) answer() error {
	if len(in.answers) == 0 {
		return nil
	}
	err := in.answers[0]
	in.answers = in.answers[1:]
	return err
}

func (in *inbox) Deliver(_ context.Context, tenant string, p notify.Push) (string, error) {
	if err := in.answer(); err != nil || in.muted {
		return "", err
	}
	if in.taken == nil {
		in.taken = map[string]notify.Push{}
	}
	in.taken[tenant+"/"+p.JobID+"/"+p.EnqueuedAt.String()] = p
	return "ntf_1", nil
}

func (in *inbox) CreateProfile(_ context.Context, tenant, userID string) error {
	if err := in.answer(); err != nil {
		return err
	}
	in.users = append(in.users, tenant+"/"+userID)
	return nil
}

// work runs the jobs with the package's handlers until cond holds of the first, in a bubble, and returns that job.
func work(t *testing.T, in *inbox, cond func(jobs.Job) bool, js ...jobs.NewJob) jobs.Job {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "jobs.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: notify.Queue}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: notify.Queue, Handlers: notify.Handlers(in)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	added, err := e.Enqueue(ctx, js...)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		synctest.Wait()
		j, err := e.Get(added[0].Tenant, notify.Queue, added[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if cond(j) {
			return j
		}
		time.Sleep(time.Second)
	}
	t.Fatal("the job does not come to that")
	return jobs.Job{}
}

func over(j jobs.Job) bool { return j.State == jobs.Completed || j.State == jobs.Failed }

func job(name, data string) jobs.NewJob {
	return jobs.NewJob{Queue: notify.Queue, Tenant: "shop", ID: "j", Name: name, Data: []byte(data)}
}

func TestPush(t *testing.T) {
	for timestamp, want := range map[string]string{
		"": "", `,"timestamp":null`: "", `,"timestamp":"2026-11-25T13:00:00+01:00"`: "2026-11-25T12:00:00Z", `,"timestamp":1795420800123`: "2026-11-23T08:00:00.123Z",
	} {
		synctest.Test(t, func(t *testing.T) {
			in := &inbox{}
			j := work(t, in, over, job("push-notification", `{"user_id":"ana","message":"Your order is ready"`+timestamp+`}`))
			if j.State != jobs.Completed || string(j.Result) != `{"notification_id":"ntf_1"}` || len(in.taken) != 1 {
				t.Fatalf("%s %s %s: %+v", j.State, j.Result, j.LastError, in.taken)
			}
			for _, p := range in.taken {
				at := ""
				if !p.Timestamp.IsZero() {
					at = p.Timestamp.Format(time.RFC3339Nano)
				}
				if p.JobID != "j" || !p.EnqueuedAt.Equal(j.CreatedAt) || p.UserID != "ana" || p.Message != "Your order is ready" || at != want {
					t.Errorf("delivered %+v, want the time %q", p, want)
				}
			}
		})
	}
}

func TestProfile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &inbox{}
		j := work(t, in, over, job("create-profile", `{"user_id":"ana"}`))
		if j.State != jobs.Completed || fmt.Sprint(in.users) != "[shop/ana]" {
			t.Errorf("%s, made %v", j.State, in.users)
		}
	})
}

func TestUnwantedPushCompletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := work(t, &inbox{muted: true}, over, job("push-notification", `{"user_id":"ana","message":"m"}`))
		if j.State != jobs.Completed || string(j.Result) != `{"unwanted":true}` {
			t.Errorf("%s %s", j.State, j.Result)
		}
	})
}

// What can never be delivered fails at once and says why; what cannot be now waits and burns no attempt; the rest is tried again.
func TestOutcomes(t *testing.T) {
	refused := fmt.Errorf("%w: user_unknown: no such user", notify.ErrRefused)
	away := fmt.Errorf("%w: shard 3", notify.ErrUnavailable)
	odd := errors.New("odd")
	for name, c := range map[string]struct {
		answers  []error
		state    jobs.State
		attempts int
		says     string
	}{
		"refused":       {[]error{refused}, jobs.Failed, 1, "no such user"},
		"away":          {[]error{away, away, away, away, away, away, away}, jobs.Completed, 1, ""},
		"odd once":      {[]error{odd}, jobs.Completed, 2, ""},
		"odd for ever":  {[]error{odd, odd, odd}, jobs.Failed, 3, "odd"},
		"away, refused": {[]error{away, refused}, jobs.Failed, 1, "no such user"},
	} {
		for _, data := range []jobs.NewJob{job("push-notification", `{"user_id":"ana","message":"m"}`), job("create-profile", `{"user_id":"ana"}`)} {
			t.Run(name+" "+data.Name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					j := work(t, &inbox{answers: c.answers}, over, data)
					if j.State != c.state || j.AttemptsMade != c.attempts || !strings.Contains(j.LastError, c.says) {
						t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
					}
				})
			})
		}
	}
}

// Data that is none fails at once, and names the member.
func TestHostileData(t *testing.T) {
	for data, says := range map[string]string{
		``: "data", `null,`: "data", `[]`: "data", `7`: "data", `{"user_id":7,"message":"m"}`: "/user_id", `{"user_id":"u","mesage":"m"}`: "mesage",
		`{"user_id":"u","message":{}}`: "/message", `{"user_id":"u","message":"m","message":"n"}`: "message", `{"user_id":"u","message":"m"}}`: "data",
		`{"user_id":"u","message":"` + "\xff" + `"}`: "data", `{"user_id":"u","message":"m","timestamp":"soon"}`: "2026-11-25T12:00:00Z",
		`{"user_id":"u","message":"m","timestamp":1e400}`: "milliseconds", `{"user_id":"u","message":"m","timestamp":9223372036854775807}`: "milliseconds",
		`{"user_id":"u","message":"m","timestamp":-1}`: "milliseconds", `{"user_id":"u","message":"m","timestamp":true}`: "milliseconds",
		`{"user_id":"u","message":"m","timestamp":"0001-01-01T00:00:00Z"}`: "milliseconds", `{"user_id":"u","message":"m","timestamp":{}}`: "milliseconds",
		strings.Repeat(`{"user_id":`, 20_000): "data",
	} {
		t.Run(data[:min(len(data), 60)], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := &inbox{}
				j := work(t, in, over, job("push-notification", data))
				if j.State != jobs.Failed || j.AttemptsMade != 1 || !strings.Contains(j.LastError, says) || len(in.taken) != 0 {
					t.Errorf("%s after %d attempts: %q does not say %q", j.State, j.AttemptsMade, j.LastError, says)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		nobodys := job("push-notification", `{"user_id":"u","message":"m"}`)
		nobodys.Tenant = ""
		if j := work(t, &inbox{}, over, nobodys); j.State != jobs.Failed || !strings.Contains(j.LastError, "no tenant's") {
			t.Errorf("%s: %s", j.State, j.LastError)
		}
	})
}

// Jobs of other names stay for workers outside.
func TestOtherNamesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine := job("push-notification", `{"user_id":"ana","message":"m"}`)
		mine.ID = "mine"
		in := &inbox{}
		j := work(t, in, func(j jobs.Job) bool { return len(in.taken) == 1 }, job("push-to-phone", "{}"), mine)
		if j.State != jobs.Waiting || j.AttemptsMade != 0 {
			t.Errorf("%s after %d attempts", j.State, j.AttemptsMade)
		}
	})
}
