package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"tenderbox/jobs"
	"tenderbox/store"
)

// queueName is the queue that the jobs go through.
const queueName = "bench"

// engine is Tenderbox within a Go program.
type engine struct {
	store *store.Store
	*jobs.Engine
}

func openEngine(_ context.Context, f folders) (peer, error) {
	dir := filepath.Join(f.data, "engine")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s, err := store.Open(filepath.Join(dir, "jobs.db"), store.Options{})
	if err != nil {
		return nil, err
	}
	e, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: queueName}}})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &engine{s, e}, nil
}

func (e *engine) enqueue(ctx context.Context) error { return e.bulk(ctx, 1) }

func (e *engine) bulk(ctx context.Context, n int) error {
	batch := make([]jobs.NewJob, n)
	for i := range batch {
		batch[i] = jobs.NewJob{Queue: queueName, Tenant: "peers", Data: payload}
	}
	_, err := e.Enqueue(ctx, batch...)
	return err
}

func (e *engine) drain(ctx context.Context, done func()) error {
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: queueName, Concurrency: workers, Handler: func(context.Context, *jobs.Job) error { done(); return nil }})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

func (e *engine) close() error { return errors.Join(e.Close(), e.store.Close()) }
