package web

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/jobs"
)

// jobView describes a job for people. What is sent is put together by appendJob, because data, progress and result must come back
// byte for byte, and because lists of jobs are the largest answers there are. A test holds the two together.
type jobView struct {
	ID           string        `json:"id"`
	Object       string        `json:"object" enum:"job"`
	Queue        string        `json:"queue"`
	Tenant       *string       `json:"tenant,omitempty" doc:"Told to the operator: whose job it is; empty: the box's own."`
	Name         string        `json:"name"`
	Data         rawValue      `json:"data"`
	Opts         jobOptsView   `json:"opts"`
	State        jobs.State    `json:"state" enum:"waiting,delayed,active,completed,failed"`
	AttemptsMade int           `json:"attempts_made" doc:"Attempts begun, the present one included."`
	Progress     rawValue      `json:"progress" doc:"What its worker reported last."`
	Result       rawValue      `json:"result" doc:"What its worker gave when it completed the job."`
	Error        *string       `json:"error" doc:"Of the last failed attempt."`
	History      []attemptView `json:"history" doc:"The attempts that ended, oldest first; of many, the newest."`
	Worker       *string       `json:"worker" doc:"Who has it."`
	CreatedAt    time.Time     `json:"created_at"`
	RunAt        time.Time     `json:"run_at" doc:"When it became or becomes due."`
	LeasedUntil  *time.Time    `json:"leased_until" doc:"When an outside worker's lease ends, unless extended."`
	FinishedAt   *time.Time    `json:"finished_at"`
	LeaseToken   string        `json:"lease_token,omitzero" doc:"In answers to a lease alone: what the worker shows when it speaks of the job."`
}

// jobOptsView are the options that hold for the job, the queue's defaults included.
type jobOptsView struct {
	Priority         int         `json:"priority"`
	Attempts         *int        `json:"attempts" doc:"null: no limit."`
	Backoff          backoffView `json:"backoff"`
	RemoveOnComplete retention   `json:"remove_on_complete"`
	RemoveOnFail     retention   `json:"remove_on_fail"`
	TimeoutMS        *int64      `json:"timeout_ms" doc:"null: none."`
}

type backoffView struct {
	Type    jobs.BackoffType `json:"type"`
	DelayMS int64            `json:"delay_ms"`
	Jitter  float64          `json:"jitter"`
	MaxMS   int64            `json:"max_ms"`
}

type attemptView struct {
	N         int        `json:"n" doc:"From 1."`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at" doc:"null: the box ended during it."`
	Worker    *string    `json:"worker" doc:"null: the box's own."`
	Error     *string    `json:"error" doc:"null: it completed."`
}

// appendJob writes a job. For the operator it names the tenant; for the worker that leased it, the token.
func appendJob(b []byte, j *jobs.Job, operator, leased bool) []byte {
	b = quoted(b, `{"id":`, j.ID)
	b = quoted(b, `,"object":"job","queue":`, j.Queue)
	if operator {
		b = quoted(b, `,"tenant":`, j.Tenant)
	}
	b = quoted(b, `,"name":`, j.Name)
	b = raw(b, `,"data":`, j.Data)
	b = appendOpts(append(b, `,"opts":`...), &j.NewJob)
	b = quoted(b, `,"state":`, string(j.State))
	b = strconv.AppendInt(append(b, `,"attempts_made":`...), int64(j.AttemptsMade), 10)
	b = raw(b, `,"progress":`, j.Progress)
	b = raw(b, `,"result":`, j.Result)
	b = quotedOrNull(b, `,"error":`, j.LastError)
	b = append(b, `,"history":[`...)
	for i := range j.History {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendAttempt(b, &j.History[i])
	}
	b = quotedOrNull(b, `],"worker":`, j.Worker)
	b = stamp(b, `,"created_at":`, j.CreatedAt)
	b = stamp(b, `,"run_at":`, j.RunAt)
	b = stampOrNull(b, `,"leased_until":`, j.LeasedUntil)
	b = stampOrNull(b, `,"finished_at":`, j.FinishedAt)
	if leased {
		b = quoted(b, `,"lease_token":`, j.LeaseToken)
	}
	return append(b, '}')
}

func appendOpts(b []byte, j *jobs.NewJob) []byte {
	b = strconv.AppendInt(append(b, `{"priority":`...), int64(j.Priority), 10)
	b = append(b, `,"attempts":`...)
	if j.Attempts < 0 {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, int64(j.Attempts), 10)
	}
	b = quoted(b, `,"backoff":{"type":`, string(j.Backoff.Type))
	b = strconv.AppendInt(append(b, `,"delay_ms":`...), j.Backoff.Delay.Milliseconds(), 10)
	b = strconv.AppendFloat(append(b, `,"jitter":`...), j.Backoff.Jitter, 'g', -1, 64)
	b = strconv.AppendInt(append(b, `,"max_ms":`...), j.Backoff.Max.Milliseconds(), 10)
	b = appendRetention(append(b, `},"remove_on_complete":`...), j.RemoveOnComplete)
	b = appendRetention(append(b, `,"remove_on_fail":`...), j.RemoveOnFail)
	b = append(b, `,"timeout_ms":`...)
	if j.Timeout < 0 {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, j.Timeout.Milliseconds(), 10)
	}
	return append(b, '}')
}

func appendAttempt(b []byte, a *jobs.Attempt) []byte {
	b = strconv.AppendInt(append(b, `{"n":`...), int64(a.N), 10)
	b = stamp(b, `,"started_at":`, a.StartedAt)
	b = stampOrNull(b, `,"ended_at":`, a.EndedAt)
	b = quotedOrNull(b, `,"worker":`, a.Worker)
	b = quotedOrNull(b, `,"error":`, a.Error)
	return append(b, '}')
}

// quoted writes a member whose value is a string. What is not UTF-8 is replaced: it cannot be shown.
func quoted(b []byte, member, s string) []byte {
	b, _ = jsontext.AppendQuote(append(b, member...), s) // its error says that it replaced something
	return b
}

func quotedOrNull(b []byte, member, s string) []byte {
	if s == "" {
		return append(append(b, member...), "null"...)
	}
	return quoted(b, member, s)
}

func raw(b []byte, member string, v rawValue) []byte {
	b = append(b, member...)
	if !v.shown() {
		return append(b, "null"...)
	}
	return append(b, v...)
}

// compact is raw without line breaks and other white space between the tokens.
func compact(b []byte, member string, v rawValue) []byte {
	flat := jsontext.Value(append([]byte(nil), v...))
	if flat.Compact() != nil {
		flat = nil
	}
	return raw(b, member, rawValue(flat))
}

func stamp(b []byte, member string, t time.Time) []byte {
	b = append(append(b, member...), '"')
	return append(t.UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

func stampOrNull(b []byte, member string, t time.Time) []byte {
	if t.IsZero() {
		return append(append(b, member...), "null"...)
	}
	return stamp(b, member, t)
}
