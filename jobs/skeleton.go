package jobs

// Declarations that the engine, the HTTP API and the schedules agree on. Each moves to the file of its noun as it is
// built; this file is gone when the last has moved.

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

var errSkeleton = errors.New("not built yet")

var (
	// ErrState: the job is not in a state in which this can be done to it; the text names the state.
	ErrState = errors.New("the job's state does not allow it")
)

// QueueRates are what statistics.go measures, per tenant and queue, in memory since the start.
type QueueRates struct {
	Added, Started, Completed, Failed float64       // a second, over the last minute
	WaitP50, WaitP99                  time.Duration // from due to start
	RunP50, RunP99                    time.Duration // from start to outcome
}

// ---- looking at jobs and moving them (list.go, manage.go, log.go): owner "management"

// ListOptions page through a state's jobs, newest first.
type ListOptions struct {
	Limit int    // 1…100
	After string // Page.Next of the page before; "": from the beginning. Opaque
}

// JobPage is one page of a list.
type JobPage struct {
	Jobs []Job
	Next string // "": no more
}

// List returns a tenant's jobs of a queue in a state, newest first.
func (e *Engine) List(tenant, queue string, s State, o ListOptions) (JobPage, error) {
	return JobPage{}, errSkeleton
}

// Retry moves a failed (or completed) job back to waiting with its attempts anew. Another state: ErrState.
func (e *Engine) Retry(ctx context.Context, tenant, queue, id string) (Job, error) {
	return Job{}, errSkeleton
}

// RetryFailed retries all failed jobs of a queue; tenant "": of all tenants.
func (e *Engine) RetryFailed(ctx context.Context, tenant, queue string) (int, error) {
	return 0, errSkeleton
}

// Promote makes a delayed job wait. Another state: ErrState.
func (e *Engine) Promote(ctx context.Context, tenant, queue, id string) (Job, error) {
	return Job{}, errSkeleton
}

// Remove deletes a job that is not active (ErrState).
func (e *Engine) Remove(ctx context.Context, tenant, queue, id string) error { return errSkeleton }

// Drain removes all waiting (and, with delayed, delayed) jobs of a tenant's line.
func (e *Engine) Drain(ctx context.Context, tenant, queue string, delayed bool) (int, error) {
	return 0, errSkeleton
}

// LogLine is one line that a worker logged for a job.
type LogLine struct {
	At   time.Time
	Text string
}

// Log appends a line to a job's log; the job keeps the newest logLinesMax.
func (e *Engine) Log(ctx context.Context, r LeaseRef, text string) error { return errSkeleton }

// Logs returns a job's log lines, oldest first.
func (e *Engine) Logs(tenant, queue, id string) ([]LogLine, error) { return nil, errSkeleton }

// ---- live state (watch.go): owner "management"

// Transition is one move of a job, told live and not kept.
type Transition struct {
	Tenant, Queue, ID, Name string
	State                   State
	At                      time.Time
	Progress                json.RawMessage // set when only the progress changed
}

// Watch tells the moves of a tenant's jobs in a queue ("" : all its queues) from now on, until ctx ends. A reader who is too slow misses some: the
// channel is closed then, and he reads the state anew.
func (e *Engine) Watch(ctx context.Context, tenant, queue string) <-chan Transition { return nil }

// ---- schedules (schedules.go; the mover of due jobs keeps schedule.go): owner "management"

// Missed says what becomes of occurrences during which the box was off.
type Missed string

const (
	RunOnce Missed = "run_once" // one job for all that were missed
	Skip    Missed = "skip"     // none; the next is the next that comes
)

// Schedule makes a job at each occurrence. Exactly one of Cron and Every is set.
type Schedule struct {
	Tenant, Queue, ID string
	Cron              string        // five fields, or @daily and the like
	Every             time.Duration // a second at least
	TimeZone          string        // IANA name, for Cron; "": UTC
	Missed            Missed        // "": RunOnce
	Job               NewJob        // Queue, Tenant and ID are the schedule's and the occurrence's
	Paused            bool
	CreatedAt         time.Time
	NextAt            time.Time // zero: paused
	LastAt            time.Time // the last occurrence that became a job; zero: none yet
	LastJobID         string
}

// PutSchedule makes or replaces a schedule.
func (e *Engine) PutSchedule(ctx context.Context, s Schedule) (Schedule, error) {
	return Schedule{}, errSkeleton
}

// Schedules lists a tenant's schedules of a queue, by id.
func (e *Engine) Schedules(tenant, queue string) ([]Schedule, error) { return nil, errSkeleton }

// GetSchedule returns one: ErrNotFound.
func (e *Engine) GetSchedule(tenant, queue, id string) (Schedule, error) {
	return Schedule{}, errSkeleton
}

// DeleteSchedule removes one: ErrNotFound. Jobs it made stay.
func (e *Engine) DeleteSchedule(ctx context.Context, tenant, queue, id string) error {
	return errSkeleton
}
