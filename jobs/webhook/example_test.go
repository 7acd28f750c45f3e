package webhook_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"tenderbox/jobs"
	"tenderbox/jobs/webhook"
	"tenderbox/store"
)

// registry knows endpoints by their ids.
type registry map[string]webhook.Endpoint

func (r registry) Endpoint(_, id string) (webhook.Endpoint, bool) {
	e, ok := r[id]
	return e, ok
}

func (r registry) Disable(context.Context, string, string, string) error { return nil }

// An event becomes a job for each endpoint; the receiver verifies it with any library of Standard Webhooks.
func Example() {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	arrived := make(chan string)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		verifier, err2 := standardwebhooks.NewWebhook(secret)
		if err != nil || err2 != nil || verifier.Verify(body, r.Header) != nil {
			arrived <- "forged"
			return
		}
		arrived <- r.Header.Get("webhook-id") + " " + string(body)
	}))
	defer receiver.Close()

	dir, err := os.MkdirTemp("", "webhook")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	st, err := store.Open(filepath.Join(dir, "jobs.db"), store.Options{})
	if err != nil {
		panic(err)
	}
	defer st.Close()
	engine, err := jobs.Open(st, jobs.Options{Queues: []jobs.QueueConfig{{Name: webhook.Queue}}})
	if err != nil {
		panic(err)
	}
	defer engine.Close()

	endpoints := registry{"we_1": {URL: receiver.URL, Secrets: []webhook.Secret{secret}}}
	deliverer := webhook.New(endpoints, webhook.Options{AllowLAN: true})
	defer deliverer.CloseIdleConnections()
	runner, err := engine.NewRunner(jobs.RunnerOptions{Queue: webhook.Queue, Handler: deliverer.Handle})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- runner.Run(ctx) }()

	event := webhook.Event{ID: "evt_1", Type: "user.created", JSON: []byte(`{"specversion":"1.0","id":"evt_1","type":"user.created"}`)}
	if _, err := engine.Enqueue(ctx, webhook.JobsFor("shop", event, []string{"we_1"})...); err != nil {
		panic(err)
	}
	fmt.Println(<-arrived)
	stop()
	fmt.Println(<-stopped)
	// Output:
	// evt_1 {"specversion":"1.0","id":"evt_1","type":"user.created"}
	// <nil>
}
