package process_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"tenderbox/jobs"
	"tenderbox/jobs/process"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// journals is a Feeder that notes what it is asked.
type journals struct {
	mu   sync.Mutex // guards what follows
	fed  []int
	more map[int]int // how often there is more
	fail map[int]error
}

func (f *journals) Journals() int { return 3 }

func (f *journals) Feed(_ context.Context, journal int) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fed = append(f.fed, journal)
	f.more[journal]--
	return f.more[journal] >= 0, f.fail[journal]
}

func TestWhatAJobAsksFor(t *testing.T) {
	for data, want := range map[string]string{
		"":                                 "[0 1 2]",
		" ":                                "[0 1 2]",
		"null":                             "[0 1 2]",
		"{}":                               "[0 1 2]",
		`{"kind":"analytics"}`:             "[0 1 2]",
		`{"kind":"analytics","journal":1}`: "[1]",
		`{"kind":"report"}`:                "give work of your own another name",
		`{"user_id":"ana"}`:                "give work of your own another name",
		`[1]`:                              "give work of your own another name",
		`{} {}`:                            "give work of your own another name",
		`{"journal":"1"}`:                  "give work of your own another name",
		`{"journal":3}`:                    "data.journal: 3, there are 0 to 2",
		`{"journal":-1}`:                   "data.journal: -1, there are 0 to 2",
	} {
		f := &journals{}
		f.more = map[int]int{}
		err := process.Handlers(f)[process.Name](t.Context(), &jobs.Job{NewJob: jobs.NewJob{Data: []byte(data)}})
		got := fmt.Sprint(f.fed)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || err != nil && len(f.fed) > 0 {
			t.Errorf("%q: %s, want %s", data, got, want)
		}
	}
}

// The queue's own rules hold: what cannot be done now is tried again, what nobody here understands fails at
// once, work of other names waits for others.
func TestInItsQueue(t *testing.T) {
	st := storetest.Open(t, store.Options{})
	finished := make(chan jobs.Job, 10)
	engine, err := jobs.Open(st, jobs.Options{Queues: []jobs.QueueConfig{{Name: "data-processing", Attempts: 2, Backoff: jobs.Backoff{Delay: 1}}},
		Failed: func(j jobs.Job) []jobs.NewJob { finished <- j; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	f := &journals{more: map[int]int{0: 1}, fail: map[int]error{2: errors.New("the disk is away")}}
	runner, err := engine.NewRunner(jobs.RunnerOptions{Queue: "data-processing", Handlers: process.Handlers(f), Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	add := func(id, name, data string) {
		if _, err := engine.Enqueue(t.Context(), jobs.NewJob{Queue: "data-processing", Tenant: "shop", ID: id, Name: name, Data: []byte(data)}); err != nil {
			t.Fatal(err)
		}
	}
	add("theirs", "resize-image", `{}`)
	add("odd", process.Name, `{"image":7}`)
	add("due", process.Name, `{"kind":"analytics"}`)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	failed := map[string]jobs.Job{}
	for range 2 {
		j := <-finished
		failed[j.ID] = j
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if j, err := engine.Get("shop", "data-processing", "theirs"); err != nil || j.State != jobs.Waiting {
		t.Errorf("a job of another name is %s: %v", j.State, err)
	}
	if err := engine.Close(); err != nil {
		t.Error(err)
	}
	if j := failed["odd"]; j.AttemptsMade != 1 || !strings.Contains(j.LastError, "another name") {
		t.Errorf("odd: %d attempts, %s", j.AttemptsMade, j.LastError)
	}
	if j := failed["due"]; j.AttemptsMade != 2 || !strings.Contains(j.LastError, "journal 2: the disk is away") {
		t.Errorf("due: %d attempts, %s", j.AttemptsMade, j.LastError)
	}
	// Once it stood back, which burnt nothing; then two attempts.
	if want := []int{0, 0, 1, 2, 0, 1, 2}; !slices.Equal(f.fed, want) {
		t.Errorf("fed %v, want %v", f.fed, want)
	}
}
