package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/julienschmidt/httprouter"

	"tenderbox/jobs"
	"tenderbox/tenants"
)

// LeaseBook is how workers outside the box take jobs and end them.
type LeaseBook interface {
	Lease(context.Context, jobs.LeaseRequest) ([]jobs.Job, error)
	Complete(ctx context.Context, r jobs.LeaseRef, result json.RawMessage) (jobs.Job, error)
	CompleteMany(ctx context.Context, done []jobs.Completion) ([]jobs.Job, []error)
	Fail(ctx context.Context, r jobs.LeaseRef, reason string, retry bool, delay *time.Duration) (jobs.Job, error)
	Extend(ctx context.Context, r jobs.LeaseRef, d time.Duration) (jobs.Job, error)
}

// LeaseNotes are what a worker says of a job while it has it.
type LeaseNotes interface {
	Progress(ctx context.Context, r jobs.LeaseRef, progress json.RawMessage) (jobs.Job, error)
	Log(ctx context.Context, r jobs.LeaseRef, text string) error
}

const (
	// leaseMax jobs may be asked for at once, and as many be completed at once.
	leaseMax = 1000
	// leaseDefault is how long a lease holds if the worker does not say, leaseMin and leaseLongest what it may say: below a second a
	// slow network loses more leases than it finishes jobs; beyond half a day a dead worker is nobody's surprise any more.
	leaseDefault = 30 * time.Second
	leaseMin     = time.Second
	leaseLongest = 12 * time.Hour
	// leaseWaitMax is how long a worker may wait for a job in one request: what proxies let pass.
	leaseWaitMax = 60 * time.Second
	// leaseNamesMax names of jobs, workerMax bytes of a worker's own name, tokenMax of a token.
	leaseNamesMax = 100
	workerMax     = 255
	tokenMax      = 255
	// progressMax bytes of a progress: it is written each time, and told to everybody who watches.
	progressMax = 4 << 10
	// logTextMax bytes of one line.
	logTextMax = 2 << 10
	// failTextMax bytes of an error are received; how many of them are kept the engine knows.
	failTextMax = 64 << 10
)

// newLease is the body of POST …/lease.
type newLease struct {
	Max     *int64   `json:"max,omitempty" minimum:"1" maximum:"1000" doc:"How many jobs. Default 1."`
	LeaseMS *int64   `json:"lease_ms,omitempty" minimum:"1000" doc:"Default 30000. Who needs longer extends."`
	WaitMS  int64    `json:"wait_ms,omitzero" minimum:"0" maximum:"60000" doc:"How long to wait for a first job. Default 0."`
	Worker  string   `json:"worker,omitzero" doc:"The worker's own name, shown on the job."`
	Names   []string `json:"names,omitempty" doc:"Only jobs of these names. Default: all."`
}

// newCompletion is the body of POST …/{id}/complete. Each word about a leased job shows the token, and may say whose job it is.
type newCompletion struct {
	LeaseToken string   `json:"lease_token" doc:"From the answer to the lease."`
	Tenant     *string  `json:"tenant,omitempty" doc:"Whose job it is: for a worker with the operator's token that leased from all tenants."`
	Result     rawValue `json:"result,omitempty" doc:"Any JSON value, kept with the job."`
}

type newFailure struct {
	LeaseToken string  `json:"lease_token"`
	Tenant     *string `json:"tenant,omitempty"`
	Error      string  `json:"error,omitzero" doc:"What went wrong; the first KiB is kept."`
	Retry      *bool   `json:"retry,omitempty" doc:"false: fail now, whatever attempts are left. Default true."`
	DelayMS    *int64  `json:"delay_ms,omitempty" minimum:"0" doc:"When to try again, instead of the backoff."`
}

type newExtension struct {
	LeaseToken string  `json:"lease_token"`
	Tenant     *string `json:"tenant,omitempty"`
	LeaseMS    *int64  `json:"lease_ms" minimum:"1000" doc:"From now."`
}

type newProgress struct {
	LeaseToken string   `json:"lease_token"`
	Tenant     *string  `json:"tenant,omitempty"`
	Progress   rawValue `json:"progress" doc:"Any JSON value of up to 4 KiB."`
}

type newLogLine struct {
	LeaseToken string  `json:"lease_token"`
	Tenant     *string `json:"tenant,omitempty"`
	Text       string  `json:"text"`
}

// newCompletions is the body of POST /queues/{queue}/complete.
type newCompletions struct {
	Jobs completions `json:"jobs" doc:"Up to 1000."`
}

