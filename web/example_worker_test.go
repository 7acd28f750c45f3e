package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/tenants"
)

// A worker works on the jobs of one queue, outside the box, in any process that reaches it over HTTP. It is all that such a program
// needs: copy it. In docs/JOBS.md stands the same for curl and for Node.
type worker struct {
	url, key string // of the box, and a tenant's
	queue    string
	name     string        // shown on the jobs that it has
	many     int           // how many jobs it takes at a time
	lease    time.Duration // how long the box waits for a sign of life before it gives a job to somebody else
	handle   func(ctx context.Context, j workerJob) (result any, err error)
}

// workerJob is as much of a job as a worker wants to know.
type workerJob struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Data       json.RawMessage `json:"data"`
	Attempt    int             `json:"attempts_made"`
	LeaseToken string          `json:"lease_token"`
}

// errLost says that a job is somebody else's by now: what this worker knows of it does not matter any more.
var errLost = errors.New("the lease is over")

// run works until ctx ends. It finishes the jobs in hand: what it does not finish is given to somebody else when the lease is over.
func (w *worker) run(ctx context.Context) error {
	for ctx.Err() == nil {
		var leased struct{ Jobs []workerJob }
		err := w.post(ctx, "/lease", map[string]any{
			"max": w.many, "lease_ms": w.lease.Milliseconds(), "wait_ms": 30_000, "worker": w.name,
		}, &leased)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return err // a real worker waits a moment and goes on: the box may be restarting
		}
		var inHand sync.WaitGroup
		for _, j := range leased.Jobs {
			inHand.Go(func() { w.attend(context.WithoutCancel(ctx), j) })
		}
		inHand.Wait()
	}
	return nil
}

// attend works on one job, keeps its lease meanwhile, and says how it ended.
func (w *worker) attend(ctx context.Context, j workerJob) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go w.keep(ctx, j, stop)
	result, err := w.handle(ctx, j)
	at := "/jobs/" + j.ID
	switch {
	case errors.Is(context.Cause(ctx), errLost):
		return
	case err != nil:
		err = w.post(ctx, at+"/fail", map[string]any{"lease_token": j.LeaseToken, "error": err.Error()}, nil)
	default:
		err = w.post(ctx, at+"/complete", map[string]any{"lease_token": j.LeaseToken, "result": result}, nil)
	}
	if err != nil {
		fmt.Println("the job will run again:", err) // so a handler must not mind to do its work twice
	}
}

// keep extends the lease in time, and ends the handler's context when the job is lost.
func (w *worker) keep(ctx context.Context, j workerJob, stop context.CancelCauseFunc) {
	tick := time.NewTicker(w.lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err := w.post(ctx, "/jobs/"+j.ID+"/extend", map[string]any{"lease_token": j.LeaseToken, "lease_ms": w.lease.Milliseconds()}, nil)
			if errors.Is(err, errLost) {
				stop(errLost)
				return
			}
		}
	}
}

// post asks the box. 409 means that the lease is over.
func (w *worker) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/api/v1/queues/"+w.queue+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+w.key)
	r.Header.Set("Content-Type", "application/json")
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	content, err := io.ReadAll(a.Body)
	switch {
	case err != nil:
		return err
	case a.StatusCode == http.StatusConflict:
		return errLost
	case a.StatusCode/100 != 2:
		return fmt.Errorf("%s: %s", a.Status, content)
	case out == nil:
		return nil
	}
	return json.Unmarshal(content, out)
}

// Three jobs are added, and worked off by a worker outside the box: by priority, the second attempt of the one that fails included.
func Example_worker() {
	url, key, stopBox := exampleBox()
	defer stopBox()
	ctx, stop := context.WithCancel(context.Background())
	w := &worker{url: url, key: key, queue: "email", name: "example", many: 1, lease: 30 * time.Second}
	done := 0
	w.handle = func(_ context.Context, j workerJob) (any, error) {
		var mail struct{ To string }
		if err := json.Unmarshal(j.Data, &mail); err != nil {
			return nil, err
		}
		if mail.To == "bob@shop.example" && j.Attempt == 1 {
			fmt.Println("to", mail.To, "fails")
			return nil, errors.New("451 try again later")
		}
		fmt.Println("to", mail.To, "in attempt", j.Attempt)
		if done++; done == 3 {
			stop() // enough for an example
		}
		return map[string]any{"accepted": true}, nil
	}

	retry := map[string]any{"attempts": 5, "backoff": map[string]any{"type": "fixed", "delay_ms": 0}}
	err := w.post(ctx, "/jobs", map[string]any{"jobs": []any{
		map[string]any{"name": "send-email", "data": map[string]any{"to": "bob@shop.example"}, "opts": retry},
		map[string]any{"name": "send-email", "data": map[string]any{"to": "carol@shop.example"}, "opts": map[string]any{"priority": 2}},
		map[string]any{"name": "send-email", "data": map[string]any{"to": "alice@shop.example"}, "opts": map[string]any{"priority": 0, "job_id": "welcome:alice"}},
	}}, nil)
	if err == nil {
		err = w.run(ctx)
	}
	if err != nil {
		fmt.Println(err)
	}
	// Unordered output:
	// to bob@shop.example fails
	// to alice@shop.example in attempt 1
	// to bob@shop.example in attempt 2
	// to carol@shop.example in attempt 1
}

// exampleBox is a box's HTTP side with a real queue behind it, on a folder of its own.
func exampleBox() (url, key string, stop func()) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	folder, err := os.MkdirTemp("", "example")
	must(err)
	keyring, err := tenants.CreateKeyring(filepath.Join(folder, "box.key"))
	must(err)
	box, _, err := tenants.OpenFile(filepath.Join(folder, "box.db"))
	must(err)
	registry, err := tenants.Open(box, keyring, tenants.Options{})
	must(err)
	_, key, err = registry.Add(context.Background(), tenants.New{ID: "shop"})
	must(err)
	file, err := store.Open(filepath.Join(folder, "jobs.db"), store.Options{})
	must(err)
	engine, err := jobs.Open(file, jobs.Options{Queues: []jobs.QueueConfig{{Name: "email"}}})
	must(err)
	handler, err := New(Options{Ledger: &fakeLedger{}, Tenants: registry, Jobs: engine})
	must(err)
	server := httptest.NewServer(handler)
	return server.URL, key, func() {
		handler.Leave()
		server.Close()
		must(errors.Join(engine.Close(), file.Close(), box.Close(), os.RemoveAll(folder)))
	}
}
