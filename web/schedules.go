package web

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/jobs"
)

// ScheduleBook is what the server asks of schedules.
type ScheduleBook interface {
	PutSchedule(context.Context, jobs.Schedule) (jobs.Schedule, error)
	Schedules(tenant, queue string) ([]jobs.Schedule, error)
	GetSchedule(tenant, queue, id string) (jobs.Schedule, error)
	DeleteSchedule(ctx context.Context, tenant, queue, id string) error
}

const (
	schedulesPath = queuePath + "/schedules"
	schedulePath  = schedulesPath + "/{id}"

	// scheduleIDMax leaves room in a job's id, which is made of the schedule's and the occurrence's.
	scheduleIDMax = 128
	// cronMax bytes of an expression or a zone's name: the longest that makes sense is far below.
	cronMax = 255
)

// newSchedule is the body of PUT …/schedules/{id}.
type newSchedule struct {
	Cron     string      `json:"cron,omitzero" doc:"Minute, hour, day, month, weekday; or @daily and the like. Exactly one of cron and every_ms." example:"0 6 * * 1-5"`
	EveryMS  *int64      `json:"every_ms,omitempty" minimum:"1000" doc:"Whole seconds."`
	TimeZone string      `json:"time_zone,omitzero" doc:"IANA zone that cron is meant in. Default UTC." example:"Europe/Berlin"`
	Missed   jobs.Missed `json:"missed,omitzero" enum:"run_once,skip" doc:"What becomes of occurrences while the box was off. Default run_once: one job for all of them."`
	Paused   bool        `json:"paused,omitzero"`
	Job      newJob      `json:"job" doc:"What each occurrence adds. Its id is made by the schedule."`
}

// scheduleView is a schedule.
type scheduleView struct {
	ID        string           `json:"id"`
	Object    string           `json:"object" enum:"schedule"`
	Queue     string           `json:"queue"`
	Cron      *string          `json:"cron"`
	EveryMS   *int64           `json:"every_ms"`
	TimeZone  *string          `json:"time_zone" doc:"null: UTC."`
	Missed    jobs.Missed      `json:"missed" enum:"run_once,skip"`
	Paused    bool             `json:"paused"`
	Job       scheduledJobView `json:"job"`
	CreatedAt time.Time        `json:"created_at"`
	NextAt    *time.Time       `json:"next_at" doc:"null while paused."`
	LastAt    *time.Time       `json:"last_at" doc:"The last occurrence that became a job."`
	LastJobID *string          `json:"last_job_id"`
	LastError *string          `json:"last_error" doc:"Why the last occurrence became no job."`
}

// scheduledJobView is what a schedule adds.
type scheduledJobView struct {
	Name string            `json:"name"`
	Data rawValue          `json:"data"`
	Opts scheduledOptsView `json:"opts"`
}

// scheduledOptsView holds what the schedule sets; the rest is the queue's default at each occurrence.
type scheduledOptsView struct {
	Priority         int          `json:"priority"`
	DelayMS          int64        `json:"delay_ms,omitzero"`
	Attempts         *int         `json:"attempts,omitempty"`
	Backoff          *backoffView `json:"backoff,omitempty"`
	RemoveOnComplete *retention   `json:"remove_on_complete,omitempty"`
	RemoveOnFail     *retention   `json:"remove_on_fail,omitempty"`
	TimeoutMS        *int64       `json:"timeout_ms,omitempty"`
}

type scheduleInput struct {
	request
	Queue string `path:"queue"`
	ID    string `path:"id"`
}

type (
	scheduleOutput  struct{ Body scheduleView }
	schedulesOutput struct {
		Body struct {
			Data []scheduleView `json:"data"`
		}
	}
)

func (s *Server) registerSchedules() {
	op := func(id, method, path, summary, description string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Description: description, Tags: []string{"schedules"}}
	}
	register(s, op("list-schedules", http.MethodGet, schedulesPath, "List a queue's schedules, by id", ""), forTenant, s.listSchedules)
	register(s, op("put-schedule", http.MethodPut, schedulePath, "Make or replace a schedule",
		"Each occurrence becomes one job, whatever the box does meanwhile."), forTenant, s.putSchedule)
	documentBody[newSchedule](s.api, http.MethodPut, schedulePath)
	register(s, op("get-schedule", http.MethodGet, schedulePath, "Read a schedule", ""), forTenant, s.readSchedule)
	remove := op("remove-schedule", http.MethodDelete, schedulePath, "Remove a schedule", "The jobs that it made stay.")
	remove.DefaultStatus = http.StatusNoContent
	register(s, remove, forTenant, s.removeSchedule)
}