type newCompletionOf struct {
	ID         string   `json:"id"`
	LeaseToken string   `json:"lease_token"`
	Tenant     *string  `json:"tenant,omitempty"`
	Result     rawValue `json:"result,omitempty"`
}

type completions []newCompletionOf

// UnmarshalJSONFrom is for the decoder.
func (l *completions) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return decodeList(dec, (*[]newCompletionOf)(l), "jobs", leaseMax)
}

// Schema is for the description.
func (completions) Schema(r huma.Registry) *huma.Schema { return arrayOf[newCompletionOf](r, leaseMax) }

// completedView is what became of one of many.
type completedView struct {
	ID    string     `json:"id"`
	State jobs.State `json:"state,omitzero" doc:"completed, if it was."`
	Error *Problem   `json:"error,omitempty" doc:"Why it was not; lease_stale above all."`
}

type (
	leaseOutput struct {
		Body struct {
			Jobs []jobView `json:"jobs"`
		}
	}
	completedOutput struct {
		Body struct {
			Jobs []completedView `json:"jobs" doc:"In the order of the request."`
		}
	}
)

func (s *Server) registerLeases() {
	op := func(id, path, summary, description string) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodPost, Path: path, Summary: summary, Description: description, Tags: []string{"workers"}}
	}
	lease := queuePath + "/lease"
	registerDirect[queueQuery, leaseOutput](s, op("lease-jobs", lease, "Take jobs to work on",
		"Waits up to wait_ms for a first one; none is no error. A job that is neither completed nor failed, nor its lease extended, before leased_until is "+
			"given to somebody else. Tokens stay valid over a restart. With the operator's token and no tenant named, from all tenants in turn."), forAnyone, s.lease)
	documentBody[newLease](s.api, http.MethodPost, lease)
	for _, w := range []struct {
		verb, summary, description string
		serve                      func(*exchange, httprouter.Params) error
		document                   func(huma.API, string, string)
	}{
		{"complete", "Say that a job is done", "A token that is not the present one: 409 lease_stale, and nothing changed.", s.completeJob, documentBody[newCompletion]},
		{"fail", "Say that an attempt failed", "It is tried again after its backoff as long as attempts are left.", s.failJob, documentBody[newFailure]},
		{"extend", "Keep a job for longer", "", s.extendJob, documentBody[newExtension]},
		{"progress", "Say how far a job is", "", s.progressJob, documentBody[newProgress]},
	} {
		registerDirect[jobQuery, jobOutput](s, op(w.verb+"-job", jobPath+"/"+w.verb, w.summary, w.description), forAnyone, w.serve)
		w.document(s.api, http.MethodPost, jobPath+"/"+w.verb)
	}
	log := op("log-job", jobPath+"/log", "Log a line for a job", "The newest lines are kept with the job.")
	log.DefaultStatus = http.StatusNoContent
	registerDirect[jobQuery, goneOutput](s, log, forAnyone, s.logJob)
	documentBody[newLogLine](s.api, http.MethodPost, jobPath+"/log")
	many := queuePath + "/complete"
	registerDirect[queueQuery, completedOutput](s, op("complete-jobs", many, "Say that many jobs are done",
		"Each is answered for itself: one whose lease is over does not keep the others from being completed."), forAnyone, s.completeJobs)
	documentBody[newCompletions](s.api, http.MethodPost, many)
}

func (s *Server) lease(x *exchange, p httprouter.Params) error {
	queue := p.ByName("queue")
	if err := s.allow(x, queue, work); err != nil {
		return err
	}
	var form newLease
	if _, err := x.decodeWithin(bodyMax, &form); err != nil {
		return err
	}
	r, err := form.read()
	if err != nil {
		return err
	}
	r.Queue, r.Tenant = queue, string(x.caller.Tenant)
	if err := x.mayAnswer(); err != nil {
		return err
	}
	wait := r.Wait
	r.Wait = 0
	got, err := s.jobs.Lease(x.r.Context(), r)
	if err == nil && len(got) == 0 && wait > 0 {
		r.Wait = wait
		got, err = s.waitForJobs(x, r)
	}
	if err != nil {
		return s.queueError(x.caller.Tenant, queue, err)
	}
	x.writeJobs(http.StatusOK, got, true)
	return nil
}

