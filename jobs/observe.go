package jobs

import (
	"bytes"
	"time"
)

// moved is told of every move of a job, in the order in which they became true: enqueued (from ""), due, started, completed, failed, delayed,
// waiting again; j.State says where it is now. Only its progress changed: from is Active and so is j.State. Starts of the box's own
// workers are told when they begin, all else when it is on disk. Engine.mu is held; j must not be kept or changed.
func (e *Engine) moved(j *Job, from State) {
	e.measure(j, from)
	if !e.watchers.any.Load() {
		return
	}
	t := Transition{Tenant: j.Tenant, Queue: j.Queue, ID: j.ID, Name: j.Name, State: j.State, At: e.clock.wall().UTC()}
	if from == Active && j.State == Active {
		t.Progress = bytes.Clone(j.Progress)
	}
	e.watchers.tell(t)
}

// measure counts a move.
func (e *Engine) measure(j *Job, from State) {
	count := func(what event, took time.Duration) {
		e.statistics.count(j.Queue, j.Tenant, what, took, e.clock.steady())
	}
	switch {
	case from == "":
		count(eventAdded, 0)
	case from == Waiting && j.State == Active:
		count(eventStarted, j.startedAt.Sub(j.RunAt))
	case from == Active && j.State == Completed:
		count(eventCompleted, ran(j))
	case from == Active && j.State == Failed:
		count(eventFailed, ran(j))
	}
}

// ran says how long the last attempt of a finished job took; 0 if it ended with the process.
func ran(j *Job) time.Duration {
	if len(j.History) == 0 {
		return 0
	}
	last := j.History[len(j.History)-1]
	return max(last.EndedAt.Sub(last.StartedAt), 0)
}

// ratesOf measures a tenant's jobs of a queue (tenant "": everybody's).
func (e *Engine) ratesOf(tenant, queue string) QueueRates {
	return e.statistics.rates(queue, tenant, tenant == "", e.clock.steady())
}