func (s *Server) listSchedules(_ context.Context, in *queueInput) (*schedulesOutput, error) {
	if err := s.allow(in.x, in.Queue, look); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	if _, err := s.jobs.Queue(string(t), in.Queue); err != nil { // no schedules are no answer about a queue that there is not
		return nil, s.queueError(t, in.Queue, err)
	}
	all, err := s.jobs.Schedules(string(t), in.Queue)
	if err != nil {
		return nil, err
	}
	out := &schedulesOutput{}
	out.Body.Data = make([]scheduleView, len(all))
	for i := range all {
		out.Body.Data[i] = viewOfSchedule(&all[i])
	}
	return out, nil
}

func (s *Server) readSchedule(_ context.Context, in *scheduleInput) (*scheduleOutput, error) {
	if err := s.allow(in.x, in.Queue, look); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	found, err := s.jobs.GetSchedule(string(t), in.Queue, in.ID)
	if err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	return &scheduleOutput{viewOfSchedule(&found)}, nil
}

func (s *Server) putSchedule(ctx context.Context, in *scheduleInput) (*scheduleOutput, error) {
	var form newSchedule
	if _, err := in.x.decodeWithin(jobBodyMax, &form); err != nil {
		return nil, err
	}
	if err := s.allow(in.x, in.Queue, work); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	wish, err := form.read(string(t), in.Queue, in.ID)
	if err != nil {
		return nil, err
	}
	made, err := s.jobs.PutSchedule(ctx, wish)
	if err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	return &scheduleOutput{viewOfSchedule(&made)}, nil
}

// read checks the form of what came in. What the engine alone knows, such as what a cron expression may be, it says itself.
func (f *newSchedule) read(tenant, queue, id string) (w jobs.Schedule, err error) {
	w = jobs.Schedule{Tenant: tenant, Queue: queue, ID: id, Cron: f.Cron, TimeZone: f.TimeZone, Missed: f.Missed, Paused: f.Paused}
	if !isJobID(id) || len(id) > scheduleIDMax {
		return w, memberRange("id", "a schedule's id is 1 to 128 of the characters a-z A-Z 0-9 - _ . ~ : @ + =, and not only dots")
	}
	if len(f.Cron) > cronMax {
		return w, memberRange("cron", "is no cron expression")
	}
	if len(f.TimeZone) > cronMax || f.TimeZone == "Local" { // the box's own setting, which is nobody's business
		return w, memberRange("time_zone", "must be an IANA time zone such as Europe/Berlin")
	}
	if f.EveryMS != nil {
		if w.Every, err = milliseconds("every_ms", *f.EveryMS, time.Second.Milliseconds(), spanMax); err != nil {
			return w, err
		}
		if w.Every%time.Second != 0 {
			return w, memberRange("every_ms", "must be whole seconds")
		}
	}
	if (f.Cron == "") == (f.EveryMS == nil) {
		return w, memberRange("cron", "exactly one of cron and every_ms must be there")
	}
	if f.Job.Opts.JobID != nil {
		return w, memberRange("job.opts.job_id", "a schedule makes the ids of its jobs")
	}
	w.Job, err = f.Job.wish("job.", tenant, queue)
	return w, err
}

func (s *Server) removeSchedule(ctx context.Context, in *scheduleInput) (*struct{}, error) {
	if err := s.allow(in.x, in.Queue, work); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	if err := s.jobs.DeleteSchedule(ctx, string(t), in.Queue, in.ID); err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	return nil, nil
}

func viewOfSchedule(c *jobs.Schedule) scheduleView {
	v := scheduleView{ID: c.ID, Object: "schedule", Queue: c.Queue, Cron: textOrNil(c.Cron), TimeZone: textOrNil(c.TimeZone), Missed: c.Missed,
		Paused: c.Paused, CreatedAt: c.CreatedAt.UTC(), NextAt: timeOrNil(c.NextAt), LastAt: timeOrNil(c.LastAt),
		LastJobID: textOrNil(c.LastJobID), LastError: textOrNil(strings.ToValidUTF8(c.LastError, "\uFFFD"))}
	if c.Every > 0 {
		ms := c.Every.Milliseconds()
		v.EveryMS = &ms
	}
	j := &c.Job
	v.Job = scheduledJobView{Name: j.Name, Data: j.Data, Opts: scheduledOptsView{Priority: j.Priority, DelayMS: j.Delay.Milliseconds()}}
	o := &v.Job.Opts
	if j.Attempts != 0 {
		o.Attempts = &j.Attempts
	}
	if j.Backoff != (jobs.Backoff{}) {
		b := viewOfBackoff(j.Backoff)
		o.Backoff = &b
	}
	if j.RemoveOnComplete != (jobs.Retention{}) {
		o.RemoveOnComplete = &retention{j.RemoveOnComplete}
	}
	if j.RemoveOnFail != (jobs.Retention{}) {
		o.RemoveOnFail = &retention{j.RemoveOnFail}
	}
	if j.Timeout > 0 {
		ms := j.Timeout.Milliseconds()
		o.TimeoutMS = &ms
	}
	return v
}

func textOrNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