func (f *newLease) read() (r jobs.LeaseRequest, err error) {
	r.Max, r.For, r.Worker, r.Names = 1, leaseDefault, f.Worker, f.Names
	if f.Max != nil {
		if err := between("max", *f.Max, 1, leaseMax); err != nil {
			return r, err
		}
		r.Max = int(*f.Max)
	}
	if f.LeaseMS != nil {
		if r.For, err = milliseconds("lease_ms", *f.LeaseMS, leaseMin.Milliseconds(), leaseLongest); err != nil {
			return r, err
		}
	}
	if r.Wait, err = milliseconds("wait_ms", f.WaitMS, 0, leaseWaitMax); err != nil {
		return r, err
	}
	if !isText(f.Worker, workerMax) {
		return r, memberRange("worker", fmt.Sprintf("must be at most %d bytes without control characters", workerMax))
	}
	if len(f.Names) > leaseNamesMax {
		return r, memberRange("names", fmt.Sprintf("must be at most %d names", leaseNamesMax))
	}
	for i, n := range f.Names {
		if !isText(n, jobNameMax) || n == "" {
			return r, memberRange("names["+strconv.Itoa(i)+"]", fmt.Sprintf("must be 1 to %d bytes without control characters", jobNameMax))
		}
	}
	return r, nil
}

// waitForJobs waits outside the places of those that are worked on. The wait ends with the client's connection, and when the
// server is told to leave: an empty answer sends the worker to look again, and it finds the next box or none.
func (s *Server) waitForJobs(x *exchange, r jobs.LeaseRequest) ([]jobs.Job, error) {
	done, err := x.held.poll(&s.admission)
	if err != nil {
		return nil, err
	}
	defer done()
	x.mayTake(r.Wait)
	ctx, cancel := s.untilLeaving(x.r.Context())
	defer cancel()
	got, err := s.jobs.Lease(ctx, r)
	if len(got) == 0 && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil, nil
	}
	return got, err
}

// ref reads which job a worker speaks of.
func (s *Server) ref(x *exchange, p httprouter.Params, token string, tenant *string) (jobs.LeaseRef, error) {
	r := jobs.LeaseRef{Queue: p.ByName("queue"), ID: p.ByName("id"), Token: token}
	if err := s.allow(x, r.Queue, work); err != nil {
		return r, err
	}
	var err error
	r.Tenant, err = s.tenantOf(x, "tenant", tenant)
	if err == nil {
		err = checkToken("lease_token", token)
	}
	return r, err
}

func checkToken(field, token string) error {
	if token == "" || len(token) > tokenMax {
		return memberRange(field, "must be the token that the job was leased with")
	}
	return nil
}

// tenantOf says whose job it is: the caller's tenant, or for the operator, who named none, the one that the member names. The
// empty name is the box's own work.
func (s *Server) tenantOf(x *exchange, field string, named *string) (string, error) {
	t := x.caller.Tenant
	switch {
	case t != "" && named != nil && *named != string(t):
		return "", tenants.ErrTenantMismatch
	case t != "":
		return string(t), nil
	case named == nil:
		return "", problem(http.StatusBadRequest, "tenant_missing", field, "say whose job it is: the member tenant of the leased job, or X-Tenant-ID")
	case *named == "":
		return "", nil
	}
	id, err := tenants.ParseID(*named)
	if err != nil {
		return "", tenants.ErrTenantInvalid
	}
	if _, err := s.tenants.Get(id); err != nil {
		return "", err
	}
	return *named, nil
}

// spoken ends a word about a leased job.
func (s *Server) spoken(x *exchange, r jobs.LeaseRef, j *jobs.Job, err error) error {
	if err != nil {
		return s.queueError(tenants.ID(r.Tenant), r.Queue, err)
	}
	return x.writeJob(http.StatusOK, j)
}

func (s *Server) completeJob(x *exchange, p httprouter.Params) error {
	var form newCompletion
	if _, err := x.decodeWithin(jobBodyMax, &form); err != nil {
		return err
	}
	r, err := s.ref(x, p, form.LeaseToken, form.Tenant)
	if err != nil {
		return err
	}
	j, err := s.jobs.Complete(x.r.Context(), r, json.RawMessage(form.Result))
	return s.spoken(x, r, &j, err)
}

