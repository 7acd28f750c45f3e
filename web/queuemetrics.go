package web

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tenderbox/jobs"
)

// ownLabel stands for all the queues that tenants declared, together: their names are the tenants', and no label may be made up by
// a client. How one of them stands says GET /queues/{queue}.
const ownLabel = "own"

var (
	descJobs      = prometheus.NewDesc("tenderbox_jobs", "Jobs by queue and state. Tenants' own queues are counted together, as own.", []string{"queue", "state"}, nil)
	descJobsOld   = prometheus.NewDesc("tenderbox_jobs_oldest_waiting_seconds", "For how long the job has been due that has waited longest; 0: none waits.", []string{"queue"}, nil)
	descJobsRate  = prometheus.NewDesc("tenderbox_jobs_per_second", "Jobs added, started, completed and failed for good, over the last minute.", []string{"queue", "what"}, nil)
	descJobsWait  = prometheus.NewDesc("tenderbox_jobs_wait_seconds", "From due to start, of the last minutes.", []string{"queue", "quantile"}, nil)
	descJobsRun   = prometheus.NewDesc("tenderbox_jobs_run_seconds", "From start to outcome, of the last minutes.", []string{"queue", "quantile"}, nil)
	descJobsPause = prometheus.NewDesc("tenderbox_queue_paused", "1 while the operator keeps the queue from starting jobs.", []string{"queue"}, nil)
)

// collectQueues reads all queues.
func collectQueues(book QueueBook, now time.Time, gauge func(*prometheus.Desc, float64, ...string)) {
	own := jobs.QueueInfo{Name: ownLabel}
	for _, q := range book.Queues("") {
		if q.Tenant != "" {
			addQueue(&own, &q)
			continue
		}
		gauge(descJobsPause, truth(q.Paused), q.Name)
		for quantile, d := range map[string][2]time.Duration{"0.5": {q.Rates.WaitP50, q.Rates.RunP50}, "0.99": {q.Rates.WaitP99, q.Rates.RunP99}} {
			gauge(descJobsWait, d[0].Seconds(), q.Name, quantile)
			gauge(descJobsRun, d[1].Seconds(), q.Name, quantile)
		}
		collectQueue(&q, now, gauge)
	}
	collectQueue(&own, now, gauge)
}

func collectQueue(q *jobs.QueueInfo, now time.Time, gauge func(*prometheus.Desc, float64, ...string)) {
	for state, n := range map[string]int{"waiting": q.Counts.Waiting, "delayed": q.Counts.Delayed, "active": q.Counts.Active,
		"completed": q.Counts.Completed, "failed": q.Counts.Failed, "damaged": q.Counts.Damaged} {
		gauge(descJobs, float64(n), q.Name, state)
	}
	for what, rate := range map[string]float64{"added": q.Rates.Added, "started": q.Rates.Started, "completed": q.Rates.Completed, "failed": q.Rates.Failed} {
		gauge(descJobsRate, rate, q.Name, what)
	}
	age := 0.0
	if at := q.Counts.OldestWaiting; !at.IsZero() {
		age = max(now.Sub(at).Seconds(), 0)
	}
	gauge(descJobsOld, age, q.Name)
}

// addQueue adds what can be added.
func addQueue(sum, q *jobs.QueueInfo) {
	c, n := &sum.Counts, &q.Counts
	c.Waiting, c.Delayed, c.Active = c.Waiting+n.Waiting, c.Delayed+n.Delayed, c.Active+n.Active
	c.Completed, c.Failed, c.Damaged = c.Completed+n.Completed, c.Failed+n.Failed, c.Damaged+n.Damaged
	if !n.OldestWaiting.IsZero() && (c.OldestWaiting.IsZero() || n.OldestWaiting.Before(c.OldestWaiting)) {
		c.OldestWaiting = n.OldestWaiting
	}
	r, m := &sum.Rates, &q.Rates
	r.Added, r.Started, r.Completed, r.Failed = r.Added+m.Added, r.Started+m.Started, r.Completed+m.Completed, r.Failed+m.Failed
}
