package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/julienschmidt/httprouter"
)

// Paths of the queue that both servers have.
const (
	queuePath    = "/api/v1/queues/" + benchQueue
	addPath      = queuePath + "/jobs"
	leasePath    = queuePath + "/lease"
	completePath = queuePath + "/complete"
)

// bulkBodyMax is the box's own limit of a bulk's body.
const bulkBodyMax = 16 << 20

// The bodies as the no-op server decodes and encodes them: the box's, with nothing behind them.
type (
	noopAdd struct {
		Name string          `json:"name"`
		Data json.RawMessage `json:"data"`
		Opts struct {
			Priority int    `json:"priority"`
			DelayMS  int64  `json:"delay_ms"`
			JobID    string `json:"job_id"`
		} `json:"opts"`
		Jobs []noopAdd `json:"jobs"`
	}
	noopJob struct {
		ID           string          `json:"id"`
		Object       string          `json:"object"`
		Queue        string          `json:"queue"`
		Name         string          `json:"name"`
		Data         json.RawMessage `json:"data"`
		Opts         json.RawMessage `json:"opts"`
		State        string          `json:"state"`
		AttemptsMade int             `json:"attempts_made"`
		Progress     *int            `json:"progress"`
		Result       *int            `json:"result"`
		Error        *string         `json:"error"`
		History      []struct{}      `json:"history"`
		Worker       *string         `json:"worker"`
		CreatedAt    time.Time       `json:"created_at"`
		RunAt        time.Time       `json:"run_at"`
		LeasedUntil  *time.Time      `json:"leased_until"`
		FinishedAt   *time.Time      `json:"finished_at"`
		LeaseToken   string          `json:"lease_token,omitempty"`
	}
	noopJobs struct {
		Jobs []noopJob `json:"jobs"`
	}
	noopLease struct {
		Max     int      `json:"max"`
		LeaseMS int64    `json:"lease_ms"`
		WaitMS  int64    `json:"wait_ms"`
		Worker  string   `json:"worker"`
		Names   []string `json:"names"`
	}
	noopCompleted struct {
		ID         string          `json:"id"`
		LeaseToken string          `json:"lease_token,omitempty"`
		Result     json.RawMessage `json:"result,omitempty"`
		State      string          `json:"state,omitempty"`
	}
	noopComplete struct {
		Jobs []noopCompleted `json:"jobs"`
	}
)

const noopOpts = `{"priority":0,"attempts":3,"backoff":{"type":"exponential","delay_ms":2000,"jitter":0,"max_ms":3600000},"remove_on_complete":10,"remove_on_fail":5,"timeout_ms":600000}`

// noopID is as long as a real one.
func noopID(i int) string { return fmt.Sprintf("job_01J%023d", i) }

func newNoopJob(i int, name string, data json.RawMessage, state string) noopJob {
	now := time.Now().UTC()
	return noopJob{
		ID: noopID(i), Object: "job", Queue: benchQueue, Name: name, Data: data, Opts: json.RawMessage(noopOpts), State: state,
		History: []struct{}{}, CreatedAt: now, RunAt: now,
	}
}

// routeNoopJobs adds what answers about jobs without having any.
func routeNoopJobs(router *httprouter.Router) {
	router.POST(addPath, noopHandler(http.StatusCreated, func(in noopAdd) any {
		if in.Jobs == nil {
			return newNoopJob(0, in.Name, in.Data, "waiting")
		}
		out := noopJobs{make([]noopJob, len(in.Jobs))}
		for i, j := range in.Jobs {
			out.Jobs[i] = newNoopJob(i, j.Name, j.Data, "waiting")
		}
		return out
	}))
	router.POST(leasePath, noopHandler(http.StatusOK, func(in noopLease) any {
		out := noopJobs{make([]noopJob, in.Max)}
		for i := range out.Jobs {
			j := newNoopJob(i, addedName, payload, "active")
			until := j.RunAt.Add(time.Duration(in.LeaseMS) * time.Millisecond)
			j.AttemptsMade, j.Worker, j.LeasedUntil, j.LeaseToken = 1, &in.Worker, &until, noopToken
			out.Jobs[i] = j
		}
		return out
	}))
	router.POST(completePath, noopHandler(http.StatusOK, func(in noopComplete) any {
		for i := range in.Jobs {
			in.Jobs[i] = noopCompleted{ID: in.Jobs[i].ID, State: "completed"}
		}
		return in
	}))
}

// noopToken is as long as a real one.
const noopToken = "0123456789abcdef0123456789abcdef"

// noopHandler decodes, has an answer made, and encodes it.
func noopHandler[T any](status int, answer func(T) any) httprouter.Handle {
	return func(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
		content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bulkBodyMax))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		var in T
		if err := json.Unmarshal(content, &in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := json.Marshal(answer(in))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(out) // an error means that the client has gone
	}
}