func (s *Server) failJob(x *exchange, p httprouter.Params) error {
	var form newFailure
	if _, err := x.decodeWithin(jobBodyMax, &form); err != nil {
		return err
	}
	r, err := s.ref(x, p, form.LeaseToken, form.Tenant)
	if err != nil {
		return err
	}
	if len(form.Error) > failTextMax {
		return memberRange("error", fmt.Sprintf("must be at most %d bytes", failTextMax))
	}
	var delay *time.Duration
	if form.DelayMS != nil {
		d, err := milliseconds("delay_ms", *form.DelayMS, 0, spanMax)
		if err != nil {
			return err
		}
		delay = &d
	}
	j, err := s.jobs.Fail(x.r.Context(), r, form.Error, form.Retry == nil || *form.Retry, delay)
	return s.spoken(x, r, &j, err)
}

func (s *Server) extendJob(x *exchange, p httprouter.Params) error {
	var form newExtension
	if _, err := x.decodeWithin(bodyMax, &form); err != nil {
		return err
	}
	r, err := s.ref(x, p, form.LeaseToken, form.Tenant)
	if err != nil {
		return err
	}
	if form.LeaseMS == nil {
		return memberRange("lease_ms", "must say for how long")
	}
	d, err := milliseconds("lease_ms", *form.LeaseMS, leaseMin.Milliseconds(), leaseLongest)
	if err != nil {
		return err
	}
	j, err := s.jobs.Extend(x.r.Context(), r, d)
	return s.spoken(x, r, &j, err)
}

func (s *Server) progressJob(x *exchange, p httprouter.Params) error {
	var form newProgress
	if _, err := x.decodeWithin(jobBodyMax, &form); err != nil {
		return err
	}
	r, err := s.ref(x, p, form.LeaseToken, form.Tenant)
	if err != nil {
		return err
	}
	if len(form.Progress) == 0 || len(form.Progress) > progressMax {
		return memberRange("progress", fmt.Sprintf("must be a JSON value of at most %d bytes", progressMax))
	}
	j, err := s.jobs.Progress(x.r.Context(), r, json.RawMessage(form.Progress))
	return s.spoken(x, r, &j, err)
}

func (s *Server) logJob(x *exchange, p httprouter.Params) error {
	var form newLogLine
	if _, err := x.decodeWithin(bodyMax, &form); err != nil {
		return err
	}
	r, err := s.ref(x, p, form.LeaseToken, form.Tenant)
	if err != nil {
		return err
	}
	if form.Text == "" || len(form.Text) > logTextMax {
		return memberRange("text", fmt.Sprintf("must be 1 to %d bytes", logTextMax))
	}
	if err := s.jobs.Log(x.r.Context(), r, form.Text); err != nil {
		return s.queueError(tenants.ID(r.Tenant), r.Queue, err)
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) completeJobs(x *exchange, p httprouter.Params) error {
	queue := p.ByName("queue")
	if err := s.allow(x, queue, work); err != nil {
		return err
	}
	var form newCompletions
	if _, err := x.decodeWithin(bulkBodyMax, &form); err != nil {
		return err
	}
	if len(form.Jobs) == 0 {
		return memberRange("jobs", "must be at least one job")
	}
	done := make([]jobs.Completion, len(form.Jobs))
	for i := range form.Jobs {
		c, at := &form.Jobs[i], "jobs["+strconv.Itoa(i)+"]."
		t, err := s.tenantOf(x, at+"tenant", c.Tenant)
		if err == nil {
			err = checkToken(at+"lease_token", c.LeaseToken)
		}
		switch {
		case err != nil:
			return err
		case c.ID == "":
			return memberRange(at+"id", "must be the job's id")
		case len(c.Result) > jobDataMax:
			return memberRange(at+"result", fmt.Sprintf("must be at most %d bytes", jobDataMax))
		}
		done[i] = jobs.Completion{LeaseRef: jobs.LeaseRef{Tenant: t, Queue: queue, ID: c.ID, Token: c.LeaseToken}, Result: json.RawMessage(c.Result)}
	}
	_, errs := s.jobs.CompleteMany(x.r.Context(), done)
	b := append(make([]byte, 0, 64*len(done)), `{"jobs":[`...)
	for i, err := range errs {
		if i > 0 {
			b = append(b, ',')
		}
		b = quoted(b, `{"id":`, done[i].ID)
		if err == nil {
			b = append(b, `,"state":"completed"}`...)
			continue
		}
		why, jerr := json.Marshal(s.fail(x, s.queueError(tenants.ID(done[i].Tenant), queue, err)))
		if jerr != nil {
			return jerr
		}
		b = append(append(append(b, `,"error":`...), why...), '}')
	}
	x.write(http.StatusOK, append(b, "]}"...))
	return nil
}
